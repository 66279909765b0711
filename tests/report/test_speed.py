"""The README's speed table is the committed record's."""

import json
from pathlib import Path

from kvfoot.report.speed import speed_table

ROOT = Path(__file__).parents[2]


def test_ratios_are_those_of_the_record() -> None:
    row = {"prefill / transformers": 1.054, "decode / transformers": 0.5, "prefill / full": 1, "decode / full": 0.757}
    table = speed_table({"rows": {"transformers": {}, "snapkv": row}})
    assert table.splitlines()[2:] == ["| snapkv | 1.05 | 0.50 | 1.00 | 0.76 |"]


def test_the_readme_quotes_the_committed_record() -> None:
    record = json.loads((ROOT / "results" / "cpu.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert speed_table(record) in readme
    assert f"`{record['command']}`" in readme
