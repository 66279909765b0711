"""`kvfoot train`: gates of heads (train_heads.py), scores of tokens (train_learn.py), a model with a partial cache
(train_refresh.py), and recall, the model that needs its cache, from text and a seed."""

import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from kvfoot.cli.train_heads import duo, prulong
from kvfoot.cli.train_learn import locret, wgkv
from kvfoot.cli.train_refresh import refresh
from kvfoot.core.errors import KvfootError, UsageError, did_you_mean

if TYPE_CHECKING:
    from kvfoot.train.recall.options import ModelShape, Recipe

train = typer.Typer(
    name="train",
    help="Train gates of heads, scores of tokens, a model with a partial cache, or the shipped model.",
    no_args_is_help=True,
)
train.command()(prulong)
train.command()(duo)
train.command()(wgkv)
train.command()(locret)
train.command()(refresh)


@train.command()
def recall(
    data: Annotated[Path, Option(help="folder with books/, words/ and longproc/ (docs/recall.md)")],
    out: Annotated[Path, Option(help="folder for the model, the state to resume from, and the log")],
    minutes: Annotated[float, Option(help="length of the plan, by the speed of one H100")] = 14.5,
    plan: Annotated[
        str, Option(help="recall, single, again, routes, tail or tiny: lengths and mixtures over time")
    ] = "recall",
    seed: Annotated[int, Option(help="of the weights and the samples")] = 0,
    set_: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="a field of the recipe or of the model's shape")
    ] = None,
    piece: Annotated[float, Option(help="stop after this many minutes with a state to resume from; 0: never")] = 0.0,
    start_from: Annotated[Path | None, Option(help="a model folder whose weights the run begins with")] = None,
    workers: Annotated[int | None, Option(help="processes that make samples (default: by the processors)")] = None,
    device: Annotated[str | None, Option(help="cpu, cuda or cuda:N (default: a GPU where there is one)")] = None,
    resume: Annotated[bool, Option("--resume", help="go on with the run in --out, given the same options")] = False,
    yes: Annotated[bool, Option("--yes", help="go on without a GPU, whatever the estimate")] = False,
) -> int:
    """Train kvfoot-recall: a quarter of an hour on one GPU, from books and word lists."""
    if minutes <= 0:
        raise UsageError(f"--minutes {minutes:g}: give more than 0")
    if workers is not None and workers < 0:
        raise UsageError(f"--workers {workers}: give 0 or more")
    if not data.is_dir():
        raise UsageError(f"--data {data}: no such folder: give one with books/, words/ and longproc/")

    from kvfoot.train.recall.options import RecallOptions

    made, shape = _recipe(_numbers(set_ or []), plan=plan, minutes=minutes, seed=seed)
    _check_out(out, resume)
    options = RecallOptions(
        data=data,
        out=out,
        recipe=made,
        shape=shape,
        workers=_workers() if workers is None else workers,
        device=device,
        piece_minutes=piece,
        start_from=start_from,
        resume=resume,
        yes=yes,
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    from kvfoot.train.recall.loop import train_recall

    record = train_recall(options, _say)
    if record["killed"]:
        raise KvfootError(f"ended at step {record['step']} of {record['steps']}: the probe stayed below 0.8 ({out})")
    done = "finished" if record["finished"] else f"step {record['step']} of {record['steps']}, go on with --resume"
    print(f"{done}: {out}", flush=True)
    return 0


def _check_out(out: Path, resume: bool) -> None:
    """A run is never overwritten."""
    state = out / "state.safetensors"
    if state.is_file() and not resume:
        raise UsageError(f"--out {out} holds a run: pass --resume to go on with it, or give another folder")
    if resume and not state.is_file():
        raise UsageError(f"--resume: {state} is missing, there is nothing to go on with: leave --resume out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}: give a folder that can be written") from None


def _recipe(numbers: dict[str, float], **recipe: Any) -> "tuple[Recipe, ModelShape]":
    """`recipe` has options of its own; each of the numbers goes to the recipe or to the shape, by its name."""
    from kvfoot.train.recall.options import ModelShape, Recipe

    own = {field.name for field in fields(Recipe)} - recipe.keys()
    shaped = {field.name for field in fields(ModelShape)}
    for name in numbers:
        if name in recipe:
            raise UsageError(f"--set {name}: it has an option of its own, --{name}")
        if name not in own | shaped:
            raise UsageError(f"--set: unknown field {name!r}{did_you_mean(name, sorted(own | shaped))}")
    whole = asdict(Recipe()) | asdict(ModelShape())
    for name, value in numbers.items():
        if isinstance(whole[name], int) and value != int(value):
            raise UsageError(f"--set {name}={value:g}: a whole number is needed")
    given = {name: type(whole[name])(value) for name, value in numbers.items()}
    made = Recipe(**recipe, **{name: value for name, value in given.items() if name in own})
    return made, ModelShape(**{name: value for name, value in given.items() if name in shaped})


def _numbers(pairs: list[str]) -> dict[str, float]:
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise UsageError(f"--set {pair}: write it as KEY=NUMBER") from None
    return found


def _workers() -> int:
    """All processors but two, which the training loop and the probes take."""
    return max(1, min(14, (os.cpu_count() or 4) - 2))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
