"""Runs as `python -I -S confine.py TOKEN ORDER`: limits itself, then becomes the program. Standard library only.

Never imported by kvfoot: the sandbox starts it as a script, so that limits are set in a process of one thread. A
failure to limit is exit code 125 with TOKEN on stderr; the program is not started then.
"""

import ctypes
import json
import os
import resource
import signal
import sys

CREATE, ADD, RESTRICT, NO_NEW_PRIVS = 444, 445, 446, 38
READ = 0b1101  # execute, read a file, list a folder
FILE_WRITE = 1 << 1
NOBODY = 65534


def refuse_all_but(libc: ctypes.CDLL, read: list[str], write: list[str]) -> None:
    """Landlock: no file system access except under these paths, and no TCP, where the kernel can forbid it."""
    abi = libc.syscall(CREATE, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        raise OSError(ctypes.get_errno(), "this kernel has no Landlock")
    known = (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1
    words = [known, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0]
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    attributes = (ctypes.c_uint64 * 3)(*words)
    rules = libc.syscall(CREATE, attributes, ctypes.c_size_t(size), 0)
    if rules < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    for paths, rights in ((read, READ), (write, known)):
        for path in paths:
            if not os.path.exists(path):
                continue
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            # a file takes no folder's rights
            allowed = rights if os.path.isdir(path) else rights & (READ & ~0b1000 | FILE_WRITE)
            packed = allowed.to_bytes(8, sys.byteorder) + handle.to_bytes(4, sys.byteorder)
            if libc.syscall(ADD, rules, 1, ctypes.create_string_buffer(packed, 12), 0):
                raise OSError(ctypes.get_errno(), f"landlock_add_rule {path}")
            os.close(handle)
    if libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(RESTRICT, rules, 0):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(rules)


def main() -> None:
    token, order = sys.argv[1], json.loads(sys.argv[2])
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        refuse_all_but(libc, order["read"], order["write"])
        if order["drop"] and os.geteuid() == 0:  # root is not held by a limit on processes
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        for name, value in order["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        for ignored in (signal.SIGXFSZ, signal.SIGPIPE):  # Python ignores both, and a program would inherit that
            signal.signal(ignored, signal.SIG_DFL)
        os.execve(order["argv"][0], order["argv"], order["environment"])
    except OSError as error:
        print(token, error, file=sys.stderr)
        sys.exit(125)


if __name__ == "__main__":
    main()
