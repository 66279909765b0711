"""Fusion in an unmodified model: what is known, what is left alone, and that nothing stays behind."""

import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

import launches
import tiny
from families import SHAPES, build
from kvfoot.attention import naive, naive_layer, sdpa
from kvfoot.core.errors import NotFinite, UsageError
from kvfoot.models import known, products
from kvfoot.models.bridge import Call, PassCache, attach
from kvfoot.models.fusion import APPLY, Fuse, Fusion, Turning, fusing, settled
from replayed import decode, same
from tape import Rerun

PLAIN = Fuse(naive_layer)
LEFT_ALONE = {"cohere2": {"mlp": 4}, "gemma3_text": {"norm": 25, "rope": 4}, "gpt_oss": {"norm": 9}}
"""LayerNorm and interleaved RoPE; GELU; experts."""


def state(model: nn.Module) -> list[Any]:
    """What a model's modules hold, and what their classes and files say."""
    found: list[Any] = []
    for module in model.modules():
        held = {name: id(x) for name, x in vars(module).items()}
        file = vars(sys.modules[type(module).__module__])
        found.append((id(module), held, id(type(module).forward), id(file.get(APPLY))))
    return found


# What is known


@pytest.mark.parametrize("kind", SHAPES)
def test_what_of_every_family_is_known(kind: str) -> None:
    model, norms = build(kind), {"qwen3": 4, "olmo2": 4}.get(kind.partition("-")[0], 2)
    layers = model.config.num_hidden_layers
    expected = LEFT_ALONE.get(kind, {"norm": norms * layers + 1, "mlp": layers, "rope": layers})
    assert Fusion(model, PLAIN).found() == expected


def test_what_is_known_is_what_is_computed() -> None:
    """A fingerprint stands for the definition beside it: modules of every family, bit for bit, and their roundings."""
    for kind in SHAPES:
        model = build(kind).to(torch.bfloat16)
        names = {id(m): name for name, m in model.named_modules()}
        for module, what, fused in Fusion(model, PLAIN)._fused():
            if what in ("norm", "mlp"):
                size = module.weight.shape[0] if what == "norm" else model.config.hidden_size
                x = torch.randn(1, 3, size, generator=torch.Generator().manual_seed(size)).bfloat16()
                assert torch.equal(fused(x), module(x)), (kind, names[id(module)])


