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
import os
import signal
import sys
from contextlib import suppress
from time import monotonic, sleep
from typing import Any, cast

from background._core.failures import forget_failures, log_unseen
from background._core.hints import forget_growth
from background._core.ledger import Drain, pending, start_afresh
from background._core.naming import describe
from background._core.telling import ERROR, WARNING, report
from background._executors.elsewhere import at_end, register_at_end
from background._executors.workers import end_workers, forget_workers
from background._flush import standing, wait_and_tell
from background._settings import settings
from background._signals import forget_signals

__all__: list[str] = []


class ProgramEnd:
    """The state of the program's end: when it must be over, and with which exit status."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.given_up = False
        self.status: int | None = None  # that a signal handler has asked for meanwhile
        self.at_the_last: object = None

    def drain(self, *, last: bool) -> None:
        """Wait for all calls; whatever is raised in it, by signal handlers say, it goes on."""
        if self.began is None:
            self.began = monotonic()
        drained = False
        while not drained and not self.given_up:
            try:
                with Drain(monotonic(), at_exit=True) as drain:
                    if not self.wait(drain):
                        self.give_up(f"exit_timeout={settings.exit_timeout} s has passed")
                drained = True
            except KeyboardInterrupt:
                self.give_up("interrupted")
            except BaseException as error:
                self.take_note(error)
        if last and self.given_up:
            with suppress(ValueError):  # not the main thread: no Ctrl-C comes here
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough

    def wait(self, drain: Drain) -> bool:
        """Wait as long as `exit_timeout` allows; say so if it takes more than a second."""
        timeout = settings.exit_timeout
        assert self.began is not None
        deadline = None if timeout is None else self.began + timeout
        left = 1.0 if deadline is None else min(1.0, max(deadline - monotonic(), 0))
        if drain.wait(left):
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

    def give_up(self, why: str) -> None:
        """Cancel what has not started, and say how many calls that were and what still runs."""
        self.given_up = True
        calls = [call for call in list(pending) if not call._executor._outlives]
        running = [call for call in calls if call.running()]
        names = [f"; {describe(each)} {standing(each)}, and is given up" for each in running]
        count = sum(call.cancel() for call in calls)
        # Given up means that nobody waits for it any more, its pool neither.
        ends = [call._executor._give_up(call) for call in running]  # all of them
        if not all(ends):
            with suppress(RuntimeError):
                _thread.start_new_thread(end_anyway, ())
        report(
            WARNING,
            "%s: dropped %d background call%s that had not started%s",
            why,
            count,
            "s" * (count != 1),
            "".join(names),
        )

    def take_note(self, error: BaseException) -> None:
        """Keep the exit status that a signal handler asks for by `sys.exit` during the drain."""
        if not isinstance(error, SystemExit):
            report(
                ERROR,
                "an exception in the wait at the program's end, which goes on",
                error=error,
            )
            return
        code: Any = error.code
        if code is not None and not isinstance(code, int):
            report(ERROR, "%s", code)
            code = 1
        self.status = code or 0

    def keep_status(self) -> None:
        """Have the process end with the status that was asked for.

        Python has no way to change it at this point, and what other hooks do must be done
        first: so it happens as the last modules go, after all hooks and the last flush of the
        standard streams.
        """
        if self.status is not None:
            self.at_the_last = ExitWith(self.status)


def end_anyway() -> None:
    """End the process in a second, if it waits then for a thread that was given up.

    Of the exit status it knows only whether an exception has ended the program.
    """
    sleep(1.0)
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

    def __del__(self) -> None:
        for stream in self.streams:
            with suppress(Exception):
                stream.flush()
        self.exit(self.status & 0xFF)


end = ProgramEnd()


def drain_early() -> None:
    """Wait for all calls while other libraries and the pools still work (W3, B1)."""
    try:
        end.drain(last=False)
        if _is_child:  # of `multiprocessing`, perhaps, which runs no hooks of `atexit`
            finish()
    except BaseException as error:  # between our own lines
        end.take_note(error)


def drain_at_exit() -> None:
    """Wait for the calls that came since, and end the workers (W3)."""
    try:
        end.drain(last=True)
        finish()
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        end.take_note(error)
    end.keep_status()


def finish() -> None:
    """End the workers, run what they have left, and report what nobody has retrieved."""
    deadline = None
    if settings.exit_timeout is not None and end.began is not None:
        deadline = end.began + settings.exit_timeout
    for _ in range(2):  # for the calls that come while the first round ends
        try:
            end_workers(deadline)
            end.drain(last=True)
        except KeyboardInterrupt:
            end.give_up("interrupted")
        except BaseException as error:
            end.take_note(error)
    log_unseen()
    stored: dict[Any, int] = {}
    for call in list(pending):
        if call._executor._outlives:
            stored[call._executor] = stored.get(call._executor, 0) + 1
    for executor, count in stored.items():
        report(WARNING, "%s", executor._outlook(count))


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


atexit.register(drain_at_exit)
at_end.append(drain_early)
register_at_end()
os.register_at_fork(after_in_child=after_fork)
