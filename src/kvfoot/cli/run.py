"""`kvfoot run`: a prompt through a model with a method; the text on the standard output, the cost beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from kvfoot.cli import inputs
from kvfoot.core.errors import KvfootError, UsageError
from kvfoot.core.settings import Settings

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended, as of a shell's."""

if TYPE_CHECKING:
    from rich.console import Console

    from kvfoot.core.records import RunRecord
    from kvfoot.engine.engine import Engine
    from kvfoot.engine.session import Session


def run(
    model: Annotated[str, Option(help="smollm2, recall, a folder, a .gguf file or a hub name")],
    prompt_file: Annotated[str, Option(help="UTF-8 text; - reads the standard input")],
    question: Annotated[
        list[str] | None,
        Option(help="joins the prompt before eviction; several make a batch"),
    ] = None,
    question_after: Annotated[
        list[str] | None,
        Option(help="is asked after eviction; several are asked on one kept cache"),
    ] = None,
    method: Annotated[str, Option(help="see kvfoot methods")] = "full",
    settings: Annotated[
        Path | None, Option(help="method, options, budget and chunk: a file of kvfoot tune or calibrate")
    ] = None,
    set_: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="an option of the method")] = None,
    keep: Annotated[str | None, Option(help="fraction of entries to keep, such as 0.25")] = None,
    budget: Annotated[int | None, Option(help="entries to keep per layer and KV head")] = None,
    evict: Annotated[str, Option(help="post: after the whole prompt; chunk: after every chunk")] = "post",
    chunk: Annotated[str, Option(help="prompt tokens per pass, or all")] = "512",
    max_new_tokens: Annotated[int, Option(help="longest answer")] = 128,
    temperature: Annotated[float, Option(help="0 is greedy")] = 0.0,
    top_p: Annotated[float, Option(help="nucleus sampling")] = 1.0,
    top_k: Annotated[int, Option(help="sample among so many tokens, 0: all")] = 0,
    seed: Annotated[int, Option(help="of the sampling")] = 0,
    dtype: Annotated[str, Option(help="auto, bfloat16, float16 or float32")] = "auto",
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    backend: Annotated[str | None, Option(help="see kvfoot doctor")] = None,
    page_size: Annotated[int, Option(help="entries per page of the cache")] = 16,
    kv_memory: Annotated[str | None, Option(help="size of the cache's pool: 2GiB, or 0.9 of what is free")] = None,
    graph: Annotated[
        bool | None,
        Option("--graph/--no-graph", help="decode by CUDA graphs (default: on a GPU with the triton backend)"),
    ] = None,
    chat: Annotated[
        bool | None, Option("--chat/--no-chat", help="the chat template (default: where there is one)")
    ] = None,
    record: Annotated[Path | None, Option(help="write what the run cost as JSON")] = None,
) -> int:
    """Run a prompt with a method: text on the standard output, progress and cost on the standard error."""
    questions, later = question or [], question_after or []
    if questions and later:
        raise UsageError(
            "--question and --question-after exclude each other: the first is read before eviction, the other after"
        )
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens}: give at least 1")
    if page_size < 1:
        raise UsageError(f"page_size={page_size}: give at least 1 entry per page")
    inputs.record_path(record)
    options: dict[str, Any] = dict(inputs.settings(set_ or []))
    tokens, memory = inputs.chunk_size(chunk), inputs.pool_size(kv_memory)
    if settings is not None:
        if (method, options, keep, budget, evict, chunk) != ("full", {}, None, None, "post", "512"):
            raise UsageError("--settings excludes --method, --set, --keep, --budget, --evict and --chunk: it has them")
        s = Settings.read(settings)
        method, options, budget, evict, tokens = s.method, s.options, s.budget, s.evict, s.chunk
        keep = None if s.keep is None else str(s.keep)
    text = inputs.prompt_text(prompt_file)
    check_method(method, options, keep, budget, evict, backend)

    from kvfoot.cli.console import load, stderr
    from kvfoot.engine.sampler import Sampling

    Sampling(temperature, top_p, seed, top_k)
    console = stderr()
    where = {"device": device, "backend": backend, "page_size": page_size, "kv_memory": memory, "graph": graph}
    engine = load(console, model, dtype=dtype, **where)
    if settings is not None:
        s.check(engine.geometry.identity, settings)
    note_windows(console, engine, method, options)
    how = {"method": method, "options": options, "keep": keep, "budget": budget}
    how |= {"evict": evict, "chunk": tokens, "chat": chat}
    new = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    new |= {"top_k": top_k}
    if later:
        return _ask(console, engine, text, later, how, new, record)
    return _generate(console, engine, text, questions, how | new, record)


def check_method(
    method: str, options: dict[str, Any], keep: str | None, budget: int | None, evict: str, backend: str | None
) -> None:
    """Refuse a wrong method, option or budget in a second, before the model is loaded."""
    from kvfoot.attention.backend import choose
    from kvfoot.core.budget import Budget
    from kvfoot.core.registry import method as find_method

    find_method(method, options)
    Budget.of(keep, budget, evict)
    choose(backend)


