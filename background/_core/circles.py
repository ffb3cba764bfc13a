"""Waits in a circle: which calls can't end before a thread goes on."""

from __future__ import annotations

import concurrent.futures
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

from background._core.ledger import Thread, waiting

if TYPE_CHECKING:
    from background._core.call import Call

__all__ = ["StandardWait", "held_up_by", "standard_wait"]

_FILE = concurrent.futures.wait.__code__.co_filename


class StandardWait:
    """A thread's wait in `concurrent.futures.wait` or `as_completed`, which tell nobody of it."""

    def __init__(self, futures: list[Any], every: bool, timeout: float | None) -> None:
        # Of the futures that are not done.
        self.calls: list[Any] = [each for each in futures if hasattr(each, "_executor")]
        self.others = len(self.calls) < len(futures)  # whether there are futures of others
        self.every = every  # whether it ends only when all of them are done
        self.timeout = timeout

    def can_never_end(self, here: Thread) -> bool:
        """Tell whether it can't: one of the futures is known to wait for this thread."""
        return self.timeout is None and (
            self.every
            or (not self.others and all(held_up_by(call, here) == [] for call in self.calls))
        )


def standard_wait(thread: Thread) -> StandardWait | None:
    """Return what a thread waits for by the standard library's functions, or None."""
    frame: FrameType | None = sys._current_frames().get(thread.ident)
    for _ in range(12):  # they are near its end: below them are only locks and this
        if frame is None:
            return None
        name = frame.f_code.co_name
        if frame.f_code.co_filename == _FILE and name in ("wait", "as_completed"):
            local = frame.f_locals
            futures = [future for future in list(local.get("fs") or ()) if not future.done()]
            every = name == "wait" and local.get("return_when") == concurrent.futures.ALL_COMPLETED
            return StandardWait(futures, every, local.get("timeout"))
        frame = frame.f_back
    return None


def held_up_by(call: Call[Any], here: Thread) -> list[Call[Any]] | None:
    """Return None if `call` may end before the thread `here` goes on.

    Else the calls that would have to start first and wait for workers that wait, this thread
    among them: it may run them.
    """
    # What holds up each call: one that waits starts when one of its executor's workers is
    # free, one that runs goes on when what its thread waits for is done, and a coroutine, for
    # all we know, when all that it awaits is.
    needs: dict[Any, list[Any]] = {}
    moving: set[Any] = set()
    ours: set[Any] = set()
    coroutines: set[Any] = set()
    conjunctions: set[Any] = set()  # waits that end only when all that they need has ended
    found: list[Any] = [call]
    for each in found:  # it grows
        if each in needs:
            continue
        if isinstance(each, StandardWait):
            calls = each.calls
            if each.every:
                conjunctions.add(each)
            if each.timeout is not None or (each.others and not each.every):
                calls = []  # it may end by itself, or by a future of somebody else
            if not calls:
                moving.add(each)
            needs[each] = calls
            found += calls
            continue
        if each in waiting:
            owners = each._executor._workers()
        else:
            owners = [] if each._owner is None else [each._owner]
        if here in owners:
            ours.add(each)
        waits: list[Any] = [
            owner.waits_for or (owner.call and standard_wait(owner))
            for owner in owners
            if owner is not here
        ]
        if None in waits and (awaited := each._awaited()):
            coroutines.add(each)
            waits = awaited
        if each.done() or not owners or None in waits:
            moving.add(each)
            waits = []
        needs[each] = waits
        found += waits
    before = -1
    while before != len(moving):
        before = len(moving)
        for each, waits in reversed(needs.items()):  # a chain in one round
            enough = all if each in coroutines or each in conjunctions else any
            if waits and enough(other in moving for other in waits):
                moving.add(each)
    stuck = [] if call in moving else [call]
    for each in stuck:  # it grows
        for other in needs[each]:
            if other not in moving:
                moving.add(other)  # no more than once
                stuck.append(other)
    # Others that wait in a circle are seen by the last of them. A coroutine may give up what
    # it awaits: there may be something to run for it, but to wait for it is no error.
    free = [each for each in stuck if each in waiting]
    if ours.isdisjoint(stuck) or (not free and not coroutines.isdisjoint(stuck)):
        return None
    return free
