"""`kvfoot demo`: one real document, one question, the full cache and three methods at a quarter of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from kvfoot.core.errors import KvfootError, UsageError, did_you_mean

if TYPE_CHECKING:
    from kvfoot.core.records import RunRecord


def demo(
    line_up: Annotated[str, Option(help="what is run")] = "passkey",
    seed: Annotated[int, Option(help="decides the number and where it is hidden")] = 0,
    out: Annotated[Path, Option(help="folder for the records")] = Path("out/demo"),
    svg: Annotated[Path | None, Option(help="draw the bytes and footprints into this file")] = None,
) -> int:
    """Find a number hidden in a book chapter, with the full cache and with a quarter of it; needs no options."""
    from kvfoot.cli.lineups import LINEUPS

    if line_up not in LINEUPS:
        raise UsageError(f"unknown line-up {line_up!r}{did_you_mean(line_up, list(LINEUPS))}")
    if svg is not None and not svg.parent.is_dir():
        raise UsageError(f"--svg {svg}: there is no folder {svg.parent}: make it first")
    _make(out)

    from kvfoot.cli.console import load, stderr, stdout
    from kvfoot.report.table import comparison

    chosen, screen, errors = LINEUPS[line_up], stdout(), stderr()
    case = chosen.case(seed)
    engine = load(errors, chosen.model)
    screen.print(case.told, case.question, "", sep="\n", markup=False, soft_wrap=True)
    with errors.status("warming up"):  # the first pass prepares kernels: no run should pay for it
        engine.generate(case.document[:2000], max_new_tokens=2)
    records: list[RunRecord] = []
    verdicts: list[str] = []
    for number, run in enumerate(chosen.runs, 1):
        text, record = _run(errors, screen, engine, case, run, chosen.max_new_tokens, f"{number}/{len(chosen.runs)} ")
        records.append(record)
        verdicts.append("right" if case.right(text) else "wrong")
        _save(record, out / f"{number}-{run.method}.json")
    screen.print()
    screen.print(comparison(records, verdicts))
    screen.print(f"\nrecords: {out}", style="dim", markup=False)
    if svg is not None:
        _draw(records, verdicts, svg)
        screen.print(f"picture: {svg}", style="dim", markup=False)
    return 0


def _run(errors: Any, screen: Any, engine: Any, case: Any, run: Any, limit: int, label: str) -> "tuple[str, RunRecord]":
    """The answer, streamed, and the record."""
    from kvfoot.cli.console import Watch

    screen.print(run.title, style="bold", markup=False)
    watch = Watch(errors, engine.tokenizer, label=label)
    with watch.watching():
        result = engine.generate(
            case.document,
            question=case.question,
            method=run.method,
            options=run.options,
            keep=run.keep,
            evict=run.evict,
            max_new_tokens=limit,
            listener=watch,
        )[0]
        watch.finish(result.text)
    return result.text, result.record


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder}: {error.strerror}: give a folder that can be written") from None


def _save(record: "RunRecord", path: Path) -> None:
    try:
        record.save(path)
    except OSError as error:
        raise KvfootError(f"the record {path} was not written ({error.strerror})") from error


def _draw(records: "list[RunRecord]", verdicts: list[str], path: Path) -> None:
    from kvfoot.report.bars import bars

    try:
        path.write_text(bars(records, verdicts), encoding="utf-8")
    except OSError as error:
        raise KvfootError(f"the picture {path} was not written ({error.strerror})") from error
