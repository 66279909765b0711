"""`kvfoot train wgkv` and `kvfoot train locret`: networks that score every token as it is read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from kvfoot.cli import training as t
from kvfoot.cli.training import Form, Run, recipe
from kvfoot.core.errors import UsageError

if TYPE_CHECKING:
    from kvfoot.train.run import Trainer


def wgkv(
    model: t.Model,
    data: t.Data,
    out: t.Out,
    length: t.Length = 8192,
    batch: t.Batch = 1,
    steps: Annotated[int, Option(help="updates")] = 2000,
    window: Annotated[int, Option(help="recent tokens that are read without a gate")] = 256,
    weight: Annotated[float, Option(help="of the term that closes gates; 0.16 admits far fewer than 0.04")] = 0.04,
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
    """Write gates by answering under gates as without (arXiv 2512.17452); for --method wgkv."""
    from kvfoot.train.wgkv import WGKV, WGKVOptions

    given = {"steps": steps, "window": window, "weight": weight, "seed": seed}
    options = recipe(WGKVOptions, set_ or [], given)
    run = Run(
        model, data, out, length, batch, field, dtype, device, checkpointing, shard, save_every, log_every, resume, yes
    )  # fmt: skip
    make = lambda model, geometry, world: WGKV(model, options, world)  # noqa: E731
    return run.go(make, options, Form(rows, seed, notes), passes=4, board=tensorboard, told=lambda x: _told(x, out))


def locret(
    model: t.Model,
    data: t.Data,
    out: t.Out,
    length: t.Length = 8192,
    batch: t.Batch = 1,
    steps: Annotated[int, Option(help="updates")] = 3000,
    width: Annotated[int, Option(help="units of a layer's network")] = 1024,
    rows: t.Rows = "synthesis",
    notes: t.Notes = 16,
    seed: t.Seed = 0,
    set_: t.Set = None,
    field: t.Column = "text",
    dtype: t.Dtype = "auto",
    device: t.Device = "auto",
    shard: t.Shard = False,
    save_every: t.Save = 100,
    log_every: t.Log = 10,
    tensorboard: t.Board = None,
    resume: t.Resume = False,
    yes: t.Yes = False,
) -> int:
    """Retaining heads by foretelling the logits of questions and answers (arXiv 2410.01805); for --method locret."""
    from kvfoot.train.locret import Locret, LocretOptions

    if rows == "text":
        raise UsageError("--rows text: Locret learns from what is asked at the end: passkeys or synthesis")
    options = recipe(LocretOptions, set_ or [], {"steps": steps, "width": width, "seed": seed})
    run = Run(model, data, out, length, batch, field, dtype, device, False, shard, save_every, log_every, resume, yes)
    make = lambda model, geometry, world: Locret(model, options, world)  # noqa: E731
    return run.go(make, options, Form(rows, seed, notes), passes=1, board=tensorboard, told=lambda x: _told(x, out))


def _told(trainer: "Trainer", out: Path) -> str:
    count = sum(x.numel() for x in trainer.parameters)  # type: ignore[attr-defined]
    return f"{count:,} weights: {out / 'scores.safetensors'}"
