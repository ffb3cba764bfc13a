"""One call and its Future, and the ledger of the calls that are not done.

A call is made by `put`, which writes it into the ledger and hands it to an executor. From
there exactly one thread may take it, out of `waiting`: a worker to run it or a thread that
waits for it (`Call._start`), or `cancel` (`Call._retract`). Whoever took it ends it, once
(`Call._settle`).

Nothing here is guarded by a lock. Callers run in signal handlers, in `__del__` and under
the locks of others, where a lock of ours could be held by the very code that was
interrupted. Instead each step rests on one operation that is atomic with and without the
GIL (CPython runs it under the object's own lock in free-threaded builds): `list.pop`,
`dict[key] = value`, `del dict[key]`, `dict.setdefault`, a store into a slot.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import gc
import logging
import math
import os
import sys
import threading
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, InvalidStateError
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from time import monotonic, thread_time
from types import CodeType, FrameType, FunctionType, MethodType, TracebackType
from typing import Any, ParamSpec, Protocol, TypeVar, cast

__all__ = [
    "RUNNING",
    "Bound",
    "Call",
    "Drain",
    "Executor",
    "Future",
    "Shared",
    "Thread",
    "bury",
    "describe",
    "drains",
    "end_late",
    "failures",
    "innermost",
    "log_unseen",
    "logger",
    "own_files",
    "pending",
    "put",
    "run_here",
    "stand_in",
    "start_afresh",
    "this_thread",
    "threads",
    "trace_of",
    "unended",
    "waiting",
    "watchers",
    "where",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

logger = logging.getLogger("background")

# The states are the standard library's own words: its `wait` and `as_completed` compare them.
PENDING = "PENDING"
RUNNING = "RUNNING"
ENDING = "ENDING"  # ours: no longer running, not yet done; to the standard library not done
CANCELLED = "CANCELLED_AND_NOTIFIED"
FINISHED = "FINISHED"


class Future(concurrent.futures.Future[T]):
    """The outcome of a call, now or later: a `concurrent.futures.Future` that can be awaited."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the outcome on any asyncio event loop.

        Cancelling the waiting task ends the wait and leaves the call alone, so that several
        tasks may wait for one call; `cancel` cancels the call.
        """
        import asyncio.events  # here: whoever awaits has it, and nobody else need load it

        if not self.done():
            loop = asyncio.events.get_running_loop()
            woken = loop.create_future()

            def wake() -> None:
                if not woken.done():
                    woken.set_result(None)

            def tell(_: concurrent.futures.Future[T]) -> None:
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(wake)

            self.add_done_callback(tell)
            try:
                yield from woken
            finally:  # a wait that was cancelled leaves nothing behind
                with suppress(AttributeError, ValueError):
                    cast(Any, self)._shared.callbacks.remove(tell)
        try:
            return self.result()
        except CancelledError:
            raise asyncio.CancelledError from None
        finally:
            del self  # the traceback of a failure keeps this frame


class Thread:
    """What a thread has done for us and does now; written by that thread alone, but `nudged`.

    The counts are kept a thread each because `count += 1` on a shared number loses
    increments; `stats` adds them up.
    """

    __slots__ = (
        "blocked",
        "call",
        "cancelled",
        "cpu",
        "dropped",
        "ended",
        "failed",
        "ident",
        "looked",
        "making",
        "marked",
        "nudged",
        "queue",
        "ran",
        "settling",
        "succeeded",
        "waited",
        "waits_for",
    )

    def __init__(self, ident: int) -> None:
        self.ident = ident
        self.call: Call[Any] | None = None  # the call that runs here now, the innermost one
        self.queue: object = None  # the queue whose worker this thread is
        self.waits_for: Call[Any] | None = None  # what the running call waits for
        self.nudged = False  # whether to look once more who holds that up; set by others
        self.making: Call[Any] | None = None  # the bounded call that this thread makes now
        # Set from the moment at which a call leaves the ledger until this thread has let go
        # of it: the time at which that call was made. `flush` waits for it too, so that a
        # failure that nobody can look at any more is logged before `flush` returns.
        self.settling: float | None = None
        self.succeeded = self.failed = self.cancelled = self.dropped = 0
        self.looked = 0  # failures that somebody looked at, since the last clearing
        self.waited = self.ran = self.blocked = 0.0  # seconds
        self.ended = 0.0  # when the last call ended
        self.cpu = self.marked = 0.0  # the thread's processor time at a moment, and that moment

    def mark(self, now: float) -> None:
        """Note how long this thread has computed so far; it is the running one."""
        self.cpu, self.marked = thread_time(), now


# The ledger: every call that is not done, in the order in which they were made.
pending: dict[Call[Any], None] = {}
# The arguments of those that nobody has taken. Whoever pops them may run or cancel the call:
# it is one dict operation, so there is one winner, whichever threads try. (A one-element
# list in each call would do, too, but costs 30 bytes and a fifth of the collector's work more.)
waiting: dict[Call[Any], tuple[Any, ...]] = {}
# By thread ident. An entry outlives its thread and is taken over by the next thread of the
# same ident, so there are never more than there were threads at once.
threads: dict[int, Thread] = {}
drains: list[Drain] = []
# One at most, while `configure(debug=True)` holds: it sees each call before anyone knows it.
watchers: list[Callable[[Call[Any], tuple[Any, ...]], None]] = []

# As `inspect` has them, whose import takes as long as all the rest.
CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR = 0x20, 0x80, 0x200
_FILE = Thread.__init__.__code__.co_filename
_FOLDER = os.path.dirname(_FILE)
own_files = {_FILE}  # whose frames a traceback needn't show before those of the call
_get_ident = threading.get_ident
_copy_context = contextvars.copy_context


def this_thread() -> Thread:
    """Return the running thread's entry."""
    ident = _get_ident()
    return threads.get(ident) or threads.setdefault(ident, Thread(ident))


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

    __slots__ = ("bells", "callbacks", "lock", "waiters")

    def __init__(self) -> None:
        self.bells: list[SimpleQueue[None]] = []  # of the threads that wait, one a wait
        self.callbacks: list[Callable[[Any], object]] = []
        # For the standard `wait` and `as_completed` alone, which need the state to stand still
        # while they look at it and leave a waiter. Our own waits don't take it: Ctrl-C may strike
        # between the taking and the `try`, and would hold up the worker, who changes the state.
        self.lock = threading.RLock()
        self.waiters: list[Any] = []

    def ring(self) -> None:
        for bell in self.bells.copy():
            bell.put(None)


