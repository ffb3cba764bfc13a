"""Locks: the one of this process, and those on a file by which workers show that they live."""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

from background._executors.sqlite.access import open_beside
from background._executors.sqlite.file import file_at

__all__ = ["SHARED", "SOMEBODY", "SUPERVISOR", "Life", "alone", "holding", "token"]

P = ParamSpec("P")
T = TypeVar("T")

# Held for each statement, and while the process forks: SQLite's own locks, shared by all its
# connections, must be free in the child. Reentrant for signal handlers and `__del__`.
_lock = threading.RLock()


def holding(lock: threading.RLock, function: Callable[P, T], *args: P.args, **kw: P.kwargs) -> T:
    """Call a function under a lock.

    Not by `with`: on CPython 3.14 Ctrl-C may strike between the taking of the lock and the
    block, and it would never be given back. Here it is taken and noted in one step of C.
    """
    taken: list[bool] = []
    try:
        taken.extend(map(lock.acquire, (True,)))
        return function(*args, **kw)
    finally:
        if taken:
            lock.release()


def alone(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function while no other thread uses the files, and the process doesn't fork."""
    return holding(_lock, function, *args, **kwargs)


SUPERVISOR = 0  # the byte that every supervisor shares
SOMEBODY = 1  # the byte that every worker and every supervisor shares
SHARED = (SUPERVISOR, SOMEBODY)  # what a supervisor holds


def token() -> int:
    """Return a number that nobody else has: of a program or of a worker."""
    return secrets.randbits(48) + 2


class Life:
    """Who lives, told by record locks on bytes of a file: a worker's own, and one for all.

    The system drops a record lock with its process, however that ends; a stopped process
    keeps it, and so does one that computes without ever giving up the interpreter's lock; a
    forked child doesn't inherit it. No clock and no heartbeat has a say.

    One trap: a process loses its locks when it closes any descriptor of the file. So each
    process opens it once and closes it only while it holds none, and a worker takes its lock
    again before each call, in case the last one opened and closed the file itself, to copy its
    folder, say.
    """

    def __init__(self, path: str) -> None:
        self._path = path + "-lock"

    def hold(self, byte: int) -> None:
        """Take a byte of one's own, or a share of a common one, until the process ends."""
        fcntl.lockf(self._file(), fcntl.LOCK_SH if byte in SHARED else fcntl.LOCK_EX, 1, byte)
        _held.add((self._path, byte))

    def drop(self, byte: int) -> None:
        """Give a byte up."""
        _held.discard((self._path, byte))
        fcntl.lockf(self._file(), fcntl.LOCK_UN, 1, byte)

    def taken(self, byte: int) -> bool:
        """Return whether a process that lives holds the byte."""
        if (self._path, byte) in _held:  # to this process its own locks look free
            return True
        file = self._file()
        try:
            # Those who look for one worker may do so at once; a common byte, which many
            # share, looks taken to a second one who looks: then the first one sees to it.
            kind = fcntl.LOCK_EX if byte in SHARED else fcntl.LOCK_SH
            fcntl.lockf(file, kind | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return True
        fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)
        return False

    def close(self) -> None:
        """Close the file, unless others use it or this process is a worker."""
        alone(self._close)

    def _close(self) -> None:
        users = _users.setdefault(self._path, weakref.WeakSet())
        users.discard(self)
        if not users and all(path != self._path for path, _ in _held):
            del _users[self._path]
            if opened := _files.pop(self._path, None):
                os.close(opened[0])

    def _file(self) -> int:
        return alone(self._open)

    def _open(self) -> int:
        _users.setdefault(self._path, weakref.WeakSet()).add(self)
        opened = _files.get(self._path)
        if opened is not None:
            with suppress(FileNotFoundError):
                if file_at(self._path) == opened[1]:
                    return opened[0]
        file = open_beside(self._path, os.O_RDWR)
        # Another file that was here before stays open: to close it would drop the locks there.
        _files[self._path] = file, file_at(self._path)
        return file


_files: dict[str, tuple[int, tuple[int, int]]] = {}
_users: dict[str, weakref.WeakSet[Life]] = {}
_held: set[tuple[str, int]] = set()


# -- Fork ----------------------------------------------------------------------------------


def before_fork() -> None:
    _lock.acquire()


def after_fork_in_parent() -> None:
    _lock.release()


def after_fork_in_child() -> None:
    """Start without the locks of the parent."""
    global _lock
    _lock = threading.RLock()
    _held.clear()


os.register_at_fork(
    before=before_fork,
    after_in_parent=after_fork_in_parent,
    after_in_child=after_fork_in_child,
)
