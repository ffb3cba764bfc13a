"""`flush`, and what a wait says."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any

from background._core.call import Call
from background._core.failures import bury, failures
from background._core.ledger import Drain, threads, waiting
from background._core.naming import describe
from background._core.telling import WARNING, report
from background._errors import BackgroundError, FlushTimeout
from background._progress import Progress
from background._settings import check_seconds

__all__ = ["check", "flush", "standing", "wait_and_tell"]

EXCEPTION = "its exception was"
PATIENCE = 10.0  # seconds after which a wait says what holds it up; again at each tenfold


def flush(
    timeout: float | None = None, *, check: bool = False, progress: bool | None = None
) -> None:
    """Wait for every call made before, on any thread, and every call that those make.

    Args:
        timeout: seconds after which to give up; None waits for as long as it takes.
        check: raise the failures whose exceptions nobody has retrieved.
        progress: show a bar when the wait passes a second (a line every ten seconds where
            tqdm is not installed); None shows it if standard error is a terminal, and in a
            notebook.

    Raises:
        FlushTimeout: the calls took longer; nothing is lost, and a later flush goes on.
        BackgroundError: with `check`, calls failed whose exceptions were neither retrieved nor
            raised before; if others took longer than `timeout`, a note says so. Without
            `check` they are counted in one line of the log.
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
            if check and len(failures):
                raise_failures(timeout_of(drain, timeout))
            raise timeout_of(drain, timeout)
    bury()
    if check:
        raise_failures()
    elif count := failures.untold():
        report(
            WARNING,
            "%d background call%s failed and %s never retrieved; flush(check=True) raises %s",
            count,
            *(("s", "their exceptions were", "them") if count != 1 else ("", EXCEPTION, "it")),
        )


def check() -> None:
    """Raise what `flush(check=True)` would raise of the calls that are done, without waiting.

    It costs about a microsecond while all is well, so that a loop can call it at each step
    and end as soon as a call has failed.

    Raises:
        BackgroundError: calls failed whose exceptions were neither retrieved nor raised yet.

    >>> from background import background, check
    >>> future = background(pow)(2, 10)
    >>> check()
    """
    if len(failures):
        raise_failures()


def raise_failures(late: FlushTimeout | None = None) -> None:
    """Raise one error with the failures that nobody has retrieved, if there are any."""
    errors, count, logged = failures.take()
    if not errors:
        try:
            if late is not None:  # another thread was faster
                raise late
            return
        finally:
            del late  # the traceback holds this frame
    what = "their exceptions were" if count != 1 else EXCEPTION
    group = BackgroundError(
        f"{count} background call{'s' * (count != 1)} failed and {what} never retrieved"
        + (f"; the first {len(errors)} follow" if count > len(errors) else "")
        + ("; logged before" if logged == count else f"; {logged} logged before") * bool(logged),
        [as_exception(error) for error in errors],
    )
    group.count = count
    if late is not None:
        group.add_note(f"FlushTimeout: {late}")
    try:
        raise group
    finally:
        del errors, group  # the traceback holds this frame


def timeout_of(drain: Drain, timeout: float | None) -> FlushTimeout:
    """Return the error that says what is not done."""
    calls = drain.calls()
    names = tuple(describe(call) for call in calls[:10])
    what = f"{len(calls)} call{'s are' if len(calls) != 1 else ' is'} not done"
    if not calls:  # they have ended just now, or a failure is being logged
        what = "the end of a call is not done"
    return FlushTimeout(
        f"{what} after {timeout} s{': ' if calls else ''}{', '.join(names[:3])}"
        f"{', …' if len(calls) > 3 else ''}; flush again to go on waiting",
        len(calls),
        names,
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
            if deadline is not None and (until >= deadline or monotonic() >= deadline):
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
        report(
            WARNING,
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