class Call(Future[T]):
    """One call and its future, in one object: a call that waits costs no more than this.

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
    _executor: Executor
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

    # Not the standard future's, which makes a condition and its lock, most of its cost. And
    # none in Python: a class with slots would pay 100 ns to have it called.
    __init__ = object.__init__

    # -- Running: by the thread that took the call --------------------------------------

    def _start(self, here: Thread, now: float = 0.0) -> tuple[Any, ...] | None:
        """Take the call to run it and return its arguments, or None if it was taken.

        `now` is given by who has just looked at the clock, which takes up to 80 ns.
        """
        args = waiting.pop(self, None)
        if args is not None:
            now = now or monotonic()
            here.waited += now - self._since
            self._since = now
            self._owner = here
            self._state = RUNNING
        return args

    def _run(self, here: Thread, now: float = 0.0) -> Shared | None:
        """Run the call, unless it was taken; the caller then lets go of it and calls `let_go`."""
        args = self._start(here, now)
        if args is None:
            return None
        outer = here.call
        here.call = self
        try:
            try:
                if self._kwargs is None:
                    # A sum of tuples: `(function, *args)` would make a list on the way, 40 ns.
                    result = self._context.run(*(self._function,) + args)  # noqa: RUF005
                else:
                    result = self._context.run(self._function, *args, **self._kwargs)
            except BaseException as error:
                self._fail(error)
            else:
                here.succeeded += 1
                self._result = result
                del result
            shared = self._settle(here, FINISHED)
        finally:
            here.call = outer
        # The traceback of a failure keeps the frames that it passed, this one included, and
        # so its locals, the future among them: they must not live as long as it.
        del self, args, outer
        return shared

    def _finish(
        self, here: Thread, result: Any = None, error: BaseException | None = None
    ) -> Shared | None:
        """End a call that was started by `_start` and ran elsewhere; then as for `_run`."""
        if error is None:
            here.succeeded += 1
            self._result = result
        else:
            self._fail(error)
        return self._settle(here, FINISHED)

    def _fail(self, error: BaseException) -> None:
        """Take an error as the outcome, with a note that says which call it was."""
        name = describe(self)
        with suppress(Exception):  # an exception that takes no notes is still the outcome
            if name not in getattr(error, "__notes__", ()):
                BaseException.add_note(error, name)
        trace = trace_of(error)
        while trace is not None and trace.tb_frame.f_code.co_filename in own_files:
            trace = trace.tb_next
        BaseException.with_traceback(error, trace)  # past any __setattr__ that forbids it
        here, failure = this_thread(), Unseen(error, name)
        guard = Guard(failure)
        # From here on nothing is called, so Ctrl-C can't strike: it is written down, counted
        # and the outcome, or none of these.
        if failure.key is not None:
            failures.errors[failure.key] = error
        unseen[failure] = None
        failure.told = [False]
        here.failed += 1
        self._error = error
        self._function = guard

    def _settle(self, here: Thread, state: str) -> Shared | None:
        """Make the outcome known; return what those share who are still to be woken.

        A future that nobody waits for yet is done without a lock. The race with somebody who
        asks for it just now, step by step: we store ENDING (1), then look for what is shared
        (2); `_share` stores it (3), and `_condition` looks at the state (4). The stores to one
        object have an order, so either (2) sees it and the state changes under its lock, or
        (4) sees ENDING and waits for the change, and we see it when we look once more (5).
        Nobody holds the lock and sees the state change.
        """
        here.ended = now = monotonic()
        if self._state is RUNNING:
            ran = now - self._since
            here.ran += ran
            if (
                ran > LONG
                and here.queue is not None
                and self._error is None
                and self._executor._hints
            ):
                computing.add(self, here, now, ran)
        elif self._state is PENDING:
            here.waited += now - self._since
        self._state = ENDING  # (1)
        self._context = self._kwargs = None  # C6: a call that is done holds nothing
        if self._error is None:
            self._function = None
        shared = self._shared  # (2)
        if shared is None:
            self._state = state
            shared = self._shared  # (5)
        else:
            self._change_state(shared, state)
        if shared is not None:
            self._call_all_back(shared)
        # It leaves the ledger after its callbacks: `flush` waits for them, too.
        here.settling = self._born
        pending.pop(self, None)
        # Over a copy: a flush that ends just now takes its drain out, and the loop over the
        # list itself would then pass over the next one, which would wait for this call for ever.
        if drains:
            for drain in drains.copy():
                if drain.watched is self:
                    drain.watched = None  # it must not keep the call, either
        return shared

    def _change_state(self, shared: Shared, state: str) -> None:
        """Become done before the eyes of the standard library's waiters."""
        # Whoever has the lock has it for some lines of the standard library's `wait`. If it is
        # not given back in ten seconds (a tenth at a time: the whole program may have been
        # stopped), Ctrl-C struck that `wait` at the one place, and it never will be.
        taken = any(shared.lock.acquire(timeout=0.1) for _ in range(PATIENCE))
        try:
            self._state = state
            for waiter in shared.waiters:
                if state is CANCELLED:
                    waiter.add_cancelled(self)
                elif self._error is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
        finally:
            if taken:
                shared.lock.release()

    def _call_all_back(self, shared: Shared) -> None:
        while True:  # whoever pops one calls it: see `add_done_callback`
            try:
                callback = shared.callbacks.pop(0)
            except IndexError:
                return
            self._call_back(callback)
            del callback

    def _retract(self) -> bool:
        """Take the call back from its executor, as `_drop` does."""
        if not self._drop():
            return False
        self._executor._forget(self)
        return True

    def _drop(self) -> bool:
        """Take the call so that it never runs; return whether it could still be taken."""
        here = this_thread()
        outer, settling = here.call, here.settling
        try:
            if waiting.pop(self, None) is None:
                return False
            self._owner = here
            here.call = self  # what its callbacks do, a `flush` say, it does
            let_go(here, self._settle(here, CANCELLED), settling)
        except BaseException:  # Ctrl-C
            unended.append((self, None, here))
            here.settling = settling
            raise
        finally:
            here.call = outer
        return True

    def _call_back(self, callback: Callable[[Any], object]) -> None:
        try:
            callback(self)
        except BaseException:  # also SystemExit: it would end the worker
            logger.exception("a done callback of %s failed", describe(self))

    def _abandon(self, here: Thread, error: BaseException | None) -> None:
        """End a call whose steps were interrupted; without an error it was to be cancelled."""
        waiting.pop(self, None)
        if not self.done() or self in pending:
            state = self._state if self.done() else CANCELLED if error is None else FINISHED
            if error is not None and self._error is None and not hasattr(self, "_result"):
                self._fail(error)
            self._settle(here, state)
        let_go(here, self._shared)

    def _run_now(self, here: Thread) -> None:
        """Run the call in the middle of what this thread does."""
        settling = here.settling
        try:
            shared = self._run(here)
        except BaseException as error:
            unended.append((self, error, here))
            here.settling = settling
            raise
        del self  # as in `_run`
        try:
            let_go(here, shared, settling)
        except BaseException:  # Ctrl-C: those who wait must not wait for ever
            let_go(here, shared, settling)
            raise

    # -- The standard future, without its lock ------------------------------------------

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
        if (
            self._state is ENDING  # (4)
            and self._owner is not threads.get(_get_ident())
            and not lock._is_owned()  # else it comes to give it back
        ):
            self._block(None, None)
        return lock

    @property
    def _waiters(  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> list[Any]:  # read by the standard library under that lock
        return self._share().waiters

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
        try:
            return self._executor._revoke(self) and self._retract()
        except BaseException:  # Ctrl-C between the two, say
            self._executor._resume(self)
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

    # -- Waiting ------------------------------------------------------------------------

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
                here.waits_for = self  # first: of two that wait, the second one sees both
                free = _held_up_by(self, here)
                if free is None:
                    self._block(timeout, deadline, here)
                    continue
                here.waits_for = None
                if not free:
                    who = "this worker" if here.call is None else describe(here.call)
                    raise RuntimeError(
                        f"{who} waits for {describe(self)}, which can't end before it: "
                        "that wait would never end; return the future instead of waiting for it"
                    )
                free.pop(0)._run_now(here)
                del free
            return None
        finally:
            here.waits_for, here.nudged = outer, True

    def _block(
        self, timeout: float | None, deadline: float | None, here: Thread | None = None
    ) -> None:
        """Wait until the call is done, or this thread is nudged."""
        bell: SimpleQueue[None] = SimpleQueue()
        bells = self._share().bells
        bells.append(bell)  # first: the worker sets the state, then rings
        try:
            while not self.done() and not (here and here.nudged):
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"{describe(self)} is not done after {timeout} s")
                with suppress(Empty):
                    bell.get(timeout=left)
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

    def _look(self) -> None:
        """Note that somebody has seen the failure."""
        guard = self._function
        if type(guard) is Guard:
            guard.unseen.look()
            self._function = guard.unseen.name


