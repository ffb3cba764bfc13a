"""The bound on a function's waiting calls (C5).

A `Backlog` belongs to one decorated function. Its `calls` are those that hold a place: they
wait to start, or are just being made. Like the ledger it has no lock, for the same reasons.
Who wants a place inserts the call first and counts afterwards (`_try`), so that of several
who want the last one exactly the first in the dict gets it; to give a place back is one
`pop`, which may come twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic
from types import FrameType
from typing import Any, Literal, TypeVar
from weakref import WeakSet

from background._core.call import Call
from background._core.executor import Executor, put
from background._core.ledger import Thread, pending, this_thread, waiting
from background._core.naming import describe
from background._core.telling import WARNING, report
from background._core.waiting import Shared
from background._errors import BacklogFull
from background._flush import PATIENCE, standing

__all__ = ["Backlog", "Overflow", "check_bound", "put_bounded"]

T = TypeVar("T")
Overflow = Literal["block", "drop_oldest", "drop_newest", "raise"]
OVERFLOWS = ("block", "drop_oldest", "drop_newest", "raise")


def check_bound(max_pending: object, overflow: object) -> None:
    """Raise an error that says what to write, unless the options make sense together."""
    if overflow not in OVERFLOWS:
        raise ValueError(f"overflow must be one of {', '.join(OVERFLOWS)}, not {overflow!r}")
    if max_pending is None:
        if overflow != "block":
            raise TypeError(
                f"overflow={overflow!r} says what happens beyond a bound, and there is none: "
                "add max_pending=…, the number of calls that may wait"
            )
    elif not isinstance(max_pending, int) or isinstance(max_pending, bool):
        raise TypeError(f"max_pending must be a whole number or None, not {max_pending!r}")
    elif max_pending <= 0:
        raise ValueError(
            f"max_pending must be greater than 0, not {max_pending}; "
            "leave it out for no bound, or use InlineExecutor() to let no call wait"
        )


class BoundedCall(Call[T]):
    """A call that holds a place in a backlog until it starts or is cancelled."""

    __slots__ = ("_backlog",)
    _backlog: Backlog

    def _start(self, here: Thread, now: float = 0.0) -> tuple[Any, ...] | None:
        args = super()._start(here, now)
        if args is not None:
            self._backlog.leave(self)
        return args

    def _settle(self, here: Thread, state: str) -> Shared | None:
        shared = super()._settle(here, state)
        self._backlog.leave(self)
        return shared

    def _abandon(self, here: Thread, error: BaseException | None) -> None:
        super()._abandon(here, error)
        self._backlog.leave(self)


class Waiter:
    """A thread that is held up. The bell rings when it should try again."""

    __slots__ = ("bell", "ident")

    def __init__(self, ident: int) -> None:
        self.ident = ident
        self.bell: SimpleQueue[None] = SimpleQueue()


class Backlog:
    """The waiting calls of one function, at most `max_pending` of them."""

    def __init__(self, max_pending: int, overflow: str) -> None:
        self.max_pending = max_pending
        self.overflow = overflow
        self.calls: dict[Call[Any], None] = {}
        self.line: list[Waiter] = []  # who is held up, in the order in which they came
        _backlogs.add(self)

    def call(self) -> Call[Any]:
        call: BoundedCall[Any] = BoundedCall()
        call._backlog = self
        return call

    def enter(self, call: Call[Any]) -> bool:
        """Give the call a place, after waiting for it; return False if it was dropped."""
        here = this_thread()
        outer, here.making = here.making, call
        if self.overflow == "drop_oldest" or (not self.line and self._try(call)):
            return True
        if self.overflow == "block":
            # Who would wait for itself goes over the bound: a worker (perhaps the one that
            # frees places; to run another call here, as one that waits for a result does,
            # might meet a lock that this call holds), and a signal handler or `__del__` that
            # came while this very thread was between taking a place and filling it.
            if here.queue is not None or (outer is not None and outer._owner is None):
                self.calls[call] = None
            else:
                self._wait(call, here)
            return True
        if self.overflow == "raise":
            raise BacklogFull(
                f"{describe(call)}, was not made: {self.max_pending} calls of it wait already "
                f"(max_pending={self.max_pending}); wait for one of their futures, or choose "
                "overflow='block' or 'drop_oldest'",
                describe(call).partition("(…)")[0],
                self.max_pending,
            )
        waiting[call] = ()
        call._drop()  # its executor never had it
        here.dropped += 1
        return False

    def entered(self, call: Call[Any]) -> None:
        # A place that may be taken away is one of a call that can be.
        if self.overflow == "drop_oldest":
            self.calls[call] = None

    def _try(self, call: Call[Any]) -> bool:
        """Give the call a place if there is one."""
        calls, limit = self.calls, self.max_pending
        if len(calls) >= limit:
            return False
        calls[call] = None
        # Several may have come so far with one place left: those that inserted first have it.
        if len(calls) <= limit or call in list(calls)[:limit]:
            return True
        self.leave(call)
        return False

    def _wait(self, call: Call[Any], here: Thread) -> None:
        """Wait in line for a place.

        Only the first in the line tries, so nobody overtakes. A place is given back before
        the bell of the first one is rung (`leave`), and who becomes the first is rung, too;
        so whoever tried in vain and then sleeps is rung after the next place is free.
        """
        start, patience = monotonic(), PATIENCE
        # What interrupted this thread while it was held up here stands where this thread
        # stands: behind itself it would wait for ever.
        mine = [waiter for waiter in self.line.copy() if waiter.ident == here.ident]
        waiter = mine[0] if mine else Waiter(here.ident)
        try:
            if not mine:
                self.line.append(waiter)
            while not (self._is_first(waiter) and self._try(call)):
                here.making = None  # it holds no place: what interrupts it may wait as well
                with suppress(Empty):
                    waiter.bell.get(timeout=max(start + patience - monotonic(), 0))
                here.making = call
                if monotonic() - start >= patience:
                    self._tell(call, monotonic() - start)
                    patience *= 10
        finally:
            # No function of Python's before both steps: Ctrl-C would strike at its start, and
            # whoever stands in line would wait behind a waiter that is gone.
            try:
                if not mine:
                    self.line.remove(waiter)
            except ValueError:  # in the child of a fork, which is in no line
                pass
            finally:
                for first in self.line[:1]:
                    first.bell.put(None)
            here.blocked += monotonic() - start
        now = monotonic()  # it is made only now, unless a call makes it
        if call._born == call._since:
            call._born = now
        call._since = now

    def _is_first(self, waiter: Waiter) -> bool:
        # In the child of a fork, which is in no line, everybody is the first.
        return waiter in self.line[:1] or waiter not in self.line

    def leave(self, call: Call[Any]) -> None:
        """Give back the place of a call that does not wait any more."""
        self.calls.pop(call, None)
        if self.line:
            self._ring()

    def _ring(self) -> None:
        with suppress(IndexError):
            self.line[0].bell.put(None)

    def trim(self) -> None:
        """Cancel the oldest calls beyond the bound."""
        while True:
            try:
                oldest = next(iter(self.calls))
            except (StopIteration, RuntimeError):  # empty, or changed between the two steps
                if not self.calls:
                    return
                continue
            # In this order: when there were too many, the one found was the oldest or gone.
            if len(self.calls) <= self.max_pending:
                return
            if oldest._withdraw():
                this_thread().dropped += 1
            self.leave(oldest)  # if it could not be taken, it starts just now

    def _tell(self, call: Call[Any], seconds: float) -> None:
        """Log what holds a caller up (T2)."""
        runs = [c for c in list(pending) if c._executor is call._executor and c not in waiting]
        for first in runs[:1] or list(self.calls)[:1]:
            report(
                WARNING,
                "%s, has been held up for %.0f s by max_pending=%d: %s %s",
                describe(call),
                seconds,
                self.max_pending,
                describe(first),
                standing(first),
            )


def put_bounded(
    executor: Executor,
    function: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    frame: FrameType,
    backlog: Backlog,
) -> Call[T]:
    """Make a call, as `put` does, once there is a place for it."""
    here = this_thread()
    outer = here.making
    try:
        # No local variable holds it: as in `put`.
        return put(executor, function, args, kwargs, frame, backlog)
    except BaseException:
        if here.making is not None and here.making is not outer:
            backlog.leave(here.making)
        raise
    finally:
        here.making = outer
        if backlog.overflow == "drop_oldest":
            backlog.trim()


_backlogs: WeakSet[Backlog] = WeakSet()


def _start_afresh() -> None:
    """Free all places in the child of a fork."""
    for backlog in list(_backlogs):
        backlog.calls.clear()
        for waiter in backlog.line.copy():  # this thread may be one, interrupted by the fork
            waiter.bell.put(None)
        backlog.line.clear()


os.register_at_fork(after_in_child=_start_afresh)
