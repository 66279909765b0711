"""The command line on a tiny random Llama with a tokenizer of single bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tinycli import DOCUMENT, Said, save_tiny

Kvfoot = Callable[..., Said]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "document.txt"
    path.write_text(DOCUMENT, encoding="utf-8")
    return path


@pytest.fixture
def kvfoot(capfd: pytest.CaptureFixture[str]) -> Kvfoot:
    """The command line, in this process."""
    from kvfoot.cli.app import main

    def run(*arguments: object) -> Said:
        code = main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return Said(code, out, err)

    return run


@pytest.fixture
def run(kvfoot: Kvfoot, model: Path, document: Path) -> Kvfoot:
    """`kvfoot run` on the tiny model and document: arguments that follow win over them."""

    def call(*arguments: object, **instead: object) -> Said:
        base = {"model": model, "prompt-file": document, "max-new-tokens": 4, "dtype": "float32"} | {
            name.replace("_", "-"): value for name, value in instead.items()
        }
        return kvfoot("run", *(x for name, value in base.items() for x in (f"--{name}", value)), *arguments)

    return call
