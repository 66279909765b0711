"""A sweep that never ran: results with the shape, the sizes and the noise of a real one, drawn from a seed."""

import random
from collections.abc import Sequence
from functools import cache
from math import exp

from kvfoot.core.records import Footprint, Memory, RunRecord, SequenceRecord, Timings
from kvfoot.core.results import Cell, SampleResult

REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
LAYERS, HEADS = 30, 3
MIDDLE = {"streaming": 0.55, "snapkv": 0.22, "pyramidkv": 0.28, "h2o": 0.4, "adakv": 0.12}
"""Share kept at which half of the score is left."""
TASKS = {
    "niah-multikey": ("recall", "exact"),
    "labels": ("in-context learning", "exact"),
    "chain": ("long output", "prefix"),
}
WORDS = ("amber", "birch", "cobalt", "dune", "ember", "fjord")
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> & \u2028 \U0001f511"


@cache
def _record(method: str, keep: float | None, length: int, seed: int) -> RunRecord:
    rng = random.Random(f"{length}/{seed}")
    chunk, share = 512, 1.0 if keep is None else keep
    prompt, generated = length - rng.randrange(40), rng.randrange(8, 24)
    rng = random.Random(f"{method}/{keep}/{length}/{seed}")
    kv = share + (1 - share) * chunk / prompt
    kept = []
    for layer in range(LAYERS):
        tilt = 1.0 if method != "pyramidkv" else 1.6 - 1.2 * layer / (LAYERS - 1)
        weights = [rng.uniform(0.4, 1.6) if method == "adakv" else 1.0 for _ in range(HEADS)]
        weights = [w * HEADS / sum(weights) for w in weights]
        kept.append([min(prompt, round(share * prompt * tilt * w)) for w in weights])
    footprint = Footprint(kv, min(1.0, share + chunk / prompt), kv, kv * (1.0 if keep is None else 1.004))
    entry = 256
    dense = LAYERS * HEADS * prompt * entry
    return RunRecord(
        footprint=footprint,
        memory=Memory(round(dense * share), round(dense * footprint.peak), dense),
        timings=Timings(prompt / 900, prompt / 900 + 0.03, 14 + 22 * kv + rng.uniform(-1, 1)),
        tokens={"prompt": prompt, "generated": generated},
        config={
            "model": "smollm2", "method": method, "options": {}, "keep": keep, "budget": None,
            "evict": None if keep is None else "chunk", "chunk": chunk, "max_new_tokens": 32, "temperature": 0.0,
            "top_p": 1.0, "dtype": "bfloat16", "backend": "sdpa", "page_size": 16, "chat": False, "question": "before",
        },
        revision=REVISION,
        packages={"python": "3.11.2", "kvfoot": "0.1.0", "torch": "2.13.0", "transformers": "5.17.0"},
        device={"type": "cuda", "name": "NVIDIA H100 80GB HBM3"},
        seed=seed,
        sequences=[SequenceRecord(prompt, generated, footprint, kept)],
    )  # fmt: skip


def _timeline(record: RunRecord) -> list[tuple[int, int]]:
    share, rows = record.config["keep"] or 1.0, LAYERS * HEADS
    found, seen, stored = [], 0, 0
    while seen < record.tokens["prompt"]:
        step = min(512, record.tokens["prompt"] - seen)
        seen += step
        held = share * record.tokens["prompt"] if record.config["method"] in ("streaming", "h2o") else share * seen
        stored = min(seen, round(held))
        found.append((seen, stored * rows))
    for i in range(1, record.tokens["generated"]):
        found.append((seen + i, (stored + i) * rows))
    return found


def sweep(
    tasks: Sequence[str] = tuple(TASKS),
    methods: Sequence[str] = tuple(MIDDLE),
    keeps: Sequence[float] = (0.9, 0.7, 0.5, 0.3, 0.1),
    lengths: Sequence[int] = (4096,),
    samples: int = 20,
) -> list[SampleResult]:
    """`samples` results for full attention and for every method at every share kept, per task and length."""
    found = []
    for task in tasks:
        category, metric = TASKS[task]
        for length in lengths:
            for method, keep in [("full", None), *((m, k) for m in methods for k in keeps)]:
                cut = {} if keep is None else {"knob": "keep", "value": keep, "evict": "chunk"}
                cell = Cell("smollm2", REVISION, task, category, metric, length, method, chunk=512, **cut)
                found += [_sample(cell, i) for i in range(samples)]
    return found


def _sample(cell: Cell, index: int) -> SampleResult:
    rng = random.Random(f"{cell.task}/{cell.length}/{index}")
    hard, depth = rng.random(), (index * 0.381966) % 1
    names = [f"{rng.choice(WORDS)}-{rng.randrange(100, 999)}" for _ in range(8)]
    able = 0.94 if cell.value is None else 0.94 / (1 + exp(-(cell.value - MIDDLE[cell.method]) / 0.06))
    able *= 1 - 0.15 * (cell.length > 4000) * (0.3 < depth < 0.7)
    if cell.metric == "prefix":
        right = min(8, int(8 * min(1.0, able * (0.75 + 0.5 * (1 - hard)))))
    else:
        right = 8 if hard < able else 3
    answer = " -> ".join(names[:right] + [f"{n[:-3]}000" for n in names[right:]])
    if index == 3:
        answer = f"{answer[:20]} {HOSTILE} {'' if right == 8 else 'x'}"
    score = right / 8 if cell.metric == "prefix" else float(right == 8)
    record = _record(cell.method, cell.value, cell.length, index)
    prompt = ("The road went on past the mill. " * (cell.length // 8)) + f"\n\nWhich names follow {names[0]}?\nAnswer:"
    figures = {"depth": depth} if cell.category == "recall" else {}
    return SampleResult(
        cell, index, prompt, answer, " -> ".join(names), score, 0.1 + 2 * (1 - able), True, record, figures,
        _timeline(record),
    )  # fmt: skip
