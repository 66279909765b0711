"""`kvfoot bench`: speed and memory on this machine, against what its hardware allows and against transformers."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from kvfoot.cli import inputs
from kvfoot.core.errors import KvfootError, UsageError

if TYPE_CHECKING:
    from kvfoot.bench.record import BenchRecord
    from kvfoot.bench.variant import Variant
    from kvfoot.engine.engine import Engine

bench = typer.Typer(
    name="bench",
    help="Measure decode, prefill, capacity and kernels; weights are random, nothing is downloaded.",
    no_args_is_help=True,
)

Shape = Annotated[str, Option(help="llama-3.1-8b, qwen2.5-7b, smollm2, ...")]
Context = Annotated[str, Option(help="tokens, such as 4096 or 128K; decoded ones included")]
Name = Annotated[str, Option(help="see kvfoot methods")]
Set = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="an option of the method")]
Keep = Annotated[str | None, Option(help="fraction of entries to keep, such as 0.12")]
Entries = Annotated[int | None, Option(help="entries to keep per layer and KV head")]
Evict = Annotated[str, Option(help="post or chunk, as in kvfoot run")]
Chunk = Annotated[str, Option(help="prompt tokens per pass, or all")]
Beside = Annotated[str, Option(help="what is measured in the same run: transformers, full, both, or none")]
Dtype = Annotated[str, Option(help="auto, bfloat16, float16 or float32")]
Device = Annotated[str, Option(help="auto, cpu, cuda or cuda:N")]
Backend = Annotated[str | None, Option(help="see kvfoot doctor")]
PageSize = Annotated[int, Option(help="entries per page of the cache")]
KvMemory = Annotated[str | None, Option(help="size of the cache's pool: 40GiB, or 0.9 of what is free")]
Out = Annotated[Path | None, Option(help="write the record as JSON")]
Steps = Annotated[int, Option(help="decode steps of a round")]
Rounds = Annotated[int, Option(help="rounds that are measured; their median counts")]


@bench.command()
def decode(
    ctx: typer.Context,
    model_shape: Shape = "smollm2",
    context: Context = "4K",
    batch: Annotated[int, Option(help="sequences")] = 1,
    method: Name = "full",
    set_: Set = None,
    keep: Keep = None,
    budget: Entries = None,
    evict: Evict = "chunk",
    chunk: Chunk = "512",
    fill: Annotated[str, Option(help="synthetic: random entries; prompt: random tokens are read")] = "synthetic",
    beside: Beside = "transformers",
    steps: Steps = 24,
    rounds: Rounds = 5,
    warm: Annotated[int, Option(help="steps before them that are not measured")] = 16,
    dtype: Dtype = "auto",
    device: Device = "auto",
    backend: Backend = None,
    page_size: PageSize = 16,
    out: Out = None,
) -> int:
    """Milliseconds of a decode step, beside the time that reading weights, keys and values takes at copy speed."""
    if fill not in ("synthetic", "prompt"):
        raise UsageError(f"--fill {fill}: synthetic or prompt")
    inputs.at_least_one(batch=batch, steps=steps, rounds=rounds, warm=warm, page_size=page_size)
    inputs.record_path(out, "--out")
    own = _variant(method, set_, keep, budget, evict, chunk)
    variants, plain = _sides(own, beside)

    from kvfoot.bench.decode import Decoding
    from kvfoot.bench.decode import decode as measure

    what = Decoding(
        variants, inputs.tokens("--context", context), batch, steps, rounds, warm, fill == "synthetic", plain
    )
    engine = _engine(
        model_shape, dtype, device, backend, page_size, lambda g, item: _most(what.needs(g, item, page_size))
    )
    return _close(ctx, "decode", engine, what.settings(), measure(engine, what, _tell()), out)


@bench.command()
def prefill(
    ctx: typer.Context,
    model_shape: Shape = "smollm2",
    context: Context = "4K",
    method: Name = "full",
    set_: Set = None,
    keep: Keep = None,
    budget: Entries = None,
    evict: Evict = "chunk",
    chunk: Chunk = "512",
    beside: Beside = "transformers",
    rounds: Rounds = 3,
    warm: Annotated[int, Option(help="tokens of a prompt that is read before, unmeasured")] = 1024,
    dtype: Dtype = "auto",
    device: Device = "auto",
    backend: Backend = None,
    page_size: PageSize = 16,
    out: Out = None,
) -> int:
    """Seconds to read a prompt, beside the time that its operations take at the rate of a matrix product."""
    inputs.at_least_one(rounds=rounds, warm=warm, page_size=page_size)
    inputs.record_path(out, "--out")
    own = _variant(method, set_, keep, budget, evict, chunk)
    variants, plain = _sides(own, beside)

    from kvfoot.bench.prefill import Reading, width_of
    from kvfoot.bench.prefill import prefill as measure
    from kvfoot.bench.shapes import config_of

    what = Reading(variants, inputs.tokens("--context", context), rounds, warm, plain)
    width = width_of(config_of(model_shape))
    engine = _engine(
        model_shape, dtype, device, backend, page_size, lambda g, item: _most(what.needs(g, item, page_size, width))
    )
    return _close(ctx, "prefill", engine, what.settings(), measure(engine, what, _tell()), out)


@bench.command()
def capacity(
    ctx: typer.Context,
    model_shape: Shape = "smollm2",
    context: Context = "4K",
    method: Name = "full",
    set_: Set = None,
    keep: Keep = None,
    budget: Entries = None,
    evict: Evict = "chunk",
    chunk: Chunk = "512",
    beside: Annotated[str, Option(help="full: it is measured too, in a pool of the same size; or none")] = "full",
    kv_memory: KvMemory = None,
    most: Annotated[int | None, Option(help="no more sequences than that")] = None,
    steps: Steps = 16,
    rounds: Rounds = 3,
    warm: Annotated[int, Option(help="steps before them that are not measured")] = 16,
    dtype: Dtype = "auto",
    device: Device = "auto",
    backend: Backend = None,
    page_size: PageSize = 16,
    out: Out = None,
) -> int:
    """Tokens per second with as many sequences as the pool admits."""
    inputs.at_least_one(steps=steps, rounds=rounds, warm=warm, page_size=page_size)
    if most is not None:
        inputs.at_least_one(most=most)
    inputs.record_path(out, "--out")
    if beside not in ("full", "none"):
        raise UsageError(f"--beside {beside}: full or none")
    variants, _ = _sides(_variant(method, set_, keep, budget, evict, chunk), beside)
    size = inputs.pool_size(kv_memory)

    import torch

    from kvfoot.bench.capacity import SHARE, Filling
    from kvfoot.bench.capacity import capacity as measure
    from kvfoot.models.load import _device

    what = Filling(variants, inputs.tokens("--context", context), steps, rounds, warm, size or SHARE, most)

    def needs(geometry: Any, item: int) -> dict[str, int]:
        what.batches(geometry, item, page_size, what.pool(torch.device(_device(device))))
        return {"the pool": size} if isinstance(size, int) else {}

    engine = _engine(model_shape, dtype, device, backend, page_size, needs)
    return _close(ctx, "capacity", engine, what.settings(), measure(engine, what, _tell()), out)


@bench.command()
def kernels(
    ctx: typer.Context,
    out: Out = None,
    jobs: Annotated[int, Option(help="checks at a time")] = 12,
    seconds: Annotated[float, Option(help="no new part is begun after this time")] = 150,
) -> int:
    """The Triton kernels on a CUDA GPU, checked and timed; exit code 1 if a check fails."""
    inputs.at_least_one(jobs=jobs)
    inputs.record_path(out, "--out")
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            "bench kernels times kernels on a CUDA GPU, and torch finds none: kvfoot doctor says what it has"
        )
    from kvfoot.attention.triton import load

    load()
    from kvfoot.bench.kernels import kernels as measure

    return 0 if measure(_command(ctx), out, jobs, seconds) else 1


def _variant(
    method: str, set_: list[str] | None, keep: str | None, budget: int | None, evict: str, chunk: str
) -> "Variant":
    """Raises UsageError for what no shape would make right."""
    from kvfoot.bench.variant import Variant
    from kvfoot.core.budget import Budget
    from kvfoot.core.registry import method as find_method

    options: dict[str, Any] = dict(inputs.settings(set_ or []))
    find_method(method, options)
    Budget.of(keep, budget, evict)
    return Variant(method, options, keep, budget, evict, inputs.chunk_size(chunk))


def _sides(own: "Variant", beside: str) -> "tuple[tuple[Variant, ...], bool]":
    """The variants, the asked one first, and whether transformers is measured. Raises UsageError."""
    from kvfoot.bench.variant import TRANSFORMERS, Variant

    if beside not in (TRANSFORMERS, "full", "both", "none"):
        raise UsageError(f"--beside {beside}: transformers, full, both or none")
    full = Variant(chunk=own.chunk)
    more = (full,) if beside in ("full", "both") and own.title != full.title else ()
    return (own, *more), beside in (TRANSFORMERS, "both")


def _engine(shape: str, dtype: str, device: str, backend: str | None, page_size: int, needs: Any) -> "Engine":
    """The shape's engine, once it is known that weights and `needs(geometry, bytes per number)` fit the memory."""
    import torch

    from kvfoot.attention.backend import choose
    from kvfoot.bench import memory, shapes
    from kvfoot.models.load import _device, _dtype

    where = _device(device)
    kind = _dtype(dtype, where)
    choose(backend)
    parts = needs(shapes.geometry(shape), kind.itemsize)
    weights = shapes.weight_bytes(shapes.build(shape, kind, "meta"))
    memory.require({"weights": weights, **parts}, torch.device(where))
    _tell()(f"{shape}: random weights, {memory.gib(weights)}")
    from kvfoot.engine.engine import Engine

    return Engine(shapes.build(shape, kind, where), name=shape, backend=backend, page_size=page_size)


