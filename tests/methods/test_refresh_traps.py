"""The traps of RefreshKV's specification (7.1), one by one; the acceptance tests are in test_refreshkv.py."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from test_refreshkv import select
from torch import Tensor

import readers
import tiny
from kvfoot.attention import sdpa
from kvfoot.core.errors import UsageError
from kvfoot.core.reading import Held, Reader
from kvfoot.core.registry import method as find_method
from kvfoot.core.registry import methods
from kvfoot.engine import reading

K, PROMPT = 20, 90


@dataclass
class Asked:
    """A query over given logits [R, H, n], whose entries have random keys."""

    weights: Tensor
    size: int
    step: int = 0
    layer: int = 2
    past: int = 0
    below: Any = None
    coarse: bool = False
    sequences: int = 1
    scanned: float = 0
    backend: ClassVar[Any] = sdpa
    widen: ClassVar[Any] = reading.Asked.widen
    reach: ClassVar[Any] = reading.Asked.reach
    pages: ClassVar[Any] = reading.Asked.pages

    def __post_init__(self) -> None:
        R, H, self.n = self.weights.shape
        like = {"device": self.weights.device}
        self.q, self.key, self.value = torch.ones(R, H, 8, **like), torch.ones(R, 8, **like), torch.ones(R, 8, **like)

    def logits(self) -> Tensor:
        return self.weights

    def scores(self) -> Tensor:
        return self.weights.softmax(-1)

    def keys(self, last: int | None = None) -> Tensor:
        return torch.ones(len(self.q), last or self.n, 8, device=self.q.device)

    @property
    def newest(self) -> Tensor:
        return torch.full((len(self.q), 1), self.n - 1, device=self.q.device)

    def earlier(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        return scores[..., :-1], None

    def contested(self, first: int, last: int) -> tuple[Tensor, int, Tensor | None]:
        return self.weights[..., first : self.n - last].softmax(-1), first, None

    def best(self, *_: Any) -> None:
        return None

    def vote(self, *_: Any) -> None:
        return None

    def push(self, queue: Tensor) -> tuple[Tensor, Tensor]:
        read = torch.cat([queue, self.newest], 1)
        return read, read[:, 1:]

    def unrotated(self) -> Tensor:
        return self.q

    def hold(self, slots: Tensor) -> Held | None:
        copy = torch.ones(*slots.shape, 8, device=self.q.device)
        return Held(copy, copy) if self.coarse else None


def chosen(logits: Tensor, size: int) -> list[int]:
    """Entries that a refresh selects for one KV head, without pooling."""
    method = find_method("refreshkv", {"kernel": 1})
    return method.start(Asked(logits[None], size)).slots[0].tolist()  # type: ignore[attr-defined]


def test_1_each_kv_head_has_its_own_set() -> None:
    found, _ = readers.run("refreshkv", {"similarity": -2, "max_gap": None}, budget=K, new=2)
    sets = [frozenset(row) for layer in range(2) for row in found.sequence.reading[layer, (0, 1)].slots.tolist()]
    assert len(set(sets)) == 4


def test_3_a_gap_longer_than_the_partial_cache_loses_nothing() -> None:
    """Tokens that have left the partial cache between two refreshes are selected like any other."""
    size, every = 6, 20
    options = {"schedule": "fixed", "every": every, "mode": "score_only", "max_gap": None}
    found, reads = readers.run("refreshkv", options, budget=size, new=43)
    scores = readers.check(found, reads)
    late = 0
    for layer in range(2):
        for head in range(2):
            for query in (PROMPT + every - 1, PROMPT + 2 * every - 1):
                expected, pooled = select(scores[layer, head * 3 : head * 3 + 3], query, size)
                got = reads[layer, head, query]
                assert all(a == b or abs(pooled[a] - pooled[b]) < 1e-6 for a, b in zip(got, expected, strict=True))
                late += sum(PROMPT <= slot < query - size for slot in got)
    assert late, "no token was selected that had left"


@pytest.mark.parametrize("mode", ["full", "score_only"])
def test_4_the_token_of_a_refresh_is_seen_by_the_next_one(mode: str) -> None:
    found, reads = readers.run("refreshkv", {"schedule": "fixed", "every": 3, "mode": mode}, budget=K)
    for (_, _, query), slots in reads.items():
        assert query in slots
        if mode == "full" or (query - PROMPT + 1) % 3:  # a refresh that reads its own choice may leave it out
            assert query - 1 in slots
    assert found.sequence.trace.strides() == [29 / 9] * 2


def test_5_a_token_s_own_share_stays_in_the_softmax() -> None:
    """Head 0 looks at itself, and little of its attention is left for entry 3; head 1 is spread over 8 and 9."""
    a, b = torch.full((12,), -9.0), torch.full((12,), -9.0)
    a[11], a[3] = 3.0, 0.0
    b[8], b[9] = 2.0, 1.8
    assert set(chosen(torch.stack([a, b]), 3)) == {8, 9, 11}
    without = torch.stack([a, b])[:, :-1].softmax(-1).amax(0)
    assert int(without.argmax()) == 3, "without it entry 3 would have been the first"


def test_6_softmax_comes_before_the_maximum_over_heads() -> None:
    """Head 0 has the larger logits and prefers nothing; head 1 prefers entry 7."""
    torch.manual_seed(0)
    loud, sure = 50 + 0.01 * torch.rand(30), torch.zeros(30)
    sure[7] = 4
    logits = torch.stack([loud, sure])
    assert chosen(logits, 2) == [7, 29]
    assert int(logits[:, :-1].amax(0).argmax()) != 7


def test_7_a_prompt_that_fits_is_read_whole_until_it_does_not() -> None:
    """90 tokens, K = 100: from the eleventh new token on entries leave."""
    found, reads = readers.run("refreshkv", {"similarity": -2, "max_gap": None}, budget=100)
    readers.check(found, reads)
    for (_, _, query), slots in reads.items():
        assert len(slots) == min(query + 1, 101)
    short, _ = readers.run("refreshkv", {}, prompt=30)
    full, _ = readers.run("full", {}, prompt=30)
    assert short.sequence.plan.reads == 128
    assert short.generated == full.generated


def test_8_k_is_the_prompt_s_unless_it_is_to_grow() -> None:
    options = {"schedule": "fixed", "every": 10, "mode": "score_only"}
    same, reads = readers.run("refreshkv", options, budget=K, new=40)
    assert {len(s) for (_, _, query), s in reads.items()} == {K, K + 1}
    for store in (None, 4):
        more = {"grow": 0.25, "store": store}
        found, reads = readers.run("refreshkv", options | more, budget=K, new=40)
        sizes = [len(reads[0, 0, PROMPT + i]) for i in range(39)]
        assert sizes == [23] * 9 + [25] + [26] * 9 + [27] + [28] * 9 + [30] + [31] * 9
        if store is None:
            readers.check(found, reads)
    assert same.sequence.trace.read() < found.sequence.trace.read()
    with pytest.raises(UsageError, match=r"grow=1\.5 is a fraction of what is stored"):
        find_method("refreshkv", {"grow": 1.5})


CALM: dict[str, dict[str, Any]] = {
    "tokenselect": {"sink": 2, "window": 3},
    "retroattention": {"page": 4, "window": 3},
    "quest": {"page": 4},
}


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", [n for n, cls in methods().items() if issubclass(cls, Reader)])
def test_10_nothing_waits_for_the_device(name: str, coarse: bool) -> None:
    """Tensors without values: whoever asks for one of them fails. The decision is left on the device."""
    method = find_method(name, CALM.get(name, {}))
    assert isinstance(method, Reader)
    logits = torch.zeros(2, 3, 64, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        bool(logits.sum() > 0)
    state = method.start(Asked(logits, 16, coarse=coarse))
    query = Asked(torch.zeros(2, 3, 65, device="meta"), 16, step=5, coarse=coarse)
    after, read = method.read(state, query)
    if name in ("refreshkv", "tokenselect"):
        assert isinstance(read.refresh, Tensor)
    if read.refresh is not False:
        after, slots = method.refresh(after, query)
        assert slots.device.type == "meta"
    if method.tokens > 1:
        assert read.slots is not None
        assert method.unseen(state, replace(query, past=2), read.slots).shape == (2, 2, read.slots.shape[1])


def test_14_windows_are_left_alone() -> None:
    """Layers with a window of their own are no reader's business: they have no state and do not refresh."""
    model = tiny.make("qwen3", layers=4, use_sliding_window=True, sliding_window=16, max_window_layers=2, head_dim=16)
    found, reads = readers.run("refreshkv", {"schedule": "fixed", "every": 5}, budget=K, model=model)
    assert found.engine.geometry.open_layers == [0, 1]
    assert {layer for layer, _, _ in reads} == {layer for layer, _ in found.sequence.reading} == {0, 1}
    strides = found.sequence.trace.strides()
    assert strides[:2] == [29 / 5] * 2
    assert strides[2:] == [float("inf")] * 2
    assert found.sequence.rows.lens[2:].max() == 15


def test_a_prompt_of_one_token_has_no_earlier_entry() -> None:
    full, found = (
        tiny.Strict(tiny.llama()).generate([[5]], method=name, budget=size, max_new_tokens=6)[0].tokens
        for name, size in (("full", None), ("refreshkv", 24))
    )
    assert found == full
