"""What the laws run every registered method with. A new method needs an entry only if its defaults do not fit."""

from typing import Any

import pytest

from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.registry import method as find_method
from kvfoot.core.registry import methods

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "adakv": [{"window": 3, "kernel": 3}, {"window": 2, "sink": 1, "pool": "avg", "group": "max", "alpha": 0.5}],
    "duo": [{"roles": "streaming", "sink": 2, "window": 8}],
    "full": [{}],
    "heads": [
        {"roles": "random", "sparsity": 0.5, "seed": 3, "sink": 2, "window": 6},
        {"roles": "streaming", "sink": 0, "window": 9},
        {"roles": "random", "sparsity": 0.75, "sink": 1, "window": 4, "exact": True},
    ],
    "h2o": [{}, {"group": "max", "recent": 0.25}],
    "locret": [{"seed": 1, "stabilizers": 9, "local": 4}, {"seed": 5, "stabilizers": 0, "local": 0}],
    "keynorm": [{"skip": 0}, {"skip": 1, "window": 2, "sink": 1}],
    "prulong": [{"roles": "streaming", "sink": 1, "window": 5}],
    "pyramidkv": [{"window": 3, "kernel": 3}, {"window": 2, "sink": 1, "pool": "max", "beta": 3}],
    "random": [{"window": 3, "seed": 5}],
    "refreshkv": [{"every": 3, "schedule": "fixed"}],
    "retroattention": [{"page": 4, "skip": 0}],
    "snapkv": [{"window": 3, "kernel": 3}, {"window": 2, "sink": 1, "pool": "max", "group": "max", "kernel": 5}],
    "streaming": [{"sink": 2}],
    "tokenselect": [{"sink": 2, "window": 5}],
    "streamingllm": [{"sink": 2}],
    "wgkv": [{"seed": 3, "window": 5}, {"seed": 4, "window": 0, "alpha": 0.5}],
}
"""Options per method that suit prompts of some 80 tokens, chunks of 7, keep = 0.5 and budget = 24."""

PROMPT, NEW = 75, 8
WHOLE: dict[str, list[dict[str, Any]]] = {
    "duo": [{"roles": "random", "sparsity": 0.0}],
    "prulong": [{"roles": "random", "sparsity": 0.0}],
    "heads": [{"roles": "random", "sparsity": 0.0}, {"roles": "streaming", "sink": 3, "window": PROMPT + NEW}],
}
"""Options with which a method that takes no budget keeps everything, where its options in OPTIONS do not."""
MODES: list[dict[str, Any]] = [
    {"keep": 0.5, "evict": "post"},
    {"keep": 0.5, "evict": "chunk"},
    {"budget": 24, "evict": "post"},
    {"budget": 24, "evict": "chunk"},
]

Case = tuple[str, dict[str, Any], dict[str, Any]]


def cases() -> list[Case]:
    """(method, options, budget arguments) over the registry."""
    return [
        (name, options, mode)
        for name, cls in methods().items()
        for options in OPTIONS.get(name, [{}])
        for mode in (MODES if cls.budgeted else [{}])
    ]


def first_cases() -> list[Case]:
    """The same with the first options of each method only."""
    return [(name, o, mode) for name, o, mode in cases() if o == OPTIONS.get(name, [{}])[0]]


def label(value: Any) -> str | None:
    if isinstance(value, dict):
        return "-".join(f"{k}={v}" for k, v in value.items()) or "default"
    return None


def check_fits(name: str) -> None:
    """Fail with the cure where a registered method cannot run under the laws."""
    geometry = Geometry(layers=2, kv_heads=2, group=3, head_dim=8, positions=512)
    for options in OPTIONS.get(name, [{}]):
        for mode in MODES if methods()[name].budgeted else [{}]:
            try:
                find_method(name, options).prepare(geometry, PROMPT, 7, Budget.of(**mode))
            except UsageError as error:
                pytest.fail(
                    f"the method {name!r} does not run under the laws with options {options} and {mode} ({error}): "
                    "give it small options in OPTIONS of tests/lawtable.py"
                )
