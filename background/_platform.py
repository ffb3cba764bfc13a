"""What the system and the interpreter differ in from one program to the next."""

from __future__ import annotations

import fcntl
import os
import sys

__all__ = ["interpreter", "not_standard", "open_standard_streams"]


def not_standard(descriptor: int) -> int:
    """Return the descriptor, or one in its place that is none of the standard streams'.

    A daemon has closed those: what is opened next would get their numbers, and what a call
    prints would go into it.
    """
    if descriptor > 2:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


def open_standard_streams() -> None:
    """Have the descriptors of closed standard streams taken, so that no file gets them."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest one that is free, which is this


def interpreter() -> str:
    """Return the path of this Python, to start a worker by.

    Raises:
        RuntimeError: the program is frozen or embeds Python, so that `sys.executable` would
            start the program itself once more.
    """
    path = sys.executable or ""
    names = [os.path.basename(each).lower() for each in (path, os.path.realpath(path))]
    if getattr(sys, "frozen", False) or not any(n.startswith(("python", "pypy")) for n in names):
        raise RuntimeError(
            f"workers are started by a Python interpreter, and sys.executable={path!r} is none "
            "(the program is frozen, or embeds Python): run these calls in threads, or set "
            "sys.executable to an interpreter that has the same packages"
        )
    return path
