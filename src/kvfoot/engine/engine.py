"""The public face: load a model, run prompts with a method, keep a cache to ask about."""

from collections.abc import Mapping
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvfoot.attention.backend import Backend, choose, suited
from kvfoot.cache.kv import KVCache
from kvfoot.cache.memory import free
from kvfoot.cache.pool import Pool, entry_widths
from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError
from kvfoot.core.geometry import Geometry
from kvfoot.core.hooks import Method, Plan
from kvfoot.core.registry import method as find_method
from kvfoot.engine.account import record
from kvfoot.engine.admission import check_fits, check_size, pool_bytes, workspace
from kvfoot.engine.clock import Clock
from kvfoot.engine.graph import Record, bucket, cuda_recorder
from kvfoot.engine.graphable import told, wanted
from kvfoot.engine.ledger import spare_pages
from kvfoot.engine.prompts import check_length, encode, text, uses_chat
from kvfoot.engine.replay import check as check_replay
from kvfoot.engine.result import Interrupted, Result
from kvfoot.engine.runner import Listener, Runner, peak_pages, session_pages
from kvfoot.engine.sampler import Sampling
from kvfoot.engine.sequence import Sequence
from kvfoot.engine.session import Session
from kvfoot.models.bridge import attach, detach
from kvfoot.models.fusion import Fuse, fusing
from kvfoot.models.layout import geometry_of

CHUNK = 512
"""Default prompt tokens per pass."""


