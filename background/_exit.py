"""What happens at the program's end, and in the child of a fork."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from time import monotonic

from background._core.failures import forget_failures, log_unseen
from background._core.hints import forget_growth
from background._core.ledger import Drain, pending, start_afresh
from background._core.naming import describe
from background._core.telling import WARNING, report
from background._executors.elsewhere import at_end
from background._executors.workers import end_workers, forget_workers
from background._flush import standing, wait_and_tell
from background._settings import settings

__all__: list[str] = []


def drain_at_exit() -> None:
    """Wait for all calls before the program ends (W3)."""
    with suppress(KeyboardInterrupt):
        # Twice: for the calls that come while the first round ends.
        if drain_or_drop():
            end_workers()
            drain_or_drop()
        end_workers()
        log_unseen()
        if count := sum(call._executor._outlives for call in list(pending)):
            report(
                WARNING,
                "%d durable call%s go%s on without this program",
                count,
                "s" * (count != 1),
                "es" * (count == 1),
            )


def drain_before_pools_end() -> None:
    """Wait for all calls as long as the pools of others take and run any."""
    with suppress(KeyboardInterrupt):
        drain_or_drop(last=False)


def drain_before_others_end() -> None:
    """Wait for all calls before the `atexit` hooks of others, which close what calls use (B1).

    Children of `multiprocessing` may run no hook but this one: there it is the end itself (B2).
    """
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        drain_at_exit()
    else:
        drain_before_pools_end()


_given_up = False


def drain_or_drop(last: bool = True) -> bool:
    """Wait for all calls; return False if some were dropped instead."""
    global _given_up
    if not _given_up:
        why = wait_or_give_up()
        if why is None:
            return True
        _given_up = True
        drop(why)
    elif any(not call._executor._outlives and not call.running() for call in list(pending)):
        drop("the program's end has given up")  # calls that others' hooks made since
    if last:
        with suppress(ValueError):  # not the main thread: no Ctrl-C comes here
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
    return False


def wait_or_give_up() -> str | None:
    """Wait for all calls, whatever signal handlers raise; return why it was given up, if it was."""
    before = monotonic()  # of all rounds, so that `exit_timeout` starts once
    while True:
        with Drain(before, at_exit=True) as drain:
            try:
                if drain_or_tell(drain):
                    return None
                return f"exit_timeout={settings.exit_timeout} s has passed"
            except KeyboardInterrupt:
                return "interrupted"
            except BaseException:  # `sys.exit` in a handler of SIGTERM: we are ending already
                continue


def drain_or_tell(drain: Drain) -> bool:
    """Wait as long as `exit_timeout` allows; say so if it takes more than a second."""
    timeout = settings.exit_timeout
    deadline = None if timeout is None else drain.before + timeout
    if drain.wait(1.0 if timeout is None else min(1.0, timeout)):
        return True
    if timeout is None or timeout > 1.0:
        count = len(drain.calls())
        report(
            WARNING,
            "the program's end waits for %d background call%s; Ctrl-C drops them",
            count,
            "s" * (count != 1),
        )
    return wait_and_tell(drain, deadline, "the program's end")


def drop(why: str) -> None:
    """Cancel what has not started and say how many calls are dropped, and which one runs."""
    calls = [call for call in list(pending) if not call._executor._outlives]
    running = [
        f"; {describe(call)} {standing(call)}, and is given up" for call in calls if call.running()
    ]
    count = sum(call.cancel() for call in calls)
    report(
        WARNING,
        "%s: dropped %d background call%s that had not started%s",
        why,
        count,
        "s" * (count != 1),
        "".join(running),
    )


def after_fork() -> None:
    """Start with an empty ledger and new workers in the child of a fork (W4)."""
    global _given_up
    _given_up = False
    start_afresh()
    forget_failures()
    forget_growth()
    forget_workers()


atexit.register(drain_at_exit)
if register := getattr(threading, "_register_atexit", None):
    # Too late if the program ends already: then `atexit` alone has it.
    with suppress(RuntimeError):
        register(drain_before_others_end)
at_end.append(drain_before_pools_end)
os.register_at_fork(after_in_child=after_fork)
