"""`kvfoot demo`: a number in a book chapter, then a chain of keys; the full cache, and methods at a quarter of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from kvfoot.core.errors import KvfootError, UsageError, did_you_mean

if TYPE_CHECKING:
    from kvfoot.cli.lineups import LineUp
    from kvfoot.core.records import RunRecord


def demo(
    line_up: Annotated[str | None, Option(help="passkey or chain (default: both)")] = None,
    seed: Annotated[int, Option(help="decides what is hidden and where")] = 0,
    out: Annotated[Path, Option(help="folder for the records, a folder in it for each line-up")] = Path("out/demo"),
    svg: Annotated[
        Path | None, Option(help="draw the bytes and footprints into this file (both: the chain's into NAME-chain.svg)")
    ] = None,
) -> int:
    """Find what is hidden in a text, with the full cache and with a quarter of it; needs no options."""
    from kvfoot.cli.lineups import LINEUPS

    if line_up is not None and line_up not in LINEUPS:
        raise UsageError(f"unknown line-up {line_up!r}{did_you_mean(line_up, list(LINEUPS))}")
    if svg is not None and not svg.parent.is_dir():
        raise UsageError(f"--svg {svg}: there is no folder {svg.parent}: make it first")
    names = list(LINEUPS) if line_up is None else [line_up]
    for name in names:
        _make(out / name)
    for i, name in enumerate(names):
        picture = svg if svg is None or i == 0 else svg.with_stem(f"{svg.stem}-{name}")
        _line_up(LINEUPS[name], seed, out / name, picture, first=i == 0)
    return 0


def _line_up(chosen: "LineUp", seed: int, out: Path, svg: Path | None, first: bool) -> None:
    """Every run of one line-up, the table, the records, the picture."""
    from kvfoot.cli.console import load, stderr, stdout
    from kvfoot.report.table import comparison

    case, screen, errors = chosen.case(seed), stdout(), stderr()
    engine = load(errors, chosen.model)
    screen.print(*([] if first else [""]), case.told, case.question, "", sep="\n", markup=False, soft_wrap=True)
    with errors.status("warming up"):  # the first pass prepares kernels: no run should pay for it
        engine.generate(case.document[:2000], max_new_tokens=2)
    records: list[RunRecord] = []
    verdicts: list[str] = []
    for number, run in enumerate(chosen.runs, 1):
        text, record = _run(errors, screen, engine, case, run, chosen.max_new_tokens, f"{number}/{len(chosen.runs)} ")
        records.append(record)
        verdicts.append(case.verdict(text))
        _save(record, out / f"{number}-{run.method}.json")
    screen.print()
    screen.print(comparison(records, verdicts))
    screen.print(f"\nrecords: {out}", style="dim", markup=False)
    if svg is not None:
        _draw(records, verdicts, svg)
        screen.print(f"picture: {svg}", style="dim", markup=False)


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
        raise UsageError(f"--out {folder.parent}: {error.strerror}: give a folder that can be written") from None


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
