"""The ledger: what is not done, which threads do what, and the wait for all of it.

Nothing here is guarded by a lock. Callers run in signal handlers, in `__del__` and under
the locks of others, where a lock of ours could be held by the very code that was
interrupted. Instead each step rests on one operation that is atomic with and without the
GIL (CPython runs it under the object's own lock in free-threaded builds): `list.pop`,
`dict[key] = value`, `del dict[key]`, `dict.setdefault`, a store into a slot.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from background._core.call import Call
    from background._core.waiting import Shared

__all__ = [
    "CANCELLED",
    "ENDING",
    "FINISHED",
    "PENDING",
    "RUNNING",
    "Drain",
    "Thread",
    "drains",
    "end_late",
    "let_go",
    "pending",
    "start_afresh",
    "this_thread",
    "threads",
    "unended",
    "waiting",
    "watchers",
]

# The states are the standard library's own words: its `wait` and `as_completed` compare them.
PENDING = "PENDING"
RUNNING = "RUNNING"
ENDING = "ENDING"  # ours: no longer running, not yet done; to the standard library not done
CANCELLED = "CANCELLED_AND_NOTIFIED"
FINISHED = "FINISHED"


class Thread:
    """What a thread has done for us and does now; written by that thread alone, but `nudged`.

    The counts are kept a thread each because `count += 1` on a shared number loses
    increments; `stats` adds them up.
    """

    __slots__ = (
        "blocked",
        "call",
        "cancelled",
        "cpu",
        "dropped",
        "ended",
        "failed",
        "ident",
        "looked",
        "making",
        "marked",
        "nudged",
        "queue",
        "ran",
        "settling",
        "succeeded",
        "waited",
        "waits_for",
    )

    def __init__(self, ident: int) -> None:
        self.ident = ident
        self.call: Call[Any] | None = None  # the call that runs here now, the innermost one
        self.queue: object = None  # the queue whose worker this thread is
        self.waits_for: Call[Any] | None = None  # what the running call waits for
        self.nudged = False  # whether to look once more who holds that up; set by others
        self.making: Call[Any] | None = None  # the bounded call that this thread makes now
        # Set from the moment at which a call leaves the ledger until this thread has let go
        # of it: the time at which that call was made. `flush` waits for it too, so that a
        # failure that nobody can look at any more is logged before `flush` returns.
        self.settling: float | None = None
        self.succeeded = self.failed = self.cancelled = self.dropped = 0
        self.looked = 0  # failures that somebody looked at, since the last clearing
        self.waited = self.ran = self.blocked = 0.0  # seconds
        self.ended = 0.0  # when the last call ended
        self.cpu = self.marked = 0.0  # the thread's processor time at a moment, and that moment

    def mark(self, now: float) -> None:
        """Note how long this thread has computed so far; it is the running one."""
        self.cpu, self.marked = thread_time(), now


# The ledger: every call that is not done, in the order in which they were made.
pending: dict[Call[Any], None] = {}
# The arguments of those that nobody has taken. Whoever pops them may run or cancel the call:
# it is one dict operation, so there is one winner, whichever threads try. (A one-element
# list in each call would do, too, but costs 30 bytes and a fifth of the collector's work more.)
waiting: dict[Call[Any], tuple[Any, ...]] = {}
# By thread ident. An entry outlives its thread and is taken over by the next thread of the
# same ident, so there are never more than there were threads at once.
threads: dict[int, Thread] = {}
drains: list[Drain] = []
# One at most, while `configure(debug=True)` holds: it sees each call before anyone knows it.
watchers: list[Callable[[Call[Any], tuple[Any, ...]], None]] = []
_get_ident = threading.get_ident


def this_thread() -> Thread:
    """Return the running thread's entry."""
    ident = _get_ident()
    return threads.get(ident) or threads.setdefault(ident, Thread(ident))


