"""What happens at the program's end, and in the child of a fork.

The program's end comes in two parts (docs/contract.md has the table). First, before any
`atexit` hook, and before the pools of `concurrent.futures` end, by a hook of `threading`:
then the runs, writers and sessions of other libraries are still open, whenever they were
opened. Then by `atexit`, for the calls that came later. The children of `multiprocessing`
know the first part alone: they run no `atexit` hooks before Python 3.13.
"""

from __future__ import annotations

import _thread
import atexit
import importlib
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic, sleep
from typing import Any, cast

from background._core.call import Call
from background._core.failures import forget_failures, log_unseen
from background._core.hints import forget_growth
from background._core.ledger import Drain, pending, start_afresh
from background._core.naming import describe
from background._core.telling import ERROR, WARNING, report
from background._executors.elsewhere import at_end, register_at_end
from background._executors.workers import end_workers, forget_workers
from background._flush import standing, wait_and_tell
from background._platform import leave_join, leave_threads, pool_threads
from background._settings import settings
from background._signals import forget_signals

__all__: list[str] = []


PAUSE = 0.1  # seconds between two tries of a wait that failed
TRIES = 100  # waits in a row that failed at once, by themselves


class ProgramEnd:
    """The state of the program's end: when it must be over, and with which exit status."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.announced = False
        self.given_up = False
        self.dropped = 0
        self.errors = 0
        self.status: int | None = None  # that a signal handler has asked for meanwhile

    def drain(self, *, last: bool = False) -> None:
        """Wait for all calls; whatever is raised in it, by signal handlers say, it goes on."""
        if self.began is None:
            self.began = monotonic()
        failed = 0
        start = self.began
        while not self.given_up:
            try:
                if failed:
                    sleep(PAUSE)
                    failed += 1  # unless a signal handler has raised: that is no fault of the wait
                start = monotonic()
                if failed > TRIES:
                    self.give_up(f"the wait has failed {TRIES} times")
                with Drain(monotonic(), at_exit=True) as drain:
                    if not self.wait(drain):
                        self.give_up(f"exit_timeout={settings.exit_timeout} s has passed")
                break
            except KeyboardInterrupt:
                self.give_up("interrupted")
            except BaseException as error:
                self.take_note(error)
                failed = max(failed, 1) if monotonic() - start < PAUSE / 4 else 1
        if last and self.given_up:
            with suppress(ValueError):  # not the main thread: no Ctrl-C comes here
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough

    def deadline(self) -> float | None:
        """Return when all must be over; soon, if the calls were given up."""
        ends: list[float] = []
        if self.began is not None and settings.exit_timeout is not None:
            ends.append(self.began + settings.exit_timeout)
        if self.given_up:
            ends.append(monotonic() + 1)
        return min(ends, default=None)

    def wait(self, drain: Drain) -> bool:
        """Wait as long as `exit_timeout` allows; say so if it takes more than a second."""
        timeout = settings.exit_timeout
        deadline = self.deadline()
        left = 1.0 if deadline is None else min(1.0, max(deadline - monotonic(), 0))
        if drain.wait(left):
            return True
        if not self.announced and (timeout is None or timeout > 1.0):
            self.announced = True
            count = len(drain.calls())
            report(
                WARNING,
                "the program's end waits for %d background call%s; Ctrl-C drops them",
                count,
                "s" * (count != 1),
            )
        return wait_and_tell(drain, deadline, "the program's end")

    def give_up(self, why: str) -> None:
        """Cancel what has not started, and say how many calls that were and what still runs."""
        self.given_up = True
        calls: list[Call[Any]] = []
        running: list[tuple[Call[Any], str]] = []
        for _ in range(3):  # a second Ctrl-C ends the step that hangs, a done callback say
            try:
                calls = [call for call in list(pending) if not call._executor._outlives]
                running = [
                    (call, f"; {describe(call)} {standing(call)}, and is given up")
                    for call in calls
                    if call.running()
                ]
                self.drop(calls)
                break
            except BaseException as error:
                self.take_note(error)
        # Given up means that nobody waits for it any more, its pool neither.
        ends = True
        for call, _ in running:
            try:
                ends = call._executor._give_up(call) and ends
            except BaseException as error:  # somebody's own pool
                self.take_note(error)
        if not ends:
            leave_threads()
            with suppress(RuntimeError):
                _thread.start_new_thread(end_anyway, ())
        self.say(
            WARNING,
            "%s: dropped %d background call%s that had not started%s",
            why,
            self.dropped,
            "s" * (self.dropped != 1),
            "".join(name for _, name in running),
        )

    def drop(self, calls: list[Call[Any]]) -> None:
        for call in calls:
            try:
                self.dropped += call.cancel()
            except Exception as error:  # somebody's own pool
                self.take_note(error)

    def say(self, level: int, message: str, *args: object, error: Any = None) -> None:
        """Report, though a signal handler raises meanwhile."""
        try:
            report(level, message, *args, error=error)
        except KeyboardInterrupt:
            if not self.given_up:
                self.give_up("interrupted")
        except SystemExit as asked:
            self.take_note(asked)

    def take_note(self, error: BaseException) -> None:
        """Keep the exit status that a signal handler asks for by `sys.exit` during the drain."""
        if isinstance(error, KeyboardInterrupt):
            return  # the next one: all is given up
        if not isinstance(error, SystemExit):
            self.errors += 1
            if self.errors in (1, 10, 100, 1_000, 10_000):  # a timer's handler raises again
                self.say(
                    ERROR,
                    "an exception in the wait at the program's end, which goes on%s",
                    f" (for the {self.errors}th time)" * (self.errors > 1),
                    error=error,
                )
            return
        code: Any = error.code
        if code is not None and not isinstance(code, int):
            self.status = 1
            self.say(ERROR, "%s", code)
        else:
            self.status = code or 0

    def keep_status(self) -> None:
        """Have the process end with the status that was asked for.

        Python has no way to change it at this point, and what other hooks do must be done
        first: so it happens as the names of `sys` go, which are the last but those of `builtins`,
        after all hooks, and after the files that modules hold have been closed.
        """
        if self.status is not None:
            setattr(sys, "_background_exit", ExitWith(self.status))  # noqa: B010


def end_anyway() -> None:
    """End the program once it waits for no threads any more but those that were given up.

    Only if the wait can't be left will the process end without the rest of its own end. Then
    of the exit status it is known only whether an exception has ended the program.
    """
    while not pool_threads.alone():
        sleep(0.1)
    for _ in range(10):
        if not leave_join():
            break
        sleep(0.1)
        if not pool_threads.alone():
            return
    with suppress(BaseException):
        cast(Any, atexit)._run_exitfuncs()
    failed = getattr(sys, "last_exc", getattr(sys, "last_value", None)) is not None
    ExitWith(int(failed) if end.status is None else end.status).__del__()


class ExitWith:
    """Ends the process, when it is deleted, with an exit status."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.exit = os._exit
        self.streams = sys.stdout, sys.stderr
        self.suppress = suppress  # the names of this module may be gone by then

    def __del__(self) -> None:
        for stream in self.streams:
            with self.suppress(BaseException):
                stream.flush()
        self.exit(self.status & 0xFF)


