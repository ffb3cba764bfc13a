"""Failures that nobody has retrieved."""

from __future__ import annotations

import _thread
import gc
import os
import sys
import threading
import time
from contextlib import suppress
from time import monotonic
from types import FrameType, TracebackType

from background._core.ledger import this_thread, threads
from background._core.naming import Named
from background._core.telling import ERROR, depth_of_run, report

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
    "watch",
]

own_files: set[str] = set()  # whose frames a traceback needn't show before those of the call
# As `inspect` has them, whose import takes as long as all the rest.
CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR = 0x20, 0x80, 0x200
# The folder of the package.
_FOLDER = os.path.dirname(os.path.dirname(Named.__init__.__code__.co_filename))


class Failures:
    """The failures that nobody has retrieved since the last `take`.

    The first hundred exceptions are kept, the others counted.
    """

    KEPT = 100

    def __init__(self) -> None:
        self.errors: dict[object, Unseen] = {}
        self.more = False  # whether there were others
        self.taken = 0  # how many have been raised
        self.round = 0  # how often
        self.said = 0  # how many of those that are left have been said
        self.sayings = 0  # how often that was asked

    def __len__(self) -> int:
        unseen = sum(thread.failed - thread.looked for thread in list(threads.values()))
        # A failure is written down before it is counted: it may be in the one only.
        return max(unseen - self.taken, len(self.errors))

    def take(self) -> tuple[list[BaseException], int, int]:
        """Return the kept exceptions, the count of all, and how many of the kept were logged.

        This retrieves them.
        """
        # In this order: a failure that reads the old round has been counted before, and is in
        # `count`; see `Call._fail`.
        self.round += 1
        count = len(self)
        self.said = 0
        taken: list[Unseen] = []
        # From the end: `popitem` is one step, where an iterator over what others change fails.
        with suppress(KeyError):
            while True:
                taken.append(self.errors.popitem()[1])
        count = max(count, len(taken))
        self.taken += count
        more, self.more = self.more, False
        errors: list[BaseException] = [failure.error for failure in reversed(taken)]
        if more and count and not errors:  # the kept ones alone have been retrieved
            errors = [RuntimeError(f"{count} failures, of which no exception was kept")]
        return errors, count, sum(not failure.quiet for failure in taken)

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
    """A failure that nobody has retrieved; it refers to no future, which makes no cycle."""

    __slots__ = (
        "awaited",
        "born",
        "depth",
        "error",
        "key",
        "made",
        "name",
        "quiet",
        "round",
        "sayings",
        "told",
    )

    def __init__(
        self, error: BaseException, name: str, depth: int, made: float, awaited: bool
    ) -> None:
        self.error = error
        self.name = name
        self.depth = depth  # see `telling`
        self.made = made  # when the call was made
        self.awaited = awaited  # whether somebody waited for it, or has it called back
        self.born = monotonic()
        self.quiet = [True]  # whoever pops it logs the failure
        self.round = failures.round
        self.sayings = failures.sayings
        # Whoever pops it tells the failure, by log or by look, once; none before it is one.
        self.told: list[bool] = []
        self.key = object() if len(failures.errors) < failures.KEPT else None
        if self.key is None:
            failures.more = True

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
        return not self.raised()

    def raised(self) -> bool:
        """Return whether `flush(check=True)` or `check` has raised or counted the failure."""
        if self.key is not None:
            return self.key not in failures.errors
        return self.round != failures.round

    def claim_log(self) -> bool:
        """Return whether the failure has not been logged, once."""
        try:
            return self.quiet.pop()
        except IndexError:
            return False

    def log(self) -> None:
        """Log the failure unless somebody has been told of it."""
        if not self._claim():
            return
        error = self.error
        if self.claim_log():
            report(
                ERROR,
                "%s failed and its exception was never retrieved",
                self.name,
                error=error,
                depth=self.depth or depth_of_run(self.name, self.made),
            )
        if self.key is not None:
            clear_frames(error)  # it stays for `flush(check=True)`; what its frames hold needn't


unseen: dict[Unseen, None] = {}


class Watch:
    """Logs failures that nobody has retrieved for a while, though their futures are kept.

    Its thread lives only while there are such failures, and sleeps until the next is due.
    """

    PATIENCE = 5.0  # seconds

    def __init__(self) -> None:
        self.free = [True]  # whoever pops it runs the thread, or becomes it

    def start(self) -> None:
        """Have a thread that watches, if there is none yet."""
        try:
            self.free.pop()
        except IndexError:
            return
        try:
            # On a bare thread first: `Thread.start` takes a lock that isn't reentrant, and we
            # may be in a signal handler that came while the program was inside it.
            _thread.start_new_thread(self.bootstrap, ())
        except BaseException as error:
            self.free.append(True)
            if not isinstance(error, RuntimeError):  # shutdown, or too many threads
                raise

    def bootstrap(self) -> None:
        """Run on a `threading.Thread`, so that log records have a thread with a name."""
        try:
            threading.Thread(target=self.run, name="background-failures", daemon=True).start()
        except RuntimeError:  # no further thread: this one will do
            self.run()

    def run(self) -> None:
        """Log what is due until nothing is left to log."""
        try:
            while True:
                while (pause := self.pause()) is not None:
                    time.sleep(pause)
                    self.tell(monotonic() - self.PATIENCE)
                self.free.append(True)
                # A failure may have come after the look and before that line.
                if self.pause() is None:
                    return
                try:
                    self.free.pop()
                except IndexError:  # another thread does
                    return
        except BaseException:  # the interpreter's shutdown, or raised into this thread
            self.free[:] = [True]

    def waiting(self) -> list[Unseen]:
        """Return the failures that are to be logged, the oldest first."""
        return [
            each for each in list(unseen) if each.quiet and not each.awaited and not each.raised()
        ]

    def pause(self) -> float | None:
        """Return in how many seconds the next failure is due, if there is one."""
        left = self.waiting()  # not kept while the thread sleeps: they hold frames
        return max(left[0].born + self.PATIENCE - monotonic(), 0.01) if left else None

    def tell(self, before: float) -> None:
        """Log what failed before then: the first in full, of the others how many they are."""
        due = [each for each in self.waiting() if each.born <= before and each.claim_log()]
        for depth in {each.depth for each in due}:
            first, *others = (each for each in due if each.depth == depth)
            more = ""
            if others:
                more = f"; so did {len(others)} other call{'s' * (len(others) != 1)}"
            report(
                ERROR,
                "%s failed and its exception was never retrieved%s",
                first.name,
                more,
                error=first.error,
                depth=depth,
            )


watch = Watch()


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
    """Log what nobody has retrieved: the program ends, and nobody will."""
    for each in list(unseen):
        each.log()


def forget_failures() -> None:
    """Leave the failures to the parent in the child of a fork."""
    failures.clear()
    for each in list(unseen):  # the parent tells them
        each.told.clear()
    unseen.clear()
    watch.free[:] = [True]  # its thread is the parent's
