"""What the user of a call's future asks of it: its outcome, and to cancel it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, InvalidStateError
from typing import TYPE_CHECKING, Any, TypeVar

from background._core.failures import Guard
from background._core.ledger import (
    CANCELLED,
    ENDING,
    FINISHED,
    PENDING,
    RUNNING,
    this_thread,
)
from background._core.naming import describe
from background._core.waiting import Waits

__all__ = ["Results"]

T = TypeVar("T")


class Results(Waits[T]):
    """The future of a call without what its executor does with it."""

    __slots__ = ()

    if TYPE_CHECKING:  # what every future has, for it is a `Call`

        def _retract(self) -> bool: ...
        def _call_back(self, callback: Callable[[Any], object]) -> None: ...

    def cancel(self) -> bool:
        """Cancel the call unless it has started; return whether it is cancelled.

        Of several threads that cancel at the same moment one gets True; the others may get
        False, as if the call had just started.

        A coroutine that has started is asked to end: it gets `asyncio.CancelledError` at its
        next `await`. This is False all the same; the future is cancelled once the coroutine
        has let that error through, and has a result if it has not.
        """
        if self._withdraw():
            this_thread().cancelled += 1
            return True
        if self._state is CANCELLED:
            return True
        self._executor._interrupt(self)
        return False

    def _withdraw(self) -> bool:
        """Take the call back from whoever runs it, unless it has started."""
        executor = self._executor
        try:
            return executor._revoke(self) and self._retract()
        except BaseException:  # Ctrl-C between the two, say
            executor._resume(self)
            raise

    def cancelled(self) -> bool:
        """Return whether the call was cancelled before it started."""
        return self._state is CANCELLED

    def running(self) -> bool:
        """Return whether the call has started and is not done."""
        state = self._state
        return state in (RUNNING, ENDING) or (state is PENDING and self._executor._runs(self))

    def done(self) -> bool:
        """Return whether the call has an outcome or was cancelled."""
        state = self._state
        return state is FINISHED or state is CANCELLED

    def result(self, timeout: float | None = None) -> T:
        """Return what the call returned, or raise what it raised; wait `timeout` seconds."""
        error = self.exception(timeout)
        if error is None:
            result: T = self._result
            return result
        try:
            raise error
        finally:
            # The traceback holds this frame, and this frame the error and the future.
            del self, error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised, or None; wait at most `timeout` seconds for it."""
        if not self.done():
            self._wait(timeout)
        if self._state is CANCELLED:
            raise CancelledError
        if self._error is not None:
            self._look()
        return self._error

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn(future)` once the call is done: in its worker, or now if it is done."""
        if not self.done():
            callbacks = self._share().callbacks
            callbacks.append(fn)  # first: the worker sets the state, then pops them
            if not self.done():
                return
            try:
                callbacks.remove(fn)
            except ValueError:
                return  # it has been called
        self._call_back(fn)

    def set_result(self, result: T) -> None:
        """Raise `InvalidStateError`: the outcome of a call is set by its executor alone."""
        raise InvalidStateError(f"{describe(self)} gets its outcome from its executor")

    def set_exception(self, exception: BaseException | None) -> None:
        """Raise `InvalidStateError`: the outcome of a call is set by its executor alone."""
        raise InvalidStateError(f"{describe(self)} gets its outcome from its executor")

    def __repr__(self) -> str:
        state = self._state.partition("_")[0].lower()
        if self._state is FINISHED:
            error = self._error
            if error is None:
                state = f"returned {type(self._result).__name__}"
            else:
                state = f"raised {type(error).__name__}"
        return f"<Future of {describe(self)}: {state}>"

    def __reduce__(self) -> str:
        raise TypeError(
            f"the Future of {describe(self)} can't be pickled: it belongs to this process; "
            "pass on its result() instead"
        )

    def _look(self) -> None:
        """Note that somebody has seen the failure."""
        guard = self._function
        if type(guard) is Guard:
            guard.unseen.look()
            self._function = guard.unseen.name
