"""Shapes of public models have as many parameters as their authors' checkpoints."""

import pytest
import torch

from kvfoot.bench import shapes
from kvfoot.core.errors import UsageError

PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "smollm2": 134_515_008,
    "smollm2-1.7b": 1_711_376_384,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    model = shapes.build(name, torch.bfloat16, "meta")
    assert shapes.weight_bytes(model) == 2 * PUBLISHED[name]
    g = shapes.geometry(name)
    assert (g.rows, g.windows) == (g.layers * g.kv_heads, ())
    tied = model.config.tie_word_embeddings
    table = 2 * model.config.vocab_size * model.config.hidden_size
    assert shapes.streamed_bytes(model) == 2 * PUBLISHED[name] - (0 if tied else table)


def test_every_shape_is_checked() -> None:
    assert set(shapes.SHAPES) == {*PUBLISHED, "tiny"}


def test_a_token_of_llama_takes_14_gflop_and_its_entries_128_kib() -> None:
    """The figures of the roofline that the reach was computed from."""
    model, g = shapes.build("llama-3.1-8b", torch.bfloat16, "meta"), shapes.geometry("llama-3.1-8b")
    assert shapes.linear_flops(model) == 2 * 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)
    assert g.rows * g.entry_bytes(2) == 128 * 1024


def test_weights_are_random_and_reproducible() -> None:
    before = torch.random.get_rng_state()
    one, two, other = (shapes.build("tiny", torch.float32, "cpu", seed=s) for s in (0, 0, 1))
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.lm_head.weight.std() > 0.01
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random numbers are its own"


def test_an_unknown_shape() -> None:
    with pytest.raises(UsageError, match=r"'llama-3\.1-7b' \(did you mean llama-3\.1-8b"):
        shapes.config_of("llama-3.1-7b")
