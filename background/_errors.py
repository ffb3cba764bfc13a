"""The errors that the package itself raises."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import BrokenExecutor

__all__ = ["SHUT_DOWN", "BackgroundError", "BacklogFull", "FlushTimeout", "WorkerDied"]

SHUT_DOWN = (
    "this executor was shut down: it takes no calls any more; "
    "make a new executor, or shut it down after the last call"
)


class BackgroundError(ExceptionGroup[Exception]):
    """The failures that nobody had retrieved when `flush(check=True)` or `check()` was called.

    `exceptions` holds the first hundred of them, each with a note that says which call it
    was and where it was made; `count` is the number of all. A `SystemExit` or the like, which
    a group of exceptions can't hold, is the cause of a `RuntimeError` in its place.
    """

    def __init__(self, message: str, exceptions: Sequence[Exception], /) -> None:
        super().__init__(message, exceptions)
        self.count = len(exceptions)

    def derive(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, excs: Sequence[Exception], /
    ) -> BackgroundError:
        """Return a group of the same kind with other exceptions (`except*` and `split` use it)."""
        return BackgroundError(self.message, excs)


class FlushTimeout(TimeoutError):
    """`flush` ended before its calls did; nothing is lost, and a later flush goes on.

    `pending` is the number of calls that were not done, `calls` describes the first ten.
    """

    def __init__(self, message: str, pending: int = 0, calls: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.pending = pending
        self.calls = calls


class BacklogFull(RuntimeError):
    """A call was not made, because as many as may wait do already (`overflow="raise"`).

    `function` is the function's name, `max_pending` its bound.
    """

    def __init__(self, message: str, function: str = "", max_pending: int = 0) -> None:
        super().__init__(message)
        self.function = function
        self.max_pending = max_pending


class WorkerDied(BrokenExecutor):
    """The process that ran a call ended before the call did.

    Only the call that it ran fails; the next one gets a new worker. `exitcode` is what the
    process ended with, -9 if the signal 9 killed it, or None if that is not known.
    """

    def __init__(self, message: str, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.exitcode = exitcode
