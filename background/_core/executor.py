"""The seam between calls and those who run them: `Executor`, and `put`, which makes a call."""

from __future__ import annotations

import concurrent.futures
import contextvars
import sys
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from time import monotonic
from types import FrameType
from typing import Any, ParamSpec, Protocol, TypeVar

from background._core.call import Call
from background._core.future import Future
from background._core.hints import growth
from background._core.ledger import (
    PENDING,
    Thread,
    end_late,
    pending,
    this_thread,
    threads,
    unended,
    waiting,
    watchers,
)
from background._core.naming import where

__all__ = ["Bound", "Executor", "put", "run_here", "stand_in"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_get_ident = threading.get_ident
_copy_context = contextvars.copy_context


class Bound(Protocol):
    """What `put` asks about a function whose waiting calls are bounded."""

    def call(self) -> Call[Any]:
        """Return an empty call, of a kind that gives its place back when it starts."""
        ...

    def enter(self, call: Call[Any]) -> bool:
        """Give the call a place, perhaps after waiting; return False if it was cancelled."""
        ...

    def entered(self, call: Call[Any]) -> None:
        """Note that the call is in the ledger."""
        ...


def put(
    executor: Executor,
    function: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    frame: FrameType,
    bound: Bound | None,
) -> Call[T]:
    """Make a call: write it into the ledger and hand it to its executor.

    What the caller pays for, measured piece by piece on CPython 3.11 (nanoseconds): the
    wrapper 155, of that its frame 15; the call 185, of that its clock 40, this thread's entry
    30 and the context 15; the ledger, as it grows, 250; the executor's queue and bell 50. In a
    burst the collector adds 150, and the worker's share of the interpreter's lock 450.
    """
    call: Call[T] = Call() if bound is None else bound.call()
    call._state = PENDING
    call._error = call._shared = call._owner = None
    call._function = function
    call._kwargs = kwargs
    call._executor = executor
    call._context = _copy_context()
    call._code = frame.f_code
    call._offset = frame.f_lasti
    call._since = call._born = monotonic()
    here = threads.get(_get_ident())
    if here is not None:
        if here.call is not None:
            call._born = here.call._born
        elif here.settling is not None:
            call._born = here.settling
    # Ctrl-C can strike between any two lines. Before the try nothing is written, inside it
    # everything is taken back: a call is made whole or not at all.
    try:
        if bound is not None and not bound.enter(call):
            return call
        if executor._packs:
            args = executor._pack(call, args)
        elif watchers:
            watchers[0](call, args)
        waiting[call] = args  # first: `_retract` finds it here
        pending[call] = None
        if bound is not None:
            bound.entered(call)
        executor._accept(call)
    except BaseException:
        try:
            executor._revoke(call)  # if it has the call already
            call._retract()  # unless somebody took it already: then it runs
        except BaseException:  # Ctrl-C once more, or the end of the stack
            unended.append((call, None, here))
        raise
    if len(waiting) >= growth.mark:
        growth.note(call)
    if call._error is None:
        return call
    # It failed on this thread: its traceback keeps this frame, which must not keep the future.
    box = [call]
    del call
    return box.pop()


def stand_in(function: object, born: float) -> Call[Any]:
    """Return what stands for a call that this process runs for another, made at `born`."""
    call: Call[Any] = Call()
    call._executor = Executor._after
    call._function = f"{getattr(function, '__qualname__', type(function).__qualname__)}(…)"
    call._born = born
    return call


def run_here(call: Call[Any]) -> None:
    """Run a call on the caller's thread, unless it was taken."""
    here = this_thread()
    try:
        call._run_now(here)
    except BaseException:  # Ctrl-C between two of our own lines, or the end of the stack
        with suppress(RecursionError):  # then whoever comes next, higher up, ends it
            end_late()
        raise
    raised = call._error
    if isinstance(raised, KeyboardInterrupt):
        call._look()
    del call  # as in `put`
    try:
        if isinstance(raised, KeyboardInterrupt):
            raise raised  # Ctrl-C in the call is meant for the program
    finally:
        del raised


class Executor(concurrent.futures.Executor):
    """What every executor of this package is; `_accept` is the seam.

    A new executor takes a call and sees to it that somebody runs it by `Call._run` or, where
    it runs outside this process or as a coroutine, brackets it by `Call._start` and
    `Call._finish`; whoever did lets go of the call, then calls `let_go`. `submit` and
    everything else follow from that.
    """

    _overlaps = False  # whether calls overlap on one thread, as coroutines do
    _hints = True  # whether a call that computes on its thread is told of (T1)
    _packs = False  # whether `_pack` is asked; an attribute, because every call pays for it
    _outlives = False  # whether calls go on without this program, so that its end needn't wait
    _after: Executor  # stands in the place of the executor of a call that is done

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call `fn(*args, **kwargs)` in the background and return its future at once."""
        try:
            frame = sys._getframe(1)
        except ValueError:  # called by C, on a thread without Python code
            frame = sys._getframe(0)
        return put(self, fn, args, kwargs or None, frame, None)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **options: Any,
    ) -> Iterator[R]:
        """Return the results of `fn` over the items of the iterables, in their order.

        Args:
            fn: the function.
            *iterables: what its arguments come from, as for the builtin `map`.
            timeout: seconds from this call after which waiting for a result raises a
                `TimeoutError`; None waits for as long as it takes.
            chunksize: how many items travel as one call to an executor that runs calls in other
                processes; for others it has no effect.
            **options: those that later Pythons have (`buffersize` from 3.14 on).
        """
        if chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, not {chunksize!r}")
        if chunksize == 1 or not self._travels():
            return super().map(fn, *iterables, timeout=timeout, **options)
        items = zip(*iterables, strict=False)
        chunks = iter(lambda: tuple(islice(items, chunksize)), ())
        lists = super().map(partial(_run_chunk, fn), chunks, timeout=timeout, **options)
        return _each_of(lists)

    def _travels(self) -> bool:
        """Tell whether calls run in other processes, where a message costs more than a call."""
        return self._packs

    def _pack(self, call: Call[Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what stands for the arguments while the call waits, on the caller's thread.

        It may change the function and the keyword arguments of the call, of which nobody else
        knows yet: an executor that pickles does it here, so that no later change is seen.
        """
        return args

    @abstractmethod
    def _accept(self, call: Call[Any]) -> None:
        """Take a call, or raise: then it was not made."""

    def _revoke(self, call: Call[Any]) -> bool:
        """Tell whether the call may be cancelled: whoever else runs it has given it back."""
        return True

    def _resume(self, call: Call[Any]) -> None:
        """See to it that a call ends, one way or the other, whose `_revoke` was interrupted."""

    def _interrupt(self, call: Call[Any]) -> None:
        """Ask a call that has started, perhaps, to end early, where that can be done."""

    def _give_up(self, call: Call[Any]) -> bool:
        """Have the interpreter's end not wait for a call that runs; return whether it won't."""
        return True

    def _outlook(self, count: int) -> str:
        """Say what becomes of so many calls that outlive the program."""
        return f"{count} background call{'s' * (count != 1)} may run without this program"

    def _stands(self, call: Call[Any]) -> str:
        """Say where a running call stands, as the end of a sentence."""
        owner = call._owner
        return where(None if owner is None else sys._current_frames().get(owner.ident))

    def _runs(self, call: Call[Any]) -> bool:
        """Tell whether a call that counts as waiting runs elsewhere."""
        return False

    def _forget(self, call: Call[Any]) -> None:
        """Drop a call that was cancelled."""

    def _wake(self) -> None:
        """See to it that workers look at what waits: somebody waits for it."""

    def _serves(self, here: Thread) -> bool:
        """Tell whether the thread may run this executor's waiting calls while it waits."""
        return False

    def _workers(self) -> list[Thread]:
        """Return the threads without which no waiting call starts."""
        return []


def _run_chunk(function: Callable[..., R], items: tuple[tuple[Any, ...], ...]) -> list[R]:
    return [function(*args) for args in items]


def _each_of(lists: Iterator[list[R]]) -> Iterator[R]:
    for results in lists:
        results.reverse()
        while results:  # it keeps none that was handed out
            yield results.pop()


Executor._after = Executor()  # type: ignore[abstract]  # it is given no calls
