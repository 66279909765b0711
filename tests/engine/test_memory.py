"""Memory as the kernel counts it: the peak of a prefill, and what stays after it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).with_name("memory_probe.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status"),
]


def probe(*arguments: str) -> dict[str, int]:
    tests = str(PROBE.parent.parent)
    path = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROBE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["dense"] >= 1 << 30
    return result


def test_chunked_eviction_peaks_below_two_fifths_of_the_dense_cache() -> None:
    found = probe("snapkv", "0.25", "chunk", "sdpa")
    assert found["peak"] <= 0.4 * found["dense"], found
    assert found["settled"] <= 1.1 * found["held"], found


def test_full_attention_holds_the_dense_cache() -> None:
    found = probe("full", "-", "post", "thin")
    assert found["peak"] >= 0.95 * found["dense"], found
    assert found["held"] == found["dense"], found


def test_after_eviction_at_the_end_memory_falls_to_what_is_held() -> None:
    found = probe("snapkv", "0.25", "post", "thin")
    assert found["peak"] >= 0.95 * found["dense"], found
    assert found["held"] <= 0.26 * found["dense"], found
    assert found["settled"] <= 1.1 * found["held"], found
