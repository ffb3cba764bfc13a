"""Calls that run outside of this package's workers: their outcome, and the program's end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from background._core.call import Call
from background._core.ledger import let_go, this_thread, unended

__all__ = ["at_end", "drain_before_end_of", "end_call", "has_ended", "register_at_end"]

# What is called before the pools end: theirs are hooks of `threading`, earlier than `atexit`.
at_end: list[Callable[[], object]] = []
_hooked: set[type] = set()
_ended = False


def drain_before_end_of(pool: object) -> None:
    """Have the program's end wait for all calls before pools of this kind end.

    Asked at the first call, not earlier: loky registers its own hook at its first call, and
    they run in the reverse order. It is too late if the program ends already.
    """
    if type(pool) not in _hooked:
        _hooked.add(type(pool))
        register_at_end()


def register_at_end() -> None:
    """Have the program's end wait for all calls before all that has been registered so far.

    By the hooks of `threading`, which run before those of `atexit`, the last one first.
    """
    with suppress(RuntimeError, AttributeError):  # it ends already; or Python has them no more
        threading._register_atexit(_before_pools_end)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def _before_pools_end() -> None:
    global _ended
    for drain in at_end:
        drain()
    _ended = True


def has_ended() -> bool:
    """Tell whether the program's end has waited for the pools: they take no calls any more."""
    return _ended


def end_call(pool: object, call: Call[Any], result: Any, error: BaseException | None) -> None:
    """End a call by what came of it elsewhere."""
    here = this_thread()
    outer, settling = here.queue, here.settling
    shared = None
    try:
        here.queue = pool  # its done callbacks run on one of the pool's threads
        if call._start(here) is not None:
            shared = call._finish(here, result, error)
    except BaseException as strike:  # Ctrl-C
        unended.append((call, strike, here))
        here.settling = settling
        raise
    finally:
        here.queue = outer
    del call, result, error
    try:
        let_go(here, shared, settling)
    except BaseException:  # as in `Call._run_now`
        let_go(here, shared, settling)
        raise
