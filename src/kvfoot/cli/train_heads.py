"""`kvfoot train prulong` and `kvfoot train duo`: which KV heads of a model need the whole context."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from kvfoot.cli import training as t
from kvfoot.cli.training import Form, Run, recipe
from kvfoot.core.errors import UsageError

if TYPE_CHECKING:
    from kvfoot.train.run import Trainer

Sink = Annotated[int, Option(help="first tokens that a streaming head sees")]
Window = Annotated[int, Option(help="recent tokens that it sees, its own included")]


def prulong(
    model: t.Model,
    data: t.Data,
    out: t.Out,
    sparsity: Annotated[float, Option(help="share of streaming heads to reach, in [0, 1)")] = 0.7,
    length: t.Length = 8192,
    batch: t.Batch = 8,
    steps: Annotated[int, Option(help="updates")] = 1000,
    sink: Sink = 128,
    window: Window = 1024,
    rows: t.Rows = "text",
    notes: t.Notes = 16,
    seed: t.Seed = 0,
    set_: t.Set = None,
    field: t.Column = "text",
    dtype: t.Dtype = "auto",
    device: t.Device = "auto",
    checkpointing: t.Checkpointing = True,
    shard: t.Shard = False,
    save_every: t.Save = 100,
    log_every: t.Log = 10,
    tensorboard: t.Board = None,
    resume: t.Resume = False,
    yes: t.Yes = False,
) -> int:
    """Gates by next-token prediction on long texts, driven to a target sparsity (arXiv 2506.17121)."""
    from kvfoot.train.prulong import PruLong, PruLongOptions

    given = {"sparsity": sparsity, "steps": steps, "sink": sink, "window": window, "seed": seed}
    options = recipe(PruLongOptions, set_ or [], given)
    run = Run(
        model, data, out, length, batch, field, dtype, device, checkpointing, shard, save_every, log_every, resume, yes
    )  # fmt: skip
    make = lambda model, g, world: PruLong(model, (g.layers, g.kv_heads), options, world)  # noqa: E731
    return run.go(make, options, Form(rows, seed, notes), passes=3, board=tensorboard, told=lambda x: _told(x, out))


def duo(
    model: t.Model,
    data: t.Data,
    out: t.Out,
    length: t.Length = 8192,
    batch: t.Batch = 1,
    steps: Annotated[int, Option(help="updates")] = 2000,
    sink: Sink = 128,
    window: Window = 256,
    keys: Annotated[int, Option(help="passkeys in a row")] = 10,
    words: Annotated[int, Option(help="words of a passkey")] = 32,
    supervise: Annotated[
        str, Option(help="questions: all tokens after the text, as released; passkeys: these alone")
    ] = "questions",
    rows: t.Rows = "passkeys",
    notes: t.Notes = 16,
    seed: t.Seed = 0,
    set_: t.Set = None,
    field: t.Column = "text",
    dtype: t.Dtype = "auto",
    device: t.Device = "auto",
    checkpointing: t.Checkpointing = True,
    shard: t.Shard = False,
    save_every: t.Save = 100,
    log_every: t.Log = 10,
    tensorboard: t.Board = None,
    resume: t.Resume = False,
    yes: t.Yes = False,
) -> int:
    """Gates by repeating passkeys as full attention does (arXiv 2410.10819); round them to any sparsity afterwards."""
    from kvfoot.train.duo import Duo, DuoOptions

    if rows == "text":
        raise UsageError("--rows text: DuoAttention learns from what is asked at the end: passkeys or synthesis")
    form = Form(rows, seed, notes, keys, words, supervise)
    options = recipe(DuoOptions, set_ or [], {"steps": steps, "sink": sink, "window": window, "seed": seed})
    run = Run(
        model, data, out, length, batch, field, dtype, device, checkpointing, shard, save_every, log_every, resume, yes
    )  # fmt: skip
    make = lambda model, g, world: Duo(model, (g.layers, g.kv_heads), options, world)  # noqa: E731
    return run.go(make, options, form, passes=4, board=tensorboard, told=lambda x: _told(x, out))


def _told(trainer: "Trainer", out: Path) -> str:
    full = trainer.heads().full()  # type: ignore[attr-defined]
    return f"{full.sum()} of {full.size} KV heads full: {out / 'heads.json'}"
