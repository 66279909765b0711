"""`kvfoot calibrate refreshkv` writes settings, and `kvfoot run --settings` takes them for the same model only."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tinycli import DOCUMENT, save_tiny

from kvfoot.core.errors import UsageError
from kvfoot.core.records import RunRecord
from kvfoot.core.settings import SHIPPED, Settings


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.txt").write_text(DOCUMENT * (i + 1))
    return folder


def test_calibrate_and_run(kvfoot: Any, run: Any, model: Path, texts: Path, tmp_path: Path) -> None:
    out, record = tmp_path / "settings.json", tmp_path / "record.json"
    base = ("calibrate", "refreshkv", "--model", model, "--texts", texts, "--dtype", "float32")
    said = kvfoot(*base, "--length", 300, "--steps", 40, "--every", 4, "--budget", 64, "--set", "sink=2", "--out", out)
    assert said.code == 0, said.err
    found = json.loads(out.read_text())
    assert found["found"]["texts"] == 4, "one stretch of the first file and three of the second"
    assert found["options"]["sink"] == 2
    assert f"similarity {found['options']['similarity']:g}" in said.out
    assert run("--settings", out, "--record", record).code == 0
    config = RunRecord.from_json(record.read_text()).config
    assert (config["method"], config["budget"]) == ("refreshkv", 64)
    assert config["options"] == found["options"]

    def wider(other: Any) -> None:
        other.config.vocab_size += 1
        other.resize_token_embeddings(other.config.vocab_size)

    other = save_tiny(tmp_path / "other", change=wider)
    said = run("--settings", out, model=other)
    assert said.code == 2
    assert "was made for" in said.err
    assert "kvfoot calibrate refreshkv" in said.err


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--share", "1"), "--share 1: a share of the checks"),
        (("--every", "0"), "every=0: steps between two checks"),
        (("--set", "similarity=0.5"), "similarity is what is looked for"),
        (("--steps", "3"), "--steps 3: give at least 5"),
        (("--length", "5000"), "--length 5000 exceeds the model's 4096 positions"),
        (("--length", "4000"), "the longest has 948 tokens, --length is 4000"),
        (("--texts", "nowhere.txt"), "nowhere.txt: No such file"),
        (("--out", "no/where.json"), "give a file in an existing folder"),
    ],
)
def test_bad_input(kvfoot: Any, model: Path, texts: Path, more: tuple[str, ...], line: str) -> None:
    said = kvfoot("calibrate", "refreshkv", "--model", model, "--texts", texts, "--dtype", "float32", *more)
    assert said.code == 2
    assert line in said.err


def test_settings_that_come_with_the_package() -> None:
    """By name; each for its model alone, with what docs/readers.md says of them."""
    from transformers import AutoConfig

    from kvfoot.models.builtin import SHIPPED as MODELS
    from kvfoot.models.layout import identity

    own = identity(AutoConfig.from_pretrained(MODELS["recall"]))
    text = (Path(__file__).parents[2] / "docs" / "readers.md").read_text()
    names = sorted(path.stem for path in SHIPPED.iterdir())
    assert names == ["refreshkv-recall", "refreshkv-smollm2"]
    for name in names:
        settings = Settings.read(Path(name))
        found = settings.found
        assert f"--settings {name}" in text
        assert re.search(rf"\b{settings.options['similarity']:g}\b", text)
        assert (found["texts"], found["length"], found["steps"], found["checks"]) == (6, 2048, 256, 306)
        assert abs(found["share"]["reached"] - 0.4) < 0.01
    Settings.read(Path("refreshkv-recall")).check(own, Path("refreshkv-recall"))
    with pytest.raises(UsageError, match="was made for smollm2, whose shape is another"):
        Settings.read(Path("refreshkv-smollm2")).check(own, Path("refreshkv-smollm2"))


@pytest.mark.smollm2
def test_smollm2_takes_its_settings(kvfoot: Any, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(DOCUMENT * 6)
    said = kvfoot(
        "run", "--model", "smollm2", "--prompt-file", prompt, "--settings", "refreshkv-smollm2", "--max-new-tokens", 8
    )
    assert said.code == 0, said.err