class Own(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * 2


class Kept(LlamaRMSNorm):
    """A subclass that computes what its parent computes."""


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    def outer(*given: Any) -> Any:
        return function(*given)

    outer.__wrapped__ = function  # type: ignore[attr-defined]
    return outer


def test_what_overrides_or_wraps_a_known_forward_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert known.norm(LlamaRMSNorm(8)) is not None
    assert known.norm(Kept(8)) is not None
    assert known.norm(Own(8)) is None
    assert known.norm(nn.LayerNorm(8)) is None
    hooked = LlamaMLP(config := tiny.llama().config)
    hooked.act_fn.register_forward_hook(lambda *given: given[2] * 2)
    assert known.mlp(hooked) is None
    one = LlamaRMSNorm(8)
    one.forward = lambda x: x
    assert known.norm(one) is None
    assert known.mlp(LlamaMLP(config)) is not None
    other = LlamaMLP(config)
    other.act_fn = nn.GELU()
    assert known.mlp(other) is None
    rotate = modeling_llama.apply_rotary_pos_emb
    assert known.rope(rotate) == known.Rope(False)
    assert known.rope(wrapped(rotate)) is None
    monkeypatch.setattr(modeling_llama, "rotate_half", lambda x: -x)
    assert known.rope(rotate) is None
    monkeypatch.setattr(LlamaRMSNorm, "forward", wrapped(LlamaRMSNorm.forward))
    assert known.norm(LlamaRMSNorm(8)) is None


def test_a_norm_that_is_overridden_still_counts() -> None:
    """The step of a model with a module of the user's own: left alone, and the tokens are the launched ones."""
    model = tiny.make("llama")
    model.model.layers[1].input_layernorm.__class__ = Own
    assert Fusion(model, PLAIN).found() == {"norm": 4, "mlp": 2, "rope": 2}
    found = same(model, "full", fuse=PLAIN)
    assert found.tokens != decode(tiny.make("llama"), "full", replayed=False).tokens


def test_what_does_not_suit_the_kernels_goes_to_the_model() -> None:
    """Weights of another dtype than the tokens, rows wider than a program holds, more than one sequence of tokens."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a kernel was called")

    refusing: Any = ModuleType("refusing")
    refusing.rms_norm = refusing.gated = refusing.store = never
    mixed, wide = LlamaRMSNorm(8), LlamaRMSNorm(16385)
    for module, x in (
        (mixed, torch.randn(2, 8).bfloat16()),
        (wide, torch.randn(1, 16385)),
        (mixed, torch.randn(8).double()),
    ):
        ((_, _, fused),) = Fusion(module, Fuse(refusing))._fused()
        assert torch.equal(fused(x), module(x))
    attention = tiny.llama().model.layers[0].self_attn
    q, k, angles = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 5, 8)
    later = Fusion(attention, Fuse(refusing))._attention(attention).__func__.__globals__["apply_rotary_pos_emb"]  # type: ignore[union-attr]
    assert isinstance(later(q, k, angles, angles)[0], Tensor)
    assert isinstance(later(q[:1], k[:1], angles[:1], angles[:1])[0], Turning)
    assert isinstance(later(q[:1].mT, k[:1].mT, angles[:1].mT, angles[:1].mT, 1)[0], Tensor)


# Nothing stays behind


def test_the_model_is_what_it_was_after_a_step_and_after_an_error() -> None:
    model = tiny.make("llama")
    attach(model)
    before, fusion = state(model), Fusion(model, PLAIN)
    with fusion.applied():
        assert state(model) != before
        assert "forward" in vars(model.model.norm)
    assert state(model) == before
    with pytest.raises(ZeroDivisionError), fusion.applied():
        raise ZeroDivisionError
    assert state(model) == before

    def failing(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("no memory")

    broken: Any = ModuleType("broken")
    broken.rms_norm, broken.gated, broken.store = naive_layer.rms_norm, failing, naive_layer.store
    with pytest.raises(RuntimeError, match="no memory"):
        decode(model, "full", fuse=Fuse(broken))
    assert state(model) == before
    decode(model, "full", fuse=PLAIN)
    assert state(model) == before


def test_no_class_and_no_file_of_transformers_is_changed() -> None:
    """A second model of the class, and another thread, meet the model as it is while a step is being recorded."""
    model, other = tiny.make("llama"), tiny.make("llama")
    attach(model)
    ids, rotate = torch.tensor([tiny.tokens(5)]), modeling_llama.apply_rotary_pos_emb
    plain = model(input_ids=ids, use_cache=False).logits
    said: list[Any] = []

    def elsewhere() -> None:
        with torch.inference_mode():
            said.append(model(input_ids=ids, use_cache=False).logits)

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("fused in another thread")

    refusing: Any = ModuleType("refusing")
    refusing.rms_norm = refusing.gated = refusing.store = refused
    with Fusion(model, Fuse(refusing)).applied():
        assert "forward" not in vars(other.model.norm)
        assert modeling_llama.apply_rotary_pos_emb is rotate
        assert LlamaAttention.forward.__globals__ is vars(modeling_llama)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with pytest.raises(AssertionError, match="another thread"):
            elsewhere()
    assert torch.equal(said[0], plain)


def test_two_at_a_time_leave_what_the_first_one_has_taken() -> None:
    model = tiny.make("llama")
    before = state(model)
    with Fusion(model, PLAIN).applied():
        assert Fusion(model, PLAIN).found() == {}
        with Fusion(model, PLAIN).applied():
            pass
        assert "forward" in vars(model.model.norm)
    assert state(model) == before


# Rotation that is put off


def test_whoever_looks_at_a_query_gets_it_rotated() -> None:
    q, turned = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    calls: list[int] = []

    def rotated() -> Tensor:
        calls.append(1)
        return turned

    x: Any = Turning(q, naive_layer.Turn(q, q), rotated)
    assert (x.shape, x.dtype, x.device) == (q.shape, q.dtype, q.device)
    assert not calls
    for found, expected in (
        (x * 2, turned * 2),
        (1 + x, turned + 1),
        (-x, -turned),
        (x[0], turned[0]),
        (x @ turned.mT, turned @ turned.mT),
        (torch.cat([x, q]), torch.cat([turned, q])),
        (torch.nn.functional.pad(input=x, pad=(0, 1)), torch.nn.functional.pad(turned, (0, 1))),
        (x.transpose(1, 2), turned.transpose(1, 2)),
        (settled(x), turned),
    ):
        assert torch.equal(found, expected)
    assert len(calls) == 9


class Warmer(LlamaAttention):
    """An attention that does something between rotation and attention: a temperature."""

    def forward(self, hidden_states: Tensor, position_embeddings: Any, past_key_values: Any = None, **_: Any) -> Any:
        B, T, _ = hidden_states.shape
        q, k, v = (
            f(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        k, v = past_key_values.update(k, v, self.layer_idx)
        out = k.attend(Call(self.layer_idx, q * 1.5, k.k, k.v, self.scaling))
        return self.o_proj(out.reshape(B, T, -1)), None


def test_an_attention_that_changes_queries_after_the_rotation() -> None:
    model = tiny.make("llama")
    for layer in model.model.layers:
        layer.self_attn.__class__ = Warmer
    assert Fusion(model, PLAIN).found()["rope"] == 2
    found = same(model, "full", fuse=PLAIN)
    assert found.tokens != decode(tiny.make("llama"), "full", replayed=False).tokens


# The step


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "gpt_oss"])
def test_every_family_says_the_same(kind: str) -> None:
    """Recorded with fusion, recorded without and launched, fp32; in bf16 recorded with and without."""
    model, lengths = build(kind), (61, 5, 24)
    same(model, "full", lengths=lengths, fuse=PLAIN)
    one, two = (decode(build(kind).bfloat16(), "full", lengths=lengths, fuse=fuse) for fuse in (PLAIN, 0))
    assert one.steps == two.steps > 0
    assert one.tokens == two.tokens


@pytest.mark.parametrize(
    ("name", "options", "mode"),
    [
        ("h2o", {}, {"keep": 0.5}),
        ("heads", {"roles": "10/01", "sink": 2, "window": 8}, {}),
        ("snapkv", {"window": 4}, {"budget": 36}),
        ("refreshkv", {"every": 2, "similarity": 0.6, "max_gap": 6}, {"budget": 24}),
        ("tokenselect", {"sink": 2, "window": 5, "similarity": 0.5}, {"budget": 24}),
    ],
)
def test_methods_keep_and_read_the_same(name: str, options: dict[str, Any], mode: dict[str, Any]) -> None:
    same(tiny.llama(), name, options, fuse=PLAIN, **mode)


@pytest.mark.parametrize(("fuse", "layer"), [(PLAIN, 1), (0, 1)])
def test_nan_is_still_reported_with_its_layer(fuse: Any, layer: int) -> None:
    model = tiny.make("llama", layers=3)
    engine = tiny.Strict(model, graph=Rerun, fuse=fuse)

    def spoil(module: Any, given: Any, out: Tensor) -> Tensor:
        return out * torch.nan if out.shape[1] == 1 else out

    model.model.layers[layer].self_attn.v_proj.register_forward_hook(spoil)
    with pytest.raises(NotFinite, match=f"first in attention of layer {layer}"):
        engine.generate([tiny.tokens(9)], max_new_tokens=4)


FEWER = {"llama": (41, 15, 11), "qwen3": (57, 17, 13), "olmo2": (59, 17, 13), "phi3": (40, 12, 11)}
"""Launches of a layer without fusion, with it, and with products of one token, of docs/decisions/0051."""


@pytest.mark.parametrize("kind", FEWER)
def test_launches_of_a_layer(kind: str) -> None:
    found = [launches.of_a_step(kind, level)[0] for level in (0, 1, 2)]
    assert tuple(x.total() for x in found) == FEWER[kind]
    norms = 2 if kind in ("llama", "phi3") else 4
    linear = 4 if kind == "phi3" else 7
    assert found[1] == {"rms_norm": norms, "linear": linear, "store": 1, "attention": 2, "add": 2, "gated": 1}
    if kind != "phi3":
        assert (found[2]["project"], found[2]["gated_project"], found[2]["linear"]) == (1, 1, 2)
    assert launches.of_a_step(kind, 3)[0]["linear"] == 0
    assert launches.of_a_step(kind, 3, batch=2)[0] == found[1], "products are of single tokens"


def test_an_evicting_step_stores_positions_in_the_same_launch() -> None:
    fused, plain = (launches.of_a_step("llama", x, "streaming", budget=12)[0] for x in (1, 0))
    assert plain.total() - fused.total() == 28
    assert fused["store"] == 1


# Products


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3", "olmo2", "gemma3_text", "cohere2"])
@pytest.mark.parametrize("level", [2, 3])
def test_products_of_one_token(kind: str, level: int) -> None:
    """Biases (Qwen2), one projection for all (Phi-3), norms of whole projections (OLMo2), GELU (gate and up apart)."""
    same(build(kind), "full", lengths=(24,), fuse=Fuse(naive_layer, level))


def test_which_products_are_joined() -> None:
    """Plain linear modules alone: no subclass, no replaced forward, no hook where a module would not be called."""
    model = tiny.make("llama")
    counts = [Fusion(model, Fuse(naive_layer, level)).found().get("product", 0) for level in (1, 2, 3)]
    assert counts == [0, 2 * 3, 2 * 7]  # 97 words: the head is left to the model
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp

    class Other(nn.Linear):
        pass

    attention.k_proj.__class__ = Other
    assert Fusion(model, Fuse(naive_layer, 2)).found()["product"] == 3
    seen: list[int] = []
    mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
    attention.q_proj.register_forward_hook(lambda *_: seen.append(2))
    found = same(model, "full", lengths=(24,), fuse=Fuse(naive_layer, 3))
    assert found.steps > 0
    assert seen.count(1) == seen.count(2) > found.steps


class Packed(Tensor):
    """As torchao's: says that it is bf16, and has no memory where a kernel would look."""


def test_weights_of_a_class_of_their_own_are_left_to_the_model() -> None:
    model = tiny.make("llama")
    mlp, attention = model.model.layers[0].mlp, model.model.layers[0].self_attn
    for linear in (mlp.up_proj, attention.o_proj, attention.q_proj):
        linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Packed), requires_grad=False)
        assert type(linear) is nn.Linear
    fusion = Fusion(model, Fuse(naive_layer, 3))
    fused = [m for m, what, _ in fusion._fused() if what == "product"]
    left = (mlp.up_proj, attention.o_proj, attention.q_proj)
    assert len(fused) == 2 * 7 - 3
    assert not any(m is x for m in fused for x in left)
    assert products.halves([mlp.gate_proj, mlp.up_proj]) is None
    norm = model.model.norm
    norm.weight = nn.Parameter(norm.weight.detach().as_subclass(Packed), requires_grad=False)
    refusing: Any = ModuleType("refusing")
    ((_, _, own),) = Fusion(norm, Fuse(refusing))._fused()
    x = torch.randn(1, 1, 48)
    assert torch.equal(own(x), norm(x))


