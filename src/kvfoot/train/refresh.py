"""Continued pre-training with RefreshKV's partial cache in place (arXiv 2411.05787): next-token loss on all tokens."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvfoot.core.errors import UsageError
from kvfoot.core.files import write_whole
from kvfoot.train.packing import Packed, Row
from kvfoot.train.passes import checkpointed, hidden, nll
from kvfoot.train.state import load_optimizer, optimizer_tensors
from kvfoot.train.twopart import TwoPart
from kvfoot.train.world import World, clip, divide, divided, gather, shard, whole

MISSES = 1000
"""Rows in a row that were not of one document before the texts are called too short."""


@dataclass(frozen=True)
class RefreshOptions:
    """The paper's recipe for Llama-3.1-8B, with L + S = 8142 tokens a row.

    tail: S, size: K. rate: of AdamW, up over `warm` steps, then down linearly to 0. clip: of the gradient's norm.
    lora: rank of adapters on `targets` (needs peft), 0 for full weights; alpha: their scale x rank, 0 for 2 x rank.
    """

    steps: int = 1875
    tail: int = 50
    size: int = 2048
    kernel: int = 7
    rate: float = 5e-6
    warm: int = 20
    decay: float = 0.0
    clip: float = 1.0
    lora: int = 0
    alpha: float = 0.0
    targets: str = "q_proj,k_proj,v_proj,o_proj"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "tail", "size", "kernel"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: give at least 1")
        if self.kernel % 2 == 0:
            raise UsageError(f"kernel={self.kernel} has to be odd")
        if min(self.warm, self.lora, self.rate, self.decay, self.clip, self.alpha) < 0:
            raise UsageError("warm, lora, rate, decay, clip and alpha are not negative")

    def at(self, step: int) -> float:
        """The learning rate of a step, 0 the first."""
        if step < self.warm:
            return self.rate * (step + 1) / self.warm
        return self.rate * (self.steps - step) / max(1, self.steps - self.warm)


class Single:
    """Rows of one document each, as published: those in which one ends are left out. `take` raises UsageError."""

    def __init__(self, text: Packed):
        self.text = text

    def take(self, count: int) -> list[Row]:
        return [self._row() for _ in range(count)]

    def state(self) -> dict[str, Any]:
        return self.text.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.text.restore(state)

    def _row(self) -> Row:
        for _ in range(MISSES):
            row = self.text.take(1)[0]
            if len(row.spans) == 1:
                return row
        raise UsageError(
            f"--data: none of {MISSES} rows of {self.text.length} tokens is of one document: give longer texts or "
            "shorten the rows"
        )


class Refresh:
    """The trainer: `step` is one update from a batch of rows; `model` is changed in place.


    Writes train.json, the record, and at the end model/, with the tokenizer if there is one.
    """

    name = "refresh"
    paper = "2411.05787"
    windows = ", which the mask does not know"

    def __init__(
        self, model: Any, options: RefreshOptions, world: World, tokenizer: Any = None, rows: int | None = None
    ):
        """rows: of a step, where the layers' weights are to be divided among the processes (FSDP2), else None."""
        self.model, self.options, self.world, self.tokenizer = model, options, world, tokenizer
        self.sharded = rows is not None
        self.mixed = TwoPart(options.tail, options.size, options.kernel)
        self.adapted = _adapt(model, options) if options.lora else None
        if not options.lora:
            model.requires_grad_(True)
        model.eval()
        if rows is not None:
            shard(model, world, rows)
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        every = list(self.weights.values())
        parts = [[i for i, p in enumerate(every) if divided(p) == kind] for kind in (False, True)]
        groups = [
            {"params": [every[i] for i in part], "lr": options.rate, "weight_decay": options.decay}
            for part in parts
            if part
        ]
        self.optimizer = torch.optim.AdamW(groups)
        self.numbers = [i for part in parts for i in part]  # of the optimizer's parameters among the weights

    @contextmanager
    def running(self, checkpointing: bool) -> Iterator[None]:
        with checkpointed(self.model, checkpointing):
            yield

    def step(self, step: int, rows: list[Row]) -> dict[str, float]:
        """rows: the whole batch, of which this process computes its share. The numbers are the whole batch's."""
        o, device = self.options, self.model.device
        self.optimizer.zero_grad(set_to_none=False)
        targets = [row.targets() for row in rows]
        count = sum(int((t >= 0).sum()) for t in targets)
        late = sum(int((t[-o.tail :] >= 0).sum()) for t in targets)
        total = torch.zeros(2, device=device)
        for i in self.world.mine(len(rows)):
            with _narrow(device):
                states = hidden(self.model, self.mixed, rows[i], None, restart=False)
                head = nll(self.model, states[: -o.tail], targets[i][: -o.tail])
                tail = nll(self.model, states[-o.tail :], targets[i][-o.tail :])
            ((head + tail) / count).backward()
            total += torch.stack([(head + tail).detach() / count, tail.detach() / max(late, 1)])
        for p in self.weights.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in self.weights.values() if p.grad is not None]
        self.world.sum_(total, *(x for x in gradients if not divided(x)))
        norm = clip(gradients, o.clip or float("inf"), self.world)
        for group in self.optimizer.param_groups:
            group["lr"] = o.at(step)
        self.optimizer.step()
        loss, tail_loss = total.tolist()
        return {"loss": loss, "tail": tail_loss, "rate": o.at(step), "norm": float(norm)}

    def tensors(self) -> dict[str, Tensor]:
        """Whole, wherever their parts are: every process has to ask."""
        found = {f"weight.{name}": p for name, p in self.weights.items()}
        for key, x in optimizer_tensors(self.optimizer).items():
            part, number, name = key.split(".")
            found[f"{part}.{self.numbers[int(number)]}.{name}"] = x
        return {name: whole(x) for name, x in found.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, p in self.weights.items():
            p.copy_(divide(tensors[f"weight.{name}"], p))
        every, parts = list(self.weights.values()), {}
        for key, x in tensors.items():
            if key.startswith("optimizer."):
                part, number, name = key.split(".")
                parts[f"{part}.{self.numbers.index(int(number))}.{name}"] = divide(x, every[int(number)])
        load_optimizer(self.optimizer, parts)

    def described(self) -> dict[str, Any]:
        return asdict(self.options) | {"shard": self.sharded}

    def write(self, out: Path, record: dict[str, Any]) -> None:
        write_whole(out / "train.json", json.dumps(record, indent=1) + "\n")

    def finish(self, out: Path, record: dict[str, Any]) -> None:
        """The model as a folder that every door takes, adapters folded into the weights. Ends the training."""
        if not record["finished"]:
            return
        if self.sharded:
            gather(self.model, self.world)
        if not self.world.first:
            return
        model = self.model if self.adapted is None else self.adapted.merge_and_unload()
        model.save_pretrained(out / "model")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(out / "model")


def _adapt(model: Any, options: RefreshOptions) -> Any:
    """Adapters put into the model's linear layers, in place; nothing else takes a gradient."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UsageError(f"lora={options.lora} needs peft: pip install 'kvfoot[lora]', or lora=0") from None
    torch.manual_seed(options.seed)
    scale = options.alpha or 2 * options.lora
    config = LoraConfig(r=options.lora, lora_alpha=scale, lora_dropout=0.0, target_modules=options.targets.split(","))
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(f"targets={options.targets}: {str(error).splitlines()[0]}") from None


def _narrow(device: torch.device) -> Any:
    """bf16 products on a GPU; weights and their updates stay as they are loaded (fp32 by default)."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
