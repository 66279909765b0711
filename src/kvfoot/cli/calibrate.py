"""`kvfoot calibrate`: options that a method needs a model for, measured on texts and written as settings."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from kvfoot.cli import inputs
from kvfoot.core.errors import UsageError

calibrate = typer.Typer(
    name="calibrate", help="Measure a method's options for a model; write a settings file.", no_args_is_help=True
)


@calibrate.callback()
def _verbs() -> None:
    """A method's name follows, even while there is one method only."""


@calibrate.command()
def refreshkv(
    model: Annotated[str, Option(help="smollm2, recall, a folder, a .gguf file or a hub name")],
    texts: Annotated[
        list[Path], Option(help="UTF-8 texts, .txt or .txt.gz, held out of what is evaluated; or folders of them")
    ],
    every: Annotated[int, Option(help="steps between two checks")] = 5,
    share: Annotated[float, Option(help="of the checks that refresh: 0.4 as Llama-3.1-8B, 0.7 as Qwen2-7B")] = 0.4,
    set_: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="another option of refreshkv")] = None,
    length: Annotated[int, Option(help="tokens taken of a text, the steps included")] = 4096,
    steps: Annotated[int, Option(help="last tokens of it, which stand for what is generated")] = 256,
    count: Annotated[int, Option(help="texts at most; a long file gives several")] = 50,
    keep: Annotated[str | None, Option(help="written into the settings: fraction of the prompt read")] = None,
    budget: Annotated[int | None, Option(help="written into the settings: entries read per layer and KV head")] = None,
    chunk: Annotated[str, Option(help="prompt tokens per pass, or all")] = "512",
    out: Annotated[Path, Option(help="the settings file")] = Path("settings.json"),
    dtype: Annotated[str, Option(help="auto, bfloat16, float16 or float32")] = "auto",
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    backend: Annotated[str | None, Option(help="see kvfoot doctor")] = None,
) -> int:
    """Find RefreshKV's similarity for a model (arXiv 2411.05787): a file for `kvfoot run --settings`."""
    from kvfoot.attention.backend import choose as choose_backend
    from kvfoot.core.budget import Budget
    from kvfoot.core.registry import method as find_method

    options = dict(inputs.settings(set_ or []))
    if "similarity" in options or "every" in options:
        raise UsageError("--set: similarity is what is looked for, and every is --every")
    method = find_method("refreshkv", options | {"every": str(every)})
    limits, tokens = Budget.of(keep, budget), inputs.chunk_size(chunk)
    for name, value, least in (("count", count, 1), ("steps", steps, every), ("length", length, steps + 1)):
        if value < least:
            raise UsageError(f"--{name} {value}: give at least {least}")
    if not 0 < share < 1:
        raise UsageError(f"--share {share:g}: a share of the checks, between 0 and 1")
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(f"--out {out}: give a file in an existing folder")
    files = _files(texts)
    choose_backend(backend)

    from kvfoot.cli.console import load, stderr
    from kvfoot.evaluate.calibrate import record, settings_of

    console = stderr()
    engine = load(console, model, dtype=dtype, device=device, backend=backend)
    if length > engine.geometry.positions:
        raise UsageError(f"--length {length} exceeds the model's {engine.geometry.positions} positions")
    some, names = _stretches(engine.tokenizer, files, length, count)
    made = method.options()
    with console.status(f"{len(some)} texts of {length} tokens") as status:
        checks = record(
            engine, some, every=every, steps=steps, query=made["query"], prerope=made["prerope"], chunk=tokens,
            say=status.update,
        )  # fmt: skip
    told = {"texts": len(some), "files": names, "length": length, "steps": steps}
    of_run = {"keep": None if limits.keep is None else float(limits.keep), "budget": limits.tokens, "chunk": tokens}
    settings = settings_of(engine, checks, share, {**options, "every": every}, told, **of_run)
    settings.save(out)
    found = settings.found
    print(
        f"similarity {settings.options['similarity']:g}: {found['share']['reached']:.3f} of {found['checks']} checks a "
        f"layer refresh (asked for {share:g}); cosines at gaps of {every}: median {found['cosine']['0.5']:.3f}, from "
        f"{found['cosine']['0.05']:.3f} to {found['cosine']['0.95']:.3f} (5 and 95 %)"
    )
    console.print(f"settings: {out} (kvfoot run --settings {out})", style="dim", markup=False)
    return 0


def _files(names: list[Path]) -> list[Path]:
    found: list[Path] = []
    for name in names:
        if name.is_dir():
            inside = sorted(p for p in name.rglob("*") if p.name.endswith((".txt", ".txt.gz")))
            if not inside:
                raise UsageError(f"--texts {name}: no .txt or .txt.gz file in it")
            found += inside
        else:
            found.append(name)
    return found


def _text(file: Path) -> str:
    if file.suffix != ".gz":
        return inputs.prompt_text(str(file))
    import gzip

    try:
        return gzip.decompress(file.read_bytes()).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--texts {file}: {reason}: give whole files of UTF-8 text") from None


def _stretches(tokenizer: object, files: list[Path], length: int, count: int) -> tuple[list[list[int]], list[str]]:
    """Token ids of up to `count` stretches of exactly `length`, one of each file in turn, and the files' names.

    Raises UsageError where no file has that many tokens.
    """
    assert callable(tokenizer)
    each, names, longest = [], [], 0
    for file in files:
        ids = list(tokenizer(_text(file), verbose=False)["input_ids"])
        longest = max(longest, len(ids))
        whole = [ids[a : a + length] for a in range(0, len(ids) - length + 1, length)]
        if whole:
            each.append(whole)
            names.append(file.name)
    if not each:
        raise UsageError(f"--texts: the longest has {longest} tokens, --length is {length}: give longer texts or less")
    turns = [part[i] for i in range(max(map(len, each))) for part in each if i < len(part)]
    return turns[:count], names[:count]
