"""Conversations on a kept cache, and sessions in files."""

import json
import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from test_asking import DOCUMENT, SIZES, Letters

import kvfoot
import tiny
from kvfoot.cache import file
from kvfoot.core.errors import KvfootError, PoolExhausted, UsageError
from kvfoot.engine.clock import Clock
from kvfoot.engine.prompts import encode, follow
from kvfoot.engine.result import Interrupted
from kvfoot.engine.sampler import Sampling
from tape import Tape

Size = tuple[str, dict[str, Any], dict[str, Any]]
MORE: list[Size] = [
    ("adakv", {"window": 4, "kernel": 3}, {"keep": 0.5, "chunk": 16}),
    ("adakv", {"window": 4, "kernel": 3}, {"budget": 20, "evict": "chunk", "chunk": 16}),
    ("tova", {}, {"budget": 20, "evict": "chunk", "chunk": 16}),
    ("pyramidkv", {"window": 4, "kernel": 3}, {"keep": 0.4, "chunk": 16}),
    ("streamingllm", {"sink": 2}, {"keep": 0.5, "chunk": 16}),
    ("refreshkv", {"every": 2, "schedule": "fixed"}, {"budget": 20, "chunk": 16}),
    ("heads", {"roles": "random", "sparsity": 0.5, "sink": 2, "window": 8}, {"chunk": 16}),
    ("quest", {}, {"budget": 32, "chunk": 16}),
    ("refreshkv+snapkv", {"window": 4, "every": 2, "size": 12}, {"keep": 0.5, "chunk": 16}),
    ("refreshkv+heads", {"roles": "01/11", "heads.sink": 1, "window": 8, "size": 12}, {"chunk": 16}),
    ("snapkv", {"window": 4, "patch": True}, {"keep": 0.5, "evict": "chunk", "chunk": 16}),
]