class Engine:
    """A Hugging Face decoder, unmodified, with kvfoot's attention and cache. Use `Engine.load`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        name: str = "",
        revision: str = "",
        backend: str | Backend | None = None,
        page_size: int = 16,
        kv_memory: int | float | None = None,
        graph: bool | Record | None = None,
        fuse: int | Fuse | None = None,
        poison: bool = False,
    ):
        """model: a transformers causal language model.

        kv_memory: size of the page pool, bytes (int) or a fraction (float, at most 1.0) of what is free beside the
        weights and a run's workspace; default: what a run needs. graph: decode by recorded steps (CUDA graphs), by
        default on CUDA with the triton backend. fuse: a level of models/fusion.py, by default
        KVFOOT_FUSE or 3 with the triton backend. poison fills freed pages with NaN (tests). Raises UsageError for a
        model that is not supported, or a wrong value.
        """
        if page_size < 1:
            raise UsageError(f"page_size={page_size}: give at least 1 entry per page")
        check_size(kv_memory)
        self.geometry: Geometry = geometry_of(model)
        self.model, self.tokenizer, self.name, self.revision = model.eval(), tokenizer, name, revision
        self.page_size, self.kv_memory, self.poison = page_size, kv_memory, poison
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.backend: Backend = choose(backend) if isinstance(backend, str) else backend or self._suited()
        self.graph = wanted(graph, model, self.backend, self.device)
        self.fuse = fusing(fuse, self.backend)
        self._previous = attach(model)
        self._probe()

    @classmethod
    def load(cls, name: str, *, dtype: str = "auto", device: str = "auto", **options: Any) -> "Engine":
        """name: smollm2, recall, a local folder, a .gguf file or a hub name; options as in the constructor."""
        from kvfoot.models.load import load

        on_event = options.pop("on_event", None)
        found = load(name, dtype=dtype, device=device, on_event=on_event)
        return cls(found.model, found.tokenizer, name=name, revision=found.revision, **options)

    def _suited(self) -> Backend:
        g = self.geometry
        return suited(g.head_dim, g.group, self.dtype, self.page_size, self.device)

    def close(self) -> None:
        """Leave the model as it was."""
        detach(self.model, self._previous)

    def generate(
        self,
        prompts: str | Many[str] | Many[Many[int]],
        *,
        method: str | Method = "full",
        options: Mapping[str, Any] | None = None,
        keep: float | str | None = None,
        budget: int | None = None,
        evict: str = "post",
        chunk: int | None = CHUNK,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        question: str | Many[str] = "",
        chat: bool | None = None,
        listener: Listener | None = None,
    ) -> list[Result]:
        """Run prompts (texts or token ids, unequal lengths) as one batch; one result each, in order.

        keep: fraction of entries kept, or budget: entries per row. evict: "post" or "chunk". chunk: prompt tokens per
        pass, None for all. question: appended to each prompt before eviction (one for all, or one each).
        Raises UsageError, PoolExhausted, NotFinite; Interrupted carries partial results.
        """
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens={max_new_tokens}: give at least 1")
        chosen, limits = self.method(method, options), Budget.of(keep, budget, evict)
        sampling = Sampling(temperature, top_p, seed, top_k)
        check_replay(chosen, self.geometry, sampling)
        batch = self._encode(prompts, question, chat)
        plans = [self.plan(chosen, limits, len(ids), chunk, max_new_tokens) for ids in batch]
        config = self.config(chosen, limits, chunk, max_new_tokens, sampling) | {
            "chat": self._chat(prompts, chat),
            "question": "before" if question else None,
            "decode": told(self.graph, chosen, plans[0]),
        }
        runner = self.runner(plans, max_new_tokens, listener)
        clock, interrupted = Clock(), False
        sequences: list[Sequence] = []
        logits: list[Tensor] = []
        try:
            for i, (ids, plan) in enumerate(zip(batch, plans, strict=True)):
                sequences.append(runner.open(ids, chosen, plan, sampling, i))
                logits.append(runner.prefill(sequences[-1], i))
            clock.filled(runner.cache.pool.held_bytes)
            runner.decode(sequences, logits, max_new_tokens, sampling, clock)
        except KeyboardInterrupt:
            interrupted = True
        whole = record(runner, sequences, clock, config, self.revision, seed, interrupted)
        results = [Result(text(self.tokenizer, s.generated), s.generated, whole) for s in sequences]
        for sequence in sequences:
            runner.cache.release(sequence.rows)
        if interrupted:
            raise Interrupted(results)
        return results

    def session(
        self,
        document: str,
        *,
        method: str | Method = "full",
        options: Mapping[str, Any] | None = None,
        keep: float | str | None = None,
        budget: int | None = None,
        evict: str = "post",
        chunk: int | None = CHUNK,
        chat: bool | None = None,
        room: int = 1024,
        listener: Listener | None = None,
    ) -> Session:
        """Read a document once, keep what the method keeps, ask about it as often as wanted (`Session.ask`, `turn`).

        room: tokens that one `ask`, or all turns of the conversation, may need (for the pool on an accelerator).
        """
        chosen, limits = self.method(method, options), Budget.of(keep, budget, evict)
        tokens = encode(self._need_tokenizer(), document, "?", after=True, chat=chat).before
        plan = self.plan(chosen, limits, len(tokens), chunk, 0)
        chat = uses_chat(self.tokenizer, chat)
        config = self.config(chosen, limits, chunk, 0, Sampling())
        config |= {"chat": chat, "decode": told(self.graph, chosen, plan)}
        return Session.read(
            self.runner([plan], room, listener, asking=True),
            self.tokenizer,
            document,
            tokens,
            chosen,
            plan,
            config,
            self.revision,
        )

    def resume(self, path: str | Path, *, room: int = 1024, listener: Listener | None = None) -> Session:
        """The session that `Session.save` wrote, read into a pool of its own; room as in `session`.

        Raises UsageError for a file of another model, dtype or newer version, or one that is damaged.
        """
        from kvfoot.engine.saved import resume

        self._need_tokenizer()
        return resume(self, Path(path), room, listener)

    def method(self, name: str | Method, options: Mapping[str, Any] | None = None) -> Method:
        """The method as it is for this model. Raises UsageError for an unknown one, or an option that does not suit."""
        return find_method(name, options).fitted(self.geometry.unwindowed)

    def plan(self, method: Method, budget: Budget, prompt: int, chunk: int | None, new: int) -> Plan:
        """The method's plan for a prompt of `prompt` tokens. Raises UsageError where it does not fit the model."""
        check_length(self.geometry.positions, prompt, new)
        if method.category != "baseline" and not self.geometry.open_layers:
            raise UsageError(
                f"every layer of this model has a window of its own: {method.name} has nothing to decide; use full"
            )
        return method.prepare(self.geometry.unwindowed, prompt, chunk, budget).spread(self.geometry)

    def runner(
        self, plans: list[Plan], later: int, listener: Listener | None = None, *, asking: bool = False
    ) -> Runner:
        """A pool for these plans and `later` more tokens each, and what runs on it; asking: forks of them at a time."""
        count = session_pages if asking else peak_pages
        pages = sum(count(plan, self.geometry, self.page_size, later) for plan in plans)
        if self.graph:
            size = bucket(1 if asking else len(plans))
            pages += max(spare_pages(plan, self.geometry, size) for plan in plans)
        planes = max((plan.planes for plan in plans), key=len)
        exact = self.kv_memory is None and self.device.type != "cpu"
        memory = self.kv_memory
        if exact or isinstance(memory, float):
            space, room = free(self.device), workspace(self.model.config, self.geometry, plans, self.dtype.itemsize)
            memory = pool_bytes(memory, space, room)
            if exact:
                widths = entry_widths(self.geometry.head_dim, self.dtype, planes, plans[0].storage)
                entry = sum(widths.values()) - (widths["v"] if plans[0].storage.values == "host" else 0)
                check_fits(pages, entry * self.page_size, room, space)
        pool = Pool(
            self.geometry.head_dim,
            self.dtype,
            self.device,
            page_size=self.page_size,
            planes=planes,
            memory=memory,
            pages=pages if exact else None,
            poison=self.poison,
            storage=plans[0].storage,
        )
        pool.require(pages)
        record = cuda_recorder(self.device) if self.graph is True else self.graph or None
        cache = KVCache(pool, self.geometry)
        return Runner(self.model, self.backend, cache, self._stop(), listener, record, self.fuse)

    def config(self, method: Method, budget: Budget, chunk: int | None, new: int, sampling: Sampling) -> dict[str, Any]:
        """What the record says about how a run was made."""
        return {
            "model": self.name,
            "method": method.name,
            "options": method.options(),
            "keep": None if budget.keep is None else float(budget.keep),
            "budget": budget.tokens,
            "evict": None if budget.unlimited else budget.evict,
            "chunk": chunk,
            "max_new_tokens": new,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "dtype": str(self.dtype).removeprefix("torch."),
            "backend": self.backend.name,
            "page_size": self.page_size,
            "fused": self.fuse.level if self.graph and self.fuse else 0,
        }

    def _probe(self) -> None:
        """A pass over two tokens: an unsupported attention argument shows here, not in the middle of a prompt."""
        plan = find_method("full").prepare(self.geometry, 2, None, Budget())
        runner = self.runner([plan], 1)
        sequence = runner.open([0, 1], find_method("full"), plan, Sampling(), 0)
        runner.prefill(sequence)
        runner.cache.release(sequence.rows)

    def _encode(self, prompts: Any, question: str | Many[str], chat: bool | None) -> list[list[int]]:
        if isinstance(prompts, str):
            prompts = [prompts]
        if not prompts:
            raise UsageError("no prompt was given")
        questions = [question] * len(prompts) if isinstance(question, str) else list(question)
        if len(questions) != len(prompts):
            raise UsageError(f"{len(questions)} questions for {len(prompts)} prompts: give one each, or one for all")
        if not isinstance(prompts[0], str):
            if any(questions):
                raise UsageError("a question goes with a text prompt, not with token ids")
            size = self.model.get_input_embeddings().num_embeddings
            strange = next((t for p in prompts for t in p if not 0 <= t < size), None)
            if strange is not None:
                raise UsageError(f"token id {strange} is outside the model's vocabulary of {size}")
            return [list(p) for p in prompts]
        tokenizer = self._need_tokenizer()
        return [encode(tokenizer, p, q, chat=chat).before for p, q in zip(prompts, questions, strict=True)]

    def _chat(self, prompts: Any, chat: bool | None) -> bool:
        texts = isinstance(prompts, str) or isinstance(prompts[0], str)
        return texts and uses_chat(self.tokenizer, chat)

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise UsageError("this engine has no tokenizer: give prompts as token ids")
        return self.tokenizer

    def _stop(self) -> frozenset[int]:
        """End tokens, from the generation config first (GGUF tokenizers have been seen to be wrong)."""
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        if ids is None and self.tokenizer is not None:
            ids = self.tokenizer.eos_token_id
        return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)