# Calls whose end was interrupted, by Ctrl-C or at the end of the stack; by what, unless they
# were just being cancelled; and in which thread.
unended: deque[tuple[Call[Any], BaseException | None, Thread | None]] = deque()


def end_late() -> None:
    """End the calls whose end was interrupted."""
    while unended:
        call, error, thread = unended[0]
        if call._owner is None or call._owner is thread:  # else another one had been faster
            call._abandon(this_thread(), error)
        with suppress(IndexError, ValueError):  # another thread did the same
            unended.remove((call, error, thread))
        del call, error, thread


def let_go(here: Thread, shared: Shared | None, settling: float | None = None) -> None:
    """Wake those who wait for a call that this thread has just let go of.

    `settling` is that of a call that this one came in the middle of the end of.
    """
    here.settling = settling
    if shared is not None:
        shared.ring()
    for drain in drains and drains.copy():  # a copy: as in `_settle`
        if drain.watched is None and drain.bell.empty():
            drain.bell.put(None)


def _held_up_by(call: Call[Any], here: Thread) -> list[Call[Any]] | None:
    """Return None if `call` may end before the thread `here` goes on.

    Else the calls that would have to start first and wait for workers that wait, this thread
    among them: it may run them.
    """
    # What holds up each call: one that waits starts when one of its executor's workers is
    # free, one that runs goes on when what its thread waits for is done, and a coroutine, for
    # all we know, when all that it awaits is.
    needs: dict[Call[Any], list[Call[Any]]] = {}
    moving: set[Call[Any]] = set()
    ours: set[Call[Any]] = set()
    coroutines: set[Call[Any]] = set()
    found = [call]
    for each in found:  # it grows
        if each in needs:
            continue
        if each in waiting:
            owners = each._executor._workers()
        else:
            owners = [] if each._owner is None else [each._owner]
        if here in owners:
            ours.add(each)
        waits: list[Any] = [owner.waits_for for owner in owners if owner is not here]
        if None in waits and (awaited := each._awaited()):
            coroutines.add(each)
            waits = awaited
        if each.done() or not owners or None in waits:
            moving.add(each)
            waits = []
        needs[each] = waits
        found += waits
    before = -1
    while before != len(moving):
        before = len(moving)
        for each, waits in reversed(needs.items()):  # a chain in one round
            enough = all if each in coroutines else any
            if waits and enough(other in moving for other in waits):
                moving.add(each)
    stuck = [] if call in moving else [call]
    for each in stuck:  # it grows
        for other in needs[each]:
            if other not in moving:
                moving.add(other)  # no more than once
                stuck.append(other)
    # Others that wait in a circle are seen by the last of them. A coroutine may give up what
    # it awaits: there may be something to run for it, but to wait for it is no error.
    free = [each for each in stuck if each in waiting]
    if ours.isdisjoint(stuck) or (not free and not coroutines.isdisjoint(stuck)):
        return None
    return free


