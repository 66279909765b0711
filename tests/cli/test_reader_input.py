"""What readers refuse on the command line: one line, exit code 2."""

from pathlib import Path
from typing import Any

import pytest
from tinycli import save_tiny

SCORE = "mode=score_only"


@pytest.mark.parametrize(
    ("method", "sets", "more", "line"),
    [
        ("refreshkv", [], {"budget": 5000}, "budget=5000: refreshkv reads from a cache of the model's 4096 positions"),
        ("refreshkv", [], {"budget": 0}, "budget=0: give at least 1 entry per row"),
        ("refreshkv", [], {"keep": "0"}, "keep=0 is outside (0, 1]"),
        ("refreshkv", ["every=0"], {}, "every=0: steps between two checks, at least 1"),
        ("refreshkv", ["every=-1", "schedule=fixed"], {}, "every=-1: steps between two checks, at least 1"),
        ("refreshkv", ["similarity=1.05"], {}, "similarity=1.05 is a cosine, in [-1, 1]; 1.1 refreshes at every check"),
        ("refreshkv", ["similarity=-1.5"], {}, "similarity=-1.5 is a cosine"),
        ("refreshkv", ["query=all"], {}, "query='all' is none of mean, kv_head, concat"),
        ("refreshkv", ["prerope=maybe"], {}, "prerope='maybe' is not true or false"),
        ("refreshkv", ["grow=2"], {}, "grow=2.0 is a fraction of what is stored"),
        ("refreshkv", ["store=2"], {}, "store=2: 8 or 4 bits, or none for the model's dtype"),
        ("refreshkv", ["values=disk", SCORE], {}, "values='disk' is none of device, host"),
        ("refreshkv", ["values=host"], {}, "values=host: a refresh in mode=full reads the values of all entries"),
        ("refreshkv", ["values=host", SCORE, "rectify=8"], {}, "values=host: rectify reads the values of all entries"),
        (
            "refreshkv",
            ["verify=4"],
            {"temperature": 0.7},
            "verify checks greedy drafts: set temperature=0, or verify=0",
        ),
        ("refreshkv", ["verify=4", "store=8"], {}, "verify gives full attention's tokens"),
        ("refreshkv", ["verify=-1"], {}, "verify=-1 is a number of tokens"),
        ("quest", ["page=0"], {}, "quest: page=0: at least 1 entry"),
        ("retroattention", ["window=0"], {}, "retroattention: window=0"),
        ("retroattention", ["verify=4"], {}, "verify takes drafts back, but not what they corrected"),
        ("refreshkv+snapkv", ["store=5"], {"keep": 0.5}, "store=5: 8 or 4 bits"),
    ],
)
def test_one_line(run: Any, method: str, sets: list[str], more: dict[str, Any], line: str) -> None:
    said = run(*(x for pair in sets for x in ("--set", pair)), method=method, **more)
    assert (said.code, said.out) == (2, "")
    assert line in said.line


@pytest.mark.parametrize("similarity", ["1.1", "-2"])
def test_the_documented_always_and_never_are_allowed(run: Any, similarity: str) -> None:
    assert run("--set", f"similarity={similarity}", method="refreshkv", budget=16).code == 0


def windowed(folder: Path) -> Path:
    """A Qwen2 of three layers, the last two with windows, in the tiny model's clothes."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    save_tiny(folder)
    config = Qwen2Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, vocab_size=256, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, use_sliding_window=True, sliding_window=64,
        max_window_layers=1, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def test_layers_with_windows_are_left_alone_and_that_is_said_once(run: Any, tmp_path: Path) -> None:
    model = windowed(tmp_path / "windowed")
    questions = ("--question-after", "Why?", "--question-after", "When?")
    said = run(*questions, model=model, method="refreshkv", budget=32)
    assert said.code == 0, said.err
    note = "2 of 3 layers have a window of their own and read it as always; refreshkv reads and refreshes the others"
    assert " ".join(said.err.split()).count(note) == 1
    for sets, line in (
        (("--set", "rectify=8"), "rectify takes tokens back, which layers with a window of their own cannot do"),
        (("--set", "values=host", "--set", SCORE), "values=host: layers with a window of their own would fetch theirs"),
    ):
        said = run(*sets, model=model, method="refreshkv", budget=32)
        assert said.code == 2
        assert line in said.err.splitlines()[-1]
    said = run(model=model, method="retroattention", budget=64)
    assert said.code == 2
    assert "retroattention corrects tokens, which layers with a window of their own cannot do" in said.err
