"""`kvfoot tune`: the method and setting with the smallest footprint that keeps a target, for one's own prompts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from kvfoot.cli import inputs
from kvfoot.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from kvfoot.evaluate.tune import Tuned

METRICS = ("agreement", "exact", "contains", "rouge")
METHODS = "snapkv,pyramidkv,adakv,h2o,tova,keynorm,streaming"
KEEPS = "keep=0.9,0.8,0.7,0.6,0.5,0.4,0.3,0.2,0.15,0.1,0.05"


def tune(
    model: Annotated[str, Option(help="smollm2, recall, a folder, a .gguf file or a hub name")],
    prompts: Annotated[Path, Option(help="JSONL with a prompt a line, and answers where there are some")],
    target: Annotated[float, Option(help="share of full attention's score that is to be kept")] = 0.95,
    methods: Annotated[str, Option(help="names, or name:option=value, separated by commas")] = METHODS,
    knob: Annotated[list[str] | None, Option(metavar="NAME=V,V,...", help="default: keep from 0.9 to 0.05")] = None,
    metric: Annotated[
        str | None,
        Option(help="agreement with full attention; or of answers: exact, contains, rouge (default: by the file)"),
    ] = None,
    evict: Annotated[str, Option(help="post, chunk or both")] = "post,chunk",
    question: Annotated[str, Option(help="before or after the eviction")] = "before",
    chunk: Annotated[str, Option(help="prompt tokens per pass, or all")] = "512",
    tokens: Annotated[int, Option(help="of full attention's continuation, for agreement")] = 64,
    out: Annotated[Path, Option(help="the settings file")] = Path("settings.json"),
    dtype: Annotated[str, Option(help="auto, bfloat16, float16 or float32")] = "auto",
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    backend: Annotated[str | None, Option(help="see kvfoot doctor")] = None,
    chat: Annotated[
        bool | None, Option("--chat/--no-chat", help="the chat template (default: where there is one)")
    ] = None,
) -> int:
    """Find the smallest footprint that keeps a target on these prompts; write a file for `kvfoot run --settings`."""
    from kvfoot.attention.backend import choose
    from kvfoot.cli.evaluate import _knob, _names, _once
    from kvfoot.evaluate.catalog import Lines
    from kvfoot.evaluate.sweep import Sweep, Variant

    if metric is not None and metric not in METRICS:
        raise UsageError(f"unknown metric {metric!r}{did_you_mean(metric, list(METRICS))}")
    if tokens < 1:
        raise UsageError(f"--tokens {tokens}: give at least 1")
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(f"--out {out}: give a file in an existing folder")
    lines = Lines.read(prompts, answers=metric not in (None, "agreement"), metric=_of_answers(metric))
    chosen = metric or (lines.metric if all(row["answers"] for row in lines.rows) else "agreement")
    sweep = Sweep(
        model=model,
        tasks=(str(prompts),),
        methods=tuple(_names("--methods", methods)),
        knobs=dict(_knob(text) for text in _once("--knob", knob or [KEEPS])),
        samples=len(lines.rows),
        chunk=inputs.chunk_size(chunk),
        evict=tuple(_names("--evict", evict)),
        question=question,
        chat=chat,
    )
    variants = [v for v in sweep.variants() if v.method.name != "full"]
    if not variants:
        raise UsageError("--methods: give at least one beside full")
    if not 0 < target <= 1:
        raise UsageError(f"--target {target:g} is outside (0, 1]")
    choose(backend)

    from kvfoot.cli.console import load, stderr
    from kvfoot.core.registry import method as find_method
    from kvfoot.evaluate.judge import Agreement, Answers, Judge, fitting
    from kvfoot.evaluate.tune import search, settings_of

    console = stderr()
    engine = load(console, model, dtype=dtype, device=device, backend=backend)
    full = Variant(find_method("full"))
    if not (found := fitting(engine, sweep, lines, [full], tokens))[0]:
        raise UsageError(found[1][0][1])
    variants, left_out = fitting(engine, sweep, lines, variants, tokens)
    if not variants:
        raise UsageError(f"no setting fits these prompts: {left_out[0][0]}: {left_out[0][1]}")
    if left_out:
        each = ", ".join(str(v) for v, _ in left_out)
        console.print(f"left out: {each} ({left_out[0][1]})", style="dim", markup=False)
    judge: Judge
    judge = Agreement(engine, sweep, lines, tokens) if chosen == "agreement" else Answers(engine, sweep, lines)
    with console.status(f"{len(variants)} settings on {len(lines.rows)} prompts") as status:
        tuned = search(variants, judge, len(lines.rows), target, full=full, say=status.update)
    settings_of(tuned, sweep, chosen, target).save(out)
    _print(tuned, chosen, target)
    console.print(f"settings: {out} (kvfoot run --settings {out})", style="dim", markup=False)
    return 0


def _of_answers(metric: str | None) -> str | None:
    return None if metric == "agreement" else metric


def _print(tuned: "Tuned", metric: str, target: float) -> None:
    from rich.table import Table

    from kvfoot.cli.console import stdout

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("setting", metric, "footprint", "KL", "prompts"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for c in sorted(tuned.finalists, key=lambda c: c.footprint):
        kl = "-" if c.kl is None else f"{c.kl:.4f}"
        table.add_row(str(c), f"{c.score:.3f}", f"{100 * c.footprint:.1f} %", kl, str(len(c.verdicts)))
    console = stdout()
    console.print(table)
    low, high = tuned.checked.interval()
    found = f"{tuned.chosen}: footprint {100 * tuned.checked.footprint:.1f} %, {metric} {tuned.checked.score:.3f}"
    sure = "reaches" if tuned.passed else "does not reach"
    if tuned.chosen.variant.method.name == "full":
        found = f"no setting keeps {target:g}: full attention"
    console.print(
        f"{found} [{low:.3f}, {high:.3f}] on {len(tuned.checked.verdicts)} prompts held out of the search: "
        f"{sure} {target:g}; {tuned.judged} of {tuned.grid} runs of the whole grid",
        markup=False,
        highlight=False,
    )
