"""Law 2 over the whole registry and all families: what is evicted or not read is masked, whatever the model."""

from typing import Any

import pytest

import oracle
import readers
import tiny
from families import DECIDED, pair
from kvfoot.core.hooks import Needs
from kvfoot.core.reading import Reader
from kvfoot.core.registry import method as find_method
from kvfoot.core.registry import methods
from lawtable import OPTIONS

PROMPT, NEW = 70, 6
RENUMBERED = ("cohere2", "gemma3_text", "gpt_oss", "qwen2-window", "qwen3-window", "smollm3")
"""Families that the renumbering oracle does not know; tests/engine/test_equality.py compares their rotation."""


MASKED = [n for n in methods() if n != "full" and getattr(find_method(n, OPTIONS.get(n, [{}])[0]), "tokens", 1) == 1]
"""But readers that correct past tokens: tests/methods/test_retroattention.py has loops for them."""


@pytest.mark.parametrize("kind", DECIDED)
@pytest.mark.parametrize("name", MASKED)
def test_law_2_in_every_family(name: str, kind: str) -> None:
    cls = methods()[name]
    engine = tiny.Strict(pair(kind)[0], page_size=4)
    options: dict[str, Any] = OPTIONS.get(name, [{}])[0]
    renumbered = Needs.PRE_ROPE in cls.needs
    if renumbered and kind in RENUMBERED:
        size: dict[str, Any] = {"budget": PROMPT + NEW}
    else:
        size = {"budget": 24} if cls.budgeted or issubclass(cls, Reader) else {}
    if cls.budgeted:
        size["evict"] = "chunk"
    log: readers.Reads = {}
    with readers.watched(log):
        run = tiny.run(engine, tiny.tokens(PROMPT), name, options, chunk=24, new=NEW, **size)
    geometry, T = engine.geometry, run.passes[-1].stop
    mask = oracle.visibility(run.passes, geometry.layers, geometry.kv_heads, T) & readers.mask(run, log)
    known = renumbered and kind not in RENUMBERED
    logits, _ = oracle.forward(engine.model, run.tokens[:T], mask, None, run.passes if known else None)
    assert max((s.logits.double() - logits[s.stop - 1]).abs().max().item() for s in run.passes) < 2e-4
