"""Failures that nobody has retrieved."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from types import FrameType, TracebackType

from background._core.ledger import logger, this_thread, threads
from background._core.naming import Named

__all__ = [
    "Guard",
    "Unseen",
    "bury",
    "failures",
    "forget_failures",
    "log_unseen",
    "own_files",
    "trace_of",
    "unseen",
]

own_files: set[str] = set()  # whose frames a traceback needn't show before those of the call
# As `inspect` has them, whose import takes as long as all the rest.
CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR = 0x20, 0x80, 0x200
# The folder of the package.
_FOLDER = os.path.dirname(os.path.dirname(Named.__init__.__code__.co_filename))


class Failures:
    """The failures that nobody has looked at since the last `take`.

    The first hundred exceptions are kept, the others counted.
    """

    KEPT = 100

    def __init__(self) -> None:
        self.errors: dict[object, BaseException] = {}
        self.taken = 0  # how many have been raised
        self.round = 0  # how often
        self.said = 0  # how many of those that are left have been said
        self.sayings = 0  # how often that was asked

    def __len__(self) -> int:
        unseen = sum(thread.failed - thread.looked for thread in list(threads.values()))
        # A failure is written down before it is counted: it may be in the one only.
        return max(unseen - self.taken, len(self.errors))

    def take(self) -> tuple[list[BaseException], int]:
        """Return the kept exceptions and the count of all, which are looked at by this."""
        count = len(self)
        self.round += 1
        self.said = 0
        errors: list[BaseException] = []
        while self.errors:
            errors.append(self.errors.pop(next(iter(self.errors))))
        count = max(count, len(errors))
        self.taken += count
        return errors, count

    def untold(self) -> int:
        """Return how many came since this was asked last."""
        count = len(self)
        said, self.said = self.said, count
        self.sayings += 1
        return max(count - said, 0)

    def clear(self) -> None:
        """Forget all; for the child of a fork."""
        self.__init__()  # type: ignore[misc]  # it has no subclass


failures = Failures()


class Unseen:
    """A failure at which nobody has looked; it refers to no future, which makes no cycle."""

    __slots__ = ("error", "key", "name", "round", "sayings", "told")

    def __init__(self, error: BaseException, name: str) -> None:
        self.error = error
        self.name = name
        self.round = failures.round
        self.sayings = failures.sayings
        # Whoever pops it tells the failure, by log or by look, once; none before it is one.
        self.told: list[bool] = []
        self.key = object() if len(failures.errors) < failures.KEPT else None

    def look(self) -> None:
        """Note that somebody has seen the failure."""
        if self._claim():
            failures.errors.pop(self.key, None)
            this_thread().looked += 1
            if self.sayings < failures.sayings:  # it is among those that were said
                failures.said = max(failures.said - 1, 0)

    def _claim(self) -> bool:
        """Return whether nobody has been told of the failure, once."""
        try:
            self.told.pop()
        except IndexError:
            return False
        unseen.pop(self, None)
        if self.key is not None:
            return self.key in failures.errors
        return self.round == failures.round

    def log(self) -> None:
        """Log the failure unless somebody has been told of it."""
        if not self._claim():
            return
        error = self.error
        logger.error(
            "%s failed and nobody looked at it",
            self.name,
            exc_info=(type(error), error, error.__traceback__),
        )
        if self.key is not None:
            clear_frames(error)  # it stays for `flush(check=True)`; what its frames hold needn't


unseen: dict[Unseen, None] = {}


class Guard(Named):
    """Dies with the future of a failure, and then has it logged.

    Not `Future.__del__`: that would cost every call that succeeds.
    """

    __slots__ = ("unseen",)

    def __init__(self, unseen: Unseen) -> None:
        self.name = unseen.name
        self.unseen = unseen

    def __del__(self) -> None:
        if hasattr(self, "unseen"):  # else Ctrl-C has come before: logged at the program's end
            self.unseen.log()


def bury() -> None:
    """Have the failures logged whose futures are gone.

    With the GIL they have been, when the future went. Without it, an object that another
    thread lets go of dies only when the thread that made it comes to know, and a worker that
    sleeps doesn't. The collector tells all threads: first that the call is dead, then its
    guard, which the worker made.
    """
    if unseen and not getattr(sys, "_is_gil_enabled", lambda: True)():
        gc.collect()
        gc.collect()


def trace_of(error: BaseException) -> TracebackType | None:
    """Return the traceback, past what the exception may answer of its own."""
    trace: TracebackType | None = vars(BaseException)["__traceback__"].__get__(error)
    return trace


def clear_frames(error: BaseException) -> None:
    """Free the locals of the frames that an exception passed, and those that led to it there."""
    own: set[FrameType] = set()
    seen: list[int] = []
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.append(id(link))
        trace = trace_of(link)
        if link is not error and (trace is None or trace.tb_frame not in own):
            break  # it comes from elsewhere, and its frames are not ours to clear
        # A call that failed on its caller's thread: our frames below hold its arguments.
        frame = trace and trace.tb_frame.f_back
        while frame is not None and frame.f_code.co_filename.startswith(_FOLDER):
            clear(frame)
            frame = frame.f_back
        while trace is not None:
            own.add(trace.tb_frame)
            clear(trace.tb_frame)
            trace = trace.tb_next
        link = link.__cause__ or link.__context__


def clear(frame: FrameType) -> None:
    # Clearing a generator or a coroutine that is suspended would close it.
    if not frame.f_code.co_flags & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR):
        with suppress(RuntimeError):  # it is still running
            frame.clear()


def log_unseen() -> None:
    """Log what nobody has looked at: the program ends, and nobody will."""
    for each in list(unseen):
        each.log()


def forget_failures() -> None:
    """Leave the failures to the parent in the child of a fork."""
    failures.clear()
    for each in list(unseen):  # the parent tells them
        each.told.clear()
    unseen.clear()
