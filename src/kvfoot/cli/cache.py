"""`kvfoot cache`: a long document is read once, kept in a file, and asked for ever."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from kvfoot.cli import inputs
from kvfoot.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from kvfoot.engine.session import Session

cache = typer.Typer(name="cache", help="Keep a document's compressed cache in a file and ask it.", no_args_is_help=True)


@cache.command()
def save(
    model: Annotated[str, Option(help="smollm2, recall, a folder, a .gguf file or a hub name")],
    prompt_file: Annotated[str, Option(help="the document, UTF-8 text; - reads the standard input")],
    out: Annotated[Path, Option(help="the file to write")],
    method: Annotated[str, Option(help="see kvfoot methods")] = "full",
    set_: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="an option of the method")] = None,
    keep: Annotated[str | None, Option(help="fraction of entries to keep, such as 0.25")] = None,
    budget: Annotated[int | None, Option(help="entries to keep per layer and KV head")] = None,
    evict: Annotated[str, Option(help="post: after the whole prompt; chunk: after every chunk")] = "post",
    chunk: Annotated[str, Option(help="prompt tokens per pass, or all")] = "512",
    dtype: Annotated[str, Option(help="auto, bfloat16, float16 or float32")] = "auto",
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    backend: Annotated[str | None, Option(help="see kvfoot doctor")] = None,
    page_size: Annotated[int, Option(help="entries per page of the cache")] = 16,
    kv_memory: Annotated[str | None, Option(help="size of the cache's pool: 2GiB, or 0.9 of what is free")] = None,
    chat: Annotated[
        bool | None, Option("--chat/--no-chat", help="the chat template (default: where there is one)")
    ] = None,
) -> int:
    """Read a document with a method and write what was kept to one file."""
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}: make it first")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: give the name of a file in it")
    options, tokens = inputs.settings(set_ or []), inputs.chunk_size(chunk)
    memory, text = inputs.pool_size(kv_memory), inputs.prompt_text(prompt_file)

    from kvfoot.cli.console import Watch, load, stderr
    from kvfoot.cli.run import INTERRUPTED, check_method
    from kvfoot.engine.result import Interrupted

    check_method(method, options, keep, budget, evict, backend)
    console = stderr()
    engine = load(console, model, dtype=dtype, device=device, backend=backend, page_size=page_size, kv_memory=memory)
    watch = Watch(console, engine.tokenizer)
    try:
        with watch.watching():
            session = engine.session(
                text,
                method=method,
                options=options,
                keep=keep,
                budget=budget,
                evict=evict,
                chunk=tokens,
                chat=chat,
                listener=watch,
            )
    except Interrupted:
        return INTERRUPTED
    with console.status(f"writing {out}"):
        session.save(out)
    session.close()
    _show(out, console)
    return 0


@cache.command()
def ask(
    file: Annotated[Path, Argument(help="what kvfoot cache save has written")],
    question: Annotated[list[str], Option(help="asked about the document; several are asked one after the other")],
    model: Annotated[str | None, Option(help="where the model is now (default: as it was saved)")] = None,
    max_new_tokens: Annotated[int, Option(help="longest answer")] = 128,
    temperature: Annotated[float, Option(help="0 is greedy")] = 0.0,
    top_p: Annotated[float, Option(help="nucleus sampling")] = 1.0,
    top_k: Annotated[int, Option(help="sample among so many tokens, 0: all")] = 0,
    seed: Annotated[int, Option(help="of the sampling")] = 0,
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    backend: Annotated[str | None, Option(help="see kvfoot doctor")] = None,
    page_size: Annotated[int, Option(help="entries per page of the cache")] = 16,
    kv_memory: Annotated[str | None, Option(help="size of the cache's pool: 2GiB, or 0.9 of what is free")] = None,
    record: Annotated[Path | None, Option(help="write what each answer cost as JSON")] = None,
) -> int:
    """Ask a saved document: the model reads the questions only."""
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens}: give at least 1")
    for asked in question:
        if not asked.strip():
            raise UsageError("the question is empty")
    inputs.record_path(record)
    memory = inputs.pool_size(kv_memory)

    from kvfoot.attention.backend import choose
    from kvfoot.cache.file import read_header
    from kvfoot.cli.console import load, stderr
    from kvfoot.cli.run import ask_all, room
    from kvfoot.engine.sampler import Sampling

    choose(backend)
    Sampling(temperature, top_p, seed, top_k)
    header = read_header(file)
    name = model or header["model"]["name"]
    if not name:
        raise UsageError(f"{file} does not say which model it belongs to: give --model")
    console = stderr()
    new: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    new |= {"top_k": top_k}
    where: dict[str, Any] = {"device": device, "backend": backend, "page_size": page_size, "kv_memory": memory}
    engine = load(console, name, dtype=header["dtype"], **where)

    def resume() -> "Session":
        with console.status(f"reading {file}"):
            return engine.resume(file, room=room(engine, question, new))

    return ask_all(console, engine, resume, question, new, record)


@cache.command()
def show(file: Annotated[Path, Argument(help="what kvfoot cache save has written")]) -> int:
    """What a saved cache holds, by its header: no model is loaded."""
    from kvfoot.cli.console import stdout

    _show(file, stdout())
    return 0


def _show(file: Path, console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    from kvfoot.cache.file import read_header
    from kvfoot.report.table import size

    header = read_header(file)
    config, model, tokens = header["config"], header["model"], header["tokens"]
    shape, entries = header["geometry"], header["entries"]
    share = entries / (shape["layers"] * shape["kv_heads"] * tokens["document"])
    limit = [f"{name}={config[name]:g}" for name in ("keep", "budget") if config.get(name) is not None]
    options = [f"{key}={value}" for key, value in config["options"].items()]
    lines = {
        "model": f"{model['name'] or '-'} ({model['family']}, revision {model['revision'][:12] or '-'})",
        "shape": ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in shape.items()),
        "dtype": header["dtype"],
        "method": " ".join([config["method"], *limit, *([config["evict"]] if limit else []), *options]),
        "document": f"{tokens['document']:,} tokens{', as a chat' if config['chat'] else ''}, read in "
        f"{header['prefill_s']:.2f} s",
        "kept": f"{entries:,} entries, {share:.1%} of the document's",
        "turns": f"{tokens['talk'] - tokens['document']:,} tokens" if "talk" in tokens else "none",
        "file": f"{size(file.stat().st_size)}, format {header['format']}",
        "begins": header["document"].strip().split("\n")[0][:80],
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in lines.items():
        grid.add_row(name, Text(value))
    console.print(grid)