# -- The ledger --------------------------------------------------------------------------


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
    if len(waiting) >= _mark:
        _grown(call)
    if call._error is None:
        return call
    # It failed on this thread: its traceback keeps this frame, which must not keep the future.
    box = [call]
    del call
    return box.pop()


def stand_in(function: object, born: float) -> Call[Any]:
    """Return what stands for a call that this process runs for another, made at `born`."""
    call: Call[Any] = Call()
    call._executor = Executor()  # type: ignore[abstract]  # it is given no calls
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

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call `fn(*args, **kwargs)` in the background and return its future at once."""
        try:
            frame = sys._getframe(1)
        except ValueError:  # called by C, on a thread without Python code
            frame = sys._getframe(0)
        return put(self, fn, args, kwargs or None, frame, None)

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


def describe(call: Call[Any]) -> str:
    """Return `plot(…), called at train.py:42 in main`."""
    function = call._function
    name = function.unseen.name if type(function) is Guard else function
    if name is None:
        return f"the call at {place(call)}"
    if isinstance(name, str):
        return name
    inner = innermost(name)
    title = type(inner).__qualname__
    with suppress(Exception):  # a callable may answer for its attributes by code of its own
        title = str(getattr(inner, "__qualname__", title))
    return f"{title.rpartition('<locals>.')[2]}(…), called at {place(call)}"


def where(frame: FrameType | None) -> str:
    """Return ` and stands at train.py:42 in draw`, or nothing."""
    if frame is None:
        return ""
    code = frame.f_code
    return f" and stands at {code.co_filename}:{frame.f_lineno} in {code.co_qualname}"


def innermost(function: Any) -> Any:
    """Return what a `functools.partial`, a class method or a static method is of."""
    # By the type: a decorated function claims to be what it wraps.
    while issubclass(type(function), partial | classmethod | staticmethod):
        is_partial = issubclass(type(function), partial)
        function = function.func if is_partial else function.__func__
    return function


def place(call: Call[Any]) -> str:
    """Return where a call was made: `train.py:42 in main`."""
    code = call._code
    # One entry for every unit of two bytes; the offset counts bytes.
    line = next(islice(code.co_positions(), call._offset // 2, None))[0] or code.co_firstlineno
    return f"{os.path.basename(code.co_filename)}:{line} in {code.co_qualname.rpartition('.')[2]}"


_mark = 1_000  # how many waiting calls are noted next, with the time
_marks: dict[int, float] = {}


def _grown(call: Call[Any]) -> None:
    """Note that so many calls wait; say it at 10,000 and at each tenfold (C5)."""
    global _mark
    mark, now = _mark, monotonic()
    if len(waiting) < mark or _marks.setdefault(mark, now) is not now:
        return  # another thread was here first
    _mark = mark * 10
    if mark == 1_000:
        return
    before = mark // 10
    seconds = max(now - _marks[before], 1e-3)
    sample = list(waiting)[:: mark // 10_000]
    # Of one function are those that were made at one place.
    places = Counter((id(call._code), call._offset) for call in sample)
    most = places.most_common(1)[0][0]
    call = next((c for c in reversed(sample) if (id(c._code), c._offset) == most), call)
    logger.warning(
        "%s calls wait to start, %s more than %.1f s ago (%s a second); most of them are %s; "
        "they come faster than they are done: bound them by @background(max_pending=…), or "
        "run them on a faster executor",
        f"{mark:,}",
        f"{mark - before:,}",
        seconds,
        f"{(mark - before) / seconds:,.0f}",
        describe(call),
    )


class Drain:
    """A wait for every call made before a moment, and for those that they make.

    It watches one call in the middle of those that are left, and looks again when that is
    done. So it wakes up about as often as their number can be halved, in whatever order they
    end, and of all others a worker needs to know nothing.
    """

    def __init__(self, before: float, *, at_exit: bool = False) -> None:
        self.before = before
        self.at_exit = at_exit  # then not for calls that go on without this program
        self.watched: Call[Any] | None = None
        self.bell: SimpleQueue[None] = SimpleQueue()

    def __enter__(self) -> Drain:
        if unended:
            end_late()
        drains.append(self)
        try:
            for executor in {call._executor for call in self.left()}:
                executor._wake()
        except BaseException:  # Ctrl-C
            drains.remove(self)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        drains.remove(self)

    def wait(self, seconds: float | None = None) -> bool:
        """Return True once all is done, False if that takes longer than `seconds`."""
        deadline = math.inf if seconds is None else monotonic() + seconds
        while self._look():
            while True:
                # Half a second at a time: a Ctrl-C that comes in the microseconds before a wait
                # begins is seen when it ends, of ten that were sent on the exit's line one.
                try:
                    self.bell.get(timeout=min(max(deadline - monotonic(), 0), 0.5))
                    break
                except Empty:
                    if monotonic() >= deadline:
                        return False
        return True

    def _look(self) -> bool:
        """Look through the ledger; return whether something is left.

        A worker takes its call off the ledger first and looks second whether it is watched;
        here it is the other way round, so that one of both sees the other. A call that is off
        the ledger and not yet let go of is `settling`, and who lets go of it rings.
        """
        while calls := self.left():
            self.watched = calls[len(calls) // 2]
            if self.watched in pending:
                return True
        self.watched = None
        return any(
            (settling := thread.settling) is not None and settling <= self.before
            for thread in list(threads.values())
        )

    def left(self) -> list[Call[Any]]:
        """Return the calls that are waited for and not done."""
        return [
            call
            for call in list(pending)
            if call._born <= self.before and not (self.at_exit and call._executor._outlives)
        ]

    def calls(self) -> list[Call[Any]]:
        """Return what is left, the running calls first, each group the oldest first."""
        return sorted(self.left(), key=lambda call: (call._owner is None, call._since))


def start_afresh() -> None:
    """Empty the ledger in the child of a fork, whose other threads are gone.

    What the parent waits for will never be done here: it is cancelled, so that nobody waits
    for it for ever. No callback runs: the child is not where they were meant to.
    """
    global _mark
    for call in list(pending):
        shared = call.__dict__.pop("shared", None)
        call._shared = None  # its lock may be held by a thread that is gone
        call._state = CANCELLED
        if shared is not None:  # this thread may wait for it, interrupted by the fork
            shared.ring()
    pending.clear()
    waiting.clear()
    threads.clear()
    drains.clear()
    failures.clear()
    for each in list(unseen):  # the parent tells them
        each.told.clear()
    unseen.clear()
    _marks.clear()
    _mark = 1_000


# -- Calls that compute --------------------------------------------------------------------


class Computing:
    """How long the functions that worker threads run have run, and computed meanwhile (T1).

    Only calls of more than a millisecond are measured, so that short ones cost nothing more.
    A thread's processor time is read at the end of such a call and when the thread wakes up;
    what lies between two readings besides the call is counted as computed by others, so that
    a function that waits is never blamed for their work.
    """

    def __init__(self) -> None:
        # By code, not by function: a closure that is made again and again is one entry.
        self.totals: dict[object, tuple[int, float, float]] = {}
        self.said: dict[object, object] = {}

    def add(self, call: Call[Any], here: Thread, now: float, ran: float) -> None:
        """Count a call that ran for `ran` seconds until `now`; say so once if it computes."""
        before, others = here.cpu, max(now - here.marked - ran, 0.0)
        here.mark(now)
        computed = min(max(here.cpu - before - others, 0.0), ran)
        function: object = innermost(call._function)
        is_code = isinstance(function, FunctionType | MethodType)  # others may raise when asked
        key: object = getattr(function, "__code__", None) if is_code else type(function)
        calls, total, cpu = self.totals.get(key, (0, 0.0, 0.0))
        calls, total, cpu = calls + 1, total + ran, cpu + computed
        self.totals[key] = calls, total, cpu
        mine = object()
        if total > 1.0 and cpu > 0.5 * total and self.said.setdefault(key, mine) is mine:
            logger.warning(
                "%s computed for %.0f %% of the %.1f s that %d calls took: %.1f s in which a "
                "thread keeps the program from running; a process doesn't: "
                "@background(executor=ProcessExecutor())",
                describe(call),
                100 * cpu / total,
                total,
                calls,
                cpu,
            )


LONG = 0.001  # seconds
PATIENCE = 100  # tenths of a second
computing = Computing()

# -- Failures that nobody has looked at ---------------------------------------------------


class Failures:
    """The failures that nobody has looked at since the last `take`.

    The first hundred exceptions are kept, the others counted.
    """

    KEPT = 100

    def __init__(self) -> None:
        self.errors: dict[object, BaseException] = {}
        self.taken = 0  # how many have been raised
        self.round = 0  # how often
        self.said = 0  # how many of those that are left have been said
        self.sayings = 0  # how often that was asked

    def __len__(self) -> int:
        unseen = sum(thread.failed - thread.looked for thread in list(threads.values()))
        # A failure is written down before it is counted: it may be in the one only.
        return max(unseen - self.taken, len(self.errors))

    def take(self) -> tuple[list[BaseException], int]:
        """Return the kept exceptions and the count of all, which are looked at by this."""
        count = len(self)
        self.round += 1
        self.said = 0
        errors: list[BaseException] = []
        while self.errors:
            errors.append(self.errors.pop(next(iter(self.errors))))
        count = max(count, len(errors))
        self.taken += count
        return errors, count

    def untold(self) -> int:
        """Return how many came since this was asked last."""
        count = len(self)
        said, self.said = self.said, count
        self.sayings += 1
        return max(count - said, 0)

    def clear(self) -> None:
        """Forget all; for the child of a fork."""
        self.__init__()  # type: ignore[misc]  # it has no subclass


failures = Failures()


class Unseen:
    """A failure at which nobody has looked; it refers to no future, which makes no cycle."""

    __slots__ = ("error", "key", "name", "round", "sayings", "told")

    def __init__(self, error: BaseException, name: str) -> None:
        self.error = error
        self.name = name
        self.round = failures.round
        self.sayings = failures.sayings
        # Whoever pops it tells the failure, by log or by look, once; none before it is one.
        self.told: list[bool] = []
        self.key = object() if len(failures.errors) < failures.KEPT else None

    def look(self) -> None:
        """Note that somebody has seen the failure."""
        if self._claim():
            failures.errors.pop(self.key, None)
            this_thread().looked += 1
            if self.sayings < failures.sayings:  # it is among those that were said
                failures.said = max(failures.said - 1, 0)

    def _claim(self) -> bool:
        """Return whether nobody has been told of the failure, once."""
        try:
            self.told.pop()
        except IndexError:
            return False
        unseen.pop(self, None)
        if self.key is not None:
            return self.key in failures.errors
        return self.round == failures.round

    def log(self) -> None:
        """Log the failure unless somebody has been told of it."""
        if not self._claim():
            return
        error = self.error
        logger.error(
            "%s failed and nobody looked at it",
            self.name,
            exc_info=(type(error), error, error.__traceback__),
        )
        if self.key is not None:
            clear_frames(error)  # it stays for `flush(check=True)`; what its frames hold needn't


unseen: dict[Unseen, None] = {}


class Guard:
    """Dies with the future of a failure, and then has it logged.

    Not `Future.__del__`: that would cost every call that succeeds.
    """

    __slots__ = ("unseen",)

    def __init__(self, unseen: Unseen) -> None:
        self.unseen = unseen

    def __del__(self) -> None:
        if hasattr(self, "unseen"):  # else Ctrl-C has come before: logged at the program's end
            self.unseen.log()


def bury() -> None:
    """Have the failures logged whose futures are gone.

    With the GIL they have been, when the future went. Without it, an object that another
    thread lets go of dies only when the thread that made it comes to know, and a worker that
    sleeps doesn't. The collector tells all threads: first that the call is dead, then its
    guard, which the worker made.
    """
    if unseen and not getattr(sys, "_is_gil_enabled", lambda: True)():
        gc.collect()
        gc.collect()


def trace_of(error: BaseException) -> TracebackType | None:
    """Return the traceback, past what the exception may answer of its own."""
    trace: TracebackType | None = vars(BaseException)["__traceback__"].__get__(error)
    return trace


def clear_frames(error: BaseException) -> None:
    """Free the locals of the frames that an exception passed, and those that led to it there."""
    own: set[FrameType] = set()
    seen: list[int] = []
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.append(id(link))
        trace = trace_of(link)
        if link is not error and (trace is None or trace.tb_frame not in own):
            break  # it comes from elsewhere, and its frames are not ours to clear
        # A call that failed on its caller's thread: our frames below hold its arguments.
        frame = trace and trace.tb_frame.f_back
        while frame is not None and frame.f_code.co_filename.startswith(_FOLDER):
            clear(frame)
            frame = frame.f_back
        while trace is not None:
            own.add(trace.tb_frame)
            clear(trace.tb_frame)
            trace = trace.tb_next
        link = link.__cause__ or link.__context__


def clear(frame: FrameType) -> None:
    # Clearing a generator or a coroutine that is suspended would close it.
    if not frame.f_code.co_flags & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR):
        with suppress(RuntimeError):  # it is still running
            frame.clear()


def log_unseen() -> None:
    """Log what nobody has looked at: the program ends, and nobody will."""
    for each in list(unseen):
        each.log()
