"""`kvfoot train prulong` and `kvfoot train duo`: which KV heads of a model need the whole context."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from typer import Option

from kvfoot.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from kvfoot.train.packing import Packed, Source
    from kvfoot.train.run import Trainer
    from kvfoot.train.world import World

Model = Annotated[str, Option(help="smollm2, recall, a folder, a .gguf file or a hub name; its weights do not change")]
Data = Annotated[list[Path], Option(help="text: .txt, .txt.gz, .jsonl, .jsonl.gz, .parquet, or folders of them")]
Out = Annotated[Path, Option(help="folder for heads.json, heads.txt (drawn), log.jsonl and the state to resume from")]
Length = Annotated[int, Option(help="tokens of a row")]
Batch = Annotated[int, Option(help="rows of a step")]
Sink = Annotated[int, Option(help="first tokens that a streaming head sees")]
Window = Annotated[int, Option(help="recent tokens that it sees, its own included")]
Seed = Annotated[int, Option(help="of the gates and of the order of the data")]
Set = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="any other field of the recipe")]
Column = Annotated[str, Option(help="field of a JSON line, or column of a parquet file")]
Dtype = Annotated[str, Option(help="of the model: auto, bfloat16, float16 or float32; gates are float32")]
Device = Annotated[str, Option(help="auto, cpu, cuda or cuda:N")]
Checkpointing = Annotated[bool, Option(help="make activations again on the way back: less memory, a third more time")]
Shard = Annotated[bool, Option("--shard", help="under torchrun: divide the weights among the processes (FSDP)")]
Save = Annotated[int, Option(help="steps between checkpoints")]
Log = Annotated[int, Option(help="steps between lines of the log")]
Board = Annotated[Path | None, Option(help="folder for TensorBoard's events")]
Resume = Annotated[bool, Option("--resume", help="go on with the run in --out, given the same options")]
Yes = Annotated[bool, Option("--yes", help="go on without a GPU, whatever the estimate")]


def prulong(
    model: Model,
    data: Data,
    out: Out,
    sparsity: Annotated[float, Option(help="share of streaming heads to reach, in [0, 1)")] = 0.7,
    length: Length = 8192,
    batch: Batch = 8,
    steps: Annotated[int, Option(help="updates")] = 1000,
    sink: Sink = 128,
    window: Window = 1024,
    seed: Seed = 0,
    set_: Set = None,
    field: Column = "text",
    dtype: Dtype = "auto",
    device: Device = "auto",
    checkpointing: Checkpointing = True,
    shard: Shard = False,
    save_every: Save = 100,
    log_every: Log = 10,
    tensorboard: Board = None,
    resume: Resume = False,
    yes: Yes = False,
) -> int:
    """Gates by next-token prediction on long texts, driven to a target sparsity (arXiv 2506.17121)."""
    from kvfoot.train.prulong import PruLong, PruLongOptions

    given = {"sparsity": sparsity, "steps": steps, "sink": sink, "window": window, "seed": seed}
    options = _recipe(PruLongOptions, set_ or [], given)
    run = _Run(
        model, data, out, length, batch, field, dtype, device, checkpointing, shard, save_every, log_every, resume, yes
    )  # fmt: skip
    return run.go(PruLong, options, lambda text: text, passes=3, board=tensorboard)


def duo(
    model: Model,
    data: Data,
    out: Out,
    length: Length = 8192,
    batch: Batch = 1,
    steps: Annotated[int, Option(help="updates")] = 2000,
    sink: Sink = 128,
    window: Window = 256,
    keys: Annotated[int, Option(help="passkeys in a row")] = 10,
    words: Annotated[int, Option(help="words of a passkey")] = 32,
    supervise: Annotated[
        str, Option(help="questions: all tokens after the text, as released; passkeys: these alone")
    ] = ("questions"),
    seed: Seed = 0,
    set_: Set = None,
    field: Column = "text",
    dtype: Dtype = "auto",
    device: Device = "auto",
    checkpointing: Checkpointing = True,
    shard: Shard = False,
    save_every: Save = 100,
    log_every: Log = 10,
    tensorboard: Board = None,
    resume: Resume = False,
    yes: Yes = False,
) -> int:
    """Gates by repeating passkeys as full attention does (arXiv 2410.10819); round them to any sparsity afterwards."""
    from kvfoot.train.duo import Duo, DuoOptions
    from kvfoot.train.passkeys import Passkeys, PasskeyShape

    if supervise not in ("questions", "passkeys"):
        raise UsageError(f"--supervise {supervise}: questions or passkeys")
    shape = PasskeyShape(keys, words, supervise=supervise)  # type: ignore[arg-type]
    options = _recipe(DuoOptions, set_ or [], {"steps": steps, "sink": sink, "window": window, "seed": seed})
    run = _Run(
        model, data, out, length, batch, field, dtype, device, checkpointing, shard, save_every, log_every, resume, yes
    )  # fmt: skip
    return run.go(Duo, options, lambda text: Passkeys(text, shape, seed), passes=4, board=tensorboard)


class _Run:
    """What both have in common: model, text, loop and what is shown."""

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
        make: Callable[..., "Trainer"],
        options: Any,
        rows: "Callable[[Packed], Source]",
        *,
        passes: int,
        board: Path | None,
    ) -> int:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from kvfoot.cli.console import stderr
        from kvfoot.models.layout import geometry_of
        from kvfoot.models.load import load
        from kvfoot.train.ahead import Ahead
        from kvfoot.train.packing import Packed, encoder
        from kvfoot.train.run import RunOptions, check_time, estimate, train_heads
        from kvfoot.train.world import local_device, shard, world

        console = stderr()
        say = lambda line: console.print(line, style="dim", markup=False)  # noqa: E731
        found = load(self.model, dtype=self.dtype, device=local_device(self.device), on_event=say)
        geometry = geometry_of(found.model)
        if self.length > geometry.positions:
            raise UsageError(f"--length {self.length} exceeds the model's {geometry.positions} positions")
        if geometry.kv_heads == 1:
            say("note: one KV head per layer: a layer is full or streaming as a whole")
        begin = found.tokenizer.bos_token_id
        opening = [] if begin is None else [begin]
        encode = encoder(found.tokenizer)
        text = Packed(self.files, encode, self.length, seed=options.seed, begin=opening, column=self.field)
        text.check()
        source = Ahead(rows(text), self.batch)
        if found.model.device.type == "cpu":
            passes = passes + 1 if self.checkpointing else passes
            seconds = estimate(found.model, options.steps * self.batch * self.length, self.length, passes)
            check_time(seconds, self.yes, say)
        with world(found.model.device) as processes:
            model = shard(found.model, processes, self.batch) if self.shard else found.model
            trainer = make(model, (geometry.layers, geometry.kv_heads), options, processes)
            how = RunOptions(
                self.out, self.batch, self.save_every, self.log_every, self.resume, self.checkpointing,
                data={"files": [path.name for path in self.files], "length": self.length},
                model_name=self.model, revision=found.revision,
            )  # fmt: skip
            with _watch(console, options.steps, board, processes) as listener:
                gates = train_heads(trainer, source, how, listener)
            if processes.first:
                full = gates.full()
                print(f"{full.sum()} of {full.size} KV heads full: {self.out / 'heads.json'}", flush=True)
        return 0


def _recipe(kind: type, pairs: list[str], given: Mapping[str, Any]) -> Any:
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
def _watch(
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


SHOWN = ("loss", "distance", "sparsity", "target", "undecided", "lambda1", "lambda2")


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter(str(folder))
