"""One run, or one piece of a run, of the recipe of kvfoot-recall, with its evaluation.

    python benchmarks/recall_run.py --data DATA --out OUT [--piece 9 ...] [--resume] [--evaluate dev dev2 dev3]

`--evaluate test` opens the test side: once, for a final checkpoint, and never for one that was trained on its books.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

import torch

from kvfoot.evaluate.tasks.split import SIDES
from kvfoot.train.recall.evaluation import evaluate_recall
from kvfoot.train.recall.loop import train_recall
from kvfoot.train.recall.options import RecallOptions, Recipe


def bandwidth() -> float:
    """Bytes read and written a second by a device-to-device copy of 1 GiB, in GB/s."""
    a = torch.empty(2**28, device="cuda")
    b = torch.empty_like(a)
    a.normal_()
    b.copy_(a)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        b.copy_(a)
    torch.cuda.synchronize()
    return 20 * 2 * a.numel() * 4 / (time.perf_counter() - started) / 1e9


def versions() -> dict[str, str]:
    import tokenizers

    return {"torch": torch.__version__, "tokenizers": tokenizers.__version__, "cuda": str(torch.version.cuda)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", type=Path, help="where records and a copy of the model go (default: OUT)")
    parser.add_argument("--plan", default="recall")
    parser.add_argument("--minutes", type=float, default=14.5)
    parser.add_argument("--piece", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe, name=number")
    parser.add_argument("--start-from", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--evaluate", nargs="+", choices=SIDES[1:], default=[], help="sides")
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--heads", type=int, default=24, help="contexts a task for the effect of each head")
    parser.add_argument("--longest", type=int, default=16384)
    parser.add_argument("--probe", type=float, default=90.0)
    parser.add_argument("--kill", type=float, default=120.0)
    parser.add_argument("--device", default=None)
    given = parser.parse_args()
    report = given.report or given.out
    report.mkdir(parents=True, exist_ok=True)
    pairs = (pair.partition("=") for pair in given.set)
    changes = {name: type(getattr(Recipe(), name))(float(value)) for name, _, value in pairs}
    recipe = Recipe(plan=given.plan, minutes=given.minutes, seed=given.seed, **changes)  # type: ignore[arg-type]
    finished = True
    if not given.skip_training:
        options = RecallOptions(
            given.data, given.out, recipe, workers=given.workers, piece_minutes=given.piece, resume=given.resume,
            device=given.device, probe_every=given.probe, kill_after=given.kill,
            start_from=given.start_from,
        )  # fmt: skip
        record = train_recall(options, lambda text: print(text, flush=True))
        finished = record["finished"]
        record["versions"] = versions()
        if torch.cuda.is_available():
            record["copy_gb_per_second"] = round(bandwidth())
        (report / f"train-{record['step']}.json").write_text(json.dumps(record, indent=1) + "\n")
    for name in os.listdir(given.out):
        if report != given.out and not name.startswith(("state", "train")):
            (report / name).write_bytes((given.out / name).read_bytes())
    for side in given.evaluate if finished else []:
        found = evaluate_recall(
            given.out,
            given.data,
            side,
            answers=given.answers,
            longest=given.longest,
            heads_contexts=given.heads,
            device=given.device or "cuda",
            processes=given.workers,
            say=lambda text: print(text, flush=True),
        )
        found["versions"] = versions()
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        found["commit"] = git.stdout.strip() if git.returncode == 0 else "unknown"
        (report / f"{side}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
