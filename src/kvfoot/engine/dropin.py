"""kvfoot inside transformers: a Cache for `model.generate(..., past_key_values=...)` (decision D1).

    with kvfoot.Cache(model, method="snapkv", keep=0.25) as cache:
        model.generate(**inputs, past_key_values=cache)
        cache.record()

transformers decides what a forward pass is, `Step` does what it always does: hooks on the decoder say where a pass
begins and ends, its rows [B, T] are taken apart into the sequences' own passes (engine/lanes.py).
"""

import weakref
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError
from kvfoot.core.hooks import Method, Needs
from kvfoot.core.records import RunRecord
from kvfoot.core.registry import method as find_method
from kvfoot.engine import account
from kvfoot.engine.clock import Clock
from kvfoot.engine.engine import Engine
from kvfoot.engine.host import base_of, check_method, row_width, watch
from kvfoot.engine.lanes import Lane, bounds
from kvfoot.engine.packed import Forward
from kvfoot.engine.prompts import check_length
from kvfoot.engine.runner import Runner
from kvfoot.engine.sampler import Sampling
from kvfoot.models.bridge import PREFIX, Call, PassCache, attach
from kvfoot.models.rotation import Rotation


class Cache(PassCache):
    """One batch's kept entries over the forward passes of `generate`, and over later calls that continue it.

    Greedy tokens are those of `Engine.generate` at `chunk`. Tokens that a later call appends are read as a session's
    turn: what the method does after every later pass is done after it.
    """

    def __init__(
        self,
        model: Any,
        method: str | Method = "full",
        *,
        options: Mapping[str, Any] | None = None,
        keep: float | str | None = None,
        budget: int | None = None,
        evict: str = "post",
        chunk: int | None = None,
        prompt: int | None = None,
        room: int = 1024,
        **engine: Any,
    ):
        """model: a transformers causal language model, with PEFT adapters or without; it is attached until `close`.

        method, options, keep, budget, evict: as in `Engine.generate`. chunk: prompt tokens per pass of the method
        (default: `prefill_chunk_size`, else the whole prompt). prompt: columns of the padded prompt, where
        `prefill_chunk_size` is used and they cannot be read off the attention mask. room: later tokens that the pool of
        an accelerator has to hold. engine: backend, page_size, kv_memory.
        Raises UsageError for a model, method or option that is not supported.
        """
        self.layers, self.seen, self.closed = [], 0, False
        self.method, self.limits = find_method(method, options), Budget.of(keep, budget, evict)
        self.chunk, self.prompt, self.room = chunk, prompt, room
        check_method(self.method)
        if prompt is not None and prompt < 1:
            raise UsageError(f"prompt={prompt}: give the columns of the padded prompt, input_ids.shape[1]")
        base = base_of(model)
        training = [module for module in base.modules() if module.training]
        name, revision = getattr(base.config, "_name_or_path", ""), getattr(base.config, "_commit_hash", None)
        self._attached = not str(base.config._attn_implementation).startswith(PREFIX)  # by this cache
        self.engine = Engine(base, name=name, revision=revision or "unknown", **engine)
        self.method = self.engine.method(self.method)
        self._training = training
        # The model is given position 0 then, and the engine rotates.
        self._rotation = Rotation(base) if Needs.PROJECTIONS in self.method.needs else None
        self._hooks = watch(base.get_decoder(), weakref.ref(self))
        self._lanes: list[Lane | None] = []
        self._runner: Runner | None = None
        self._forward: Forward | None = None
        self._clock, self._began = Clock(), 0.0
        self._guessed = self._answered = self._broken = False
        self._steps = 0

    # What transformers asks of a cache

    def __len__(self) -> int:
        return self.engine.geometry.layers

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self._forward is None:
            state = "the cache is closed" if self.closed else "the cache belongs to another model"
            raise UsageError(f"{state}: make one with kvfoot.Cache(model)")
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Any:
        raise UsageError("a kvfoot.Cache cannot be copied: ask several questions on one prompt with Engine.session")

    def crop(self, *args: Any, **kwargs: Any) -> Any:
        raise UsageError("assisted decoding is not supported with kvfoot.Cache: use greedy decoding or sampling")

    activate_past_recording = crop

    def reorder_cache(self, *args: Any, **kwargs: Any) -> Any:
        raise UsageError("beam search is not supported with kvfoot.Cache: use greedy decoding or sampling")

    def batch_select_indices(self, *args: Any, **kwargs: Any) -> Any:
        raise UsageError("contrastive search is not supported with kvfoot.Cache: use greedy decoding or sampling")

    batch_repeat_interleave = batch_select_indices

    # The public face

    def record(self) -> RunRecord:
        """What the batch cost so far. Raises UsageError before the prompt is read, BrokenPromise for a defect.

        A sequence's tokens are counted by passes: one that has ended goes on with pads until the whole batch has.
        """
        if self._runner is None or self._clock.prefill is None:
            raise UsageError("there is no record yet: the prompt has not been read")
        sequences = [lane.sequence for lane in self._lanes if lane is not None]
        for sequence in sequences:
            sequence.verify()
            sequence.generated = [0] * (self._steps + 1)
        config = self.engine.config(self.method, self.limits, self.chunk, 0, Sampling())
        config |= dict.fromkeys(("max_new_tokens", "temperature", "top_p", "top_k"))
        config |= {"generate": "transformers"}
        return account.record(self._runner, sequences, self._clock, config, self.engine.revision, 0)

    def close(self) -> None:
        """Give the entries back and leave the model as it was. A record is still to be had."""
        if self.closed:
            return
        self.closed = True
        for hook in self._hooks:
            hook.remove()
        if self._attached:
            self.engine.close()
        for module in self._training:
            module.training = True
        for lane in self._lanes:
            if lane is not None and self._runner is not None:
                self._runner.cache.release(lane.sequence.rows)

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # One forward pass

    def begin(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The decoder is called with this cache: `inputs` as transformers gives them, and as the decoder gets them."""
        if self._broken:
            raise UsageError("an earlier pass over this cache failed halfway: make a new kvfoot.Cache")
        if not str(self.engine.model.config._attn_implementation).startswith(PREFIX):
            attach(self.engine.model)  # whoever had done it is closed by now
            self._attached = True
        tokens: Tensor = inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]
        B, T = tokens.shape[:2]
        reading = self._clock.prefill is None
        mask = self._mask(inputs.get("attention_mask"), B, T)
        if not self.seen:
            self._clock, self._lanes = Clock(), [None] * B
            if self.prompt is None:
                self.prompt, self._guessed = row_width(mask, T), True
            if self.chunk is None and self.prompt > T:
                self.chunk = T
        if len(self._lanes) != B:
            raise UsageError(f"a pass of {B} sequences over the cache of {len(self._lanes)}: a batch stays as it is")
        assert self.prompt is not None
        if reading and (
            self.seen + T > self.prompt or (self._guessed and row_width(mask, self.seen + T) != self.prompt)
        ):
            raise UsageError(
                f"{self.seen + T} columns of a prompt that seemed to have {self.prompt}: give its length, "
                "kvfoot.Cache(model, prompt=input_ids.shape[1])"
            )
        if not reading and T > 1 and not self._answered:
            raise UsageError(
                f"a pass of {T} tokens follows the prompt before any was generated: with prefill_chunk_size give "
                "kvfoot.Cache(model, prompt=input_ids.shape[1]); assisted decoding is not supported"
            )
        firsts = [0] * B if T == 1 and not reading else self._firsts(mask, B, T)
        self._open(firsts, T)
        given = inputs.get("position_ids") if T > 1 else None  # a decode step does not wait for the device
        inputs = inputs | {"position_ids": self._positions(given, firsts, T, tokens.device)}
        assert self._runner is not None
        spans = [(lane, first, T) for lane, first in zip(self._lanes, firsts, strict=True) if lane is not None]
        for lane, first, stop in spans:
            check_length(self.engine.geometry.positions, lane.read + stop - first, 0)
        self._began, self._broken = perf_counter(), True
        self._forward = Forward(self._runner.cache, self._runner.backend, spans, B, T, self._rotation)
        return inputs

    def end(self) -> None:
        """The decoder has answered. Raises NotFinite, BrokenPromise."""
        forward, runner = self._forward, self._runner
        assert forward is not None
        assert runner is not None
        forward.done()
        self._forward = None
        self.seen += forward.T
        sequences = [lane.sequence for lane in self._lanes if lane is not None]
        if self._clock.prefill is not None:
            self._steps += 1
            self._answered = forward.T == 1
            if forward.T == 1:
                self._clock.steps.append(perf_counter() - self._began)
            else:
                for sequence in sequences:
                    sequence.prompt += forward.T - 1  # the first one was generated
                    sequence.verify()
        elif self.seen == self.prompt:
            runner.cache.settle()
            for sequence in sequences:
                sequence.verify()
                sequence.freeze()
                sequence.held = sequence.rows.lens.copy()
            self._clock.filled(runner.cache.pool.held_bytes)
            self._clock.begun()
        self._broken = False

    def attend(self, call: Call) -> Tensor:
        """q [B, heads, T, D], k and v [B, kv_heads, T, D] -> attention output [B, T, heads, D], zero at pads."""
        assert self._forward is not None
        if call.q.requires_grad:
            raise UsageError("kvfoot.Cache does not train: call the model within torch.no_grad()")
        return self._forward.attend(call)

    # What a pass is checked for

    def _mask(self, mask: Any, B: int, T: int) -> Tensor | None:
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            raise UsageError("kvfoot.Cache takes an attention mask [batch, tokens]: causal order is its own business")
        if mask.shape != (B, self.seen + T):
            raise UsageError(
                f"an attention mask of {mask.shape[1]} columns, {T} new tokens, {self.seen} seen: a cache goes on from "
                "its own prompt: give the whole conversation without prefill_chunk_size, or make a new kvfoot.Cache"
            )
        return mask

    def _firsts(self, mask: Tensor | None, B: int, T: int) -> list[int]:
        if mask is None:
            return [0] * B
        started = [lane is not None for lane in self._lanes]
        found = bounds(mask[:, -T:].bool().tolist(), started)
        for i, first in enumerate(found):
            if first is None:
                raise UsageError(f"row {i} of the batch has pads after tokens: pad on the left (padding_side='left')")
        return [first for first in found if first is not None]

    def _open(self, firsts: list[int], T: int) -> None:
        """A sequence for every row whose first token has come; its length is known: it ends with the prompt."""
        assert self.prompt is not None
        new = [i for i, lane in enumerate(self._lanes) if lane is None]
        if not new:
            return
        lengths = {i: self.prompt - self.seen - firsts[i] for i in new}
        for i in new:
            if lengths[i] < 1:
                raise UsageError(f"row {i} of the batch has no tokens")
        plan = lambda i: self.engine.plan(self.method, self.limits, lengths[i], self.chunk, 0)  # noqa: E731
        if self._runner is None:
            # A row of pads so far may be as long as what is still to come.
            with torch.inference_mode(False):  # the pool is written to in any mode
                self._runner = self.engine.runner([plan(i) for i in new], self.room + (self.chunk or 0))
        for i in new:
            if firsts[i] < T:
                sequence = self._runner.open([0] * lengths[i], self.method, plan(i), Sampling(), i)
                self._lanes[i] = Lane(i, sequence)

    def _positions(self, given: Tensor | None, firsts: list[int], T: int, device: torch.device) -> Tensor:
        """What the model rotates keys by, [B, T]: each sequence's own tokens, counted from 0; pads are 0.

        transformers 5.2 gives every chunk of a prompt the positions of its last one: in chunks ours hold.
        """
        columns = torch.arange(T, device=device)
        read = torch.tensor([lane.read if lane is not None else 0 for lane in self._lanes], device=device)[:, None]
        first = torch.tensor(firsts, device=device)[:, None]
        token, own = columns >= first, read + columns - first
        assert self.prompt is not None
        chunked = self._clock.prefill is None and self.prompt > T
        if given is not None and not chunked and bool((token & (given != own)).any()):
            raise UsageError("position_ids do not count each sequence's own tokens from 0: leave them to generate()")
        return own.where(token & (self._rotation is None), 0)
