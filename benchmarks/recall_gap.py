"""What a checkpoint of kvfoot-recall does not carry over to held-out samples: one part of a side taken from training.

    python benchmarks/recall_gap.py --model OUT --data DATA --tasks keys4,passkey --out GAP.json

The same samples of a side as it is, with the books of training around them, and with words of training in them;
wordings are always the side's. Answers are scored by one pass, as `train/recall/scores.py` says. Not for the test side.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from kvfoot.bench.record import command_line
from kvfoot.evaluate.tasks.corpus import Corpus, read_corpus
from kvfoot.evaluate.tasks.registry import find_task
from kvfoot.evaluate.tasks.split import DEV_SIDES
from kvfoot.train.recall.evaluation import Material, shipped
from kvfoot.train.recall.scores import run, score


def parts(side: Corpus, train: Corpus) -> dict[str, Corpus]:
    return {
        "as it is": side,
        "books of training": replace(side, books=train.books),
        "words of training": replace(side, vocabulary=train.vocabulary),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint with its tokenizer.json")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sides", nargs="+", choices=DEV_SIDES, default=list(DEV_SIDES))
    parser.add_argument("--tasks", default="keys4,passkey")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--contexts", type=int, default=40)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    net = shipped(args.model, torch.device(args.device))
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    train = read_corpus(args.data, "train")
    found: list[dict[str, Any]] = []
    for side in args.sides:
        for name, corpus in parts(read_corpus(args.data, side), train).items():
            for task in args.tasks.split(","):
                samples = Material(corpus, tokenizer).make((task, args.length, args.contexts, 1))
                got = score(run(net, samples, args.length, 2), find_task(task).metric)
                found.append({"side": side, "with": name, "task": task} | got.record())
                print(f"{side:<5} {name:<18} {task:<8} {got.score:.3f} [{got.low:.2f}, {got.high:.2f}]", flush=True)
    command = command_line("python benchmarks/recall_gap.py", sys.argv[1:])
    record = {"command": command, "length": args.length, "contexts": args.contexts, "rows": found}
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
