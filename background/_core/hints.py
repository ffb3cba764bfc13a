"""What is said of calls that compute on a thread, and of backlogs that grow."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from background._core.ledger import Thread, waiting
from background._core.naming import describe, innermost
from background._core.telling import WARNING, report

if TYPE_CHECKING:
    from background._core.call import Call

__all__ = ["LONG", "computing", "forget_growth", "growth"]


class Growth:
    """How many calls wait: said at 10,000 and at each tenfold (C5)."""

    def __init__(self) -> None:
        self.mark = 1_000  # how many waiting calls are noted next, with the time
        self.marks: dict[int, float] = {}

    def note(self, call: Call[Any]) -> None:
        """Note that so many calls wait; say it at 10,000 and at each tenfold."""
        mark, now = self.mark, monotonic()
        if len(waiting) < mark or self.marks.setdefault(mark, now) is not now:
            return  # another thread was here first
        self.mark = mark * 10
        if mark == 1_000:
            return
        before = mark // 10
        seconds = max(now - self.marks[before], 1e-3)
        sample = list(waiting)[:: mark // 10_000]
        # Of one function are those that were made at one place.
        places = Counter((id(call._code), call._offset) for call in sample)
        most = places.most_common(1)[0][0]
        call = next((c for c in reversed(sample) if (id(c._code), c._offset) == most), call)
        report(
            WARNING,
            "%s calls wait to start, %s more than %.1f s ago (%s a second); most of them are %s; "
            "they come faster than they are done: bound them by @background(max_pending=…), or "
            "run them on a faster executor",
            f"{mark:,}",
            f"{mark - before:,}",
            seconds,
            f"{(mark - before) / seconds:,.0f}",
            describe(call),
        )


growth = Growth()


def forget_growth() -> None:
    """Start anew in the child of a fork."""
    growth.mark = 1_000
    growth.marks.clear()


class Computing:
    """How long the functions that worker threads run have run, and computed meanwhile (T1).

    Only calls of more than a millisecond are measured, so that short ones cost nothing more.
    A thread's processor time is read at the end of such a call and when the thread wakes up;
    what lies between two readings besides the call is counted as computed by others, so that
    a function that waits is never blamed for their work.
    """

    def __init__(self) -> None:
        # By code, not by function: a closure that is made again and again is one entry.
        self.totals: dict[object, tuple[int, float, float]] = {}
        self.said: dict[object, object] = {}

    def add(self, call: Call[Any], here: Thread, now: float, ran: float) -> None:
        """Count a call that ran for `ran` seconds until `now`; say so once if it computes."""
        before, others = here.cpu, max(now - here.marked - ran, 0.0)
        here.mark(now)
        computed = min(max(here.cpu - before - others, 0.0), ran)
        function: object = innermost(call._function)
        is_code = isinstance(function, FunctionType | MethodType)  # others may raise when asked
        key: object = getattr(function, "__code__", None) if is_code else type(function)
        calls, total, cpu = self.totals.get(key, (0, 0.0, 0.0))
        calls, total, cpu = calls + 1, total + ran, cpu + computed
        self.totals[key] = calls, total, cpu
        mine = object()
        if total > 1.0 and cpu > 0.5 * total and self.said.setdefault(key, mine) is mine:
            report(
                WARNING,
                "%s computed for %.0f %% of the %.1f s that %d calls took: %.1f s in which a "
                "thread keeps the program from running; a process doesn't, where function and "
                "arguments can be pickled: @background(executor=ProcessExecutor())",
                describe(call),
                100 * cpu / total,
                total,
                calls,
                cpu,
            )


LONG = 0.001  # seconds
computing = Computing()
