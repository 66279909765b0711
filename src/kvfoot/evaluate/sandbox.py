"""Programs that a model wrote, compiled and run where they can do no harm.

A program is linked statically and starts with three open files and a limit of three: it can open nothing. On top of
that Landlock refuses the file system and TCP, it cannot fork, its memory, CPU time, wall time and output are limited,
its environment is empty and its folder is temporary. Without Landlock nothing is run.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvfoot.core.errors import UsageError

LAUNCHER = Path(__file__).with_name("confine.py")
MIB = 2**20
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/alternatives")
HARD_WALL = 60.0


@dataclass(frozen=True)
class Limits:
    """seconds: wall time; CPU time is the next whole second above. memory, output: bytes."""

    seconds: float = 3.0
    memory: int = 512 * MIB
    output: int = 16 * MIB


@dataclass(frozen=True)
class Outcome:
    """What a program wrote and how it ended: `code` as subprocess has it (negative: a signal), or None on timeout."""

    output: bytes
    errors: bytes
    code: int | None

    @property
    def timed_out(self) -> bool:
        return self.code is None or -self.code in (signal.SIGXCPU, signal.SIGKILL)


@dataclass(frozen=True)
class Order:
    """One confined process: what it may read and write, its limits by the names of the `resource` module."""

    argv: list[str]
    read: list[str]
    write: list[str]
    limits: dict[str, int]
    environment: dict[str, str]
    drop: bool


def _start(order: Order, stdin: bytes, folder: Path, seconds: float) -> Outcome:
    """Run an order and wait. `UsageError` where this system cannot confine it."""
    token = secrets.token_hex(8)
    command = [sys.executable, "-I", "-S", str(LAUNCHER), token, json.dumps(order.__dict__)]
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=out, stderr=err, cwd=folder, env={}, close_fds=True, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # what the program left behind goes with it: it cannot fork, the compiler can
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        outcome = Outcome(out.read(), err.read(), code)
    if code == 125 and outcome.errors.startswith(token.encode()):
        reason = outcome.errors.decode(errors="replace").removeprefix(token).strip()
        raise UsageError(
            f"programs that a model wrote cannot be confined here ({reason}): use Linux 5.13 or newer with Landlock, "
            f"or leave the pseudo_to_code tasks out"
        )
    return outcome


def compile_cpp(source: str, folder: Path) -> Path | None:
    """A static program from C++11 source, or None where it does not compile. `UsageError` without g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise UsageError("the pseudo_to_code tasks compile C++: install g++, or leave them out")
    (folder / "program.cpp").write_text(source)
    order = Order(
        argv=[os.path.realpath(compiler), "-std=c++11", "-O", "-static", "-o", "program", "program.cpp"],
        read=[*SYSTEM, "/dev/null"],
        write=[str(folder), "/dev/null"],
        limits={"RLIMIT_CPU": 30, "RLIMIT_AS": 2048 * MIB, "RLIMIT_FSIZE": 64 * MIB, "RLIMIT_CORE": 0},
        environment={"PATH": "/usr/bin:/bin", "TMPDIR": str(folder)},
        drop=False,
    )
    outcome = _start(order, b"", folder, HARD_WALL)
    program = folder / "program"
    return program if outcome.code == 0 and program.is_file() else None


def run_program(program: Path, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
    """Run a static program of `compile_cpp`, given `stdin`."""
    limits = limits or Limits()
    order = Order(
        argv=[str(program)],
        read=[str(program)],
        write=[],
        limits={
            "RLIMIT_CPU": int(limits.seconds) + 1,
            "RLIMIT_AS": limits.memory,
            "RLIMIT_FSIZE": limits.output,
            "RLIMIT_CORE": 0,
            "RLIMIT_NPROC": 0,
            "RLIMIT_NOFILE": 3,
        },
        environment={},
        drop=True,
    )
    return _start(order, stdin, program.parent, limits.seconds)


def passes(source: str, cases: Sequence[tuple[bytes, bytes]], limits: Limits | None = None) -> bool:
    """Whether a C++ program compiles and answers every case (stdin, stdout) to the byte. Stops at the first miss."""
    with tempfile.TemporaryDirectory(prefix="kvfoot-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the program may run as nobody
        program = compile_cpp(source, folder)
        return program is not None and all(run_program(program, given, limits).output == want for given, want in cases)
