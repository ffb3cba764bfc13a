"""What `configure` sets, and the default executor."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from background._core.executor import Executor
from background._core.ledger import watchers
from background._debug import watch
from background._executors.foreign import ForeignExecutor
from background._executors.threads import ThreadExecutor
from background._signals import check_signals
from background._signals import drain_on as drain_signals

__all__ = ["check_executor", "check_seconds", "configure", "settings"]


class Settings:
    """What `configure` sets."""

    def __init__(self) -> None:
        self.executor: Executor = ThreadExecutor()
        self.exit_timeout: float | None = None
        self.debug = False
        self.drain_on: tuple[int, ...] = ()


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
        drain_on: a signal, or several, that end the program as `sys.exit(128 + number)` does,
            draining the calls within `exit_timeout`: schedulers and containers send SIGTERM,
            whose default action loses all calls that wait. A handler that was there is
            called first; the same signal again ends the program at once. None, the default,
            leaves signals alone. For the main thread only.

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
        drain_on: int | Iterable[int] | None = _KEEP,
    ) -> None:
        if executor is not self._KEEP:
            executor = check_executor(executor)
        if exit_timeout is not self._KEEP:
            check_seconds("exit_timeout", exit_timeout)
        if debug is not self._KEEP and not isinstance(debug, bool):
            raise TypeError(f"debug must be True or False, not {debug!r}")
        if drain_on is not self._KEEP:
            drain_on = check_signals(drain_on)
        self._before = vars(settings).copy()
        given = {
            "executor": executor,
            "exit_timeout": exit_timeout,
            "debug": debug,
            "drain_on": drain_on,
        }
        vars(settings).update((k, v) for k, v in given.items() if v is not self._KEEP)
        self._apply()

    @staticmethod
    def _apply() -> None:
        watchers[:] = [watch] if settings.debug else []
        drain_signals(settings.drain_on)

    def __enter__(self) -> None:
        """Do nothing: the settings hold since the call."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        vars(settings).update(self._before)
        self._apply()
