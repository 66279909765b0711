"""Long chunks on a CUDA device: cuDNN's numbers and the base of its lse, parts that join, whole prompts in chunks."""

import copy
from typing import Any

import pytest
import torch
from test_foundation import peaked, prompt

from kvfoot import Engine
from kvfoot.attention import naive
from kvfoot.attention.pieces import history
from kvfoot.attention.state import State, merge
from kvfoot.core.budget import Budget
from kvfoot.core.registry import method
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.step import Step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
pytest.importorskip("triton")

from kvfoot.attention.triton import backend, fused  # noqa: E402
from kvfoot.attention.triton.join import join  # noqa: E402

SHAPES = [(128, 2, 4), (64, 1, 7), (96, 2, 1), (80, 1, 5)]
"""Head size, KV heads, query heads of each."""


@pytest.fixture(scope="module", autouse=True)
def here() -> None:
    """Short chunks count as long ones, which fp32 can judge; skipped where torch would not take cuDNN."""
    q = torch.empty(1, 1, 1024, 128, dtype=torch.bfloat16, device="cuda")
    if not fused.available(q, q[0]):
        pytest.skip("torch takes another kernel than cuDNN's on this device: its own serves, as elsewhere")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "QUERIES", 256)
    monkeypatch.setattr(fused, "EVEN", 256)


def draw(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def judged(found: State, q: Any, k: Any, v: Any, scale: float, causal: bool) -> None:
    """Error <= 2x that of plain torch in that precision; lse natural, within 1e-3."""
    exact = naive.attend(q, k, v, scale, causal)
    n, m = q.shape[2], k.shape[1]
    seen = torch.ones(n, m, dtype=torch.bool, device="cuda").tril(m - n) if causal else None
    s = q @ k[:, None].mT * scale
    low = (s if seen is None else s.masked_fill(~seen, -torch.inf)).softmax(-1) @ v[:, None]
    assert (found.lse - exact.lse).abs().max() < 1e-3
    error, theirs = ((x.float() - exact.out).square() for x in (found.out, low))
    assert error.mean().sqrt() <= 2 * theirs.mean().sqrt()
    assert error.max().sqrt() <= 3 * theirs.max().sqrt()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("D", "R", "H"), SHAPES)
def test_squares_and_blocks(D: int, R: int, H: int, dtype: torch.dtype) -> None:
    """Queries as a model has them; keys and values of a pass and of a block; one head of several."""
    torch.manual_seed(0)
    n, scale = 512, D**-0.5
    q, k, v = draw(dtype, n, R, H, D).permute(1, 2, 0, 3), *(draw(dtype, n, R, D).transpose(0, 1) for _ in range(2))
    assert fused.suits(q, k, True)
    judged(fused.attend(q, k, v, scale, True), q, k, v, scale, True)
    for m in (n, 4 * n):
        k, v = (draw(dtype, R, m, D) for _ in range(2))
        assert fused.suits(q, k, False)
        judged(fused.attend(q, k, v, scale, False), q, k, v, scale, False)
        judged(fused.attend(q[:1], k[:1], v[:1], scale, False), q[:1], k[:1], v[:1], scale, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [0, 100, 512, 6 * 512 + 48])
def test_pieces_are_the_whole(stored: int, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    R, H, n, D, scale = 2, 4, 512, 128, 0.1
    q, k, v = draw(dtype, n, R, H, D).permute(1, 2, 0, 3), *(draw(dtype, R, stored + n, D) for _ in range(2))
    own = backend.attend(q, k[:, stored:], v[:, stored:], scale, True)
    old = history(backend, q, stored, scale, lambda a, b: (k[:, a:b].contiguous(), v[:, a:b].contiguous()))
    judged(own if old is None else backend.join(old, own, dtype), q, k, v, scale, True)


def test_parts_join() -> None:
    """The kernel is state.merge, for parts of any precision and layout."""
    torch.manual_seed(2)
    R, H, n, D = 3, 5, 1000, 96
    a, b = (State(draw(torch.bfloat16, n, R, H, D).permute(1, 2, 0, 3), draw(torch.float32, R, H, n) * 9) for _ in "ab")
    found, expected = join(a, b, torch.float32), merge(a, b)
    assert (found.out - expected.out).abs().max() < 3e-5
    assert (found.lse - expected.lse).abs().max() < 3e-5


def logits(engine: Engine, ids: list[int], chunk: int | None) -> torch.Tensor:
    full = method("full")
    plan = engine.plan(full, Budget(), len(ids), chunk, 1)
    runner = engine.runner([plan], 1)
    return runner.prefill(runner.open(ids, full, plan, Sampling(), 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_chunks_in_pieces_are_as_close_to_fp32_as_transformers_is(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in chunks of 256: a wide block, single ones and an odd end; what no row owns is NaN."""
    reference = peaked(64, 4096).cuda()
    ids = prompt(2000)
    plain = copy.deepcopy(reference).to(dtype)
    with torch.inference_mode():
        exact = reference(torch.tensor([ids]).cuda()).logits[0, -1]
        theirs = plain(torch.tensor([ids]).cuda()).logits[0, -1].float()
    calls: list[Any] = []
    real = fused.attend
    monkeypatch.setattr(fused, "attend", lambda *given: calls.append(given[4]) or real(*given))
    engine = Engine(copy.deepcopy(plain), backend="triton", poison=True)
    calls.clear()
    ours = logits(engine, ids, 256)
    ahead = 2
    assert (calls.count(True), calls.count(False)) == (7 * 3, (1 + 2 + 3 + 1 + 2 + 3) * 3 + ahead), "squares, blocks"
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()
    whole = logits(engine, ids, None)
    assert (whole - ours).abs().max() <= 2 * (theirs - exact).abs().max()


@pytest.mark.parametrize("name", ["full", "heads", "snapkv"])
def test_a_layer_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host queues a chunk's layers while the device works: only the pass itself sends tokens and reads logits."""
    real = Step.attend

    def attend(self: Step, call: Any) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return real(self, call)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    options = {"heads": {"roles": "10/01/11", "sink": 4, "window": 28}, "snapkv": {"window": 16}}.get(name, {})
    chosen = method(name, options)
    engine = Engine(peaked(64, 4096).half().cuda(), backend="triton")
    budget = Budget.of(0.25, None, "chunk") if name == "snapkv" else Budget()
    for _ in range(2):  # compiled and planned, then watched
        plan = engine.plan(chosen, budget, 1900, 256, 1)
        runner = engine.runner([plan], 1)
        runner.prefill(runner.open(prompt(1900), chosen, plan, Sampling(), 0))
        monkeypatch.setattr(Step, "attend", attend)


@pytest.mark.parametrize(
    "run",
    [
        {"method": "full"},
        {"method": "heads", "options": {"roles": "10/01/11", "sink": 4, "window": 28}},
        {"method": "snapkv", "keep": 0.25, "evict": "chunk", "options": {"window": 16}},
        {"method": "h2o", "keep": 0.25},
    ],
    ids=lambda run: run["method"],
)
def test_methods_write_the_tokens_of_sdpa(run: dict[str, Any]) -> None:
    """The first tokens: later ones follow other texts, once two are as likely to half precision. Survivors: as many."""
    model = peaked(64, 4096).half().cuda()
    found, expected = (
        Engine(copy.deepcopy(model), backend=name).generate([prompt(1900)], chunk=256, max_new_tokens=16, **run)[0]
        for name in ("triton", "sdpa")
    )
    assert found.record.footprint == expected.record.footprint
    assert found.record.memory.held_bytes == expected.record.memory.held_bytes
    assert found.tokens[:4] == expected.tokens[:4]
