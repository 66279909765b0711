"""`kvfoot methods`: the registry."""

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

from typer import Argument, Option

from kvfoot.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from kvfoot.core.hooks import Method

MARKS = ("<!-- methods -->", "<!-- /methods -->")
HEADS = ("method", "paper", "category", "stores", "reads")


def methods(
    name: Annotated[str | None, Argument(help="show this method's options")] = None,
    markdown: Annotated[bool, Option("--markdown", help="print the table as it stands in the README")] = False,
    into: Annotated[Path | None, Option(help="replace the table in this file, between its two marks")] = None,
) -> int:
    """List the methods, or show one with its options."""
    from kvfoot.core.registry import methods as registered

    known = registered()
    if name is not None and name not in known:
        raise UsageError(f"unknown method {name!r}{did_you_mean(name, list(known))}")
    if into is not None:
        _replace(into)
        return 0
    if markdown:
        print(as_markdown())
        return 0
    from kvfoot.cli.console import stdout

    console = stdout()
    if name is not None:
        _show(console, known[name])
        return 0
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 1))
    for head in HEADS:
        table.add_column(head, no_wrap=head in HEADS[:3])
    for cls in known.values():
        table.add_row(*cells(cls))
    console.print(table)
    return 0


def cells(cls: "type[Method]") -> tuple[str, str, str, str, str]:
    return cls.name, cls.paper, cls.category, cls.stores, cls.reads


def as_markdown() -> str:
    """The README's table: our own methods, with links to the papers."""
    from kvfoot.core.registry import methods as registered

    lines = ["| " + " | ".join(HEADS) + " |", "|" + " --- |" * len(HEADS)]
    for cls in registered().values():
        if cls.__module__.startswith("kvfoot.methods"):
            name, paper, *rest = cells(cls)
            link = f"[{paper}](https://arxiv.org/abs/{paper})" if paper != "-" else "-"
            lines.append("| " + " | ".join([f"`{name}`", link, *rest]) + " |")
    return "\n".join(lines)


def _replace(path: Path) -> None:
    try:
        before, rest = path.read_text(encoding="utf-8").split(MARKS[0])
        _, after = rest.split(MARKS[1])
    except (OSError, ValueError):
        raise UsageError(f"--into {path}: no file with {MARKS[0]} and {MARKS[1]} in it, once each") from None
    path.write_text(f"{before}{MARKS[0]}\n{as_markdown()}\n{MARKS[1]}{after}", encoding="utf-8")


def _show(console: Any, cls: "type[Method]") -> None:
    from inspect import cleandoc

    from rich.table import Table

    paper = f" (arXiv {cls.paper})" if cls.paper != "-" else ""
    console.print(
        f"[bold]{cls.name}[/bold]{paper}, {cls.category}", f"stores {cls.stores}; reads {cls.reads}", sep="\n"
    )
    size = "takes --keep or --budget" if cls.budgeted else "takes neither --keep nor --budget"
    console.print(size + ("; keep is a total, held while decoding" if cls.total else ""))
    console.print("\n" + cleandoc(cls.__doc__ or ""), markup=False)
    kinds = get_type_hints(cls)
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for head in ("--set", "default", "type"):
        table.add_column(head)
    for option in fields(cls):
        table.add_row(option.name, _default(option), _kind(kinds[option.name]))
    if table.row_count:
        console.print()
        console.print(table, markup=False)


def _default(option: "Field[Any]") -> str:
    if option.default is not MISSING:
        return str(option.default)
    return str(option.default_factory()) if option.default_factory is not MISSING else "required"


def _kind(kind: Any) -> str:
    choices = get_args(kind)
    return " or ".join(str(getattr(c, "__name__", c)) for c in choices) if choices else kind.__name__
