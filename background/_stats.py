"""`stats`: how many calls there were, and the time that they took."""

from __future__ import annotations

from dataclasses import dataclass

from background._core.ledger import RUNNING, pending, threads, waiting

__all__ = ["Stats", "stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """How many calls there were, and the time that they took; see `stats`."""

    submitted: int
    waiting: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    dropped: int
    seconds_waiting: float
    seconds_running: float
    seconds_blocked: float


def stats() -> Stats:
    """Return the counts of all calls of this process so far.

    submitted = waiting + running + succeeded + failed + cancelled + dropped, always. The
    seconds are sums over calls: how long those that started or were cancelled had waited, how
    long those that are done ran, and how long callers were held up.

    The numbers are read while the workers go on, one after the other.
    """
    records = list(threads.values())
    count = len(waiting)
    running = sum(call._state is RUNNING for call in list(pending))
    done = {
        name: sum(getattr(record, name) for record in records)
        for name in ("succeeded", "failed", "cancelled", "dropped")
    }
    return Stats(
        submitted=count + running + sum(done.values()),
        waiting=count,
        running=running,
        **done,
        seconds_waiting=sum(record.waited for record in records),
        seconds_running=sum(record.ran for record in records),
        seconds_blocked=sum(record.blocked for record in records),
    )
