"""Sampling, prompts and sessions: what decides a text beside the model."""

from typing import Any

import numpy as np
import pytest
import torch

import kvfoot
import tiny
from kvfoot.core.errors import UsageError
from kvfoot.core.records import RunRecord
from kvfoot.engine.prompts import Detokenizer, encode
from kvfoot.engine.result import Interrupted
from kvfoot.engine.runner import Event
from kvfoot.engine.sampler import Sampling


class Letters:
    """A tokenizer of characters: id = code point - 30. With a template, roles are written <U> and <A>."""

    eos_token_id = None

    def __init__(self, template: bool = False, start: bool = False):
        self.chat_template = "yes" if template else None
        self.start = start

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [ord(c) - 30 for c in text.replace("\n", "\x1f")]
        return {"input_ids": [0, *ids] if self.start and add_special_tokens else ids}

    def apply_chat_template(self, turns: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        assert add_generation_prompt
        assert [t["role"] for t in turns] == ["user"]
        return f"<U>{turns[0]['content'].strip()}</U><A>"

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(t + 30) for t in tokens).replace("\x1f", "\n")


def written(tokens: list[int]) -> str:
    return Letters().decode(tokens)


# Sampling


def test_greedy_is_the_largest_logit() -> None:
    logits = torch.tensor([0.1, 3.0, 2.9])
    assert Sampling().pick(logits, Sampling().generator(0)) == 1


def frequencies(sampling: Sampling, logits: torch.Tensor, draws: int = 4000) -> np.ndarray:
    generator = sampling.generator(0)
    return np.bincount([sampling.pick(logits, generator) for _ in range(draws)], minlength=len(logits)) / draws


def test_temperature_samples_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    for temperature in (0.5, 1.0, 2.0):
        expected = (logits / temperature).softmax(0).numpy()
        assert np.abs(frequencies(Sampling(temperature), logits) - expected).max() < 0.03


