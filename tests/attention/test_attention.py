"""Attention states, and both backends against the definition in float64."""

from itertools import pairwise, permutations
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from kvfoot.attention import naive, sdpa
from kvfoot.attention.backend import BACKENDS, choose, suited
from kvfoot.attention.state import State, merge
from kvfoot.core.errors import UsageError

SHAPES = [
    # R, H, n, m, D
    (1, 1, 1, 1, 8),
    (2, 3, 1, 37, 8),
    (3, 5, 7, 7, 16),
    (3, 1, 5, 130, 24),
    (2, 3, 61, 61, 40),
    (1, 7, 33, 1000, 64),
    (2, 2, 129, 515, 20),
    (5, 3, 1, 1, 64),
]


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    R, H, n, m, D = shape
    generator = torch.Generator().manual_seed(sum(shape))
    make = lambda *size: torch.randn(size, generator=generator).to(dtype)  # noqa: E731
    return 2 * make(R, H, n, D), make(R, m, D), make(R, m, D)


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, normaliser and column sums, entry by entry, in float64."""
    R, H, n, D = q.shape
    m = k.shape[1]
    out, lse = torch.zeros(R, H, n, D, dtype=torch.float64), torch.zeros(R, H, n, dtype=torch.float64)
    columns = torch.zeros(R, H, m, dtype=torch.float64)
    for r in range(R):
        for h in range(H):
            for i in range(n):
                end = m - n + i + 1 if causal else m
                s = k[r, :end].double() @ q[r, h, i].double() * scale
                p = s.softmax(0)
                out[r, h, i] = p @ v[r, :end].double()
                lse[r, h, i] = s.logsumexp(0)
                columns[r, h, :end] += p
    return out, lse, columns


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", list(BACKENDS))
def test_attend(name: str, shape: tuple[int, ...], causal: bool) -> None:
    q, k, v = inputs(shape)
    found = BACKENDS[name].attend(q, k, v, 0.3, causal)
    out, lse, _ = exact(q, k, v, 0.3, causal)
    assert found.lse.dtype == torch.float32
    assert torch.allclose(found.out.double(), out, atol=2e-5)
    assert torch.allclose(found.lse.double(), lse, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", list(BACKENDS))
def test_scores(name: str, shape: tuple[int, ...]) -> None:
    q, k, v = inputs(shape)
    backend = BACKENDS[name]
    _, lse, columns = exact(q, k, v, 0.3, True)
    found = backend.column_scores(q, k, lse.float(), 0.3)
    assert torch.allclose(found.double(), columns, atol=1e-4, rtol=1e-4)
    assert torch.allclose(found.sum(-1), torch.full(found.shape[:2], float(shape[2])), rtol=1e-4), "not one per query"
    assert torch.allclose(backend.window_scores(q, k, 0.3).double(), columns, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("blocks", [1, 1000, 20_000])
def test_scores_in_blocks_are_the_same(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long prompts are scored in blocks of queries or row by row."""
    for name in ("BLOCK_ELEMENTS", "SCORE_ELEMENTS"):
        monkeypatch.setattr(sdpa, name, blocks)
    for shape in SHAPES:
        q, k, _ = inputs(shape)
        lse = naive.attend(q, k, k, 0.3, True).lse
        assert torch.allclose(
            sdpa.column_scores(q, k, lse, 0.3), naive.column_scores(q, k, lse, 0.3), atol=1e-4, rtol=1e-4
        )
        assert torch.allclose(sdpa.window_scores(q, k, 0.3), naive.window_scores(q, k, 0.3), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_is_within_twice_the_error_of_torch(shape: tuple[int, ...]) -> None:
    q, k, v = inputs(shape, torch.bfloat16)
    R, H, n, m, D = shape
    out, _, _ = exact(q, k, v, 0.3, True)
    mask = torch.ones(n, m, dtype=torch.bool).tril(m - n)
    heads = [x[:, None].expand(R, H, m, D) for x in (k, v)]
    same = torch.nn.functional.scaled_dot_product_attention(q, *heads, attn_mask=mask, scale=0.3)
    theirs = (same.double() - out).abs().max()
    ours = (sdpa.attend(q, k, v, 0.3, True).out.bfloat16().double() - out).abs().max()
    assert ours <= 2 * theirs + 1e-3 * out.abs().max(), (ours, theirs)


def parts(count: int, dtype: torch.dtype = torch.float64) -> tuple[list[State], State]:
    """Attention to `count` parts of some entries, and to all of them."""
    q, k, v = (x.to(dtype) for x in inputs((2, 3, 4, 30, 8)))
    cuts = [0, *sorted(torch.randperm(29, generator=torch.Generator().manual_seed(1))[: count - 1] + 1), 30]

    def attend(a: int, b: int) -> State:
        s = torch.einsum("rhnd,rmd->rhnm", q, k[:, a:b])
        return State(torch.einsum("rhnm,rmd->rhnd", s.softmax(-1), v[:, a:b]), s.logsumexp(-1))

    return [attend(a, b) for a, b in pairwise(cuts)], attend(0, 30)


def close(a: State, b: State) -> bool:
    return torch.allclose(a.out, b.out, atol=1e-9) and torch.allclose(a.lse, b.lse, atol=1e-9)


def test_merge_is_attention_over_the_union_in_any_order() -> None:
    pieces, whole = parts(4)
    for order in permutations(pieces):
        left = order[0]
        for piece in order[1:]:
            left = merge(left, piece)
        assert close(left, whole)


def test_merge_is_commutative_and_associative() -> None:
    (a, b, c), _ = parts(3)
    assert close(merge(a, b), merge(b, a))
    assert close(merge(merge(a, b), c), merge(a, merge(b, c)))


def test_merge_with_an_empty_part_changes_nothing() -> None:
    (a, b), _ = parts(2)
    empty = State(torch.zeros_like(a.out), torch.full_like(a.lse, -torch.inf))
    for x, y in ((a, empty), (empty, a)):
        assert torch.equal(merge(x, y).out, a.out)
        assert torch.equal(merge(x, y).lse, a.lse)
    both = merge(empty, empty)
    assert torch.equal(both.out, empty.out)
    assert torch.equal(both.lse, empty.lse)
    assert close(merge(merge(a, empty), b), merge(a, b))


def test_merge_with_normalisers_far_apart() -> None:
    """Neither overflow nor loss: a part of weight e^-200 vanishes, weights of e^900 are no infinity."""
    one = State(torch.tensor([[1.0, 2.0]]), torch.tensor([900.0]))
    two = State(torch.tensor([[5.0, 5.0]]), torch.tensor([700.0]))
    found = merge(one, two)
    assert torch.equal(found.out, one.out)
    assert found.lse.item() == 900.0


def test_backends_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVFOOT_BACKEND", raising=False)
    assert choose() is sdpa
    assert choose("naive") is naive
    monkeypatch.setenv("KVFOOT_BACKEND", "naive")
    assert choose() is naive
    assert choose("sdpa") is sdpa
    assert suited(64, 3, torch.bfloat16, 16, torch.device("cuda")) is naive
    monkeypatch.setenv("KVFOOT_BACKEND", "tritom")
    with pytest.raises(UsageError, match=r"unknown backend 'tritom' \(did you mean triton\?\)"):
        choose()


def test_a_gpu_has_the_kernels_where_they_serve_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from kvfoot.attention.triton import common

    monkeypatch.delenv("KVFOOT_BACKEND", raising=False)
    gpu = SimpleNamespace(major=9, minor=0, shared_memory_per_block_optin=227 * 1024)
    monkeypatch.setattr(common, "outgrown", common.outgrown.__wrapped__)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    cuda, kind = torch.device("cuda"), torch.bfloat16
    assert suited(64, 3, kind, 16, cuda).name == "triton"
    assert suited(64, 3, kind, 16, torch.device("cpu")) is sdpa
    for head_dim, group, dtype, page_size in ((48, 3, kind, 16), (64, 17, kind, 16), (64, 3, kind, 8)):
        assert suited(head_dim, group, dtype, page_size, cuda) is sdpa
    assert suited(64, 3, torch.float64, 16, cuda) is sdpa
    gpu.minor, gpu.major, gpu.shared_memory_per_block_optin = 9, 8, 99 * 1024
    assert suited(128, 4, kind, 16, cuda).name == "triton"
    assert suited(256, 4, kind, 16, cuda) is sdpa
    assert "needs 104 KiB of shared memory at head size 256, this GPU has 99" in str(
        common.refuse(kind, 256, 4, 16, cuda)
    )
    gpu.major, gpu.minor = 7, 5
    assert suited(64, 3, torch.float16, 16, cuda) is sdpa
    assert common.refuse(kind, 64, 3, 16, cuda) == "serves GPUs of compute capability 8.0 or newer, not 7.5"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert suited(64, 3, kind, 16, cuda) is sdpa
