"""`kvfoot eval`: a sweep of tasks, lengths, methods and knob values, into one folder that survives anything."""

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from kvfoot.cli import inputs
from kvfoot.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from kvfoot.evaluate.drive import Queue


def evaluate(
    model: Annotated[str, Option(help="smollm2, recall, a folder, a .gguf file or a hub name")],
    tasks: Annotated[str, Option(help="names, .jsonl files and .py files, separated by commas")],
    methods: Annotated[str, Option(help="names, or name:option=value, separated by commas; see kvfoot methods")],
    out: Annotated[Path, Option(help="folder of the results; the same command goes on where it was")],
    knob: Annotated[list[str] | None, Option(metavar="NAME=V,V,...", help="keep, budget, or a method's option")] = None,
    lengths: Annotated[str, Option(help="context tokens, separated by commas; 4K is 4096")] = "",
    samples: Annotated[int, Option(help="of every cell")] = 50,
    chunk: Annotated[str, Option(help="prompt tokens per pass, or all")] = "512",
    evict: Annotated[str, Option(help="post: after the whole prompt; chunk: after every chunk; or both")] = "post",
    question: Annotated[str, Option(help="before or after the eviction")] = "before",
    set_: Annotated[
        list[str] | None, Option("--set", metavar="METHOD.OPTION=VALUE", help="an option of one of the methods")
    ] = None,
    seed: Annotated[int, Option(help="of the samples")] = 0,
    workers: Annotated[int, Option(help="processes, each with a model of its own")] = 1,
    batch: Annotated[int | None, Option(help="prompts at a time (default: by length)")] = None,
    ray: Annotated[str | None, Option(metavar="ADDRESS", help="workers on a Ray cluster; local: on this host")] = None,
    whole: Annotated[bool, Option("--whole", help="write answers to their end, also where one pass scores")] = False,
    data: Annotated[str | None, Option(help="folder with books/ and words/ for tasks that need text")] = None,
    export: Annotated[Path | None, Option(help="also write everything in the folder as a compact .json.gz")] = None,
    dtype: Annotated[str, Option(help="auto, bfloat16, float16 or float32")] = "auto",
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    backend: Annotated[str | None, Option(help="see kvfoot doctor")] = None,
    kv_memory: Annotated[str | None, Option(help="size of the cache's pool: 2GiB, or 0.9 of what is free")] = None,
    chat: Annotated[
        bool | None, Option("--chat/--no-chat", help="the chat template (default: as the task says)")
    ] = None,
) -> int:
    """Quality against footprint: every sample's answer, score and record goes to a database in --out."""
    from kvfoot.evaluate.sweep import Sweep

    sweep = Sweep(
        model=model,
        tasks=tuple(_names("--tasks", tasks)),
        methods=tuple(_names("--methods", methods)),
        knobs=dict(_knob(text) for text in _once("--knob", knob or [])),
        lengths=tuple(_length(text) for text in _names("--lengths", lengths, least=0)),
        samples=samples,
        seed=seed,
        chunk=inputs.chunk_size(chunk),
        evict=tuple(_names("--evict", evict)),
        question=question,
        options=_options(set_ or []),
        chat=chat,
        batch=batch,
        whole=whole,
        data=data,
        dtype=dtype,
        device=device,
        backend=backend,
        kv_memory=inputs.pool_size(kv_memory),
    )
    return _run(sweep, out, workers, ray, export)


