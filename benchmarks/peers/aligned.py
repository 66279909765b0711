"""Which options of kvfoot and of kvpress 0.5.5 say the same thing, and pairs that are apart in a named way.

Imports neither: docs/kvpress.md and its test read this table too.
"""

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

KVPRESS = "0.5.5"
PROMPT, RATIO = 1024, 0.75
"""Tokens, and the share that kvpress removes. Its count is int(1024 * (1 - 0.75)) = 256, ours round(1/4 * 1024)."""
KEPT = 256
WINDOW = 16
"""PyramidKV's window here. Ours selects 240 a layer on average beyond it, so the last layer holds 16 + 240 // 20 = 28;
kvpress slopes the total, window included, down to 256 / beta, and beta = 256/28 makes that 28 as well."""


@dataclass(frozen=True)
class Pair:
    """A method of kvfoot with options, and a press with options.

    scorer: options of AdaKVPress' inner SnapKVPress. keep: our fraction, where not kvpress' count over the prompt.
    newest: the newest entry is put into our sets as TOVAPress does, in the place of the worst entry.
    why: what separates the two, in one line; empty where nothing does.
    """

    name: str
    method: str
    press: str
    options: dict[str, Any] = field(default_factory=dict)
    press_options: dict[str, Any] = field(default_factory=dict)
    scorer: dict[str, Any] | None = None
    prompt: int = PROMPT
    ratio: float = RATIO
    keep: Fraction | None = None
    newest: bool = False
    why: str = ""


SNAPKV = {"window": 64, "kernel": 5, "pool": "avg", "group": "mean", "sink": 0}
SCORER = {"window_size": 64, "kernel_size": 5}
ALIGNED = (
    Pair("snapkv", "snapkv", "SnapKVPress", SNAPKV, SCORER),
    Pair(
        "pyramidkv",
        "pyramidkv",
        "PyramidKVPress",
        SNAPKV | {"window": WINDOW, "beta": 20},
        {"window_size": WINDOW, "kernel_size": 5, "beta": Fraction(KEPT, WINDOW + (KEPT - WINDOW) // 20)},
    ),
    Pair("tova", "tova", "TOVAPress", why="TOVAPress keeps the newest entry whatever its weight"),
    Pair("keynorm", "keynorm", "KnormPress", {"skip": 0, "window": 0, "sink": 0}),
    Pair("streaming", "streaming", "StreamingLLMPress", {"sink": 4}, {"n_sink": 4}),
    Pair("adakv", "adakv", "AdaKVPress", SNAPKV | {"alpha": 0}, {"alpha_safeguard": 0}, SCORER),
)
"""The same entries are expected, up to scores that tie in fp32."""

_by_name = {pair.name: pair for pair in ALIGNED}


def _apart(name: str, of: str, why: str, **changes: Any) -> Pair:
    return replace(_by_name[of], name=name, why=why, **changes)


APART = (
    _apart("tova, newest put in", "tova", "the whole of TOVA's difference", newest=True),
    _apart(
        "adakv, alpha 1",
        "adakv",
        "alpha 1 is SnapKV in both",
        options=SNAPKV | {"alpha": 1},
        press_options={"alpha_safeguard": 1},
    ),
    _apart(
        "adakv, alpha 0.2",
        "adakv",
        "ours, as the release, is a share: 0.8 x what the ranking gives + 0.2 x the mean; kvpress' is a floor: each "
        "head's best 0.2 x mean are safe, the ranking gives the rest",
        options=SNAPKV | {"alpha": 0.2},
        press_options={"alpha_safeguard": 0.2},
    ),
    _apart(
        "adakv, defaults",
        "adakv",
        "as above, and SnapKV's window 32, max-pooling over 7 of the release against 64, average over 5",
        options={},
        press_options={},
        scorer={},
    ),
    _apart(
        "snapkv, group max", "snapkv", "kvpress joins query heads by their mean only", options=SNAPKV | {"group": "max"}
    ),
    _apart(
        "snapkv, max-pooling over 7",
        "snapkv",
        "kvpress pools by average only",
        options=SNAPKV | {"pool": "max", "kernel": 7},
        press_options=SCORER | {"kernel_size": 7},
    ),
    _apart(
        "pyramidkv, defaults",
        "pyramidkv",
        "1/20 of 256 is less than a window of 64: PyramidKVPress gives every layer the same, as SnapKVPress would",
        options={},
        press_options={},
    ),
    _apart(
        "pyramidkv, 4 times the prompt, defaults",
        "pyramidkv",
        "the same at 4,096 tokens; from 5,120 on (1/20 of the kept reaches the window) PyramidKVPress slopes",
        options={},
        press_options={},
        prompt=4096,
    ),
    _apart(
        "pyramidkv, half kept",
        "pyramidkv",
        "ours steps down by whole entries as the release does, kvpress by fractions, rounded",
        ratio=0.5,
        press_options=_by_name["pyramidkv"].press_options | {"beta": Fraction(512, 40)},
    ),
    _apart(
        "keynorm, defaults",
        "keynorm",
        "the paper leaves the first two layers whole, KnormPress none",
        options={},
    ),
    _apart(
        "snapkv, a tenth of 1,000",
        "snapkv",
        "int(1000 * (1 - 0.9)) is 99: kvpress truncates a float, kvfoot rounds an exact fraction",
        prompt=1000,
        ratio=0.9,
        keep=Fraction(1, 10),
    ),
)
"""One named difference each, and what it is worth."""


def options_table() -> str:
    """The aligned options as Markdown."""
    lines = ["| kvfoot | options | kvpress | options |", "| --- | --- | --- | --- |"]
    for pair in ALIGNED:
        press, theirs = f"`{pair.press}`", _words(pair.press_options)
        if pair.scorer is not None:
            theirs = f"{theirs}; its `SnapKVPress`: {_words(pair.scorer)}"
        lines.append(f"| `{pair.method}` | {_words(pair.options)} | {press} | {theirs} |")
    return "\n".join(lines)


def _words(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "none"
