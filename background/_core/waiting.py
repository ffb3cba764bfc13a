"""Waits for one call: what those who wait share, helping, and waits in a circle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from queue import Empty, SimpleQueue
from time import monotonic
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from background._core.circles import held_up_by, standard_wait
from background._core.future import Future
from background._core.ledger import ENDING, Thread, threads, waiting
from background._core.naming import describe

if TYPE_CHECKING:
    from background._core.call import Call

__all__ = ["Shared", "Waits", "nudge_all"]

T = TypeVar("T")
_get_ident = threading.get_ident


def nudge_all() -> None:
    """Have the workers that wait for a call look once more who holds it up."""
    for thread in list(threads.values()):
        if (call := thread.waits_for) is not None:
            thread.nudged = True
            # Who has none yet sees the nudge before it waits.
            if (shared := call._shared) is not None:
                shared.ring()


class Shared:
    """What those who wait for one call share."""

    __slots__ = ("bells", "callbacks", "calls_back", "lock", "waiters")

    def __init__(self) -> None:
        self.bells: list[SimpleQueue[None]] = []  # of the threads that wait, one a wait
        self.callbacks: list[Callable[[Any], object]] = []
        self.calls_back = False  # its worker is busy with callbacks though the call is done
        # For the standard `wait` and `as_completed` alone, which need the state to stand still
        # while they look at it and leave a waiter. Our own waits don't take it: Ctrl-C may strike
        # between the taking and the `try`, and would hold up the worker, who changes the state.
        self.lock = threading.RLock()
        self.waiters: list[Any] = []

    def ring(self) -> None:
        for bell in self.bells.copy():
            bell.put(None)


class Waits(Future[T]):
    """A future as far as it is waited for, without the standard future's lock.

    The fields of the standard future are slots here; what those who wait share is made when
    the first one asks for it, which for most calls is never. `put` fills them in.
    """

    __slots__ = (
        "_born",
        "_code",
        "_context",
        "_error",
        "_executor",
        "_function",
        "_kwargs",
        "_offset",
        "_owner",
        "_result",
        "_shared",
        "_since",
        "_state",
    )
    _state: str
    _result: Any  # of type T
    _error: BaseException | None
    _shared: Shared | None
    _function: Any  # what to call; the name for messages once the call is done
    _kwargs: Any  # a dict or None, or what `_pack` has put in its place
    _executor: Any  # an `Executor`, which takes calls, as every future is one
    _context: Any  # of the caller; None once the call is done, like its arguments
    # The place of the call, turned into a line only if somebody asks. The frame itself would
    # keep the caller's locals alive.
    _code: CodeType
    _offset: int
    _owner: Thread | None  # the thread that runs it
    _since: float  # in its state: waiting since, then running since
    # When it was made. A call made by a call, or by the log of its failure, counts as made
    # when that one was: who waits for the one waits for the other.
    _born: float

    if TYPE_CHECKING:  # what every future has, for it is a `Call`

        def _run_now(self, here: Thread) -> None: ...

    def __await__(self) -> Generator[Any, None, T]:
        here = threads.get(_get_ident())
        if here is not None and here.call is self:
            raise RuntimeError(f"{describe(self)} awaits itself: that wait would never end")
        if not self.done() and not self._executor._overlaps:
            self._executor._wake()
            self._help()  # F4: a worker that awaits, in a loop of its own
        if here is not None and here.call is not None and here.call._executor._overlaps:
            return self._await_in(here.call)
        return super().__await__()

    def _await_in(self, coroutine: Call[Any]) -> Generator[Any, None, T]:
        """Wait in a coroutine or a task of it: who waits for that may have to run this call."""
        awaited, key = coroutine.__dict__.setdefault("awaited", {}), object()
        awaited[key] = self  # first: of two that wait, the second one sees both
        try:
            nudge_all()
            return (yield from super().__await__())
        finally:
            del awaited[key], self, coroutine  # as in `Future.__await__`

    def _awaited(self) -> list[Call[Any]]:
        """Return what the coroutine of this call awaits, in all of its tasks."""
        return list(self.__dict__.get("awaited", {}).values())

    def _wait(self, timeout: float | None) -> None:
        self._executor._wake()
        here = threads.get(_get_ident())
        deadline = None if timeout is None else monotonic() + timeout
        if here is None or (here.call is None and here.queue is None):
            return self._block(timeout, deadline)
        if self._help():
            return None
        outer = here.waits_for  # of what a `__del__` has interrupted
        try:
            while not self.done():
                here.nudged = False
                if not self._clear_way(here):
                    self._block(timeout, deadline, here)
            return None
        finally:
            here.waits_for, here.nudged = outer, True

    def _clear_way(self, here: Thread) -> bool:
        """Run what this call waits for and only this thread can run; return whether it did.

        Raises:
            RuntimeError: the call can't end before this thread goes on.
        """
        here.waits_for = cast(Any, self)  # first: of two that wait, the second one sees both
        free = held_up_by(cast(Any, self), here)
        if free is None:
            return False
        here.waits_for = None
        if not free:
            who = "this worker" if here.call is None else describe(here.call)
            raise RuntimeError(
                f"{who} waits for {describe(self)}, which can't end before it: "
                "that wait would never end; return the future instead of waiting for it"
            )
        free.pop(0)._run_now(here)
        return True

    def _block(
        self, timeout: float | None, deadline: float | None, here: Thread | None = None
    ) -> None:
        """Wait until the call is done, or this thread is nudged."""
        bell: SimpleQueue[None] = SimpleQueue()
        bells = self._share().bells
        bells.append(bell)  # first: the worker sets the state, then rings
        try:
            late = timeout is not None and timeout <= 0
            while not self.done() and not (here and here.nudged):
                if late:
                    raise TimeoutError(f"{describe(self)} is not done after {timeout} s")
                try:
                    bell.get(timeout=None if deadline is None else max(deadline - monotonic(), 0))
                except Empty:
                    late = True  # whatever the clock says: tests freeze it
        finally:
            bells.remove(bell)

    def _help(self) -> bool:
        """Run the call if this thread is a worker that it waits for; return whether it is done."""
        here = threads.get(_get_ident())
        if here is None or here.queue is None:
            return False
        if not self.done() and self._executor._serves(here) and self in waiting:
            self._run_now(here)
        return self.done()

    def _share(self) -> Shared:
        """Return what all who wait for this call share; the first one makes it."""
        shared = self._shared
        if shared is None:
            # All who race here get the same one: dict.setdefault decides.
            shared = self.__dict__.setdefault("shared", Shared())
            self._shared = shared  # (3)
        return shared

    @property
    def _condition(  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> Any:
        # The standard `wait` and `as_completed` come here before they wait, and take it as a
        # lock. In a worker a call that has not started would never start: run it (F4).
        self._help()
        lock: Any = self._share().lock
        if not lock._is_owned():  # else it comes to give it back
            here = threads.get(_get_ident())
            if self._state is ENDING and self._owner is not here:  # (4)
                self._block(None, None)
            elif here is not None and here.call is not None and not self.done():
                self._before_standard_wait(here)
        return lock

    def _before_standard_wait(self, here: Thread) -> None:
        """Have a call that is about to wait by the standard library not wait for itself."""
        outer = here.waits_for
        try:
            while not self.done() and self._clear_way(here):
                pass
        except RuntimeError:
            wait = standard_wait(here)  # only now: it looks at all futures of the wait
            if wait is None or wait.can_never_end(here):
                raise
        finally:
            here.waits_for = outer

    @property
    def _waiters(  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> list[Any]:  # read by the standard library under that lock
        return self._share().waiters
