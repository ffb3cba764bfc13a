"""What the system and the interpreter differ in from one program to the next."""

from __future__ import annotations

import _thread
import concurrent.futures.thread
import fcntl
import os
import signal
import sys
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, cast

__all__ = [
    "check_patches",
    "interpreter",
    "leave_join",
    "leave_threads",
    "not_standard",
    "open_standard_streams",
    "pool_threads",
]


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


_start_new_thread = _thread.start_new_thread


def check_patches() -> None:
    """Raise a `RuntimeError` if threads were replaced by greenlets after our import.

    What we have imported by then would block the greenlets' only thread, for ever. Patched
    first, everything that we import is theirs.
    """
    now = _thread.start_new_thread
    by = (getattr(now, "__module__", None) or "").partition(".")[0]
    if now is not _start_new_thread and by in ("gevent", "eventlet"):
        raise RuntimeError(
            f"{by} has replaced threads after `import background`: a wait for a call would block "
            "all greenlets; patch first, before any other import (gevent.monkey.patch_all(), "
            "eventlet.monkey_patch())"
        )


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


class PoolThreads:
    """Threads of other pools, for which the interpreter's end must be able not to wait.

    Since Python 3.9 the threads of a `ThreadPoolExecutor` are no daemons: the interpreter waits
    for them, for ever if one hangs, and there is no public way to have it stop. The pool makes
    them when it is given a call, with the `daemon` of the thread that gives it: so they are made
    daemons here, and are none any more for what they start in their turn.
    """

    def __init__(self) -> None:
        self.made: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self.given_up: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    @contextmanager
    def as_daemons(self) -> Generator[None, None, None]:
        """Have the threads that this thread makes meanwhile be daemons."""
        here: Any = threading.current_thread()
        before = here._daemonic
        here._daemonic = True
        try:
            yield
        finally:
            here._daemonic = before

    def enter(self) -> None:
        """Have what this thread starts be no daemon."""
        here: Any = threading.current_thread()
        if here._daemonic and here not in self.made and here in _pool_queues():
            self.made.add(here)
            here._daemonic = False

    def abandon(self, thread: threading.Thread) -> bool:
        """Have the interpreter's end not wait for a thread; return False if it will."""
        _pool_queues().pop(thread, None)  # that module waits, too
        if thread in self.made or thread.daemon:
            return True
        inner: Any = threading
        with suppress(AttributeError):  # until Python 3.12
            inner._shutdown_locks.discard(cast(Any, thread)._tstate_lock)
            return True
        self.given_up.add(thread)
        return False

    def alone(self) -> bool:
        """Tell whether the interpreter's end waits for none but threads that were given up."""
        main = threading.main_thread().ident
        return _joins(sys._current_frames().get(main or 0)) and self.no_others()

    def no_others(self) -> bool:
        """Tell whether the threads that are not daemons were all given up."""
        main = threading.main_thread()
        others = [each for each in threading.enumerate() if each is not main and not each.daemon]
        return all(each in self.given_up for each in others)


def _joins(frame: FrameType | None) -> bool:
    inner: Any = threading
    return frame is not None and frame.f_code is inner._shutdown.__code__


class Left(BaseException):
    """Ends the interpreter's wait for threads, which then goes on with its end."""


def leave_threads() -> None:
    """Have `leave_join` work, from Python 3.13 on, if this is the main thread."""
    with suppress(ValueError):
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    if not (_joins(frame) and pool_threads.no_others()):
        signal.default_int_handler(number, frame)
    before = sys.unraisablehook

    def ignore(unraisable: Any) -> None:
        sys.unraisablehook = before
        if unraisable.exc_type is not Left:
            before(unraisable)

    sys.unraisablehook = ignore
    raise Left


def leave_join() -> bool:
    """Have the interpreter's end wait for threads no more; return whether that can be done.

    As by Ctrl-C, which ends that wait alone: its hooks and its exit status stay.
    """
    main = threading.main_thread().ident
    if signal.getsignal(signal.SIGINT) is not _leave or not hasattr(signal, "pthread_kill"):
        return False
    signal.pthread_kill(main or 0, signal.SIGINT)
    return True


def _pool_queues() -> Any:
    """Return the threads of all `ThreadPoolExecutor`s, for which their module waits at the end."""
    return getattr(concurrent.futures.thread, "_threads_queues", {})


pool_threads = PoolThreads()
