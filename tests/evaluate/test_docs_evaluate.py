"""The task in docs/evaluate.md is one: it fits its length, and its answer is in its document once."""

import re
from pathlib import Path

from kvfoot.evaluate.catalog import own
from kvfoot.evaluate.encode import ask, counter
from tinyeval import tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "evaluate.md"


def test_the_example_of_a_task(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    path = tmp_path / "codes.py"
    path.write_text(code, encoding="utf-8")
    task, count = own(path), counter(tokenizer())
    for index in range(8):
        example = task.sample(index, 2000, 0, count)
        a = ask(tokenizer(), example, task.metric, task.chat, "before")
        assert 1900 < len(a.prompt) + a.room <= 2000
        assert example.document.count(f"{example.prefix}{example.reference}.") == 1
        assert a.text.endswith(example.prefix)
        assert tokenizer().decode(a.reference) == example.reference
    assert task.sample(3, 2000, 0, count) == task.sample(3, 2000, 0, count)