class Chat(Letters):
    """Turns as <U>..</U><A>..</A>."""

    def apply_chat_template(self, turns: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        assert [t["role"] for t in turns] == (["user", "assistant"] * len(turns))[: len(turns)]
        marks = {"user": "<U>{}</U>", "assistant": "<A>{}</A>"}
        return "".join(marks[t["role"]].format(t["content"].strip()) for t in turns) + "<A>"


@cache
def model() -> Any:
    return tiny.make("llama", positions=1024)


def engine(template: bool = False, **options: Any) -> tiny.Strict:
    options = {"kv_memory": 1 << 22} | options
    return tiny.Strict(model(), Chat(template), name="tiny", **options)


def start(size: Size = SIZES[1], template: bool = False, **options: Any) -> kvfoot.Session:
    method, values, how = size
    return engine(template, **options).session(DOCUMENT, method=method, options=values, **how)


def written(tokens: list[int]) -> str:
    return Letters().decode(tokens)


# Turns


def test_what_a_turn_reads() -> None:
    assert written(follow(Chat(), "Why?")) == "\n\nWhy?"
    assert written(follow(Chat(True), "Why?")) == "</A><U>Why?</U><A>"
    assert written(follow(Chat(True), "Why?", chat=False)) == "\n\nWhy?"

    class Upper(Chat):
        def apply_chat_template(self, turns: Any, tokenize: bool, add_generation_prompt: bool) -> str:
            return "".join(t["content"] for t in turns if t["role"] == "user")

    with pytest.raises(UsageError, match="the chat template rewrites answers"):
        follow(Upper(True), "Why?")


@pytest.mark.parametrize("template", [True, False])
def test_turns_with_full_attention_equal_one_prompt(template: bool) -> None:
    session = start(("full", {}, {"chunk": 16}), template)
    tokenizer = Chat(template)
    prompt = encode(tokenizer, DOCUMENT, after=True).before
    for i, message in enumerate(["Who wrote?", "When?", "And then?"]):
        after = encode(tokenizer, DOCUMENT, message, after=True).after if i == 0 else follow(tokenizer, message)
        prompt = prompt + after
        found = session.turn(message, max_new_tokens=7)
        whole = engine().generate([prompt], max_new_tokens=7, chunk=None)[0]
        assert found.tokens == whole.tokens
        assert found.record.tokens == {"prompt": len(prompt), "generated": 7}
        assert found.record.footprint.kv == pytest.approx(1.0)
        prompt = prompt + found.tokens


@pytest.mark.parametrize("size", [*SIZES, *MORE], ids=str)
def test_a_turn_is_read_as_later_passes_are(size: Size) -> None:
    """The conversation is one sequence that is never forked: prefill, feed, decode, feed, decode."""
    session = start(size)
    found = [session.turn(m, max_new_tokens=6) for m in ("Who?", "Why so?", "And?")]
    method, values, how = size
    one = engine()
    tokens = encode(Chat(), DOCUMENT, after=True).before
    from kvfoot.core.budget import Budget
    from kvfoot.core.registry import method as find_method

    chosen, how = find_method(method, values), dict(how)
    chunk = how.pop("chunk", 512)
    budget = Budget.of(how.get("keep"), how.get("budget"), how.get("evict", "post"))
    plan = one.plan(chosen, budget, len(tokens), chunk, 0)
    runner = one.runner([plan], 200)
    sequence = runner.open(tokens, chosen, plan, Sampling(), 0)
    runner.prefill(sequence)
    last: list[int] = []
    for message, result in zip(("Who?", "Why so?", "And?"), found, strict=True):
        sequence.anew()
        logits = runner.feed(sequence, [*last, *follow(Chat(), message)], chunk)
        sequence.generated, sequence.done = [], False
        runner.decode([sequence], [logits], 6, Sampling(), Clock())
        assert result.tokens == sequence.generated
        last = sequence.generated[-1:]
    assert session.talk is not None
    assert tiny.kept(session.runner, session.talk) == tiny.kept(runner, sequence)
    assert found[-1].record.footprint == sequence.trace.footprint()


def test_questions_and_turns_do_not_disturb_each_other() -> None:
    session, other = start(), start()
    asked = session.ask("Who?", max_new_tokens=6).tokens
    turns = [other.turn(m, max_new_tokens=6).tokens for m in ("When?", "Why?")]
    assert session.turn("When?", max_new_tokens=6).tokens == turns[0]
    assert session.ask("Who?", max_new_tokens=6).tokens == asked
    branch = session.fork()
    assert branch.turn("Why?", max_new_tokens=6).tokens == turns[1]
    assert session.turn("Why?", max_new_tokens=6).tokens == turns[1]
    assert branch.ask("Who?", max_new_tokens=6).tokens == asked
    session.close()
    assert branch.ask("Who?", max_new_tokens=6).tokens == asked
    branch.close()
    assert session.runner.cache.pool.owned == 0
    with pytest.raises(UsageError, match="closed"):
        session.turn("Why?")


def test_an_end_token_is_not_read_with_the_next_turn() -> None:
    one = tiny.make("llama", positions=1024)
    free = tiny.Strict(one, Chat(True), kv_memory=1 << 22).session(DOCUMENT).turn("Who?", max_new_tokens=9).tokens
    stop = free[4]
    one.generation_config.eos_token_id = [stop]
    session = tiny.Strict(one, Chat(True), kv_memory=1 << 22).session(DOCUMENT)
    first = session.turn("Who?", max_new_tokens=9).tokens
    assert first[-1] == stop
    assert session.talk is not None
    before = session.talk.rows.seen
    session.turn("Why?", max_new_tokens=1)
    assert session.talk.rows.seen - before == len("</A><U>Why?</U><A>")
    assert session.talk.tokens[: before + 3] == [
        *encode(Chat(True), DOCUMENT, "Who?").before,
        *first[:-1],
        *Letters()("</A")["input_ids"],
    ]


def test_drafts_behind_an_end_token_are_not_part_of_the_conversation() -> None:
    one = tiny.make("llama", positions=1024)
    how: dict[str, Any] = {"method": "refreshkv", "budget": 60, "chunk": 16}
    free = tiny.Strict(one, Chat(), kv_memory=1 << 22).session(DOCUMENT).turn("Who?", max_new_tokens=9).tokens
    one.generation_config.eos_token_id = [free[3]]
    found = []
    for verify in (0, 8):
        session = tiny.Strict(one, Chat(), kv_memory=1 << 22).session(DOCUMENT, **how, options={"verify": verify})
        first = session.turn("Who?", max_new_tokens=9).tokens
        assert session.talk is not None
        assert session.talk.rows.seen == len(session.talk.tokens) - 1
        session.runner.cache.check()
        found.append([first, session.turn("Why?", max_new_tokens=6).tokens])
        assert session.talk.rows.seen == len(session.talk.tokens) - 1
    full = tiny.Strict(one, Chat(), kv_memory=1 << 22).session(DOCUMENT)
    expected = [full.turn(message, max_new_tokens=n).tokens for message, n in (("Who?", 9), ("Why?", 6))]
    assert found[1] == expected
    assert free[3] in found[1][0]


def test_a_turn_that_exceeds_the_positions() -> None:
    session = start()
    session.turn("Who?", max_new_tokens=4)
    assert session.talk is not None
    seen, owned = session.talk.rows.seen, session.runner.cache.pool.owned
    with pytest.raises(UsageError, match=r"exceed the model's 1024 positions"):
        session.turn("Why?", max_new_tokens=1024 - seen - len("\n\nWhy?"))
    assert (session.talk.rows.seen, session.runner.cache.pool.owned) == (seen, owned)
    session.turn("Why?", max_new_tokens=1024 - seen - len("\n\nWhy?") - 1 - 900)
    for message in ("", " \n"):
        with pytest.raises(UsageError, match="the message is empty"):
            session.turn(message)
    with pytest.raises(UsageError, match="max_new_tokens=0"):
        session.turn("Why?", max_new_tokens=0)


def test_a_turn_that_fails_leaves_the_conversation() -> None:
    session, other = start(), start()
    for one in (session, other):
        one.turn("Who?", max_new_tokens=4)

    def stop(event: Any) -> None:
        if event.kind == "token" and event.done == 2:
            raise KeyboardInterrupt

    tell, session.runner.tell = session.runner.tell, stop
    with pytest.raises(Interrupted) as caught:
        session.turn("Why?", max_new_tokens=6)
    session.runner.tell = tell
    pool = session.runner.cache.pool
    taken = pool.allocate(pool.free)
    with pytest.raises(PoolExhausted):
        session.turn("Why?", max_new_tokens=6)
    pool.release(taken)
    session.runner.cache.check()
    found = session.turn("Why?", max_new_tokens=6).tokens
    assert found == other.turn("Why?", max_new_tokens=6).tokens
    assert caught.value.results[0].tokens == found[:2]


# Files


@pytest.mark.parametrize(
    ("size", "pages"), [(size, ((16, 16), (4, 3))[i % 2]) for i, size in enumerate([*SIZES, *MORE])], ids=str
)
def test_a_saved_session_goes_on_token_for_token(size: Size, pages: tuple[int, int], tmp_path: Path) -> None:
    session = start(size, page_size=pages[0])
    session.save(tmp_path / "document.kv")
    first = session.turn("Who?", max_new_tokens=6)
    session.save(tmp_path / "talk.kv")

    fresh = engine(page_size=pages[1]).resume(tmp_path / "document.kv")
    assert fresh.talk is None
    assert fresh.turn("Who?", max_new_tokens=6).tokens == first.tokens
    again = engine(page_size=pages[1]).resume(tmp_path / "talk.kv")
    for question in ("Where?", "Who wrote?"):
        asked = session.ask(question, max_new_tokens=6)
        assert fresh.ask(question, max_new_tokens=6).tokens == asked.tokens
        found = again.ask(question, max_new_tokens=6)
        assert found.tokens == asked.tokens
        assert found.record.footprint == asked.record.footprint
        assert found.record.kept == asked.record.kept
        assert found.record.tokens == asked.record.tokens
    for message in ("Why so?", "And?"):
        said = session.turn(message, max_new_tokens=12)
        assert fresh.turn(message, max_new_tokens=12).tokens == said.tokens
        found = again.turn(message, max_new_tokens=12)
        assert found.tokens == said.tokens
        assert found.record.footprint == said.record.footprint
    assert again.talk is not None
    assert session.talk is not None
    assert tiny.kept(again.runner, again.talk) == tiny.kept(session.runner, session.talk)
    again.runner.cache.check()
    again.save(tmp_path / "third.kv")
    third = engine().resume(tmp_path / "third.kv")
    assert third.turn("So?", max_new_tokens=6).tokens == session.turn("So?", max_new_tokens=6).tokens
    again.close()
    assert again.runner.cache.pool.owned == 0
    assert found.record.config["resumed"]


@pytest.mark.parametrize("kind", ["gemma3_text", "gpt_oss", "qwen3-window"])
def test_window_layers_are_saved_as_the_rings_they_are(kind: str, tmp_path: Path) -> None:
    from test_equality import pair

    one = tiny.Strict(pair(kind)[0], Chat(), page_size=4)
    session = one.session(DOCUMENT, method="snapkv", options={"window": 4}, keep=0.5)
    session.turn("Who?", max_new_tokens=30)
    assert session.talk is not None
    assert any(session.talk.rows.turn)
    session.save(tmp_path / "ring.kv")
    again = one.resume(tmp_path / "ring.kv")
    assert again.ask("When?", max_new_tokens=6).tokens == session.ask("When?", max_new_tokens=6).tokens
    assert again.turn("Why?", max_new_tokens=40).tokens == session.turn("Why?", max_new_tokens=40).tokens
    assert again.talk is not None
    assert tiny.kept(again.runner, again.talk) == tiny.kept(session.runner, session.talk)


def test_a_chat_is_resumed_as_a_chat(tmp_path: Path) -> None:
    session = start(template=True)
    session.turn("Who?", max_new_tokens=4)
    session.save(tmp_path / "chat.kv")
    again = engine(True).resume(tmp_path / "chat.kv")
    assert again.document == session.document
    assert again.turn("Why?", max_new_tokens=6).tokens == session.turn("Why?", max_new_tokens=6).tokens


def test_a_document_is_stored_once(tmp_path: Path) -> None:
    session = start(("full", {}, {}), page_size=4)
    session.save(tmp_path / "document.kv")
    session.turn("Who?", max_new_tokens=4)
    session.save(tmp_path / "talk.kv")
    tensors = file.read(tmp_path / "talk.kv")
    n, own = len(DOCUMENT), len(DOCUMENT) % 4 + len("\n\nWho?") + 3
    assert tensors["document.k"].shape == (4 * n, 8)
    assert tensors["talk.k"].shape == (4 * own, 8)
    assert tensors["document.indptr"].tolist() == [0, n, 2 * n, 3 * n, 4 * n]
    header = file.read_header(tmp_path / "talk.kv")
    assert header["tokens"] == {"document": n, "talk": n + len("\n\nWho?") + 3}
    assert header["geometry"] == {"layers": 2, "kv_heads": 2, "head_dim": 8}


def test_what_was_evicted_is_not_in_the_file(tmp_path: Path) -> None:
    start(("snapkv", {"window": 4}, {"keep": 0.25})).save(tmp_path / "a.kv")
    tensors = file.read(tmp_path / "a.kv")
    kept = round(0.25 * len(DOCUMENT))
    assert tensors["document.k"].shape == (4 * kept, 8)
    assert tensors["document.plane.position"].shape == (4 * kept, 1)
    assert tensors["document.plane.position"].max() == len(DOCUMENT) - 1


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    session = start()
    session.turn("Who?", max_new_tokens=4)
    session.save(tmp_path / "session.kv")
    return tmp_path / "session.kv"


def refused(path: Path, match: str, one: kvfoot.Engine | None = None) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        (one or engine()).resume(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_truncated_file(saved: Path) -> None:
    data = saved.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    for cut, match in [
        (0, "not a saved cache"),
        (5, "not a saved cache"),
        (length // 2, "cut in its header"),
        (len(data) - 1, f"truncated, {len(data) - 1:,} bytes of {len(data):,}"),
        (length + 100, "truncated"),
    ]:
        saved.write_bytes(data[:cut])
        refused(saved, match)
    saved.write_bytes(b"no cache at all, but a text of some length")
    refused(saved, "not a saved cache")
    saved.unlink()
    refused(saved, "No such file")


def test_another_model(saved: Path) -> None:
    def other(**change: Any) -> kvfoot.Engine:
        return tiny.Strict(tiny.make("llama", **({"positions": 1024} | change)), Chat(), name="other")

    refused(saved, "a model with 2 layers, 2 kv_heads, 8 head_dim, not of this one with 3 layers", other(layers=3))
    refused(saved, r"another model \(weights differs\): load tiny", other(seed=1))
    refused(
        saved, r"another model \(config differs\)", other(rope_parameters={"rope_type": "default", "rope_theta": 9.0})
    )
    refused(saved, r"another model \(family differs\)", tiny.Strict(tiny.make("qwen2", positions=1024), Chat()))
    refused(saved, "saved in float32, this model runs in bfloat16: load it in float32", other(dtype=torch.bfloat16))
    one = tiny.Strict(model(), Chat(), name="copy", revision="abc")
    session = one.resume(saved)  # a revision that is not known says nothing
    session.save(saved)
    refused(saved, r"another model \(revision differs\)", tiny.Strict(model(), Chat(), revision="def"))


def rewrite(path: Path, change: Any) -> None:
    """The same tensors under another header."""
    from safetensors.torch import save_file

    header, tensors = file.read_header(path), {k: v.clone() for k, v in file.read(path).items()}
    change(header, tensors)
    save_file(tensors, path, {file.KEY: json.dumps(header)})


def test_a_newer_version_and_damage(saved: Path) -> None:
    data = saved.read_bytes()
    cases: list[tuple[Any, str]] = [
        (
            lambda h, t: h.update(format=file.FORMAT + 1),
            f"format {file.FORMAT + 1}, this kvfoot reads {file.FORMAT}: up",
        ),
        (lambda h, t: h["sequences"]["talk"].pop("ordered"), "damaged"),
        (lambda h, t: t.pop("document.k"), "damaged"),
        (lambda h, t: t.update({"document.k": t["document.k"][1:]}), "damaged"),
        (lambda h, t: t.update({"document.k": t["document.k"].half()}), "damaged"),
        (lambda h, t: t["document.indptr"].__setitem__(1, 0), "damaged"),
        (lambda h, t: t["talk.shared"].fill_(999), "damaged"),
        (lambda h, t: h["config"].update(method="snapvk"), "unknown method"),
    ]
    for change, match in cases:
        saved.write_bytes(data)
        rewrite(saved, change)
        with pytest.raises(UsageError, match=match):
            engine().resume(saved)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = start()
    for path, match in [(tmp_path / "no" / "a.kv", "there is no folder"), (tmp_path, "is a folder")]:
        with pytest.raises(UsageError, match=match):
            session.save(path)
    (tmp_path / "a.kv").write_text("what was there")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(KvfootError, match=r"a\.kv was not written .*No space left on device"):
        session.save(tmp_path / "a.kv")
    assert [p.name for p in tmp_path.iterdir()] == ["a.kv"]
    assert (tmp_path / "a.kv").read_text() == "what was there"


# Pages


def test_200_interleavings_leak_no_page() -> None:
    """Forks, questions, turns and releases in any order, over methods that append, overwrite and rebuild."""
    for seed in range(200):
        dice = random.Random(seed)
        size = dice.choice([*SIZES, *MORE])
        one = shared_engine(dice.choice([1, 3, 16]))
        method, values, how = size
        open_ = [one.session(DOCUMENT[: dice.randint(25, 40)], method=method, options=values, **how)]
        runner = open_[0].runner
        for _ in range(dice.randint(2, 4)):
            session = dice.choice(open_)
            action = dice.choice(["fork", "ask", "turn", "turn", "evict", "release"])
            if action == "fork":
                open_.append(session.fork())
            elif action == "ask":
                session.ask("Who?", max_new_tokens=dice.randint(1, 2))
            elif action == "turn":
                session.turn("Why?"[: dice.randint(1, 4)], max_new_tokens=dice.randint(1, 2))
            elif action == "evict":  # a pass of several tokens on the kept document itself, with what it evicts
                runner.feed(session.base, tiny.tokens(dice.randint(1, 9), seed), None)
            elif len(open_) > 1:
                open_.remove(session)
                session.close()
            runner.cache.check()
        for session in open_:
            session.close()
        runner.cache.check()
        assert runner.cache.pool.owned == 0


@cache
def shared_engine(page_size: int) -> kvfoot.Engine:
    one = tiny.make("llama", layers=2, group=1, positions=1024)
    return tiny.Strict(one, Chat(), page_size=page_size, kv_memory=1 << 20)


# Steps that are replayed


@pytest.mark.parametrize("size", [*SIZES, *MORE], ids=lambda size: f"{size[0]}-{size[2]}")
def test_questions_and_turns_in_replayed_steps(size: Size, tmp_path: Path) -> None:
    """Answers, traces and pages are those of launched steps; the second question replays the first one's recording."""
    told: list[Any] = []
    for graph in (Tape, False):
        Tape.made.clear()
        session = start(size, graph=graph)
        said = [session.ask(words, max_new_tokens=9) for words in ("Who was it?", "And where was that?", "Who was it?")]
        said += [session.turn(words, max_new_tokens=9) for words in ("Who?", "Why?")]
        assert session.talk is not None
        session.runner.cache.check()
        told.append([(r.tokens, r.record.footprint) for r in said] + [session.talk.rows.lens.tolist()])
        session.close()
        assert session.runner.cache.pool.owned == 0
    assert told[0] == told[1]


@pytest.mark.parametrize("page_size", [1, 4])
def test_a_fork_whose_last_page_is_full_is_replayed(page_size: int) -> None:
    """Questions of four lengths in a row, so that one of them ends with a page: it owns its next page only."""
    said: list[list[list[int]]] = []
    for graph in (Tape, False):
        session = start(("full", {}, {}), graph=graph, page_size=page_size)
        said.append([session.ask("Who?!"[:n], max_new_tokens=3).tokens for n in range(2, 6)])
        session.runner.cache.check()
        session.close()
        assert session.runner.cache.pool.owned == 0
    assert said[0] == said[1]
