"""What a confined program cannot do. Needs g++ and a kernel with Landlock; where one is missing the sandbox refuses."""

import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvfoot.core.errors import UsageError
from kvfoot.evaluate import sandbox
from kvfoot.evaluate.sandbox import Limits, compile_cpp, passes, run_program

SECOND = Limits(seconds=1.0)


@pytest.fixture(scope="module", autouse=True)
def confined():
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    with public_folder() as folder:
        program = build("int main() { return 0; }", folder)
        try:
            run_program(program)
        except UsageError as error:
            pytest.skip(str(error))


@pytest.fixture
def place():
    with public_folder() as folder:
        yield folder


@contextmanager
def public_folder():
    """Pytest's own folders are private, and a program may run as nobody."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def build(source: str, folder: Path) -> Path:
    program = compile_cpp(source, folder)
    assert program is not None
    return program


def test_a_program_reads_and_answers(place):
    program = build('#include <cstdio>\nint main() { int a; scanf("%d", &a); printf("%d\\n", a + 1); }', place)
    assert run_program(program, b"41\n").output == b"42\n"
    assert run_program(program, b"41\n").code == 0


def test_an_infinite_loop_ends_at_its_time(place):
    program = build("int main() { for (;;); }", place)
    began = time.monotonic()
    outcome = run_program(program, limits=SECOND)
    assert outcome.timed_out
    assert time.monotonic() - began < 10


def test_a_memory_bomb_gets_no_more_than_its_limit(place):
    source = (
        "#include <cstdlib>\n#include <cstdio>\n#include <cstring>\nint main() { long n = 0; for (;;) {"
        'void *p = malloc(1 << 22); if (!p) { printf("%ld\\n", n); return 0; } memset(p, 1, 1 << 22); n++; } }'
    )
    found = run_program(build(source, place), limits=Limits(seconds=10, memory=64 * 2**20))
    assert 0 < int(found.output) <= 15  # blocks of 4 MiB


def test_no_file_is_opened_written_or_removed(place):
    victim = place / "victim"
    victim.write_text("whole")
    victim.chmod(0o666)
    place.chmod(0o777)
    source = f"""
        #include <cstdio>
        #include <unistd.h>
        #include <sys/stat.h>
        int main() {{
            printf("%d %d %d ", !fopen("{victim}", "w"), !fopen("here", "w"), !fopen("/etc/passwd", "r"));
            printf("%d %d %d %d\\n", remove("{victim}"), truncate("{victim}", 0), mkdir("folder", 0777),
                   rename("{victim}", "{place}/other"));
        }}"""
    program = build(source, place)
    place.chmod(0o777)
    before = sorted(path.name for path in place.iterdir())
    assert run_program(program).output == b"1 1 1 -1 -1 -1 -1\n"
    assert victim.read_text() == "whole"
    assert sorted(path.name for path in place.iterdir()) == before


def test_no_process_no_socket_no_environment(place):
    source = """
        #include <cstdio>
        #include <cstdlib>
        #include <unistd.h>
        #include <sys/socket.h>
        extern char **environ;
        int main() {
            printf("%d %d ", fork(), socket(AF_INET, SOCK_STREAM, 0));
            printf("%d %d\\n", !environ[0], system("true") != 0);
        }
        """
    assert run_program(build(source, place)).output == b"-1 -1 1 1\n"


def test_a_flood_of_output_ends_at_its_limit(place):
    program = build('#include <cstdio>\nint main() { for (;;) puts("flood"); }', place)
    outcome = run_program(program, limits=Limits(seconds=10, output=100_000))
    assert len(outcome.output) == 100_000
    assert outcome.code is not None
    assert outcome.code < 0


def test_what_does_not_compile_is_no_program(place):
    assert compile_cpp("int main( {", place) is None
    assert compile_cpp('#include "/etc/passwd"\nint main() {}', place) is None


def test_passes_compares_to_the_byte():
    source = '#include <cstdio>\nint main() { int a; scanf("%d", &a); printf("%d\\n", 2 * a); }'
    assert passes(source, [(b"1\n", b"2\n"), (b"4\n", b"8\n")])
    assert not passes(source, [(b"1\n", b"2\n"), (b"4\n", b"9\n")])
    assert not passes(source, [(b"1\n", b"2")])
    assert not passes("nonsense", [(b"", b"")])


def test_where_nothing_can_be_confined_nothing_is_run(place, monkeypatch):
    program = build('#include <cstdio>\nint main() { puts("ran"); }', place)
    broken = place / "confine.py"
    text = sandbox.LAUNCHER.read_text()
    assert "CREATE, ADD, RESTRICT" in text
    broken.write_text(text.replace("= 444, 445, 446, 38", "= 99999, 445, 446, 38"))
    monkeypatch.setattr(sandbox, "LAUNCHER", broken)
    with pytest.raises(UsageError, match="cannot be confined here"):
        run_program(program)
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"install g\+\+"):
        compile_cpp("int main() {}", place)
