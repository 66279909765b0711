"""The CPU benchmark's record as a Markdown table of ratios."""

from typing import Any


def speed_table(record: dict[str, Any]) -> str:
    """Rows of `benchmarks/cpu.py`'s record: prefill and decode over transformers', and over kvfoot's own `full`."""
    lines = [
        "| | prefill / transformers | decode / transformers | prefill / full | decode / full |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in record["rows"].items():
        if name != "transformers":
            ratios = [row[f"{stage} / {base}"] for base in ("transformers", "full") for stage in ("prefill", "decode")]
            lines.append(f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    return "\n".join(lines)
