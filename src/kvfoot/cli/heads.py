"""`kvfoot heads`: look at gates per KV head, round them to roles, convert them from and to the TSV of others."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from kvfoot.core.errors import KvfootError, UsageError

if TYPE_CHECKING:
    from kvfoot.core.roles import HeadGates

heads = typer.Typer(name="heads", help="Gates and roles of KV heads: show, round, convert.", no_args_is_help=True)

File = Annotated[Path, Argument(help="a heads file, or a TSV of gates or of 0/1")]
Sparsity = Annotated[float | None, Option(help="share of streaming heads, in [0, 1)")]


@heads.command()
def show(file: File, sparsity: Sparsity = None) -> int:
    """Draw the gates, layer by head, with the heads that are full at a sparsity (default: the file's own)."""
    from kvfoot.cli.console import stdout
    from kvfoot.core.roles import HeadGates
    from kvfoot.report.heatmap import heatmap

    gates = HeadGates.load(file)
    full = gates.full(sparsity)
    console = stdout()
    console.print(_line(gates), markup=False)
    console.print(heatmap(gates.soft.tolist(), full.tolist()), end="")
    console.print(f"full: {full.sum()} of {full.size} KV heads, {1 - full.mean():.1%} streaming")
    return 0


@heads.command("round")
def round_(
    file: File,
    out: Annotated[Path, Option(help="a heads file (.json) or a TSV of 0/1 (.tsv)")],
    sparsity: Sparsity = None,
) -> int:
    """Write roles of 0 and 1: exactly as many full heads as a sparsity says (default: the file's own)."""
    from kvfoot.core.roles import HeadGates

    gates = HeadGates.load(file)
    full = gates.full(sparsity)
    of = sparsity if sparsity is not None else gates.sparsity
    made = replace(gates, gates=full, scale="mask", sparsity=None if gates.scale == "mask" else of)
    _save(made, out)
    print(f"{full.sum()} of {full.size} KV heads full: {out}", flush=True)
    return 0


@heads.command()
def convert(
    file: File,
    out: Annotated[Path, Option(help="a heads file (.json) or a TSV of gates in [0, 1] (.tsv)")],
    sink: Annotated[int | None, Option(help="first tokens that a streaming head holds")] = None,
    window: Annotated[int | None, Option(help="recent tokens that a streaming head holds")] = None,
    model: Annotated[str | None, Option(help="check against this model and write down which it is")] = None,
) -> int:
    """Bring gates from one form to the other; a TSV has no room for sinks, window and model."""
    from kvfoot.core.roles import HeadGates

    gates = HeadGates.load(file)
    if model is not None:
        gates = _of(gates, model, file)
    sink, window = (gates.sink if sink is None else sink), (gates.window if window is None else window)
    _save(replace(gates, sink=sink, window=window), out)
    print(f"{gates.shape[0]} layers x {gates.shape[1]} KV heads: {out}", flush=True)
    return 0


def _of(gates: "HeadGates", model: str, file: Path) -> "HeadGates":
    """The gates with the model's name and identity. Raises UsageError where they are of another."""
    from kvfoot.models.layout import geometry_of
    from kvfoot.models.load import load

    geometry = geometry_of(load(model, device="cpu").model)
    gates.check(geometry, f"file {file}")
    return replace(gates, model={"name": model, "identity": geometry.identity})


def _line(gates: "HeadGates") -> str:
    """What the file says beside the gates."""
    parts = [f"{gates.shape[0]} layers x {gates.shape[1]} KV heads, {gates.scale}"]
    if gates.model.get("name"):
        parts.append(f"model {gates.model['name']}")
    if gates.training.get("method"):
        parts.append(f"trained by {gates.training['method']}")
    parts += [
        f"{name} {value}" for name in ("sparsity", "sink", "window") if (value := getattr(gates, name)) is not None
    ]
    return ", ".join(parts)


def _save(gates: "HeadGates", out: Path) -> None:
    if out.suffix not in (".json", ".tsv"):
        raise UsageError(f"--out {out}: name it .json (a heads file) or .tsv")
    try:
        gates.save(out)
    except OSError as error:
        raise KvfootError(f"--out {out} was not written ({error.strerror}): give another place") from None