def test_results_are_of_the_input_that_was_given() -> None:
    """Another input, or the same one again, is computed anew."""
    a, b = nn.Linear(8, 16, bias=False), nn.Linear(8, 8, bias=False)
    (_, first), (_, second) = products.together(naive_layer, [a, b])
    with torch.inference_mode():
        x, y = torch.randn(1, 1, 8), torch.randn(1, 1, 8)
        assert torch.allclose(first(x), a(x))
        assert torch.allclose(second(y), b(y))
        assert torch.allclose(first(x), a(x))
        before = second(x)
        x += 1
        assert torch.allclose(second(x), b(x))
        assert not torch.allclose(before, b(x))


# What `fuse` means


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVFOOT_FUSE", raising=False)
    assert fusing(None, sdpa) is None
    assert fusing(None, naive) is None
    assert fusing(False, sdpa) is None
    assert fusing(PLAIN, sdpa) is PLAIN
    with pytest.raises(UsageError, match="fuse=2: the kernels are the triton backend's, this engine has sdpa"):
        fusing(2, sdpa)
    with pytest.raises(UsageError, match="fuse=4: give 0 nothing, 1 small operations"):
        fusing(4, sdpa)
    monkeypatch.setenv("KVFOOT_FUSE", "yes")
    with pytest.raises(UsageError, match="KVFOOT_FUSE='yes': give 0 nothing"):
        fusing(None, sdpa)


