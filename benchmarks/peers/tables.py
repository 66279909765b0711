"""results/peers.json and the options as Markdown tables, and into docs/kvpress.md. Imports neither torch nor kvpress.

python benchmarks/peers/tables.py results/peers.json --into docs/kvpress.md
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from aligned import options_table

MIB = 2**20


def aligned_table(part: dict[str, Any]) -> str:
    lines = [
        "| method | kept entries that are the same | (layer, head, rank) places | logits one token later |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in part["aligned"].items():
        # Where an entry differs, so do the logits of a random model, and by any amount.
        logits = f"{row['logits']:.0e}" if row["entries"] == 1 else "-"
        lines.append(f"| {name} | {_share(row['entries'])} | {_share(row['ranks'])} | {logits} |")
    return "\n".join(lines)


def apart_table(part: dict[str, Any]) -> str:
    lines = [
        "| what is apart | kept by kvfoot | by kvpress | the same | places | why |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in part["apart"].items():
        ours, theirs = (
            f"{row[side]:,}" + (f" ({'/'.join(map(str, row[layers]))} a layer)" if layers in row else "")
            for side, layers in (("kvfoot", "layers"), ("kvpress", "press_layers"))
        )
        same, places = _share(row["entries"]), _share(row["ranks"])
        lines.append(f"| {name} | {ours} | {theirs} | {same} | {places} | {row['why']} |")
    return "\n".join(lines)


def bfloat16_table(part: dict[str, Any]) -> str:
    lines = [
        "| method | both | kvfoot and its fp32 | kvpress and its fp32 |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in part["bfloat16"].items():
        lines.append(f"| {name} | " + " | ".join(_share(row[x]) for x in ("both", "kvfoot", "kvpress")) + " |")
    return "\n".join(lines)


def cost_table(part: dict[str, Any]) -> str:
    dense = part["dense_bytes"]
    lines = [
        "| | held, MiB | freed | peak, MiB | prefill / transformers | decode / transformers |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in part["rows"].items():
        held, peak = row["held_bytes"], row["peak_bytes"]
        lines.append(
            f"| {name} | {held / MIB:.1f} | {1 - held / dense:.1%} | {peak / MIB:.1f} | "
            f"{row['prefill / transformers']:.2f} | {row['decode / transformers']:.2f} |"
        )
    return "\n".join(lines)


def conditions(part: dict[str, Any]) -> str:
    """One line: how a part was measured."""
    versions = part["packages"]
    said = f"`{part['command']}`: " + ", ".join(f"{n} {versions[n]}" for n in ("kvpress", "transformers", "torch"))
    said += f", {part['device']['threads']} of {part['device']['cores']} cores"
    if "load_average" in part:
        load = part["load_average"]
        said += f", load average {load['before']:.1f} before and {load['after']:.1f} after, {part['seconds']:.0f} s"
    return f"{said}, {part['date']}."


def tables(record: dict[str, Any]) -> dict[str, str]:
    """Marker in docs/kvpress.md -> what stands there."""
    entries, cost, small = record["entries"], record["cost"], record["cost random"]
    return {
        "options": options_table(),
        "aligned": aligned_table(entries),
        "apart": apart_table(entries),
        "bfloat16": bfloat16_table(entries),
        "entries conditions": conditions(entries),
        "cost": cost_table(cost),
        "cost conditions": conditions(cost),
        "cost random": cost_table(small),
        "cost random conditions": conditions(small),
    }


def insert(text: str, parts: dict[str, str]) -> str:
    """`text` with each part between its markers. Raises KeyError for a marker that is missing or double."""
    for name, part in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        text, count = pattern.subn(lambda m, part=part: f"{m[1]}{part}\n{m[2]}", text)
        if count != 1:
            raise KeyError(f"{count} places marked {name}")
    return text


def print_part(name: str, part: dict[str, Any]) -> None:
    if name.startswith("cost"):
        print(cost_table(part))
    else:
        print(aligned_table(part), apart_table(part), bfloat16_table(part), sep="\n\n")
    print(conditions(part))


def _share(value: float) -> str:
    """Per cent, never rounded up to all."""
    return "100 %" if value == 1 else f"{min(100 * value, 99.99):.2f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--into", type=Path, required=True)
    args = parser.parse_args()
    parts = tables(json.loads(args.record.read_text(encoding="utf-8")))
    args.into.write_text(insert(args.into.read_text(encoding="utf-8"), parts), encoding="utf-8")


if __name__ == "__main__":
    main()
