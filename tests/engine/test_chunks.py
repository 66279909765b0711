"""Long chunks in pieces: the whole's numbers, tokens and survivors, in a number of shapes that does not grow."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from families import build
from kvfoot.attention import naive, sdpa
from kvfoot.attention.pieces import blocks, history
from kvfoot.attention.state import State
from kvfoot.core.hooks import Needs
from kvfoot.core.registry import methods
from lawtable import OPTIONS

CHUNK = 16


@dataclass
class Pieces:
    """The sdpa backend, which would gather, with chunks of CHUNK queries in pieces; what `attend` was asked for."""

    name: str = "sdpa"
    shapes: list[tuple[int, int, int, bool]] = field(default_factory=list)
    pieced: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(sdpa, name)

    def piecewise(self, q_GHnD: Tensor, k_GnD: Tensor) -> bool:
        assert k_GnD.shape[1] == q_GHnD.shape[2]
        self.pieced += q_GHnD.shape[2] == CHUNK
        return q_GHnD.shape[2] == CHUNK

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, visible: Any = None) -> State:
        self.shapes.append((*q.shape[:3:2], k.shape[1], causal))
        return sdpa.attend(q, k, v, scale, causal, visible)


def test_blocks_of_a_history() -> None:
    assert blocks(0, 8) == []
    assert blocks(5, 8) == [(0, 5)]
    assert blocks(8, 8) == [(0, 8)]
    assert blocks(75, 8) == [(0, 32), (32, 64), (64, 72), (72, 75)]
    assert len(blocks(15 * 8192, 8192)) == 6
    assert {b - a for a, b in blocks(15 * 8192, 8192)} == {4 * 8192, 8192}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("D", "H", "n", "stored"),
    [(64, 1, 32, 9), (80, 7, 16, 100), (96, 5, 48, 48), (128, 4, 24, 24 * 6 + 5), (64, 3, 8, 0)],
)
def test_pieces_are_the_whole(D: int, H: int, n: int, stored: int, dtype: torch.dtype) -> None:
    """Chunks longer and shorter than their history; queries lie as a model has them, heads inside a token."""
    generator = torch.Generator().manual_seed(D + H)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(dtype)  # noqa: E731
    R = 2
    q, k, v = draw(n, R, H, D).permute(1, 2, 0, 3), draw(R, stored + n, D), draw(R, stored + n, D)
    own = sdpa.attend(q, k[:, stored:], v[:, stored:], 0.2, True)
    old = history(sdpa, q, stored, 0.2, lambda a, b: (k[:, a:b], v[:, a:b]))  # type: ignore[arg-type]
    found = own if old is None else sdpa.join(old, own, dtype)
    exact = naive.attend(q, k, v, 0.2, True)
    mask = torch.ones(n, stored + n, dtype=torch.bool).tril(stored)
    heads = [x[:, None].expand(R, H, stored + n, D) for x in (k, v)]
    theirs = torch.nn.functional.scaled_dot_product_attention(q, *heads, attn_mask=mask, scale=0.2)
    assert found.out.dtype == dtype
    ours, plain = (found.out.float() - exact.out).square(), (theirs.float() - exact.out).square()
    assert ours.mean() <= 1.5**2 * plain.mean() + 1e-13, "parts are rounded once more than the whole"
    assert ours.max() <= 3**2 * plain.max() + 1e-12
    assert (found.lse - exact.lse).abs().max() < 1e-3


def compare(model: Any, **run: Any) -> Pieces:
    backend, prompts = Pieces(), [tiny.tokens(n, n) for n in (75, 112)]
    options: dict[str, Any] = {"chunk": CHUNK, "max_new_tokens": 6, **run}
    expected = tiny.Strict(model, page_size=4).generate(prompts, **options)
    found = tiny.Strict(model, page_size=4, backend=backend).generate(prompts, **options)
    assert [r.tokens for r in found] == [r.tokens for r in expected]
    assert found[0].record.footprint == expected[0].record.footprint
    assert found[0].record.memory.held_bytes == expected[0].record.memory.held_bytes
    return backend


MODES = [
    (name, evict) for name, cls in methods().items() for evict in (["post", "chunk"] if cls.budgeted else ["post"])
]


@pytest.mark.parametrize(("name", "evict"), MODES)
def test_every_method_writes_the_same(name: str, evict: str) -> None:
    cls = methods()[name]
    more: dict[str, Any] = {"keep": 0.5, "evict": evict} if cls.budgeted else {}
    if cls.category == "read":
        more = {"budget": 24}
    backend = compare(tiny.qwen2(), method=name, options=OPTIONS.get(name, [{}])[0], **more)
    assert bool(backend.pieced) == (Needs.PRE_ROPE not in cls.needs)


@pytest.mark.parametrize("kind", ["gpt_oss", "gemma3_text", "smollm3"])
def test_families(kind: str) -> None:
    """Sinks take their share once; layers with a window of their own stay as they are."""
    assert compare(build(kind)).pieced
    assert compare(build(kind), method="snapkv", keep=0.5, evict="chunk", options=OPTIONS["snapkv"][0]).pieced


@pytest.mark.parametrize("patched", ["prerope", "exact", "store"])
def test_what_is_not_plain_is_attended_to_as_a_whole(patched: str) -> None:
    run: dict[str, Any] = {
        "prerope": {"method": "streamingllm", "keep": 0.5, "options": {"sink": 2}},
        "exact": {"method": "heads", "options": OPTIONS["heads"][2]},
        "store": {"method": "refreshkv", "budget": 24, "options": {"every": 3, "store": 8}},
    }[patched]
    model = tiny.make(layers=2, head_dim=32)
    backend = compare(model, **run)
    long = {m for _, n, m, causal in backend.shapes if causal and n == CHUNK}
    assert len(long) > 2, "histories of growing length, gathered"


@pytest.mark.parametrize("name", ["full", "heads"])
def test_shapes_do_not_grow_with_the_prompt(name: str) -> None:
    """A square for all heads, two lengths of blocks for all or for one: whatever the prompt and the roles."""
    roles = {"roles": "1100/0111", "sink": 2, "window": 6}
    model = tiny.make(layers=2, kv_heads=4, group=2, positions=1024)
    options = roles if name == "heads" else {}
    seen = []
    for length in (20 * CHUNK, 40 * CHUNK):
        backend = Pieces()
        engine = tiny.Strict(model, page_size=4, backend=backend)
        backend.shapes.clear()
        engine.generate([tiny.tokens(length)], method=name, options=options, chunk=CHUNK, max_new_tokens=1)
        seen.append({shape for shape in backend.shapes if shape[1] == CHUNK})
    heads = {"full": [4], "heads": [1]}[name]
    plans = {(4, CHUNK, CHUNK, True), *((r, CHUNK, m, False) for r in heads for m in (CHUNK, 4 * CHUNK))}
    rest = {(1, CHUNK, 8, False)} if name == "heads" else set()
    assert seen[0] == seen[1] == plans | rest


def test_a_length_is_met_in_the_chunk_before_the_one_that_needs_it() -> None:
    """Where the device has work: in the last layer of the first chunk, and of the fourth; never where none follows."""
    backend, model = Pieces(), tiny.make(layers=2)
    engine = tiny.Strict(model, page_size=4, backend=backend)

    def squares_before(length: int, block: int) -> int | None:
        backend.shapes.clear()
        engine.generate([tiny.tokens(length)], chunk=CHUNK, max_new_tokens=1)
        kinds = [(m, causal) for _, n, m, causal in backend.shapes if n == CHUNK]
        if (block, False) not in kinds:
            return None
        return sum(causal for _, causal in kinds[: kinds.index((block, False))])

    assert squares_before(6 * CHUNK, CHUNK) == 1 * 2
    assert squares_before(6 * CHUNK, 4 * CHUNK) == 4 * 2
    assert squares_before(5 * CHUNK - 1, 4 * CHUNK) is None
    assert squares_before(CHUNK, CHUNK) is None