def _run(sweep: Any, out: Path, workers: int, ray: str | None, export: Path | None) -> int:
    from kvfoot.attention.backend import choose
    from kvfoot.cli.console import stderr
    from kvfoot.evaluate import catalog
    from kvfoot.evaluate.export import write
    from kvfoot.evaluate.store import FILE, Store, check

    if workers < 1:
        raise UsageError(f"--workers {workers}: give at least 1")
    _check_out(out, export)
    if (out / FILE).exists():
        check(out / FILE)
    sweep.variants()
    choose(sweep.backend)
    catalog.find(sweep.tasks, sweep.data)
    files = [name for name in sweep.tasks if name.endswith((".jsonl", ".py"))]
    if not sweep.lengths and len(files) < len(sweep.tasks):
        raise UsageError("--lengths: give the context tokens of the built-in tasks, such as --lengths 1K,4K")
    console = stderr()
    watch = Watch(console, sweep.samples)
    if ray is not None:
        from kvfoot.evaluate.rays import run_on_ray

        run_on_ray(sweep, out, ray, workers, watch)
    else:
        from kvfoot.evaluate.drive import run

        with console.status(f"loading {sweep.model}") as status:
            watch.status = status
            run(sweep, out, workers=workers, tell=watch)
    watch.close()
    if export is not None:
        store = Store(out, create=False)
        write(store.results(), export)
        store.close()
        console.print(f"export: {export}", style="dim", markup=False)
    console.print(f"results: {out}", style="dim", markup=False)
    return 0


class Watch:
    """Progress on the standard error: a bar where there is a terminal, else a line per finished cell."""

    def __init__(self, console: "Console", samples: int):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console, self.samples = console, samples
        self.status: Status | None = None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("samples, left"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task: Any = None
        self._said: set[int] = set()
        self._shown = -1.0

    def __call__(self, queue: "Queue") -> None:
        now = monotonic()
        if now - self._shown < 0.2 and not queue.complete:
            return
        self._shown = now
        numbers = queue.numbers
        found = queue.store.progress(numbers, self.samples)
        total = len(numbers) * self.samples
        if self._task is None:
            if self.status is not None:
                self.status.stop()
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=sum(n for n, _ in found.values()))
        full = [n for n in numbers if found.get(n, (0, 0))[0] >= self.samples]
        latest = ""
        for number in [n for n in full if n not in self._said]:
            self._said.add(number)
            cell, _ = queue.cells[numbers.index(number)]
            size = "" if cell.knob is None else f" {cell.knob}={cell.value:g} {cell.evict or ''}".rstrip()
            where = f"{cell.task} {cell.length}" if cell.length else cell.task
            latest = f"{where} {cell.method}{size}: {found[number][1]:.3f}"
            if not self.console.is_terminal:
                self.console.print(latest, markup=False)
        done = sum(min(n, self.samples) for n, _ in found.values())
        text = f"{len(full)} of {len(numbers)} cells"
        self._bar.update(self._task, completed=done, description=f"{text}  {latest}" if latest else None)

    def close(self) -> None:
        self._bar.stop()
        if self.status is not None:
            self.status.stop()


def _names(option: str, text: str, least: int = 1) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if len(found) < least:
        raise UsageError(f"{option}: give at least one")
    for name in found:
        if found.count(name) > 1:
            raise UsageError(f"{option}: {name} is given twice")
    return found


def _once(option: str, texts: list[str]) -> list[str]:
    names = [text.partition("=")[0].strip() for text in texts]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{option} {name} is given twice: separate values with commas")
    return texts


def _knob(text: str) -> tuple[str, tuple[float, ...]]:
    name, equals, values = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"--knob {text}: write a name and values, such as --knob keep=0.5,0.25")
    try:
        return name.strip(), tuple(float(v) for v in values.split(",") if v.strip())
    except ValueError:
        raise UsageError(f"--knob {text}: values are numbers, such as --knob keep=0.5,0.25") from None


def _length(text: str) -> int:
    return inputs.tokens("--lengths", text)


def _options(pairs: list[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for key, value in inputs.settings(pairs).items():
        method, dot, option = key.partition(".")
        if not dot or not method or not option:
            raise UsageError(f"--set {key}={value}: write method.option=value, such as --set snapkv.window=32")
        found.setdefault(method, {})[option] = value
    return found


def _check_out(out: Path, export: Path | None) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: give a folder")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}: make it first")
    if export is not None and (not export.parent.is_dir() or export.is_dir() or not export.name.endswith(".json.gz")):
        raise UsageError(f"--export {export}: give a file in an existing folder, with a name ending in .json.gz")
