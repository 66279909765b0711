"""`kvfoot report`: a sweep's results as one HTML page, and as Markdown with SVG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from kvfoot.core.errors import UsageError

if TYPE_CHECKING:
    from kvfoot.core.results import Cell, SampleResult
    from kvfoot.evaluate.critical import Critical as Computed
    from kvfoot.report.contents import Report
    from kvfoot.report.crossings import Critical


def report(
    folder: Annotated[Path, Argument(metavar="DIR", help="what kvfoot eval wrote: the folder or its export")],
    out: Annotated[Path | None, Option(help="the page (default: report.html in DIR, or beside the export)")] = None,
    markdown: Annotated[
        Path | None, Option(metavar="FOLDER", help="also write README.md and SVG figures into this folder")
    ] = None,
    fraction: Annotated[float, Option(help="share of full attention's score that is to be kept")] = 0.9,
) -> int:
    """A page that works offline: scores, footprints, speed, what was kept, and where answers first go wrong."""
    from kvfoot.report.figures import figures
    from kvfoot.report.markdown import markdown as as_markdown
    from kvfoot.report.page import page

    made = contents(folder, fraction)
    place = out or (folder if folder.is_dir() else folder.parent) / "report.html"
    files = {place: page(made)}
    if markdown is not None:
        pictures = figures(made)
        files |= {markdown / name: svg for name, svg in pictures.items()}
        files[markdown / "README.md"] = as_markdown(made, pictures)
    if place.is_dir() or not place.parent.is_dir():
        raise UsageError(f"--out {place}: give a file in a folder that exists")
    if markdown is not None:
        if markdown.exists() and not markdown.is_dir():
            raise UsageError(f"--markdown {markdown}: is a file; give a folder")
        markdown.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        _write(path, text)
        print(path)
    return 0


def contents(folder: Path, fraction: float) -> "Report":
    """Everything that is finished in a sweep's folder or export. Raises UsageError where that is nothing."""
    from kvfoot.evaluate.export import read
    from kvfoot.report.command import commands
    from kvfoot.report.contents import Report

    results = read(folder)
    shown = Report.of(results, fraction=fraction)
    critical, notes = _critical(results, fraction)
    return Report(shown.panels, critical, commands(shown.panels, str(folder)), fraction, notes)


def _critical(results: "Sequence[SampleResult]", fraction: float) -> "tuple[list[Critical], list[str]]":
    """Of every set of results that compare with each other, and why there are none of the others."""
    from kvfoot.evaluate.critical import critical

    sets: dict[tuple[str, ...], list[SampleResult]] = {}
    for result in results:
        sets.setdefault(_kind(result.cell), []).append(result)
    found: list[Critical] = []
    notes = []
    for kind, members in sets.items():
        telling = ", ".join(word for i, word in enumerate(kind) if len({other[i] for other in sets}) > 1)
        try:
            found += [_row(x, f"{x.category}, {telling}".removesuffix(", ")) for x in critical(members, fraction)]
        except UsageError as error:
            notes.append(f"No critical footprints{f' of {telling}' if telling else ''}: {error}.")
    return found, notes


def _kind(cell: "Cell") -> tuple[str, ...]:
    """What results must have in common to be compared."""
    chunk = f"chunk {cell.chunk}" if cell.chunk else "one pass"
    return cell.model, cell.revision, cell.dtype, chunk, f"question {cell.question}", f"seed {cell.seed}"


def _row(of: "Computed", category: str) -> "Critical":
    from kvfoot.report.crossings import Critical, Crossing

    last, first, low, high = (Crossing(c.footprint, c.bound) for c in (of.last, of.first, of.low, of.high))
    return Critical(category, of.method, of.baseline, last, first, low, high, of.floor, of.samples)


def _write(path: Path, text: str) -> None:
    """Whole or not at all, readable by whom the user's umask lets."""
    import os

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