def note_windows(console: "Console", engine: "Engine", method: str, options: dict[str, Any]) -> None:
    """Say once which layers a reader leaves alone: those whose window is what they always read."""
    from kvfoot.core.reading import Reader

    geometry = engine.geometry
    some = geometry.layers - len(geometry.open_layers)
    if some and isinstance(engine.method(method, options), Reader):
        console.print(
            f"note: {some} of {geometry.layers} layers have a window of their own and read it as always; "
            f"{method} reads and refreshes the others",
            style="yellow",
            markup=False,
        )


def _generate(
    console: "Console", engine: "Engine", text: str, questions: list[str], how: dict[str, Any], path: Path | None
) -> int:
    """One prompt, or one per question as a batch."""
    from kvfoot.cli.console import Watch
    from kvfoot.engine.result import Interrupted

    count = max(1, len(questions))
    watch = Watch(console, engine.tokenizer, count, stream=count == 1)
    interrupted = False
    with watch.watching():
        try:
            prompts: Any = [text] * count
            results = engine.generate(prompts, question=questions or "", listener=watch, **how)
        except Interrupted as stop:
            results, interrupted = stop.results, True
        if count == 1 and results:
            watch.finish(results[0].text)
    if count > 1:
        for i, (asked, result) in enumerate(zip(questions, results, strict=False)):
            heading(console, asked, first=i == 0)
            print(result.text, flush=True)
    return close(console, [results[0].record] if results else [], path, interrupted)


def _ask(
    console: "Console",
    engine: "Engine",
    text: str,
    questions: list[str],
    how: dict[str, Any],
    new: dict[str, Any],
    path: Path | None,
) -> int:
    """The document once, then one question after the other on what was kept of it."""
    from kvfoot.cli.console import Watch

    def read() -> "Session":
        watch = Watch(console, engine.tokenizer)
        with watch.watching():
            return engine.session(text, listener=watch, room=room(engine, questions, new), **how)

    return ask_all(console, engine, read, questions, new, path)


def ask_all(
    console: "Console",
    engine: "Engine",
    session_of: "Callable[[], Session]",
    questions: list[str],
    new: dict[str, Any],
    path: Path | None,
) -> int:
    """One question after the other, each on the same kept cache."""
    from kvfoot.cli.console import Watch
    from kvfoot.engine.result import Interrupted

    records: list[RunRecord] = []
    interrupted = False
    try:
        session = session_of()
        for i, asked in enumerate(questions):
            if len(questions) > 1:
                heading(console, asked, first=i == 0)
            watch = Watch(console, engine.tokenizer)
            session.runner.tell = watch
            with watch.watching():
                result = session.ask(asked, **new)
                watch.finish(result.text)
            records.append(result.record)
        session.close()
    except Interrupted as stop:
        records += [r.record for r in stop.results]
        interrupted = True
    return close(console, records, path, interrupted)


def room(engine: "Engine", questions: list[str], new: dict[str, Any]) -> int:
    """Tokens that the longest question and its answer may take, the chat template's end included."""
    longest = max(len(engine.tokenizer(q)["input_ids"]) for q in questions)
    return longest + int(new["max_new_tokens"]) + 64


def heading(console: "Console", question: str, first: bool) -> None:
    if not first:
        print(flush=True)
    console.print(question, style="bold", markup=False)


def close(console: "Console", records: "list[RunRecord]", path: Path | None, interrupted: bool) -> int:
    """The cost, and the record: the text has been shown whatever happens here."""
    from kvfoot.report.table import summary

    for record in records:
        console.print(summary(record))
        if _uncut(record):
            console.print(
                "note: nothing was evicted: the prompt is not longer than what the method protects (sinks + window)",
                style="yellow",
                markup=False,
            )
    if path is not None:
        for i, record in enumerate(records):
            own = path if len(records) == 1 else path.with_name(f"{path.stem}.{i + 1}{path.suffix}")
            _save(record, own)
            console.print(f"record: {own}", style="dim", markup=False)
    return INTERRUPTED if interrupted else 0


def _uncut(record: "RunRecord") -> bool:
    """Whether a prompt was kept whole although a fraction was asked for (decision 0003): never silently.

    A reader keeps it whole by definition.
    """
    from kvfoot.core.reading import Reader
    from kvfoot.core.registry import methods

    kind = methods().get(record.config["method"])
    if kind is not None and issubclass(kind, Reader):
        return False
    asked = record.config["keep"] is not None and record.config["keep"] < 1
    return asked and any(all(n == s.prompt for layer in s.kept for n in layer) for s in record.sequences)


def _save(record: "RunRecord", path: Path) -> None:
    try:
        record.save(path)
    except OSError as error:
        raise KvfootError(
            f"the record {path} was not written ({error.strerror}): free some space or give another place"
        ) from error
