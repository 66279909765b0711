"""The contract of readers: methods that store what their plan says and read few entries of it at a decode step (D5).

Shapes as in core/hooks.py: R rows of one layer and of equal length n, the newest entry included; H query heads per row.
"""

from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from kvfoot.core.budget import Budget, PromptPass, split
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method, Plan, require
from kvfoot.core.storage import Storage


@dataclass(frozen=True)
class Held:
    """Copies of entries in the model's dtype, k and v [R, c, D]: near where the cache is coarse, or far away."""

    k: Tensor
    v: Tensor

    def push(self, query: "Query") -> "Held":
        """With the query's own entry at the end."""
        return Held(torch.cat([self.k, query.key[:, None]], 1), torch.cat([self.v, query.value[:, None]], 1))

    def last(self, count: int) -> "Held":
        return Held(self.k[:, -count:], self.v[:, -count:])


class Query(Protocol):
    """A token about to attend, its own entry stored already, in slot n - 1. What is asked for here is charged as read.

    q: [R, H, D], key and value: [R, D], its own, after RoPE. step: 0 for the prompt's last token, then 1, 2, ... size:
    entries to read per row. past: tokens right before it that are read once more (`Reader.tokens`). newest: int64
    [R, 1] on the device, n - 1. below: this step's state of the same heads in the next lower layer that has one, None
    in the first. sequences: 1, or more where a replayed step asks for several at once (`Reader.batched`): the rows are
    then theirs one after the other, each a token of its own.

    In a replayed step (`Reader.phase`) `n` and `step` are those of the recording: a reader may branch on them as its
    phase says, and takes numbers from `newest`.
    """

    layer: int
    step: int
    n: int
    size: int
    past: int
    q: Tensor
    key: Tensor
    value: Tensor
    newest: Tensor
    below: Any
    sequences: int

    def unrotated(self) -> Tensor:
        """q before RoPE, fp32 [R, H, D]: turned back, not kept (`Reader.unrotates`)."""
        ...

    def logits(self) -> Tensor:
        """Scaled q k of all n entries, fp32 [R, H, n]: a pass over the keys."""
        ...

    def scores(self) -> Tensor:
        """Their softmax."""
        ...

    def keys(self, last: int | None = None) -> Tensor:
        """Keys [R, n, D]: the same pass; or those of the last few entries alone."""
        ...

    def best(self, count: int, kernel: int, group: str, sink: int, leaving: int | None) -> Tensor | None:
        """Slots int64 [R, count + 1] of the best earlier entries, chosen by a kernel, and the newest behind them; None
        where there is none that can.

        By softmax, joined over query heads by `group`, max-pooled over `kernel` neighbours, infinite for the first
        `sink`; then by the softmax before pooling, then the later one. The `leaving` worst (None: all) come first,
        worst first.
        """
        ...

    def vote(self, first: int, last: int, count: int) -> Tensor | None:
        """int64 [sequences, count], by a kernel or None: of entries [first, n - last) those that all heads of a
        sequence vote for most, in any order. A head's votes are its softmax over these entries.
        """
        ...

    def push(self, queue: Tensor) -> tuple[Tensor, Tensor]:
        """A queue of slots (`Reader.queue`) with the query's own at its end, to be read; and, once its first have gone
        so that it is no longer than `size` or than it was, to be kept.
        """
        ...

    def widen(self, low: Tensor, high: Tensor, page: int) -> tuple[Tensor, Tensor]:
        """Bounds [R, P, D] of the keys of pages of `page` entries with the query's own key in the last one. In a
        replayed step the same tensors, with places for rows to come (`Reader.grown`).
        """
        ...

    def reach(self, low: Tensor, high: Tensor, page: int, group: str) -> Tensor:
        """fp32 [R, P]: no key of a page has a greater q k, joined over query heads by `group`; -inf for the newest
        entry's page and behind it. Charged: two keys a page.
        """
        ...

    def pages(self, numbers: Tensor, page: int) -> Any:
        """The slots of pages int64 [R, c], in any order, and of the newest entry's, as far as it is filled."""
        ...

    def hold(self, slots: Tensor) -> Held | None:
        """Copies of the entries in slots int64 [R, c], to be read in their place; None where the cache is as near."""
        ...

    def earlier(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores of the entries before the newest. Where rows differ, those behind them are 0, and bool [R, m] says
        which are meant.
        """
        ...

    def contested(self, first: int, last: int) -> tuple[Tensor, int, Tensor | None]:
        """Softmax over entries [first, n - last) alone, fp32 [R, H, m'], its first column's entry, and as above."""
        ...


@dataclass(frozen=True)
class Read:
    """What a query reads: slots int64 [R, c] or `Query.pages`, None for everything.

    refresh: the reader is to choose anew (a bool, or on the device); it then reads what `Reader.refresh` answers,
    or everything where `full` is set. extra: entries' worth of other tensors that were read (page bounds), per row.
    held: copies of just these entries, in this order.
    """

    slots: Any
    refresh: bool | Tensor = False
    full: bool = False
    extra: float = 0
    held: Held | None = None


@dataclass(frozen=True)
class Reader(Method):
    """Base of readers. `keep` (of the prompt) or `budget` is the number of entries read per row and step.

    A reader has a state per sequence and layer, made of tensors and never changed in place, fields named in `grown`
    apart: `start` makes it from the prompt's last token, `read` chooses for a step, `refresh` chooses anew. None of
    them waits for the device. In a replayed step they are asked once per sequence, or once for all where `batched`
    says that they can be.

    verify: the reader drafts that many tokens and one full pass checks them: greedy output is that of full attention
    (arXiv 2408.11049). rectify: every so many steps one full pass reads that many last tokens again and puts their
    entries right (arXiv 2506.04108); the reader then starts anew. 0: neither. store: bits of a number of a key or value
    in the cache, 8 or 4 (cache/format.py), none for the model's dtype; what a reader holds itself stays in that.
    """

    verify: int = 0
    rectify: int = 0
    store: int | None = None

    budgeted: ClassVar[bool] = False
    aligned: ClassVar[bool] = False
    """A slot that is chosen in one row is read in others: it has to be the same token's in all of them."""
    share: ClassVar[Fraction] = Fraction(1, 8)
    """Of a prompt's entries so many are read where neither keep nor budget is given."""
    least: ClassVar[int] = 128
    lasting: ClassVar[bool] = True
    """A state is of use to later steps; otherwise to the layers above, in its own step alone."""
    batched: ClassVar[bool] = False
    """Several sequences can be asked about at once (`Query.sequences`): every tensor of a state begins with a row or a
    sequence a line, and `Read.refresh` is a bool or one per sequence, [sequences].
    """
    queue: ClassVar[str | None] = None
    """Which field of a state is a queue of slots, int64 [R, K]: `read` pushes it at every step (`Query.push`), and does
    nothing else with it. In a replayed step it is a ring at a fixed address, moved on for all layers in one launch.
    """
    grown: ClassVar[tuple[str, ...]] = ()
    """Fields of a state that grow with the text, [R, places(n), ...], and are changed by `Query.widen` alone. In a
    replayed step they have room for the whole run at a fixed address; places behind a row's own have no meaning.
    """

    def __post_init__(self) -> None:
        require(self.verify >= 0, f"{self.name}: verify={self.verify} is a number of tokens, 0 for none")
        require(self.rectify >= 0, f"{self.name}: rectify={self.rectify} is a number of steps, 0 for never")
        require(not (self.verify and self.rectify), f"{self.name}: verify leaves nothing to rectify: give one of them")
        require(
            self.store in (None, 8, 4), f"{self.name}: store={self.store}: 8 or 4 bits, or none for the model's dtype"
        )
        require(
            not self.verify or self.storage.plain,
            f"{self.name}: verify gives full attention's tokens, which a cache that is stored otherwise does not have: "
            "leave out verify, or store and values",
        )

    @property
    def storage(self) -> Storage:
        return Storage(self.store)

    @property
    def tokens(self) -> int:
        """Tokens of a decode step: the newest, and those before it whose attention is corrected (see `unseen`)."""
        return 1

    @property
    def unrotates(self) -> bool:
        """Whether queries are asked for as they were before RoPE."""
        return False

    def prepare(self, geometry: Geometry, prompt: int, chunk: int | None, budget: Budget) -> Plan:
        if budget.tokens is not None:
            size = budget.tokens
        elif budget.keep is not None:
            size = max(1, round(budget.keep * prompt))
        else:
            size = max(self.least, int(prompt * self.share))
        if budget.tokens is not None and size > geometry.positions:
            raise UsageError(
                f"budget={size}: {self.name} reads from a cache of the model's {geometry.positions} positions at most"
            )
        passes = tuple(PromptPass(a, b) for a, b in split(prompt, chunk, 1))
        return Plan(passes, reads=size, storage=self.storage)

    @abstractmethod
    def start(self, query: Query) -> Any:
        """The state after the prompt, whose last token is the query."""

    @abstractmethod
    def read(self, state: Any, query: Query) -> tuple[Any, Read]:
        """The state after this step, and what the step reads unless the reader chooses anew."""

    def phase(self, step: int, n: int, size: int) -> str | None:
        """Which of its kinds of step this is, the same for all that differ in numbers only: each is recorded once.

        None: this step cannot be replayed (a CUDA graph), since tensors change shape or it asks for logits or keys.
        """
        return None

    def places(self, n: Any) -> Any:
        """Of the fields that grow, for a row of n entries, or for an array of such numbers."""
        raise TypeError(f"{self.name} holds nothing that grows")

    def refresh(self, state: Any, query: Query) -> tuple[Any, Tensor]:
        """The state after a step that chooses anew, and the slots int64 [R, c] that it reads unless it reads all."""
        raise TypeError(f"{self.name} has nothing to refresh")

    def unseen(self, state: Any, query: Query, slots: Tensor) -> Tensor:
        """bool [R, past, c]: what of slots int64 [R, c], that the query reads, an earlier token is to read too.

        Asked of the state that `read` was given, where `tokens` > 1 and the query does not read everything. The tokens
        are the `past` ones right before the query, oldest first; what they have read before is joined with it.
        """
        raise TypeError(f"{self.name} corrects nothing")
