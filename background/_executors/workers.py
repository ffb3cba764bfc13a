"""Worker threads over one queue: what `ThreadExecutor` is, and what others drive workers with."""

from __future__ import annotations

import _thread
import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from background._core.call import Call
from background._core.executor import Executor, run_here
from background._core.ledger import (
    Thread,
    drains,
    end_late,
    let_go,
    this_thread,
    threads,
    unended,
    waiting,
)
from background._errors import SHUT_DOWN
from background._platform import check_patches

__all__ = ["Queue", "Worker", "WorkerExecutor", "end_workers", "forget_workers"]

_numbers = itertools.count(1)


class Queue:
    """What an executor shares with its workers, which must not keep the executor itself alive.

    `calls` is the queue, and `bell` tells sleeping workers of it. Whoever appends a call
    rings afterwards if the bell is empty; a worker takes the ring first and then everything
    in the queue. So a call is never in the queue with all workers asleep and the bell
    empty: if the appender finds a ring in the bell, the worker that takes it looks into the
    queue later than the append. A ring too many costs a look, no more. The bell is a
    SimpleQueue, which may be used in signal handlers and `__del__`.
    """

    def __init__(self, size: int, kind: Callable[[Queue], Worker]) -> None:
        self.calls: deque[Call[Any]] = deque()
        self.bell: SimpleQueue[None] = SimpleQueue()
        self.kind = kind
        self.workers = [kind(self) for _ in range(size)]
        self.short = True  # there are workers that nobody has asked for yet
        self.closed = False

    def anew(self) -> Queue:
        """Return an empty queue with new workers in place of this one."""
        queue = Queue(len(self.workers), self.kind)
        queue.closed = self.closed
        return queue

    def wants_more(self) -> bool:
        """Tell whether more calls wait than workers are free, each of whom will take but one.

        One that has been rung for counts as free until it runs, and its call as waiting.
        """
        return len(self.calls) > sum(worker.is_free() for worker in self.workers)

    def ring(self) -> None:
        if self.bell.empty():
            self.bell.put(None)


class WorkerThread(threading.Thread):
    """A thread for which nobody waits at the interpreter's end, as for one that is `daemon`.

    Threads that a call starts inherit that property, and would be lost at the program's end
    where those that an inline call starts are not. So while a call runs it is none.
    """

    @property
    def daemon(self) -> bool:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        here = threads.get(self.ident or 0)
        return here is None or here.call is None


