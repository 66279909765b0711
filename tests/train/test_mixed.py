"""Mixed attention: z = 1 is full attention, z = 0 what the engine computes for streaming heads; gradients; packing."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from kvfoot.core.errors import UsageError
from kvfoot.train.mixed import Mix, Mixed, Near, full, streaming
from kvfoot.train.packing import Row
from kvfoot.train.passes import frozen, hidden, nll

CASES = [
    (50, Near(4, 8)), (7, Near(4, 8)), (12, Near(4, 8)), (13, Near(4, 8)), (64, Near(3, 8)), (100, Near(0, 16)),
    (100, Near(20, 8)), (50, Near(4, 1)), (1000, Near(100, 256, True)), (700, Near(0, 128, True)),
]  # fmt: skip


def by_mask(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor) -> Tensor:
    s = (q @ k[:, :, None].mT * scale).masked_fill(~mask, -torch.inf)
    return s.softmax(-1) @ v[:, :, None]


def inputs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    shapes = ((2, 2, 3, n, 8), (2, 2, n, 8), (2, 2, n, 8))
    q, k, v = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    return q, k, v


@pytest.mark.parametrize(("n", "near"), CASES)
def test_the_streaming_branch_is_its_mask(n: int, near: Near) -> None:
    """Forward and gradients, blocks of any shape."""
    q, k, v = inputs(n)
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(i + 1):
            if near.blocks:
                local = i // 128 - j // 128 < near.window // 128
                mask[i, j] = local or j // 128 < -(-near.sink // 128)
            else:
                mask[i, j] = j < near.sink or i - j < near.window
    mine, theirs = streaming(q, k, v, 0.4, near), by_mask(q, k, v, 0.4, mask)
    assert (mine - theirs).abs().max() < 2e-6
    grad = torch.randn_like(mine)
    for a, b in zip(
        torch.autograd.grad(mine, (q, k, v), grad), torch.autograd.grad(theirs, (q, k, v), grad), strict=True
    ):
        assert (a - b).abs().max() < 1e-5


def test_recents_of_the_released_kernel() -> None:
    """Trap 29: 897 to 1024 recent tokens in blocks of 128, and one whole block of sinks."""
    near, keys = Near(128, 1024, True), torch.arange(4096)
    seen = [int(near.sees(torch.tensor(q), keys).sum()) for q in (2048, 2048 + 127)]
    assert seen == [897 + 128, 1024 + 128]
    exact = Near(128, 1024)
    assert int(exact.sees(torch.tensor(2048), keys).sum()) == 1024 + 128


def test_the_mixture_and_its_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 2, 3, 5, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    z = torch.tensor([0.3, 0.8], dtype=torch.float64, requires_grad=True)
    plain = z.detach().clone().requires_grad_()
    out = plain[:, None, None, None] * a + (1 - plain[:, None, None, None]) * b
    assert (Mix.apply(z, a, b) - out).abs().max() < 1e-12
    grad = torch.randn_like(out)
    mine = torch.autograd.grad(Mix.apply(z, a, b), (z, a, b), grad)
    theirs = torch.autograd.grad(out, (plain, a, b), grad)
    for x, y in zip(mine, theirs, strict=True):
        assert (x - y).abs().max() < 1e-5  # its sums are fp32


def run(model: Any, mixed: Mixed, row: Row, z: Tensor | None, checkpointing: bool = False) -> Tensor:
    with frozen(model, checkpointing=checkpointing), mixed.attached(model):
        states = hidden(model, mixed, row, z, restart=False)
        return model.get_output_embeddings()(states)


def one(count: int = 60) -> Row:
    return Row(torch.tensor(tiny.tokens(count)), ((0, count),))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_open_gates_are_the_model_itself(kind: str) -> None:
    model, row = tiny.MODELS[kind](), one()
    shape = (model.config.num_hidden_layers, model.config.num_key_value_heads)
    mixed = Mixed(Near(2, 6))
    before = model.config._attn_implementation
    with torch.no_grad():
        plain = model(row.tokens[None]).logits[0]
        assert (run(model, mixed, row, torch.ones(shape)) - plain).abs().max() < 2e-5
        assert (run(model, mixed, row, None) - plain).abs().max() < 2e-5
        assert (run(model, mixed, row, torch.zeros(shape)) - plain).abs().max() > 0.1
    assert model.config._attn_implementation == before


def test_bf16_activations_and_fp32_gates() -> None:
    """Trap 13: outputs in the model's dtype, gradients of the gates in their own."""
    model, row, mixed = tiny.make("llama", dtype=torch.bfloat16), one(), Mixed(Near(2, 6))
    z = torch.full((2, 2), 0.5, requires_grad=True)
    value = loss(model, mixed, row, z, checkpointing=True)
    exact = tiny.make("llama")
    wide = torch.full((2, 2), 0.5, requires_grad=True)
    expected = loss(exact, mixed, row, wide)
    assert (value.dtype, z.grad.dtype) == (torch.float32, torch.float32)  # type: ignore[union-attr]
    assert value.item() == pytest.approx(expected.item(), rel=0.02)
    assert (z.grad - wide.grad).abs().max() < 0.1 * wide.grad.abs().max()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_shut_gates_are_the_engine_s_streaming_heads(kind: str) -> None:
    """With chunks of one token a streaming head of the engine sees sinks, `window` stored ones, and itself."""
    model, row = tiny.MODELS[kind](), one(40)
    shape = (model.config.num_hidden_layers, model.config.num_key_value_heads)
    full_heads = torch.zeros(shape)
    full_heads[1, 0] = 1
    roles = "/".join("".join(str(int(x)) for x in layer) for layer in full_heads)
    with torch.no_grad():
        mine = run(model, Mixed(Near(2, 7)), row, full_heads)
    engine = tiny.Strict(model)
    done = tiny.run(engine, row.tokens.tolist(), "heads", {"roles": roles, "sink": 2, "window": 6}, chunk=1, new=1)
    engine.close()
    theirs = torch.stack([state.logits for state in done.passes])
    assert (mine - theirs).abs().max() < 5e-5


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_gradients_through_open_and_shut_gates_are_those_of_their_masks(kind: str) -> None:
    """To the embeddings, through all layers: z = 1 as the model itself, z = 0 as transformers under a written mask."""
    model, near, n = tiny.MODELS[kind](), Near(2, 6), 40
    ids = torch.tensor([tiny.tokens(n)])
    shape = (model.config.num_hidden_layers, model.config.num_key_value_heads)
    weight = torch.randn(n, model.config.hidden_size, generator=torch.Generator().manual_seed(2))

    def grad(mask: Tensor | None) -> tuple[Tensor, Tensor]:
        x = model.get_input_embeddings()(ids).detach().requires_grad_()
        out = model.base_model(inputs_embeds=x, attention_mask=mask, use_cache=False).last_hidden_state[0]
        (found,) = torch.autograd.grad((out * weight).sum(), x)
        return out.detach(), found

    q, k = torch.arange(n)[:, None], torch.arange(n)[None]
    seen = (k <= q) & ((k < 2) | (k > q - 6))
    written = torch.zeros(1, 1, n, n).masked_fill(~seen, torch.finfo(torch.float32).min)
    mixed = Mixed(near)
    for z, mask in ((torch.ones(shape), None), (torch.zeros(shape), written)):
        wanted = grad(mask)
        with mixed.attached(model):
            mixed.z, mixed.spans = z, ((0, n),)
            found = grad(None)
        for mine, theirs in zip(found, wanted, strict=True):
            assert (mine - theirs).abs().max() < 2e-5 * max(1.0, float(theirs.abs().max()))


