"""Method heads: roles from a file or a line, the published footprint, what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stub
import tiny
from kvfoot.core.budget import Budget
from kvfoot.core.errors import UsageError
from kvfoot.core.registry import method as find_method
from kvfoot.core.roles import HeadGates


def plan(options: dict[str, Any], chunk: int | None = 16) -> Any:
    engine = tiny.Strict(tiny.llama())
    return engine.plan(find_method("heads", options), Budget(), 75, chunk, 8)


def test_streaming_heads_are_cut_after_every_chunk_and_token() -> None:
    made = plan({"roles": "10/01", "sink": 2, "window": 6})
    huge = np.iinfo(np.int32).max
    for cut in [*(p.cut for p in made.passes), made.later]:
        assert (cut.scope, cut.counts.tolist()) == ("all", [[huge, 8], [8, huge]])
    assert not plan({"roles": "11/11"}).evicts


def test_the_published_vector() -> None:
    """specs of 2506.17121, 1.7: N 1000, M 50, C 256, 16 sinks, window 64: 189,286 of 551,775 pairs a streaming head."""
    engine = stub.engine(kv_heads=2)
    options = {"roles": "10", "sink": 16, "window": 64}
    result = engine.generate([[1] * 1000], method="heads", options=options, chunk=256, max_new_tokens=51)[0].record
    assert result.footprint.kv == (551_775 + 189_286) / (2 * 551_775)
    assert result.footprint.peak == (1000 + 80 + 232) / (2 * 1050)  # the last chunk of 232
    assert result.sequences[0].kept == [[1000, 80]]
    assert result.config["options"] == {"file": "", "sparsity": None, "exact": False, "seed": 0, **options}


def test_one_chunk_is_full_attention_while_the_prompt_is_read() -> None:
    """Trap 28: with a chunk as long as the prompt only decoding is cheaper."""
    engine = stub.engine(kv_heads=2)
    options = {"roles": "00", "sink": 16, "window": 64}
    run = lambda chunk: engine.generate([[1] * 1000], method="heads", options=options, chunk=chunk, max_new_tokens=2)  # noqa: E731
    assert run(None)[0].record.footprint.kv > 0.99
    assert run(50)[0].record.footprint.kv < 0.22


def test_exact_windows_do_not_depend_on_the_chunk() -> None:
    """As a run token by token; the chunk-wise mask sees more within a chunk."""
    engine, prompt = tiny.Strict(tiny.llama()), tiny.tokens(75)
    logits = {}
    for chunk, exact in ((1, False), (1, True), (7, True), (None, True), (7, False)):
        options = {"roles": "10/00", "sink": 2, "window": 5, "exact": exact}
        done = tiny.run(engine, prompt, "heads", options, chunk=chunk)
        logits[chunk, exact] = torch.stack([s.logits for s in done.passes if s.stop >= 75])
        assert [len(row) for layer in done.passes[-1].kept for row in layer] == [80, 7, 7, 7]
    for case in ((1, True), (7, True), (None, True)):
        assert (logits[case] - logits[1, False]).abs().max() < 1e-4
    assert (logits[7, False] - logits[1, False]).abs().max() > 0.05


def test_a_file_with_its_own_sinks_window_and_sparsity(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    HeadGates(np.array([[0.1, 3.0], [2.0, -1.0]]), "log_alpha", 0.5, sink=1, window=7).save(path)
    counts = lambda **more: (plan({"file": str(path), **more}).later.counts < 99).tolist()  # noqa: E731
    assert counts() == [[True, False], [False, True]]
    assert counts(sparsity=0.75) == [[True, False], [True, True]]
    own = find_method("heads", {"file": str(path)})
    assert own.options() == {
        "file": str(path), "roles": "01/10", "sparsity": None, "sink": 1, "window": 7, "exact": False, "seed": 0,
    }  # fmt: skip
    other = find_method("heads", {"file": str(path), "window": "30", "sparsity": "0.25"}).options()
    assert (other["sink"], other["window"], other["roles"]) == (1, 30, "11/10")
    path.unlink()
    again = find_method("heads", other)
    assert again.options() == other, "a record is run again without its file"
    with pytest.raises(UsageError, match="roles=11/10 is of a model of 2 layers x 2 KV heads, this one has 3 x 3"):
        again.prepare(tiny.Strict(tiny.qwen2()).geometry, 75, 16, Budget())


def test_random_heads_are_a_control_by_seed() -> None:
    seen = set()
    for seed in range(8):
        made = plan({"roles": "random", "sparsity": 0.5, "seed": seed})
        full = made.later.counts > 10**6
        assert full.sum() == 2
        seen.add(tuple(full.ravel()))
    assert len(seen) > 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "heads needs file=PATH of a heads file, or roles=10/01"),
        ({"roles": "random", "file": "x", "sparsity": 0.5}, "file and roles=random exclude each other"),
        ({"roles": "10"}, "roles=10 is of a model of 1 layers x 2 KV heads, this one has 2 x 2"),
        ({"roles": "1/2"}, "write 0"),
        ({"roles": "random"}, "roles=random needs sparsity"),
        ({"roles": "10/01", "sparsity": 0.5}, "sparsity goes with a file or with roles=random"),
        ({"roles": "random", "sparsity": 1.0}, r"sparsity=1.0 is the share of streaming heads, in \[0, 1\)"),
        ({"roles": "streaming", "sink": -1}, "sink=-1 is negative"),
        ({"roles": "streaming", "sink": 0, "window": 0}, "at least 1"),
        ({"file": "/none/heads.json"}, "heads file /none/heads.json: No such file"),
    ],
)
def test_bad_input(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        plan(options)


def test_a_file_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    HeadGates(np.ones((3, 2)), "alpha").save(path)
    with pytest.raises(UsageError, match="is of a model of 3 layers x 2 KV heads, this one has 2 x 2"):
        plan({"file": str(path)})
    HeadGates(np.ones((2, 2)), "alpha", model={"name": "that", "identity": "0" * 16}).save(path)
    with pytest.raises(UsageError, match=r"another model \(that\)"):
        plan({"file": str(path)})


def test_no_budget() -> None:
    with pytest.raises(UsageError, match="heads takes neither keep nor budget"):
        tiny.run(tiny.Strict(tiny.llama()), tiny.tokens(20), "heads", {"roles": "10/01"}, keep=0.5)


def test_methods_by_name_take_the_file_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvfoot.methods.heads import shipped

    engine = tiny.Strict(tiny.llama())
    identity = engine.geometry.identity
    for method, sparsity, first in (("prulong", 0.25, 1.0), ("prulong", 0.75, 9.0), ("duo", None, 0.2)):
        gates = np.array([[first, 2], [3, 0.5]]) if method == "prulong" else np.array([[first, 1], [0, 0.5]])
        model, scale = {"identity": identity}, "log_alpha" if method == "prulong" else "alpha"
        file = HeadGates(gates, scale, sparsity, "top", 2, 6, model, {"method": method})  # type: ignore[arg-type]
        file.save(tmp_path / f"tiny-{method}-{sparsity}.json")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    result = engine.generate([tiny.tokens(75)], method="prulong", chunk=16, max_new_tokens=2)[0].record
    options = result.config["options"]
    assert (options["file"], options["sparsity"], options["roles"]) == ("tiny-prulong-0.75", 0.7, "10/00")
    assert result.sequences[0].kept == [[75, 8], [8, 8]]
    assert engine.method("prulong", {"sparsity": 0.3}).options()["roles"] == "01/10"
    assert engine.method("duo").options()["roles"] == "01/01"
    with pytest.raises(UsageError, match=r"prulong: no heads file for this model comes with kvfoot: train one"):
        tiny.Strict(tiny.qwen2()).generate([tiny.tokens(20)], method="prulong")
