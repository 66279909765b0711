"""How many KV heads must see everything: the strongest ones are spared, all others stream (dev side, CPU, minutes).

    python benchmarks/recall_spare.py --data DATA [--model src/kvfoot/data/recall] [--first 5.2,6.0]

`--first` names the heads to spare, strongest first; by default the order of docs/recall/records/test.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from kvfoot.evaluate.tasks import read_corpus
from kvfoot.train.recall.evaluation import Material, shipped
from kvfoot.train.recall.scores import spared_heads

COUNTS = (0, 1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("src/kvfoot/data/recall"))
    parser.add_argument("--record", type=Path, default=Path("docs/recall/records/test.json"))
    parser.add_argument("--first", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    effects = json.loads(given.record.read_text())["heads"]["heads"]
    order = sorted(effects, key=lambda head: -max(task["nll"] for task in effects[head].values()))
    if given.first:
        first = given.first.split(",")
        order = first + [head for head in order if head not in first]
    heads = [(int(layer), int(head)) for layer, head in (name.split(".") for name in order)]
    net = shipped(given.model, torch.device("cpu"))
    material = Material(read_corpus(given.data, "dev"), Tokenizer.from_file(str(given.model / "tokenizer.json")))
    sets = {name: material.make((name, 2048, 3, 11)) for name in ("keys16", "chain", "path")}
    record: dict[str, Any] = {}
    for count in COUNTS:
        found = spared_heads(net, sets, 2048, 2, heads, [count])
        tasks = found["full_heads"][str(count)]
        print(str(count).rjust(3), {name: (got["nll"], got["units"]) for name, got in tasks.items()}, flush=True)
        record = {**found, "full_heads": {**record.get("full_heads", {}), **found["full_heads"]}}
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
