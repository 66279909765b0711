"""`kvfoot methods` and `kvfoot --help`: answers from the registry, quickly."""

import sys
from subprocess import run
from typing import Any

from kvfoot.core.registry import methods


def test_every_method_is_listed(kvfoot: Any) -> None:
    said = kvfoot("methods")
    assert said.code == 0
    for name, cls in methods().items():
        assert name in said.out
        assert cls.paper in said.out


def test_one_method_with_its_options(kvfoot: Any) -> None:
    said = kvfoot("methods", "snapkv")
    assert said.code == 0
    for word in ("2404.14469", "window", "64", "avg or max", "mean or max", "kernel"):
        assert word in said.out


def test_every_method_can_be_shown(kvfoot: Any) -> None:
    for name in methods():
        assert kvfoot("methods", name).code == 0


def test_help_names_every_verb(kvfoot: Any) -> None:
    said = kvfoot("--help")
    assert said.code == 0
    for verb in ("run", "methods", "doctor", "demo"):
        assert verb in said.out


def test_an_unknown_verb_is_one_line(kvfoot: Any) -> None:
    said = kvfoot("rum")
    assert said.code == 2
    assert "rum" in said.line


def test_what_each_verb_imports() -> None:
    """Help loads neither torch nor transformers, the registry no transformers: it is the imports that take seconds."""
    code = "import sys; from kvfoot.cli.app import main; main({0}); print([m for m in {1} if m in sys.modules])"
    for arguments, absent in ((["--help"], ["torch", "transformers", "rich"]), (["methods"], ["transformers"])):
        out = run([sys.executable, "-c", code.format(arguments, absent)], capture_output=True, text=True, check=True)
        assert out.stdout.splitlines()[-1] == "[]"