def test_the_triton_backends_default(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from kvfoot.attention.triton import backend, layer

    monkeypatch.delenv("KVFOOT_FUSE", raising=False)
    assert fusing(None, backend) == Fuse(layer, 3)
    assert fusing(True, backend) == Fuse(layer, 1)
    assert fusing(False, backend) is None
    monkeypatch.setenv("KVFOOT_FUSE", "2")
    assert fusing(None, backend) == Fuse(layer, 2)
    monkeypatch.setenv("KVFOOT_FUSE", "0")
    assert fusing(None, backend) is None
    assert fusing(1, backend) == Fuse(layer, 1), "what is asked for in code comes first"


def test_a_pass_that_is_launched_is_the_models_own() -> None:
    """No fusion outside of recorded steps: the cache of a launched pass gets tensors."""
    model = tiny.make("llama")
    attach(model)
    seen: list[type] = []

    def look(call: Call) -> Tensor:
        seen.append(type(call.q))
        return torch.zeros(1, call.q.shape[2], call.q.shape[1], call.q.shape[3])

    model(input_ids=torch.tensor([[1, 2]]), past_key_values=PassCache(look, 0), use_cache=True)
    with Fusion(model, PLAIN).applied():
        model(input_ids=torch.tensor([[1, 2]]), past_key_values=PassCache(look, 0), use_cache=True)
    assert seen == [Tensor, Tensor, Turning, Turning]


def test_threads_that_come_and_go_leave_nothing_behind() -> None:
    """Two engines on one model: who finds a module taken leaves it, and takes none that is about to be given back."""
    model = tiny.make("llama")
    before, failed, interval = state(model), list[BaseException](), sys.getswitchinterval()

    def come_and_go() -> None:
        try:
            for _ in range(60):
                with Fusion(model, PLAIN).applied():
                    pass
        except AttributeError as error:
            failed.append(error)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=come_and_go) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failed
    assert state(model) == before