def loss(model: Any, mixed: Mixed, row: Row, z: Tensor, checkpointing: bool = False) -> Tensor:
    with frozen(model, checkpointing=checkpointing), mixed.attached(model):
        states = hidden(model, mixed, row, z, restart=False)
        value = nll(model, states, row.targets(), block=16)
        value.backward()
        return value.detach()


def test_gradients_of_the_gates_against_finite_differences() -> None:
    model, row, mixed = tiny.llama(), one(), Mixed(Near(2, 6))
    z = torch.full((2, 2), 0.6, requires_grad=True)
    loss(model, mixed, row, z)
    assert z.grad is not None
    for layer in range(2):
        for head in range(2):
            step = torch.zeros(2, 2)
            step[layer, head] = 0.02
            up, down = (loss(model, mixed, row, (z.detach() + s).requires_grad_()) for s in (step, -step))
            assert z.grad[layer, head].item() == pytest.approx((up - down).item() / 0.04, rel=0.03, abs=0.02)


def test_checkpointing_uses_the_same_draw_and_changes_nothing() -> None:
    model, row, mixed = tiny.llama(), one(), Mixed(Near(2, 6))
    grads = []
    for checkpointing in (False, True):
        z = torch.rand((2, 2), generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss(model, mixed, row, z, checkpointing)
        grads.append(z.grad)
    assert torch.equal(grads[0], grads[1])
    assert not any(layer.training for layer in model.model.layers)
    assert all(p.requires_grad for p in model.parameters())


def test_documents_of_a_row_do_not_see_each_other() -> None:
    """A packed row with positions of their own is the documents one by one; sinks are each document's."""
    model, mixed = tiny.llama(), Mixed(Near(2, 6))
    z = torch.tensor([[0.0, 0.3], [1.0, 0.7]])
    a, b = tiny.tokens(33, 1), tiny.tokens(27, 2)
    packed = Row(torch.tensor(a + b), ((0, 33), (33, 60)))
    with torch.no_grad(), frozen(model, checkpointing=False), mixed.attached(model):
        together = hidden(model, mixed, packed, z, restart=True)
        alone = [hidden(model, mixed, Row(torch.tensor(x), ((0, len(x)),)), z, restart=True) for x in (a, b)]
        running = hidden(model, mixed, packed, z, restart=False)
    assert (together - torch.cat(alone)).abs().max() < 2e-5
    assert (running - together).abs().max() < 1e-3, "RoPE knows distances only"
    targets = packed.targets()
    assert targets[32] == targets[59] == -100
    assert targets[:32].tolist() == a[1:]


def test_the_nll_in_blocks_is_that_of_transformers() -> None:
    model, row = tiny.llama(), one()
    with torch.no_grad(), Mixed(Near()).attached(model):
        states = hidden(model, Mixed(Near()), row, None, restart=False)
        mine = nll(model, states, row.targets(), block=7) / 59
        theirs = model(row.tokens[None], labels=row.tokens[None]).loss
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_what_cannot_be_mixed() -> None:
    with pytest.raises(UsageError, match="window of 1"):
        Near(2, 0)
    with pytest.raises(UsageError, match="multiple of 128"):
        Near(2, 100, True)
    q, k, v = inputs(9)
    mixed = Mixed(Near())
    mixed.spans = ((0, 5),)
    with pytest.raises(UsageError, match=r"documents cover \[0, 5\) of a row of 9 tokens"):
        mixed.attend(0, q.reshape(2, 6, 9, 8), k, v, 1.0)
    with pytest.raises(UsageError, match="asks for s_aux"):
        mixed._attention(torch.nn.Identity(), q, k, v, None, s_aux=1)
    assert torch.equal(streaming(q, k, v, 1.0, Near(128, 1024)), full(q, k, v, 1.0))