@pytest.mark.parametrize(
    ("top_p", "allowed"),
    [(0.4, {1}), (0.5, {1}), (0.51, {1, 3}), (0.8, {1, 3}), (0.82, {1, 3, 0}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_is_the_smallest_set_that_reaches_it(top_p: float, allowed: set[int]) -> None:
    p = torch.tensor([0.125, 0.5, 0.0625, 0.3125])
    found = frequencies(Sampling(1.0, top_p), p.log(), 2000)
    assert {i for i in range(4) if found[i] > 0} == allowed
    rest = sum(float(p[i]) for i in allowed)
    for i in allowed:
        assert found[i] == pytest.approx(float(p[i]) / rest, abs=0.04)


def test_the_seed_decides() -> None:
    engine = tiny.Strict(tiny.llama())
    ask = lambda seed: engine.generate([tiny.tokens(20)], temperature=1.0, seed=seed, max_new_tokens=12)[0].tokens  # noqa: E731
    assert ask(3) == ask(3)
    assert len({tuple(ask(seed)) for seed in range(5)}) == 5


def test_a_sequence_draws_the_same_whatever_runs_beside_it() -> None:
    engine = tiny.Strict(tiny.llama())
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": 4, "max_new_tokens": 8}
    a, b, c = (tiny.tokens(n, n) for n in (12, 30, 21))
    one = [r.tokens for r in engine.generate([a, b], **options)]
    two = [r.tokens for r in engine.generate([a, c, b], **options)]
    alone = engine.generate([a], **options)[0].tokens
    assert one[0] == two[0] == alone
    # Equal prompts in one batch are different draws.
    same = [r.tokens for r in engine.generate([a, a, a], **options)]
    assert len(set(map(tuple, same))) == 3


def test_an_end_token_ends_its_own_sequence_only() -> None:
    model = tiny.make("llama")
    engine = tiny.Strict(model)
    prompts = [tiny.tokens(n, n) for n in (9, 33, 20)]
    free = [r.tokens for r in engine.generate(prompts, max_new_tokens=12)]
    stop = next(t for t in free[1] if t not in free[0][:3])
    model.generation_config.eos_token_id = [stop]
    found = [r.tokens for r in engine.generate(prompts, max_new_tokens=12)]
    for before, after in zip(free, found, strict=True):
        end = before.index(stop) + 1 if stop in before else 12
        assert after == before[:end]
    assert len(found[1]) < 12


# Prompts


def test_a_question_before_is_part_of_the_prompt() -> None:
    found = encode(Letters(), "Document.", "Why?")
    assert (written(found.before), found.after) == ("Document.\n\nWhy?", [])
    found = encode(Letters(template=True), "Document.", "Why?")
    assert (written(found.before), found.after) == ("<U>Document.\n\nWhy?</U><A>", [])


def test_a_question_after_is_kept_for_later() -> None:
    found = encode(Letters(), "Document.\n", "Why?", after=True)
    assert (written(found.before), written(found.after)) == ("Document.", "\n\nWhy?")
    found = encode(Letters(template=True), "Document.\n", "Why?", after=True)
    assert (written(found.before), written(found.after)) == ("<U>Document.", "\n\nWhy?</U><A>")


def test_before_and_after_read_the_same_tokens_in_the_end() -> None:
    for tokenizer in (Letters(), Letters(template=True), Letters(start=True)):
        one = encode(tokenizer, "Some document.", "Why?")
        two = encode(tokenizer, "Some document.", "Why?", after=True)
        assert one.before == two.before + two.after


def test_chat_can_be_switched_off_and_not_on_without_a_template() -> None:
    assert written(encode(Letters(template=True), "Text", chat=False).before) == "Text"
    with pytest.raises(UsageError, match="no chat template: use --no-chat"):
        encode(Letters(), "Text", chat=True)


def test_a_document_that_also_stands_in_the_template() -> None:
    """The split is at the user's turn, wherever else the words occur."""

    class System(Letters):
        def apply_chat_template(self, turns: Any, tokenize: bool, add_generation_prompt: bool) -> str:
            return "<S>Be brief.</S>" + super().apply_chat_template(turns, tokenize, add_generation_prompt)

    found = encode(System(template=True), "brief", "Why brief?", after=True)
    assert written(found.before) == "<S>Be brief.</S><U>brief"
    assert written(found.after) == "\n\nWhy brief?</U><A>"


def test_a_template_that_keeps_leading_space() -> None:
    class Verbatim(Letters):
        def apply_chat_template(self, turns: Any, tokenize: bool, add_generation_prompt: bool) -> str:
            return f"<U>{turns[0]['content']}</U><A>"

    found = encode(Verbatim(template=True), "\n  Text\n", "Why?", after=True)
    assert (written(found.before), written(found.after)) == ("<U>\n  Text", "\n\nWhy?</U><A>")


def test_a_template_that_rewrites_the_document_is_refused() -> None:
    class Upper(Letters):
        def apply_chat_template(self, turns: Any, tokenize: bool, add_generation_prompt: bool) -> str:
            return turns[0]["content"].upper()

    with pytest.raises(UsageError, match="the chat template rewrites the prompt"):
        encode(Upper(template=True), "Document", "Why?", after=True)


@pytest.mark.parametrize("document", ["", "  \n "])
def test_no_document(document: str) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        encode(Letters(), document)
    with pytest.raises(UsageError, match="the prompt is empty"):
        encode(Letters(), document, "Why?", after=True)
    assert encode(Letters(), "", "Why?").before


def test_text_comes_in_whole_characters() -> None:
    class Bytes:
        def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
            return bytes(tokens).decode("utf-8", errors="replace")

    text = "naïve café €5"
    stream = Detokenizer(Bytes())
    pieces = [stream.push(b) for b in text.encode()]
    assert "".join(pieces) == text == stream.text
    assert "\ufffd" not in "".join(pieces)


# Sessions


def engine_with(template: bool = False, **options: Any) -> tiny.Strict:
    return tiny.Strict(tiny.llama(), Letters(template), **options)


DOCUMENT = "The lamp was lit at seven. The keeper wrote: wind from the south."
SIZES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("full", {}, {}),
    ("snapkv", {"window": 4}, {"keep": 0.5, "evict": "chunk", "chunk": 16}),
    ("snapkv", {"window": 4}, {"keep": 0.5, "chunk": 16}),
    ("snapkv", {"window": 4}, {"budget": 24, "evict": "chunk", "chunk": 16}),
    ("h2o", {}, {"keep": 0.5, "evict": "chunk", "chunk": 16}),
    ("h2o", {"group": "max"}, {"budget": 20, "chunk": 16}),
    ("streaming", {"sink": 2}, {"keep": 0.5, "chunk": 16}),
    ("random", {"window": 4}, {"keep": 0.5, "evict": "chunk", "chunk": 16}),
]


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(("method", "options", "size"), SIZES, ids=str)
def test_every_question_starts_from_the_same_cache(
    method: str, options: dict[str, Any], size: dict[str, Any], page_size: int
) -> None:
    """Questions in any order get the answers of sessions of their own, and give all their pages back."""
    engine = engine_with(page_size=page_size)

    def open_session() -> kvfoot.Session:
        return engine.session(DOCUMENT, method=method, options=options, **size)

    questions = ["Who wrote?", "When was the lamp lit?", "Who wrote?"]
    alone = [open_session().ask(q, max_new_tokens=8).tokens for q in questions]
    session = open_session()
    cache = session.runner.cache
    owned, state = cache.pool.owned, tiny.kept(session.runner, session.base)
    found = []
    for q in questions:
        found.append(session.ask(q, max_new_tokens=8).tokens)
        cache.check()
        assert cache.pool.owned == owned, "an answer's pages are left behind"
        assert tiny.kept(session.runner, session.base) == state
    assert found == alone
    assert found[0] == found[2]
    session.close()
    assert cache.pool.owned == 0


@pytest.mark.parametrize("template", [True, False])
def test_a_session_with_full_attention_equals_one_prompt(template: bool) -> None:
    engine = engine_with(template)
    session = engine.session(DOCUMENT, chunk=16)
    for question in ("Who wrote?", "Why?"):
        asked = session.ask(question, max_new_tokens=8)
        whole = engine.generate(DOCUMENT, question=question, max_new_tokens=8)[0]
        assert asked.tokens == whole.tokens
        assert asked.record.config["question"] == "after"
        assert whole.record.config["question"] == "before"
        assert asked.record.config["chat"] == whole.record.config["chat"] == template


def test_an_answer_costs_its_own_tokens_only() -> None:
    """Pages: those of question and answer, and a copy of each row's last page where it is shared."""
    engine = engine_with(page_size=4)
    session = engine.session(DOCUMENT, chunk=16)
    pool, rows = session.runner.cache.pool, 4
    document = len(DOCUMENT)
    pages = lambda n: -(-n // 4)  # noqa: E731
    assert pool.owned == rows * pages(document)
    session.ask("Who?", max_new_tokens=9)
    read = document + len("\n\nWho?") + 8
    shared = document // 4
    assert pool.peak == rows * (pages(document) + pages(read) - shared)


def test_a_question_is_charged_for_what_it_reads() -> None:
    """The record's footprint covers document, question and answer; kept is the document's."""
    engine = engine_with()
    session = engine.session(DOCUMENT, method="snapkv", options={"window": 4}, keep=0.5)
    record = session.ask("Who?", max_new_tokens=3).record
    N, q = len(DOCUMENT), len("\n\nWho?")
    k = round(0.5 * N)
    T = N + q + 2
    expected = N * (N + 1) // 2 + q * (q + 1) // 2 + q * k + 2 * (k + q) + 1 + 2
    assert record.footprint.kv == pytest.approx(expected / (T * (T + 1) // 2), rel=1e-12)
    assert record.tokens == {"prompt": N + q, "generated": 3}
    assert record.kept == [[k, k], [k, k]]


def test_bad_questions() -> None:
    session = engine_with().session(DOCUMENT)
    for question in ("", "  \n"):
        with pytest.raises(UsageError, match="the question is empty"):
            session.ask(question)
    with pytest.raises(UsageError, match="exceed the model's 512 positions"):
        session.ask("Who?", max_new_tokens=500)
    session.runner.cache.check()
    assert len(session.runner.cache._open) == 1
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.ask("Who?")
    session.close()


# Events, records and Ctrl-C


def test_events_tell_how_far_a_run_is() -> None:
    engine = tiny.Strict(tiny.llama())
    events: list[Event] = []
    results = engine.generate([tiny.tokens(20), tiny.tokens(9)], chunk=8, max_new_tokens=3, listener=events.append)
    prefill = [(e.sequence, e.done, e.total) for e in events if e.kind == "prefill"]
    assert prefill == [(0, 8, 20), (0, 16, 20), (0, 20, 20), (1, 8, 9), (1, 9, 9)]
    for i, result in enumerate(results):
        told = [e for e in events if e.kind == "token" and e.sequence == i]
        assert [e.token for e in told] == result.tokens
        assert [(e.done, e.total) for e in told] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("at", [("prefill", 0, 16), ("prefill", 1, 8), ("token", 1, 2)])
def test_ctrl_c_keeps_what_was_done(at: tuple[str, int, int]) -> None:
    engine = tiny.Strict(tiny.llama(), Letters())

    def stop(event: Event) -> None:
        if (event.kind, event.sequence, event.done) == at:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        engine.generate([tiny.tokens(20), tiny.tokens(9)], chunk=8, max_new_tokens=5, listener=stop)
    results = caught.value.results
    assert all(r.record.interrupted for r in results)
    whole = engine.generate([tiny.tokens(20), tiny.tokens(9)], chunk=8, max_new_tokens=5)
    if at[0] == "token":
        assert [len(r.tokens) for r in results] == [2, 2]
        assert [r.tokens for r in results] == [r.tokens[:2] for r in whole]
    record = RunRecord.from_json(results[0].record.to_json())
    assert record.interrupted
    assert not whole[0].record.interrupted


def test_a_record_says_how_it_was_made() -> None:
    engine = tiny.Strict(tiny.llama(), name="tiny", revision="abc")
    record = engine.generate(
        [tiny.tokens(30), tiny.tokens(20)],
        method="snapkv",
        options={"window": "4"},
        keep="0.5",
        evict="chunk",
        chunk=8,
        max_new_tokens=3,
        seed=5,
    )[0].record
    assert record.tokens == {"prompt": 50, "generated": 6}
    assert record.seed == 5
    assert record.revision == "abc"
    assert record.config["method"] == "snapkv"
    assert record.config["options"]["window"] == 4
    assert (record.config["keep"], record.config["budget"], record.config["chunk"]) == (0.5, None, 8)
    assert record.config["evict"] == "chunk"
    assert record.config["dtype"] == "float32"
    assert record.config["backend"] == "sdpa"
    assert {"torch", "transformers", "python"} <= set(record.packages)
    assert record.device["type"] == "cpu"
    assert record.timings.prefill_s <= record.timings.ttft_s
    assert record.timings.decode_ms_per_token is not None
    assert RunRecord.from_json(record.to_json()) == record
    one = engine.generate([tiny.tokens(30)], max_new_tokens=1)[0].record
    assert one.timings.decode_ms_per_token is None
    assert one.memory.held_bytes == one.memory.dense_bytes + 4 * 2 * 2 * 8 * 4, "30 entries are two pages of 16"


def test_the_public_surface_is_sorted_and_importing_it_is_silent() -> None:
    import subprocess
    import sys

    assert list(kvfoot.__all__) == sorted(kvfoot.__all__)
    for name in kvfoot.__all__:
        assert getattr(kvfoot, name) is not None
    code = "import sys, kvfoot; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
