"""The default executor, `flush`, `configure`, `stats`, and what happens at fork and exit."""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any

from background._call import (
    RUNNING,
    Call,
    Drain,
    Executor,
    bury,
    describe,
    failures,
    log_unseen,
    logger,
    pending,
    start_afresh,
    threads,
    waiting,
    watchers,
)
from background._debug import watch
from background._elsewhere import at_end
from background._errors import BackgroundError, FlushTimeout
from background._executors.foreign import ForeignExecutor
from background._executors.threads import ThreadExecutor
from background._progress import Progress
from background._workers import end_workers, forget_workers

__all__ = ["Stats", "check_executor", "configure", "flush", "settings", "stats"]

PATIENCE = 10.0  # seconds after which a wait says what holds it up; again at each tenfold


class Settings:
    """What `configure` sets."""

    def __init__(self) -> None:
        self.executor: Executor = ThreadExecutor()
        self.exit_timeout: float | None = None
        self.debug = False


settings = Settings()


def check_executor(executor: object) -> Executor:
    """Return the executor, or raise a `TypeError` that says what to write."""
    if isinstance(executor, Executor):
        return executor
    if isinstance(executor, concurrent.futures.Executor):
        return ForeignExecutor(executor)
    hint = f"; write {executor.__name__}()" if isinstance(executor, type) else ""
    raise TypeError(f"executor must be a concurrent.futures.Executor, not {executor!r}{hint}")


def check_seconds(name: str, value: float | None) -> None:
    """Raise an error that says what to write, unless the value is a time to wait."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be seconds or None, not {value!r}")
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0 seconds, not {value!r}")


class configure:
    """Set what holds for the whole program; as a context manager, until its block ends.

    Args:
        executor: what runs the calls of functions that name no executor of their own.
        exit_timeout: how long the program's exit may wait for calls, in seconds; None, the
            default, for as long as it takes. What is not done by then is dropped, and said.
        debug: whether to look for arguments that change between a call and its start: a
            warning names the call and the argument, once for each function and argument. It
            reads all arguments twice; False, the default, costs nothing.

    What is not given stays as it is. Calls that were made before stay where they are.

    >>> from background import InlineExecutor, background
    >>> with configure(executor=InlineExecutor()):
    ...     background(pow)(2, 10).result()
    1024
    """

    _KEEP: Any = object()

    def __init__(
        self,
        *,
        executor: concurrent.futures.Executor = _KEEP,
        exit_timeout: float | None = _KEEP,
        debug: bool = _KEEP,
    ) -> None:
        if executor is not self._KEEP:
            executor = check_executor(executor)
        if exit_timeout is not self._KEEP:
            check_seconds("exit_timeout", exit_timeout)
        if debug is not self._KEEP and not isinstance(debug, bool):
            raise TypeError(f"debug must be True or False, not {debug!r}")
        self._before = vars(settings).copy()
        given = {"executor": executor, "exit_timeout": exit_timeout, "debug": debug}
        vars(settings).update((k, v) for k, v in given.items() if v is not self._KEEP)
        watchers[:] = [watch] if settings.debug else []

    def __enter__(self) -> None:
        """Do nothing: the settings hold since the call."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        vars(settings).update(self._before)
        watchers[:] = [watch] if settings.debug else []


def flush(
    timeout: float | None = None, *, check: bool = False, progress: bool | None = None
) -> None:
    """Wait for every call made before, on any thread, and every call that those make.

    Args:
        timeout: seconds after which to give up; None waits for as long as it takes.
        check: raise the failures that nobody has looked at.
        progress: show a bar when the wait passes a second (a line every ten seconds where
            tqdm is not installed); None shows it if standard error is a terminal, and in a
            notebook.

    Raises:
        FlushTimeout: the calls took longer; nothing is lost, and a later flush goes on.
        BackgroundError: with `check`, calls failed since the last `flush(check=True)` and
            nobody looked. Without it they are counted in one line of the log.
        RuntimeError: it was called from inside a background call, which would wait for itself.
        TypeError, ValueError: an option is not what it should be; the message says what it is.

    Ctrl-C ends the wait alone; the calls go on.

    >>> from background import background
    >>> future = background(pow)(2, 10)
    >>> flush()
    >>> future.done()
    True
    """
    check_seconds("timeout", timeout)
    if not isinstance(check, bool):
        raise TypeError(f"check must be True or False, not {check!r}")
    if not isinstance(progress, bool | None):
        raise TypeError(f"progress must be True, False or None, not {progress!r}")
    before = monotonic()
    here = threads.get(threading.get_ident())
    if here is not None and (here.call is not None or here.settling is not None):
        inside = "the end of a call" if here.call is None else describe(here.call)
        raise RuntimeError(
            f"flush() inside {inside} would wait for that call itself; "
            "wait for single futures by result(), or flush where the call was made"
        )
    with Drain(before) as drain:
        deadline = None if timeout is None else before + timeout
        if not wait_and_tell(drain, deadline, "flush()", progress):
            calls = drain.calls()
            names = tuple(describe(call) for call in calls[:10])
            what = f"{len(calls)} call{'s are' if len(calls) != 1 else ' is'} not done"
            if not calls:  # they have ended just now, or a failure is being logged
                what = "the end of a call is not done"
            raise FlushTimeout(
                f"{what} after {timeout} s{': ' if calls else ''}{', '.join(names[:3])}"
                f"{', …' if len(calls) > 3 else ''}; flush again to go on waiting",
                len(calls),
                names,
            )
    bury()
    if check:
        errors, count = failures.take()
        if errors:
            group = BackgroundError(
                f"{count} background call{'s' * (count != 1)} failed and nobody looked"
                + (f"; the first {len(errors)} follow" if count > len(errors) else ""),
                [as_exception(error) for error in errors],
            )
            group.count = count
            raise group
    elif count := failures.untold():
        logger.warning(
            "%d background call%s failed and nobody looked; flush(check=True) raises them",
            count,
            "s" * (count != 1),
        )


