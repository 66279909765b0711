"""results/peers.json: a part per script, each with the packages, the device and the date that it was made with."""

import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tables import print_part

from kvfoot.engine.account import device, packages


def write(path: str, name: str, part: dict[str, Any]) -> None:
    """Put a part into the record, and print its tables."""
    file = Path(path)
    whole = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"benchmark": "peers"}
    whole[name] = part | {
        "command": f"python benchmarks/peers/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}",
        "packages": packages() | {"kvpress": version("kvpress")},
        "device": device(torch.device("cpu")) | {"cores": os.cpu_count(), "system": platform.platform()},
        "date": time.strftime("%Y-%m-%d"),
    }
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print_part(name, whole[name])
