"""Tiny models with peaked attention, engines that poison, and a recorder of what a run kept after every pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kvfoot.core.budget import Budget
from kvfoot.core.hooks import Method, Plan
from kvfoot.core.registry import method as find_method
from kvfoot.engine import runner as runner_module
from kvfoot.engine.clock import Clock
from kvfoot.engine.engine import Engine
from kvfoot.engine.runner import Runner
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from kvfoot.engine.step import Step

VOCAB = 97


def make(
    kind: str = "llama",
    *,
    layers: int = 2,
    kv_heads: int = 2,
    group: int = 3,
    head_dim: int = 8,
    hidden: int = 48,
    positions: int = 512,
    peak: float = 2.5,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **other: Any,
) -> Any:
    """A random model of a supported family. Its attention logits have a standard deviation of about `peak`.

    other: further fields of the config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=VOCAB,
        max_position_embeddings=positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **{"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, **other},
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.1)
            if "q_norm" in name or "k_norm" in name:
                weight.data *= peak**0.5
        elif "q_proj" in name or "k_proj" in name:
            # q and k entries ~ N(0, peak / sqrt(head_dim) ** (1/2)) make q k / sqrt(head_dim) ~ N(0, peak).
            torch.nn.init.normal_(weight, std=(peak / hidden**2) ** 0.5 * hidden**0.5)
        elif "qkv_proj" in name:
            torch.nn.init.normal_(weight.data[: -kv_heads * head_dim], std=(peak / hidden) ** 0.5)
    return model.to(dtype)


@cache
def llama() -> Any:
    """2 layers, 2 KV heads, group 3."""
    return make("llama")


@cache
def qwen2() -> Any:
    """3 layers, 3 KV heads, group 2; biases on q, k and v."""
    return make("qwen2", layers=3, kv_heads=3, group=2, head_dim=16, hidden=96, seed=1)


MODELS = {"llama": llama, "qwen2": qwen2}


def tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(0, VOCAB, (count,), generator=generator).tolist()


class Strict(Engine):
    """An engine whose pool is NaN before its first use as well as after its last (law 6)."""

    def __init__(self, model: Any, tokenizer: Any = None, **options: Any):
        options = {"kv_memory": 1 << 23, "poison": True} | options
        super().__init__(model, tokenizer, **options)

    def runner(self, *args: Any, **options: Any) -> Runner:
        runner = super().runner(*args, **options)
        runner.cache.pool.spoil()
        return runner


@dataclass
class Snapshot:
    """After one pass over tokens [start, stop): positions kept [layer][head], slot order, and the last logits."""

    start: int
    stop: int
    limit: Any
    kept: list[list[list[int]]]
    logits: Tensor


@dataclass
class Run:
    """A sequence that is still open, the passes it went through, and its logits after each."""

    engine: Engine
    runner: Runner
    sequence: Sequence
    passes: list[Snapshot] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.sequence.tokens

    @property
    def generated(self) -> list[int]:
        return self.sequence.generated

    def kept(self) -> list[list[list[int]]]:
        return kept(self.runner, self.sequence)


@torch.inference_mode()
def kept(runner: Runner, sequence: Sequence) -> list[list[list[int]]]:
    geometry = runner.cache.geometry
    return [
        [runner.cache.positions(sequence.rows, layer, (head,))[0].tolist() for head in range(geometry.kv_heads)]
        for layer in range(geometry.layers)
    ]


@contextmanager
def recorded(log: dict[int, list[Snapshot]], runner: Runner) -> Iterator[None]:
    """Within, every pass of the runner leaves a Snapshot per span in log[id(sequence)]; law 5 is checked each time."""

    class Recording(Step):
        def forward(self, model: Any, tokens: Any, every: bool = False) -> Tensor:
            starts = [span.sequence.rows.seen for span in self.spans]
            logits = super().forward(model, tokens, every)
            runner.cache.check()
            for span, start, row in zip(self.spans, starts, logits[-1:] if every else logits, strict=True):
                state = Snapshot(start, start + span.n, span.cut, kept(runner, span.sequence), row.clone())
                log.setdefault(id(span.sequence), []).append(state)
            return logits

    before = runner_module.Step
    runner_module.Step = Recording
    try:
        yield
    finally:
        runner_module.Step = before


def plan_of(engine: Engine, method: Method, prompt: int, chunk: int | None, budget: Budget, new: int) -> Plan:
    return engine.plan(method, budget, prompt, chunk, new)


def run(
    engine: Engine,
    prompt: list[int],
    method: str | Method = "full",
    options: dict[str, Any] | None = None,
    *,
    keep: float | str | None = None,
    budget: int | None = None,
    evict: str = "post",
    chunk: int | None = None,
    new: int = 6,
    plan: Plan | None = None,
    later: list[int] | None = None,
    runner: Runner | None = None,
) -> Run:
    """Prefill, optionally feed `later`, decode `new` tokens; the sequence stays open."""
    chosen = find_method(method, options)
    if plan is None:
        plan = engine.plan(chosen, Budget.of(keep, budget, evict), len(prompt), chunk, new)
    if runner is None:
        runner = engine.runner([plan], new + len(later or ()))
    sampling = Sampling()
    sequence = runner.open(prompt, chosen, plan, sampling, 0)
    log: dict[int, list[Snapshot]] = {}
    with recorded(log, runner):
        logits = runner.prefill(sequence)
        if later:
            logits = runner.feed(sequence, later, chunk)
        runner.decode([sequence], [logits], new, sampling, Clock())
    return Run(engine, runner, sequence, log[id(sequence)])