def as_exception(error: BaseException) -> Exception:
    """Return the error, or an `Exception` whose cause it is."""
    if isinstance(error, Exception):
        return error
    stand_in = RuntimeError(
        f"{type(error).__name__} in {(getattr(error, '__notes__', None) or ['a call'])[-1]}"
    )
    stand_in.__cause__ = error
    return stand_in


def wait_and_tell(
    drain: Drain, deadline: float | None, who: str, progress: bool | None = None
) -> bool:
    """Wait until the deadline; say what holds the wait up after ten seconds and each tenfold."""
    start = monotonic()
    patience = PATIENCE
    with Progress(drain, who, progress) as shown:
        while True:
            now = monotonic()
            tell_at = start + patience
            until = min(tell_at, shown.due, tell_at if deadline is None else deadline)
            if drain.wait(max(until - now, 0)):
                return True
            if deadline is not None and monotonic() >= deadline:
                return False
            if monotonic() >= tell_at:
                shown.hide()
                tell(drain, who, monotonic() - start)
                patience *= 10
            shown.show()


def tell(drain: Drain, who: str, seconds: float) -> None:
    """Log which call holds a wait up and where it stands now (T2)."""
    calls = drain.calls()
    if calls:
        first = calls[0]
        logger.warning(
            "%s has waited for %.0f s, for %d call%s: %s %s",
            who,
            seconds,
            len(calls),
            "s" * (len(calls) != 1),
            describe(first),
            standing(first),
        )


def standing(call: Call[Any]) -> str:
    """Return for how long a call has run and at which line it stands."""
    for_seconds = f"for {monotonic() - call._since:.0f} s"
    if call in waiting and not call.running():
        return f"has waited {for_seconds} to start"
    return f"runs {for_seconds}{call._executor._stands(call)}"


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


# -- Exit and fork -------------------------------------------------------------------------


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
            logger.warning(
                "%d durable call%s go%s on without this program",
                count,
                "s" * (count != 1),
                "es" * (count == 1),
            )


def drain_before_pools_end() -> None:
    """Wait for all calls as long as the pools of others take and run any."""
    with suppress(KeyboardInterrupt):
        drain_or_drop(last=False)


def drain_or_drop(last: bool = True) -> bool:
    """Wait for all calls; return False if some were dropped instead."""
    with Drain(monotonic(), at_exit=True) as drain:
        try:
            if drain_or_tell(drain):
                return True
            why = f"exit_timeout={settings.exit_timeout} s has passed"
        except KeyboardInterrupt:
            why = "interrupted"
        if last:
            with suppress(ValueError):  # not the main thread: no Ctrl-C comes here
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        drop(why)
        return False


def drain_or_tell(drain: Drain) -> bool:
    """Wait as long as `exit_timeout` allows; say so if it takes more than a second."""
    timeout = settings.exit_timeout
    deadline = None if timeout is None else drain.before + timeout
    if drain.wait(1.0 if timeout is None else min(1.0, timeout)):
        return True
    if timeout is None or timeout > 1.0:
        count = len(drain.calls())
        logger.warning(
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
    logger.warning(
        "%s: dropped %d background call%s that had not started%s",
        why,
        count,
        "s" * (count != 1),
        "".join(running),
    )


_forked = False


def drain_in_forked_child() -> None:
    # `multiprocessing` ends its forked children without atexit hooks, by this hook alone.
    if _forked:
        drain_at_exit()


def after_fork() -> None:
    """Start with an empty ledger and new workers in the child of a fork (W4)."""
    global _forked
    _forked = True
    start_afresh()
    forget_workers()


atexit.register(drain_at_exit)
if register := getattr(threading, "_register_atexit", None):
    register(drain_in_forked_child)
at_end.append(drain_before_pools_end)
os.register_at_fork(after_in_child=after_fork)
