"""The command `kvfoot`: verbs, and errors as one line with an exit code."""

import os
import sys
from collections.abc import Sequence

import typer

from kvfoot.cli.bench import bench
from kvfoot.cli.cache import cache
from kvfoot.cli.calibrate import calibrate
from kvfoot.cli.critical import critical
from kvfoot.cli.demo import demo
from kvfoot.cli.doctor import doctor
from kvfoot.cli.evaluate import evaluate
from kvfoot.cli.heads import heads
from kvfoot.cli.methods import methods
from kvfoot.cli.report import report
from kvfoot.cli.run import INTERRUPTED, run
from kvfoot.cli.train import train
from kvfoot.cli.tune import tune
from kvfoot.core.errors import KvfootError

app = typer.Typer(
    name="kvfoot",
    help="Run long-context language models in a fraction of the KV memory, and know what it cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (run, methods, doctor, demo, critical, report, tune):
    app.command()(verb)
app.command("eval")(evaluate)
app.add_typer(bench)
app.add_typer(cache)
app.add_typer(train)
app.add_typer(heads)
app.add_typer(calibrate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code.

    0 done, 1 failed, 2 a request that cannot be served, 3 to 5 as kvfoot.core.errors says, 130 interrupted.
    """
    try:
        code = app(list(arguments) if arguments is not None else None, prog_name="kvfoot", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:
            return _say("interrupted", code)
        return code if isinstance(code, int) else 0
    except KvfootError as error:
        return _say(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):  # some releases of typer pass Ctrl-C on, others return 130
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:
        _drop_output()
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", 1)
    except Exception as error:
        # Wrong usage: typer carries its own copy of click in some releases, so its errors are known by their shape.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        return _say(message, getattr(error, "exit_code", 2)) if message else getattr(error, "exit_code", 2)


def _drop_output() -> None:
    """What is still buffered has nowhere to go: the interpreter must not complain about it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str, code: int) -> int:
    print(f"kvfoot: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
