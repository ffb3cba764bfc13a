"""A call: taken, run, settled, cancelled.

A call is made by `put`, which writes it into the ledger and hands it to an executor. From
there exactly one thread may take it, out of `waiting`: a worker to run it or a thread that
waits for it (`Call._start`), or `cancel` (`Call._retract`). Whoever took it ends it, once
(`Call._settle`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from background._core.failures import Guard, Unseen, failures, own_files, trace_of, unseen, watch
from background._core.hints import LONG, computing
from background._core.ledger import (
    CANCELLED,
    ENDING,
    FINISHED,
    PENDING,
    RUNNING,
    Thread,
    drains,
    let_go,
    pending,
    this_thread,
    unended,
    waiting,
)
from background._core.naming import describe
from background._core.results import Results
from background._core.telling import ERROR, depth_in, made_by_handler, report, telling
from background._core.waiting import Shared

if TYPE_CHECKING:
    from background._core.executor import Executor

__all__ = ["Call"]

T = TypeVar("T")
PATIENCE = 100  # tenths of a second


class Call(Results[T]):
    """One call and its future, in one object: a call that waits costs no more than this."""

    __slots__ = ()
    _executor: Executor

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
            here.waited += max(now - self._since, 0.0)  # made by a callback, after `now`
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
        with suppress(BaseException):  # an exception that takes no notes is still the outcome
            if name not in getattr(error, "__notes__", ()):
                BaseException.add_note(error, name)
        trace = trace_of(error)
        while trace is not None and trace.tb_frame.f_code.co_filename in own_files:
            trace = trace.tb_next
        BaseException.with_traceback(error, trace)  # past any __setattr__ that forbids it
        shared, depth = self._shared, depth_in(self._context)
        if depth == 0 and made_by_handler(self._code):
            depth = 1
        awaited = shared is not None and bool(shared.bells or shared.waiters or shared.callbacks)
        here, failure = this_thread(), Unseen(error, name, depth, self._born, awaited)
        guard = Guard(failure)
        # From here on nothing is called, so Ctrl-C can't strike: it is written down, counted
        # and the outcome, or none of these.
        if failure.key is not None:
            failures.errors[failure.key] = failure
        unseen[failure] = None
        failure.told = [False]
        here.failed += 1
        failure.round = failures.round  # after the count: see `Failures.take`
        self._error = error
        self._function = guard
        watch.start()

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
        context = self._context
        self._state = ENDING  # (1)
        self._context = self._kwargs = None  # C6: a call that is done holds nothing
        if self._error is None:
            self._function = None
        shared = self._shared  # (2)
        if shared is None:
            self._state = state
            shared = self._shared  # (5)
        else:
            shared.calls_back = bool(shared.callbacks)
            self._change_state(shared, state)
        if shared is not None:
            self._call_all_back(shared, depth_in(context))
        # It leaves the ledger after its callbacks: `flush` waits for them, too.
        here.settling = self._born
        pending.pop(self, None)
        self._executor = self._executor._after  # a future that is kept keeps no workers
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

    def _call_all_back(self, shared: Shared, depth: int) -> None:
        if depth:  # what the callbacks report is part of the report that made the call
            token = telling.set(depth)
            try:
                self._call_all_back(shared, 0)
            finally:
                telling.reset(token)
        while True:  # whoever pops one calls it: see `add_done_callback`
            try:
                callback = shared.callbacks.pop(0)
            except IndexError:
                return
            self._call_back(callback)
            del callback

    def _retract(self) -> bool:
        """Take the call back from its executor, as `_drop` does."""
        executor = self._executor
        if not self._drop():
            return False
        executor._forget(self)
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
        except BaseException as error:  # also SystemExit: it would end the worker
            report(ERROR, "a done callback of %s failed", describe(self), error=error)

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


own_files.add(__file__)
