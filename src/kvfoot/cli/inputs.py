"""What the command line is given, read and checked before a model is loaded."""

import re
import sys
from pathlib import Path

from kvfoot.core.errors import UsageError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def prompt_text(name: str) -> str:
    """The text of a file, or of the standard input for '-'. Raises UsageError unless it is UTF-8 and not empty."""
    where = "standard input" if name == "-" else name
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}: give a text file, or - for the standard input") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        shift = 3 if data.startswith(b"\xef\xbb\xbf") else 0
        offset = error.start + shift
        raise UsageError(
            f"{where}: not UTF-8: byte 0x{data[offset]:02x} at offset {offset}: convert it first, for example with "
            "iconv -f ISO-8859-1 -t UTF-8"
        ) from None
    if not text.strip():
        raise UsageError(f"{where}: the prompt is empty")
    return text


def settings(pairs: list[str]) -> dict[str, str]:
    """`key=value` pairs. Raises UsageError for anything else, and for a key given twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"--set {pair}: write key=value, such as --set window=32")
        if key in found:
            raise UsageError(f"--set {key} is given twice: {found[key]} and {value.strip()}")
        found[key] = value.strip()
    return found


def pool_size(text: str | None) -> int | float | None:
    """2147483648, 2GiB or 512MB as bytes; 0.9 or 90% as the fraction of what is free. Raises UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|(?:|[kmg]i?)b?)", text.strip().lower())
    if match:
        number, unit = float(match[1]), match[2].removesuffix("b")
        if unit == "%" or (unit == match[2] == "" and "." in match[1]):
            number = number / 100 if unit else number
            if 0 < number <= 1:
                return number
        elif int(number * UNITS[unit]) >= 1:
            return int(number * UNITS[unit])
    raise UsageError(
        f"--kv-memory {text}: write bytes, a size such as 512MiB or 2GiB, or a fraction of what is free such as 0.9"
    )


def chunk_size(text: str) -> int | None:
    """Tokens per pass; None for 'all', the whole prompt in one pass. Raises UsageError."""
    if text == "all":
        return None
    try:
        size = int(text)
    except ValueError:
        raise UsageError(f"--chunk {text}: give a number of tokens, or all") from None
    if size < 1:
        raise UsageError(f"chunk={size}: give at least 1 token per chunk")
    return size


def record_path(path: Path | None, option: str = "--record") -> None:
    """Refuse, before the run, a place where no record can be written. Raises UsageError."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}: make it first")
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: give the name of a file in it")


def tokens(option: str, text: str) -> int:
    """4096 or 4K (x 1024) as a number. Raises UsageError."""
    factor = 1024 if text[-1:] in ("k", "K") else 1
    try:
        length = int(text.rstrip("kK")) * factor
    except ValueError:
        raise UsageError(f"{option} {text}: give tokens, such as 4096 or 4K") from None
    if length < 1:
        raise UsageError(f"{option} {text}: give at least 1 token")
    return length


def at_least_one(**counts: int) -> None:
    """Raises UsageError for a count below 1, naming its option."""
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"--{name.replace('_', '-')} {count}: give at least 1")