class Worker:
    """One worker of a queue; its thread starts when it is first needed."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        # Ctrl-C or another thread may come between the start of a thread and the note of it:
        # then a second one is started, finds the post taken, and goes.
        self.asked = False
        self.post = [None]
        self.thread: Thread | None = None  # set once it runs
        self.idle = False  # between two calls
        self.ended: SimpleQueue[None] = SimpleQueue()

    def is_free(self) -> bool:
        """Tell whether the worker will look at the queue without running a call before."""
        thread = self.thread
        if thread is None:
            return self.asked  # it starts
        if self.idle:
            return True
        # Who waits for a call may make the next one before the worker that ran it has come back.
        call = thread.call
        if call is None or not call.done():
            return False
        return call._shared is None or not call._shared.calls_back

    def bootstrap(self, name: str) -> None:
        """Start the worker on a `threading.Thread`, so that it has a name and can be seen.

        On a bare thread, because `Thread.start` takes a lock that isn't reentrant: a call in
        a signal handler that came while the program itself was inside `Thread.start` would
        wait for that lock for ever.
        """
        try:
            self.post.pop()
        except IndexError:
            return
        try:
            # Stated: else it would be that of this bare thread, which would be listed for ever.
            WorkerThread(target=self.work, name=name, daemon=True).start()
        except RuntimeError:  # no further thread: this one will do
            self.work()

    def work(self) -> None:
        """Run calls until the queue is closed and empty."""
        self.idle = True
        here = self.thread = this_thread()
        here.queue = queue = self.queue
        here.mark(monotonic())
        calls, bell, several = queue.calls, queue.bell, len(queue.workers) > 1
        now = 0.0  # when the call before ended, if that was just now
        while True:
            try:
                if several and calls:
                    self.idle = False  # first: a call that comes now may need another worker
                call = calls.popleft()
            except IndexError:
                # In this order: a call that was appended before the closing is seen.
                if queue.closed and not calls:
                    break
                self.idle = True
                bell.get()
                here.mark(monotonic())
                now = 0.0
                continue
            if several and calls and bell.empty():
                bell.put(None)  # one ring wakes one worker; more calls want more
            try:
                shared = call._run(here, now)
                now = here.ended
            except BaseException as error:  # raised into this thread, between our lines
                shared = None
                unended.append((call, error, here))
            if unended:
                end_late()
            # Before anyone who waits for the call is woken: then its arguments, its result
            # or its failure are theirs alone.
            del call
            here.settling = None
            if several:
                self.idle = True
            if shared is not None or drains:
                let_go(here, shared)
        here.queue = None
        _leaving[self] = None
        self.leave()
        bell.put(None)  # for the other workers, and for the next one that looks
        self.ended.put(None)
        del _leaving[self]

    def leave(self, deadline: float | None = None) -> None:
        """Release what the worker needs for its calls: none runs, and none will come."""


class WorkerExecutor(Executor):
    """An executor whose calls are run by worker threads, first in, first out."""

    def __init__(
        self, max_workers: int, name: str, kind: Callable[[Queue], Worker] = Worker
    ) -> None:
        if not isinstance(max_workers, int) or isinstance(max_workers, bool):
            raise TypeError(f"max_workers must be a whole number, not {max_workers!r}")
        if max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, not {max_workers}")
        self._name = name
        self._queue = Queue(max_workers, kind)
        self._key = os.getpid(), next(_numbers)
        _executors[self._key] = self

    def _accept(self, call: Call[Any]) -> None:
        queue = self._queue
        queue.calls.append(call)
        if queue.bell.empty():
            queue.bell.put(None)
        # After the append: a worker that ends sees either the call or we the closing.
        if queue.closed or queue.short:
            self._attend(call)

    def _attend(self, call: Call[Any]) -> None:
        queue = self._queue
        if _ended:
            run_here(call)  # E4: this queue has no workers, and nobody would wait for them
            self._forget(call)
        elif queue.closed:
            # Either a worker still took it before it ended, or it is taken back here.
            if call._retract():
                raise RuntimeError(SHUT_DOWN)
        elif queue.wants_more():
            self._hire(queue)

    def _hire(self, queue: Queue) -> None:
        worker = next((worker for worker in queue.workers if not worker.asked), None)
        if worker is not None:
            check_patches()
            try:
                _thread.start_new_thread(worker.bootstrap, (f"{self._name}-{next(_numbers)}",))
                worker.asked = True
            except RuntimeError:
                # At the limit of threads, or at the interpreter's shutdown (E4).
                if not any(worker.asked for worker in queue.workers):
                    self._run_all(queue)
        queue.short = not all(worker.asked for worker in queue.workers)

    def _run_all(self, queue: Queue) -> None:
        # Each stays in the queue until it is done: Ctrl-C may come between any two lines.
        while queue.calls:
            with suppress(IndexError, ValueError):  # another thread does the same
                call = queue.calls[0]
                run_here(call)
                queue.calls.remove(call)

    def _forget(self, call: Call[Any]) -> None:
        calls = self._queue.calls
        # Looking for it takes time with their number; a worker passes over what is left.
        with suppress(IndexError, ValueError):  # a worker does just now, or has done
            if len(calls) <= 1000 or calls[0] is call:
                calls.remove(call)

    def _wake(self) -> None:
        queue = self._queue
        queue.ring()
        if queue.short and queue.wants_more():
            self._hire(queue)

    def _serves(self, here: Thread) -> bool:
        return here.queue is self._queue

    def _workers(self) -> list[Thread]:
        workers = [worker.thread for worker in self._queue.workers]
        # One that does not run yet is free to take the call.
        return [] if None in workers else [thread for thread in workers if thread is not None]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further calls; with `wait`, return when the last one is done.

        With `cancel_futures`, cancel those that have not started.
        """
        queue = self._queue
        queue.closed = True
        if cancel_futures:
            # Not from the queue, which can't be looked through while workers take from it.
            for call in list(waiting):
                if call._executor is self:
                    call.cancel()
        self._wake()
        queue.bell.put(None)
        if wait:
            here = threads.get(_thread.get_ident())
            for worker in queue.workers:
                if worker.asked and (worker.thread is None or worker.thread is not here):
                    worker.ended.get()
                    worker.ended.put(None)  # for the next one who waits

    def __del__(self) -> None:
        if queue := getattr(self, "_queue", None):  # its workers run what waits, then end
            queue.closed = True
            queue.bell.put(None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self._options().items())})"

    def _options(self) -> dict[str, Any]:
        """Return what to make one like this with."""
        return {"max_workers": len(self._queue.workers)}

    def __reduce__(self) -> Any:
        # Here it is found again; in a worker process it becomes one of its kind there.
        return _arrive, (self._key, type(self), self._options())


# By the process that made them, and a number: one that travels is found again by it.
_executors: weakref.WeakValueDictionary[tuple[int, int], WorkerExecutor] = (
    weakref.WeakValueDictionary()
)


def _arrive(
    key: tuple[int, int], kind: type[WorkerExecutor], options: dict[str, Any]
) -> WorkerExecutor:
    executor = _executors.get(key)
    return executor or _executors.setdefault(key, kind(**options))


# Those whose last call is done, while they release what they have.
_leaving: dict[Worker, None] = {}
_ended = False  # the program's end has waited for all calls: later ones run in their caller


def _all() -> list[WorkerExecutor]:
    # By `valuerefs`, which is one step: another thread may make an executor meanwhile.
    return [executor for ref in _executors.valuerefs() if (executor := ref()) is not None]


def end_workers(deadline: float | None = None) -> None:
    """Leave the workers what they have and give every executor a queue without workers.

    What they have left in processes may end until the deadline.
    """
    global _ended
    _ended = True
    for executor in _all():
        before, executor._queue = executor._queue, executor._queue.anew()
        for worker in before.workers:
            worker.leave(deadline)
    for worker in list(_leaving):  # of executors that are gone
        with suppress(Empty):
            worker.ended.get(timeout=None if deadline is None else max(deadline - monotonic(), 0))
            worker.ended.put(None)


def forget_workers() -> None:
    """Give every executor a new queue in the child of a fork, where its workers are gone."""
    _leaving.clear()
    for executor in _all():
        before = executor._queue
        executor._queue = before.anew()
        # A worker that forked finds its queue closed when it comes back from its call.
        before.calls.clear()
        before.closed = True
        before.bell = SimpleQueue()