def _most(parts: dict[str, int]) -> dict[str, int]:
    """The largest side: sides that do not fit together are measured one after the other."""
    name = max(parts, key=lambda k: parts[k])
    return {name: parts[name]}


def _tell() -> Any:
    from kvfoot.cli.console import stderr

    console = stderr()
    return lambda line: console.print(line, style="dim", markup=False)


def _close(
    ctx: typer.Context, name: str, engine: "Engine", settings: dict[str, Any], figures: dict[str, Any], out: Path | None
) -> int:
    """The table, and the record."""
    from kvfoot.bench.record import BenchRecord
    from kvfoot.bench.table import table
    from kvfoot.cli.console import stdout

    record = BenchRecord.of(name, _command(ctx), engine, settings, figures)
    stdout().print(table(record))
    if out is not None:
        _save(record, out)
    return 0


def _save(record: "BenchRecord", path: Path) -> None:
    try:
        record.save(path)
    except OSError as error:
        raise KvfootError(
            f"the record {path} was not written ({error.strerror}): free some space or give another place"
        ) from error
    _tell()(f"record: {path}")


def _command(ctx: typer.Context) -> str:
    """What was typed, as one line."""
    words = ["kvfoot", "bench", str(ctx.info_name)]
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if str(getattr(ctx.get_parameter_source(name), "name", "")) != "COMMANDLINE":
            continue
        value = ctx.params[name]
        for each in value if isinstance(value, (list, tuple)) else [value]:
            words += [parameter.opts[0], str(each)]
    return shlex.join(words)