# Calls whose end was interrupted, by Ctrl-C or at the end of the stack; by what, unless they
# were just being cancelled; and in which thread.
unended: deque[tuple[Call[Any], BaseException | None, Thread | None]] = deque()


def end_late() -> None:
    """End the calls whose end was interrupted."""
    while unended:
        call, error, thread = unended[0]
        if call._owner is None or call._owner is thread:  # else another one had been faster
            call._abandon(this_thread(), error)
        with suppress(IndexError, ValueError):  # another thread did the same
            unended.remove((call, error, thread))
        del call, error, thread


def let_go(here: Thread, shared: Shared | None, settling: float | None = None) -> None:
    """Wake those who wait for a call that this thread has just let go of.

    `settling` is that of a call that this one came in the middle of the end of.
    """
    here.settling = settling
    if shared is not None:
        shared.ring()
    for drain in drains and drains.copy():  # a copy: as in `_settle`
        if drain.watched is None and drain.bell.empty():
            drain.bell.put(None)


class Drain:
    """A wait for every call made before a moment, and for those that they make.

    It watches one call in the middle of those that are left, and looks again when that is
    done. So it wakes up about as often as their number can be halved, in whatever order they
    end, and of all others a worker needs to know nothing.
    """

    def __init__(self, before: float, *, at_exit: bool = False) -> None:
        self.before = before
        self.at_exit = at_exit  # then not for calls that go on without this program
        self.watched: Call[Any] | None = None
        self.bell: SimpleQueue[None] = SimpleQueue()

    def __enter__(self) -> Drain:
        if unended:
            end_late()
        drains.append(self)
        try:
            for executor in {call._executor for call in self.left()}:
                executor._wake()
        except BaseException:  # Ctrl-C
            drains.remove(self)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        drains.remove(self)
        self.watched = None  # the traceback of a `FlushTimeout` keeps this

    def wait(self, seconds: float | None = None) -> bool:
        """Return True once all is done, False if that takes longer than `seconds`."""
        left = math.inf if seconds is None else seconds
        deadline = monotonic() + left
        while self._look():
            while True:
                # At most 0.5 s at a time: a Ctrl-C that lands just before a wait begins is only
                # noticed when it returns (1 in 10 in our tests at exit).
                pause = min(left, 0.5)
                try:
                    self.bell.get(timeout=pause)
                    break
                except Empty:
                    left -= pause  # not by the clock, which tests freeze
                    if left <= 0:
                        return False
            left = max(min(left, deadline - monotonic()), 0)
        return True

    def _look(self) -> bool:
        """Look through the ledger; return whether something is left.

        A worker takes its call off the ledger first and looks second whether it is watched;
        here it is the other way round, so that one of both sees the other. A call that is off
        the ledger and not yet let go of is `settling`, and who lets go of it rings.
        """
        while calls := self.left():
            self.watched = calls[len(calls) // 2]
            if self.watched in pending:
                return True
        self.watched = None
        return any(
            (settling := thread.settling) is not None and settling <= self.before
            for thread in list(threads.values())
        )

    def left(self) -> list[Call[Any]]:
        """Return the calls that are waited for and not done."""
        return [
            call
            for call in list(pending)
            if call._born <= self.before and not (self.at_exit and call._executor._outlives)
        ]

    def calls(self) -> list[Call[Any]]:
        """Return what is left, the running calls first, each group the oldest first."""
        return sorted(self.left(), key=lambda call: (call._owner is None, call._since))


def start_afresh() -> None:
    """Empty the ledger in the child of a fork, whose other threads are gone.

    What the parent waits for will never be done here: it is cancelled, so that nobody waits
    for it for ever. No callback runs: the child is not where they were meant to.
    """
    for call in list(pending):
        shared = call.__dict__.pop("shared", None)
        call._shared = None  # its lock may be held by a thread that is gone
        call._state = CANCELLED
        if shared is not None:  # this thread may wait for it, interrupted by the fork
            shared.ring()
    pending.clear()
    waiting.clear()
    threads.clear()
    drains.clear()