end = ProgramEnd()


def persist(step: Callable[[], object]) -> None:
    """Have a step of the end done, whatever is raised in it or between our own lines (W3)."""
    for _ in range(10):
        with suppress(BaseException):  # raised while the one before is dealt with
            try:
                step()
                return
            except KeyboardInterrupt:
                end.give_up("interrupted")
            except BaseException as error:
                end.take_note(error)


def drain_early() -> None:
    """Wait for all calls while other libraries and the pools still work (W3, B1)."""
    persist(end.drain)
    if _is_child or is_child_of_multiprocessing():  # which may run no hooks of `atexit`
        finish()


def drain_at_exit() -> None:
    """Wait for the calls that came since, and end the workers (W3)."""
    persist(partial(end.drain, last=True))
    finish()
    end.keep_status()


def finish() -> None:
    """End the workers, run what they have left, and report what nobody has retrieved."""
    for _ in range(2):  # for the calls that come while the first round ends
        persist(lambda: end_workers(end.deadline()))
        persist(partial(end.drain, last=True))
    persist(log_unseen)
    stored: dict[Any, int] = {}
    for call in list(pending):
        if call._executor._outlives:
            stored[call._executor] = stored.get(call._executor, 0) + 1
    for executor, count in stored.items():
        try:
            end.say(WARNING, "%s", executor._outlook(count))
        except BaseException as error:
            end.take_note(error)


def is_child_of_multiprocessing() -> bool:
    """Tell whether `multiprocessing` has made this process, by whatever method."""
    process: Any = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def drain_before_multiprocessing_ends(_: object = None) -> None:
    """Have a child of `multiprocessing` wait for all calls before its queues and managers end.

    Until Python 3.12 these end before the hooks of `threading`.
    """
    if "multiprocessing.process" not in sys.modules:
        return
    util: Any = importlib.import_module("multiprocessing.util")
    process: Any = importlib.import_module("multiprocessing.process")
    spawned = getattr(process.current_process(), "_inheriting", False)  # it imports `__main__`
    if spawned or is_child_of_multiprocessing():
        util.Finalize(None, lambda: persist(end.drain), exitpriority=1_000)
    if not is_child_of_multiprocessing():
        # It becomes one, perhaps: what is registered until then is forgotten there.
        util.register_after_fork(end, drain_before_multiprocessing_ends)


_is_child = False


def after_fork() -> None:
    """Start with an empty ledger and new workers in the child of a fork (W4)."""
    global end, _is_child
    _is_child = True
    end = ProgramEnd()
    forget_signals()
    start_afresh()
    forget_failures()
    forget_growth()
    forget_workers()
    drain_before_multiprocessing_ends()


atexit.register(drain_at_exit)
at_end.append(drain_early)
register_at_end()
drain_before_multiprocessing_ends()
os.register_at_fork(after_in_child=after_fork)
