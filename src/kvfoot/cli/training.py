"""What the verbs of `kvfoot train` have in common: options, model, text, loop, what is shown."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from typer import Option

from kvfoot.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from kvfoot.core.geometry import Geometry
    from kvfoot.train.packing import Packed, Source
    from kvfoot.train.run import Trainer
    from kvfoot.train.world import World

Model = Annotated[str, Option(help="smollm2, recall, a folder, a .gguf file or a hub name; its weights do not change")]
Data = Annotated[list[Path], Option(help="text: .txt, .txt.gz, .jsonl, .jsonl.gz, .parquet, or folders of them")]
Out = Annotated[Path, Option(help="folder for what is learned, log.jsonl and the state to resume from")]
Length = Annotated[int, Option(help="tokens of a row")]
Batch = Annotated[int, Option(help="rows of a step")]
Seed = Annotated[int, Option(help="of what is learned and of the order of the data")]
Set = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="any other field of the recipe")]
Column = Annotated[str, Option(help="field of a JSON line, or column of a parquet file")]
Dtype = Annotated[str, Option(help="of the model: auto, bfloat16, float16 or float32; what is learned is float32")]
Device = Annotated[str, Option(help="auto, cpu, cuda or cuda:N")]
Checkpointing = Annotated[bool, Option(help="make activations again on the way back: less memory, a third more time")]
Shard = Annotated[bool, Option("--shard", help="under torchrun: divide the weights among the processes (FSDP)")]
Save = Annotated[int, Option(help="steps between checkpoints")]
Log = Annotated[int, Option(help="steps between lines of the log")]
Board = Annotated[Path | None, Option(help="folder for TensorBoard's events")]
Resume = Annotated[bool, Option("--resume", help="go on with the run in --out, given the same options")]
Yes = Annotated[bool, Option("--yes", help="go on without a GPU, whatever the estimate")]
Rows = Annotated[str, Option(help="text; passkeys in it; or synthesis: notes, and questions about them with answers")]

Notes = Annotated[int, Option(help="of synthesis: notes in a row, each of 4 facts")]


@dataclass(frozen=True)
class Form:
    """What rows are made of. notes: of synthesis. keys of `words` words each; supervise: of passkeys."""

    rows: str
    seed: int
    notes: int = 16
    keys: int = 10
    words: int = 32
    supervise: str = "questions"

    def __post_init__(self) -> None:
        if self.rows not in ("text", "passkeys", "synthesis"):
            raise UsageError(f"--rows {self.rows}: text, passkeys or synthesis")
        if self.supervise not in ("questions", "passkeys"):
            raise UsageError(f"--supervise {self.supervise}: questions or passkeys")

    def source(self, text: "Packed") -> "Source":
        """Raises UsageError where rows of that length do not hold what is to be in them."""
        from kvfoot.train.passkeys import Passkeys, PasskeyShape
        from kvfoot.train.synthesis import Synthesis, SynthesisShape

        if self.rows == "passkeys":
            shape = PasskeyShape(self.keys, self.words, supervise=self.supervise)  # type: ignore[arg-type]
            return Passkeys(text, shape, self.seed)
        return text if self.rows == "text" else Synthesis(text, SynthesisShape(self.notes), self.seed)


class Run:
    """A training from the options of its verb to the last line that it prints."""

    def __init__(
        self,
        model: str,
        data: list[Path],
        out: Path,
        length: int,
        batch: int,
        field: str,
        dtype: str,
        device: str,
        checkpointing: bool,
        shard: bool,
        save_every: int,
        log_every: int,
        resume: bool,
        yes: bool,
    ):
        from kvfoot.train.reading import find_files

        for name, value in (("length", length), ("batch", batch), ("save-every", save_every), ("log-every", log_every)):
            if value < 1:
                raise UsageError(f"--{name} {value}: give at least 1")
        self.files = find_files(data)
        self.model, self.out, self.length, self.batch, self.field = model, out, length, batch, field
        self.dtype, self.device, self.checkpointing, self.resume, self.yes = dtype, device, checkpointing, resume, yes
        self.save_every, self.log_every, self.shard = save_every, log_every, shard

    def go(
        self,
        make: "Callable[[Any, Geometry, World], Trainer]",
        options: Any,
        form: Form,
        *,
        passes: int,
        board: Path | None,
        told: "Callable[[Trainer], str]",
    ) -> int:
        """passes: forward passes that a step costs. told: the line at the end."""
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from kvfoot.cli.console import stderr
        from kvfoot.models.layout import geometry_of
        from kvfoot.models.load import load
        from kvfoot.train.ahead import Ahead
        from kvfoot.train.packing import Packed, encoder
        from kvfoot.train.run import RunOptions, check_time, estimate, train
        from kvfoot.train.world import local_device, shard, world

        console = stderr()
        say = lambda line: console.print(line, style="dim", markup=False)  # noqa: E731
        found = load(self.model, dtype=self.dtype, device=local_device(self.device), on_event=say)
        geometry = geometry_of(found.model)
        if self.length > geometry.positions:
            raise UsageError(f"--length {self.length} exceeds the model's {geometry.positions} positions")
        if geometry.kv_heads == 1:
            say("note: one KV head per layer: what is learned per head holds for the layer as a whole")
        begin = found.tokenizer.bos_token_id
        opening = [] if begin is None else [begin]
        encode = encoder(found.tokenizer)
        text = Packed(self.files, encode, self.length, seed=options.seed, begin=opening, column=self.field)
        text.check()
        source = Ahead(form.source(text), self.batch)
        if found.model.device.type == "cpu":
            passes = passes + 1 if self.checkpointing else passes
            seconds = estimate(found.model, options.steps * self.batch * self.length, self.length, passes)
            check_time(seconds, self.yes, say)
        with world(found.model.device) as processes:
            model = shard(found.model, processes, self.batch) if self.shard else found.model
            trainer = make(model, geometry, processes)
            how = RunOptions(
                self.out, self.batch, self.save_every, self.log_every, self.resume, self.checkpointing,
                data=self._described(form),
                model_name=self.model, revision=found.revision,
            )  # fmt: skip
            with watch(console, options.steps, board, processes) as listener:
                train(trainer, source, how, listener)
            if processes.first:
                print(told(trainer), flush=True)
        return 0

    def _described(self, form: Form) -> dict[str, Any]:
        """What the record says about the data."""
        said = {"files": [path.name for path in self.files], "length": self.length}
        if form.rows == "text":
            return said
        return said | {"rows": form.rows} | ({"notes": form.notes} if form.rows == "synthesis" else {})


def recipe(kind: type, pairs: list[str], given: Mapping[str, Any]) -> Any:
    """`given` have options of their own; `pairs` are other fields, read by their type."""
    from kvfoot.cli.inputs import settings
    from kvfoot.core.errors import did_you_mean
    from kvfoot.core.registry import read_option

    types = get_type_hints(kind)
    names = [f.name for f in fields(kind) if f.name not in given]
    values = dict(given)
    for name, value in settings(pairs).items():
        if name in given:
            raise UsageError(f"--set {name}: it has an option of its own, --{name}")
        if name not in names:
            raise UsageError(f"--set: unknown field {name!r}{did_you_mean(name, names)}")
        values[name] = read_option("--set", name, value, types[name])
    return kind(**values)


@contextmanager
def watch(
    console: "Console", steps: int, board: Path | None, processes: "World"
) -> Iterator[Callable[[dict[str, float]], None]]:
    """A bar with the numbers of the step, and TensorBoard's events where they are asked for."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    shown = processes.first and console.is_terminal
    writer = _board(board) if board is not None and processes.first else None
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=steps)

        def listener(numbers: dict[str, float]) -> None:
            told = (f"{name} {numbers[name]:.3g}" for name in SHOWN if name in numbers)
            bar.update(task, completed=numbers["step"], description="  ".join(told))
            if writer is not None:
                for name, value in numbers.items():
                    writer.add_scalar(name, value, int(numbers["step"]))

        try:
            yield listener
        finally:
            if writer is not None:
                writer.close()


SHOWN = ("loss", "distance", "sparsity", "target", "undecided", "lambda1", "lambda2", "closing", "admitted")


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("--tensorboard needs the package tensorboard: pip install 'kvfoot[tensorboard]'") from None
    return SummaryWriter(str(folder))
