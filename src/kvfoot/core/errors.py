"""What can go wrong, said in one line with the cure. The command line prints the line and exits with `exit_code`."""


class KvfootError(Exception):
    """Base of every error that kvfoot raises on purpose."""

    exit_code = 1


class UsageError(KvfootError, ValueError):
    """The request cannot be served as asked: a wrong value, an unknown name, an unsupported model or option."""

    exit_code = 2


class ModelError(UsageError):
    """A model's files are missing, truncated, of another kind, or need a download that is not possible now."""


class PoolExhausted(KvfootError):
    """The page pool cannot hold the next pass. Raised before the pass; nothing was written."""

    exit_code = 3


class BrokenPromise(KvfootError):
    """The pool does not hold what the method promised (decision D10): a defect, never an option."""

    exit_code = 4


class NotFinite(KvfootError):
    """NaN or infinite activations, with the layer in which they first appeared."""

    exit_code = 5


def did_you_mean(word: str, known: list[str]) -> str:
    """`unknown` names get the nearest known ones: ' (did you mean snapkv?)', or the whole list."""
    from difflib import get_close_matches

    near = get_close_matches(word, known, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else f" (known: {', '.join(sorted(known))})"
