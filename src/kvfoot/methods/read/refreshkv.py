from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kvfoot.core.hooks import require
from kvfoot.core.reading import Held, Query, Read, Reader
from kvfoot.core.registry import register
from kvfoot.core.storage import Place, Storage
from kvfoot.methods.tools import Join, join, pool


@dataclass(frozen=True)
class Partial:
    """slots: int64 [R, K], what a partial step reads: selected entries, worst first, then the newest; a queue.

    reference: fp32 [B, KV heads or 1, w], the query of each of B sequences that the next ones are compared with. since:
    int64 [B], the entry of that query. With a fixed schedule nothing is compared, and both are [B, 0]. held: copies of
    the same entries, where the cache is coarse or far away.
    """

    slots: Tensor
    reference: Tensor
    since: Tensor
    held: Held | None = None


@register(
    "refreshkv",
    paper="2411.05787",
    category="read",
    stores="every entry",
    reads="a partial cache, and everything when it is refreshed",
)
@dataclass(frozen=True)
class RefreshKV(Reader):
    """Alternates attention to a partial cache of K entries per KV head with full attention, which chooses it anew.

    K is `budget`, or `keep` x the prompt, by default an eighth of the prompt and at least 128 (section 3). A layer is
    full at a step divisible by `every` whose mean query has a cosine of at most `similarity` with that of its last full
    step (the paper's QC and s: .85 for Llama-3.1-8B, .95 for Qwen2-7B), or at every one of them with schedule "fixed".
    Scores: softmax in fp32, maximum over a KV head's query heads, max-pooling over `kernel`. What is selected leaves
    the partial cache worst first as new tokens come; they leave last.

    mode "score_only" chooses anew without full attention. query: what is compared, the mean over all heads, each KV
    head's own mean (then a layer is full as soon as one differs), or all heads one after the other; prerope: as it was
    before RoPE. max_gap: longest run of steps without a refresh, None for no limit as published. sink: first entries
    that every selection holds, 0 as published. grow: a refresh selects at least that fraction of what is stored by then
    (published: 0, K stays what the prompt gave).

    store 8 or 4: the partial cache is a copy in the model's dtype. values "host": so is it, and the values of all
    entries lie in (pinned) host memory, from where a refresh fetches K a row: with mode "score_only" alone.
    """

    every: int = 5
    schedule: Literal["dynamic", "fixed"] = "dynamic"
    similarity: float = 0.85
    mode: Literal["full", "score_only"] = "full"
    kernel: int = 7
    group: Join = "max"
    query: Literal["mean", "kv_head", "concat"] = "mean"
    prerope: bool = False
    max_gap: int | None = 64
    sink: int = 0
    grow: float = 0.0
    values: Place = "device"

    batched: ClassVar[bool] = True
    queue: ClassVar[str | None] = "slots"

    def __post_init__(self) -> None:
        super().__post_init__()
        name = self.name
        require(self.every >= 1, f"{name}: every={self.every}: steps between two checks, at least 1")
        require(self.kernel % 2 == 1 and self.kernel > 0, f"{name}: kernel={self.kernel} has to be odd")
        require(
            -1 <= self.similarity <= 1 or self.similarity in (1.1, -2),
            f"{name}: similarity={self.similarity} is a cosine, in [-1, 1]; 1.1 refreshes at every check, -2 at none",
        )
        require(self.max_gap is None or self.max_gap >= 1, f"{name}: max_gap={self.max_gap}: at least 1, or none")
        require(self.sink >= 0, f"{name}: sink={self.sink} is negative")
        require(0 <= self.grow <= 1, f"{name}: grow={self.grow} is a fraction of what is stored, 0 for a constant K")
        away = self.values == "host"
        require(
            not away or self.mode == "score_only",
            f"{name}: values=host: a refresh in mode=full reads the values of all entries: give mode=score_only",
        )
        require(not away or not self.rectify, f"{name}: values=host: rectify reads the values of all entries")

    @property
    def storage(self) -> Storage:
        return Storage(self.store, self.values)

    @property
    def unrotates(self) -> bool:
        return self.prerope

    def start(self, query: Query) -> Partial:
        return self.refresh(None, query)[0]

    def read(self, state: Partial, query: Query) -> tuple[Partial, Read]:
        slots, kept = query.push(state.slots)
        held = None if state.held is None else state.held.push(query)
        state = replace(state, slots=kept, held=None if held is None else held.last(kept.shape[1]))
        if query.n <= query.size:
            return state, Read(None)
        if query.step % self.every:
            return state, Read(slots, held=held)
        return state, Read(slots, self._fires(state, query), self.mode == "full", held=held)

    def phase(self, step: int, n: int, size: int) -> str | None:
        if n <= size or self.grow or self.prerope or not self.storage.plain:
            return None
        return "quiet" if step % self.every else "check"

    def refresh(self, state: Partial | None, query: Query) -> tuple[Partial, Tensor]:
        slots = self._select(query)
        if self.schedule == "fixed":
            nothing = query.newest.new_empty(query.sequences, 0)
            return Partial(slots, nothing, nothing, query.hold(slots)), slots
        return Partial(slots, self._compared(query), _newest(query), query.hold(slots)), slots

    def _fires(self, state: Partial, query: Query) -> bool | Tensor:
        if self.schedule == "fixed":
            return True
        cosine = F.cosine_similarity(self._compared(query), state.reference, dim=-1)
        fires = (cosine <= self.similarity).any(1)
        return fires if self.max_gap is None else fires | (_newest(query) - state.since + self.every > self.max_gap)

    @property
    def _longest(self) -> int | None:
        """Most steps from one refresh to the next."""
        if self.schedule == "fixed":
            return self.every
        return None if self.max_gap is None else max(self.every, self.max_gap)

    def _compared(self, query: Query) -> Tensor:
        q = query.unrotated() if self.prerope else query.q.float()
        q = q.unflatten(0, (query.sequences, -1))
        if self.query == "concat":
            return q.flatten(1)[:, None]
        return q.mean((1, 2))[:, None] if self.query == "mean" else q.mean(2)

    def _select(self, query: Query) -> Tensor:
        """Slots int64 [R, K] of the best of the earlier entries, worst first, then the newest."""
        count = min(max(query.size, int(self.grow * query.n)), query.n) - 1
        slots = query.best(count, self.kernel, self.group, self.sink, self._longest)
        if slots is not None:
            return slots
        scores, there = query.earlier(query.scores())
        return torch.cat([best(scores, count, self.kernel, self.group, self.sink, there), query.newest], 1)


def best(
    scores: Tensor, count: int, kernel: int = 7, group: Join = "max", sink: int = 0, there: Tensor | None = None
) -> Tensor:
    """int64 [R, count], worst first: of entries whose attention is fp32 [R, H, m]; ties by the score before pooling,
    then the later one.

    there: bool [R, m], entries that may be chosen, where not all.
    """
    pooled = join(pool(scores, kernel, "max"), group)
    pooled[:, :sink].fill_(torch.inf)
    # Scores are not negative, so their bits order as they do; pooled values come in plateaus of up to `kernel`.
    key = pooled.view(torch.int32).long() << 31 | join(scores, group).contiguous().view(torch.int32)
    if there is not None:
        key = key.masked_fill(~there, -1)
    return key.sort(dim=1, stable=True).indices[:, key.shape[1] - count :]


def _newest(query: Query) -> Tensor:
    """int64 [B]"""
    return query.newest.unflatten(0, (query.sequences, -1))[:, 0, 0]
