"""The pictures of docs/recall.md, from the checkpoint and the record of its evaluation.

    python benchmarks/recall_figures.py --data DATA [--model src/kvfoot/data/recall] [--out docs/recall]

heads.svg: change of answer NLL when one KV head streams, by head and task. attention.svg: where the four heads with the
largest effects look while the model writes a route of the dev side.
"""

from __future__ import annotations

import argparse
import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kvfoot.evaluate.tasks import read_corpus
from kvfoot.train.recall.evaluation import Material

SINKS, WINDOW = 128, 256
FONT = 'font-family="sans-serif" font-size="11"'


def png(image: NDArray[np.uint8]) -> str:
    """[rows, columns] of grey as a data URI."""
    rows, columns = image.shape
    raw = b"".join(b"\0" + image[row].tobytes() for row in range(rows))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def shade(value: float) -> str:
    """White for 0, dark blue for 0.3 nats and more."""
    part = min(1.0, max(0.0, value) / 0.3) ** 0.6
    return f"rgb({round(255 - 225 * part)},{round(255 - 180 * part)},{round(255 - 105 * part)})"


def text(x: float, y: float, words: str, anchor: str = "start", **style: str) -> str:
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" {FONT} text-anchor="{anchor}"{extra}>{words}</text>'


def heads_figure(record: dict[str, Any], side: str) -> str:
    """A table of squares: KV heads by task."""
    heads, tasks = record["heads"], list(record["base"])
    left, top, wide, high = 60, 70, 92, 19
    title = f"One KV head sees {SINKS} sinks and the last {WINDOW} only: change of answer NLL, nats a token"
    out = [
        text(8, 18, title, font_weight="bold"),
        text(8, 34, f"{side} side of this release, {record['length']} tokens; last row: NLL with full attention"),
    ]
    middles = [left + wide * (column + 0.5) for column in range(len(tasks))]
    out += [text(x, top - 8, task, "middle") for x, task in zip(middles, tasks, strict=True)]
    for row, (head, effects) in enumerate(heads.items()):
        y = top + high * row
        out.append(text(left - 8, y + 14, head, "end"))
        for x, task in zip(middles, tasks, strict=True):
            value = effects[task]["nll"]
            box = f'x="{x - wide / 2}" y="{y}" width="{wide - 2}" height="{high - 2}"'
            out.append(f'<rect {box} fill="{shade(value)}" stroke="#ddd"/>')
            if abs(value) >= 0.01:
                out.append(text(x, y + 13, f"{value:+.2f}", "middle", fill="white" if value > 0.12 else "black"))
    y = top + high * len(heads) + 16
    out.append(text(left - 8, y, "full", "end"))
    out += [text(x, y, f"{record['base'][task]['nll']:.2f}", "middle") for x, task in zip(middles, tasks, strict=True)]
    return svg(left + wide * len(tasks) + 10, y + 14, out)


def svg(width: float, height: float, parts: list[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}"><rect width="100%" height="100%" fill="white"/>\n{inside}\n</svg>\n'
    )


def attention_figure(folder: Path, data: Path, record: dict[str, Any]) -> str:
    """Rows: answer tokens, in order. Columns: positions. The larger of a KV head's query heads."""
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    sample = Material(read_corpus(data, "dev"), tokenizer).make(("path", 2048, 1, 5))[0]
    start, end = sample.units[0][0], sample.units[-1][1]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        attentions = model(torch.from_numpy(sample.tokens[:end])[None], output_attentions=True).attentions
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    effect = {head: max(task["nll"] for task in tasks.values()) for head, tasks in record["heads"].items()}
    strongest = sorted(effect, key=lambda head: -effect[head])[:4]
    quietest = min(effect, key=lambda head: effect[head])
    out = [
        text(8, 18, f"Attention while a route of {len(sample.units)} steps is written", font_weight="bold"),
        text(8, 34, "down: answer tokens; across: positions; the answer begins at the line"),
    ]
    wide, high, top = 760, 110, 62
    for index, name in enumerate([*strongest, quietest]):
        layer, head = map(int, name.split("."))
        found = attentions[layer][0, head * group : (head + 1) * group, start - 1 : end - 1].amax(0).numpy()
        y = top + index * (high + 28)
        levels = np.round(12 * np.clip(shrink(found, 150, 700), 0, 1) ** 0.5)
        image = png((255 - 21 * levels).astype(np.uint8))
        box = f'x="8" y="{y}" width="{wide}" height="{high}"'
        x = 8 + wide * start / end
        out += [
            text(8, y - 5, f"layer {layer}, KV head {head}: largest effect {effect[name]:+.2f} nats"),
            f'<image {box} preserveAspectRatio="none" href="{image}"/>',
            f'<rect {box} fill="none" stroke="#888"/>',
            f'<line x1="{x}" x2="{x}" y1="{y}" y2="{y + high}" stroke="#c33"/>',
        ]
    return svg(wide + 16, top + 5 * (high + 28) - 10, out)


def shrink(table: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """At most `rows` x `columns`, each the largest of what falls into it, so that single dots stay visible."""
    for axis, most in ((0, rows), (1, columns)):
        if table.shape[axis] > most:
            cuts = np.linspace(0, table.shape[axis], most + 1).astype(int)[:-1]
            table = np.maximum.reduceat(table, cuts, axis=axis)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("src/kvfoot/data/recall"))
    parser.add_argument("--record", type=Path, default=Path("docs/recall/records/test.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/recall"))
    given = parser.parse_args()
    whole = json.loads(given.record.read_text())
    record = whole["heads"]
    (given.out / "heads.svg").write_text(heads_figure(record, whole["side"]))
    (given.out / "attention.svg").write_text(attention_figure(given.model, given.data, record))


if __name__ == "__main__":
    main()
