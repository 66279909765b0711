"""Everything that decides a run. Frozen: a checkpoint carries it, and a resumed run must agree with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ModelShape:
    """Qwen3ForCausalLM (q/k norm, tied embedding). Default: 14,556,544 parameters, 24 KV heads, 29.1 MB in bf16."""

    vocabulary: int = 4096
    layers: int = 8
    width: int = 384
    heads: int = 6
    kv_heads: int = 3
    head_dim: int = 64
    mlp: int = 1024
    theta: float = 1e6
    eps: float = 1e-6
    positions: int = 16384

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Recipe:
    """Optimizer, loss weights and schedule. Learning rates and momenta as in docs/recall.md.

    fork_weight: of the tokens of an answer at which it may go on or end. text_noise: share of the input tokens of
    running text that are hidden from the model. spread: factor of the plan's shares of routed batches; 0: none.
    """

    plan: str = "recall"
    minutes: float = 14.5
    seed: int = 0
    batch: int = 131_072
    parts: int = 8
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    decay: float = 0.01
    warm: int = 60
    qk_gain: float = 1.4
    answer_weight: float = 4.0
    filler_weight: float = 0.25
    book_weight: float = 0.5
    fork_weight: float = 12.0
    text_noise: float = 0.1
    spread: float = 1.0
    whole: float = 0.4


@dataclass(frozen=True)
class RecallOptions:
    """`kvfoot train recall`.

    data: folder with books/, words/, longproc/. out: checkpoint, state and log. pieces: stop after this many minutes
    of wall clock with a state from which `resume` goes on exactly. yes: go on without a GPU after the estimate.
    start_from: a model folder whose weights (and tokenizer) the run begins with, at step 0.
    kill_after: training seconds after which 4 keys at 2K below 0.8 end the run; 0 never.
    """

    data: Path
    out: Path
    recipe: Recipe = field(default_factory=Recipe)
    shape: ModelShape = field(default_factory=ModelShape)
    device: str | None = None
    workers: int = 14
    piece_minutes: float = 0.0
    resume: bool = False
    yes: bool = False
    kill_after: float = 120.0
    probe_every: float = 90.0
    log_every: int = 100
    stop_step: int = 0
    start_from: Path | None = None
