"""Coroutine functions: calls that overlap on one event loop, in a thread of its own.

Loaded with the first of them, because asyncio takes its time to import.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from queue import SimpleQueue
from types import FrameType
from typing import Any

from background._core.call import Call
from background._core.failures import own_files
from background._core.ledger import CANCELLED, Thread, let_go, this_thread
from background._core.naming import where
from background._executors.workers import Queue, Worker, WorkerExecutor

__all__ = ["ToEnd", "event_loop"]

own_files.add(__file__)


class ToEnd:
    """A coroutine function, to be called like any other: it returns when the coroutine ends.

    So a call that can't run on the event loop runs on the thread where it is (E4, I1).
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the coroutine in a loop of its own, also where another one runs."""
        if getattr(_begins, "now", False):  # the loop wants it, perhaps by way of `Watched`
            _begins.now = False
            return self.function(*args, **kwargs)
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            # With a factory it leaves the thread's own event loop alone.
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                return runner.run(self.function(*args, **kwargs))
        finally:
            asyncio._set_running_loop(outer)


_begins = threading.local()


class Bell(SimpleQueue[None]):
    """Tells the loop of calls; see `Queue` for what it is rung for."""

    loop: asyncio.AbstractEventLoop | None = None  # until it runs
    rung = False
    take: Callable[[], object]

    def empty(self) -> bool:
        return not self.rung

    def put(self, item: None, block: bool = True, timeout: float | None = None) -> None:
        self.rung = True
        if self.loop is not None:
            with suppress(RuntimeError):  # it is closed
                self.loop.call_soon_threadsafe(self.take)


class LoopWorker(Worker):
    """The worker whose thread runs the event loop."""

    def __init__(self, queue: Queue) -> None:
        super().__init__(queue)
        self.process = os.getpid()
        self.running: dict[Call[Any], Steps] = {}
        self.bell = queue.bell = Bell()
        self.bell.take = self.take

    def work(self) -> None:
        here = self.thread = this_thread()
        here.queue = self.queue
        loop = asyncio.new_event_loop()
        loop.set_task_factory(self.make_task)
        # In this order: a call that came before is seen by `take`, and a later one rings.
        self.bell.loop = loop
        loop.call_soon(self.take)
        while not self.is_over():
            with suppress(BaseException):  # SystemExit in a task that a call made: it has it
                loop.run_forever()
        here.queue = None
        if self.process == os.getpid():  # the loop is the parent's else
            loop.close()
        self.ended.put(None)

    def is_over(self) -> bool:
        return self.queue.closed and not self.queue.calls and not self.running

    def take(self) -> None:
        """Start all calls of the queue, in their order."""
        assert self.bell.loop is not None
        assert self.thread is not None
        self.bell.rung = False  # first: a call that comes later rings again
        while self.queue.calls:
            call = self.queue.calls.popleft()
            args = call._start(self.thread)
            if args is not None:
                steps = Steps(self, call, args)
                self.running[call] = steps
                steps.task = asyncio.Task(steps, loop=self.bell.loop, context=call._context)
            del call, args
        if self.is_over():
            self.bell.loop.stop()

    def make_task(
        self, loop: asyncio.AbstractEventLoop, steps: Any, **options: Any
    ) -> asyncio.Task[Any]:
        """Make a task inside a call a part of that call."""
        assert self.thread is not None
        if self.thread.call is not None:
            steps = Part(self.thread, self.thread.call, steps)
        return asyncio.Task(steps, loop=loop, **options)


class Part(Coroutine[Any, Any, Any]):
    """A coroutine of which each step is known to be one of a call.

    So what it calls is made by that call: `flush` waits for it, and inside is an error.
    """

    def __init__(self, here: Thread, call: Call[Any], steps: Any) -> None:
        self.here = here
        self.call: Any = call
        self.steps: Any = steps

    def step(self, advance: Callable[..., Any], *args: Any) -> Any:
        here = self.here
        outer, here.call = here.call, self.call
        try:
            return advance(*args)
        finally:
            here.call = outer

    def send(self, value: Any) -> Any:
        return self.step(self.steps.send, value)

    def throw(self, *error: Any) -> Any:
        return self.step(self.steps.throw, *error)

    def close(self) -> None:
        self.step(self.steps.close)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.steps.__await__()  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.steps, name)  # cr_frame and the like, for asyncio's own messages


class Steps(Part):
    """The coroutine of a call, which ends the call with its last step."""

    def __init__(self, worker: LoopWorker, call: Call[Any], args: tuple[Any, ...]) -> None:
        assert worker.thread is not None
        super().__init__(worker.thread, call, None)
        self.worker = worker
        self.args = args
        self.interrupted = False
        self.task: asyncio.Task[Any] | None = None

    def step(self, advance: Callable[..., Any], *args: Any) -> Any:
        here, call = self.here, self.call
        outer, here.call = here.call, call
        try:
            return advance(*args)
        except StopIteration as end:
            shared = call._finish(here, end.value)
        except BaseException as error:  # SystemExit, too: asyncio would end the loop by it
            if self.interrupted and isinstance(error, asyncio.CancelledError):
                here.cancelled += 1
                shared = call._settle(here, CANCELLED)
            else:
                shared = call._finish(here, error=error)
        finally:
            here.call = outer
        del self.worker.running[call]
        self.call = self.steps = self.task = None
        worker = self.worker
        del call, advance, args
        let_go(here, shared)
        if worker.is_over() and worker.bell.loop is not None:
            worker.bell.loop.stop()
        raise StopIteration

    def send(self, value: Any) -> Any:
        if self.steps is None:
            return self.step(self.begin)
        return super().send(value)

    def throw(self, *error: Any) -> Any:
        if self.steps is None:  # cancelled before the first step
            return self.step(self.refuse, *error)
        return super().throw(*error)

    def begin(self) -> Any:
        args, self.args = self.args, ()
        kwargs: dict[str, Any] = self.call._kwargs or {}
        _begins.now = True
        try:
            self.steps = self.call._function(*args, **kwargs)
        finally:
            _begins.now = False
        del args, kwargs
        return self.steps.send(None)

    def refuse(self, error: Any, *_: Any) -> Any:
        raise error

    def close(self) -> None:
        if self.steps is not None:
            self.steps.close()

    def frame(self) -> FrameType | None:
        """Return where the coroutine stands: in the innermost one that it awaits."""
        steps, frame = self.steps, None
        while (found := getattr(steps, "cr_frame", None)) is not None:
            steps, frame = steps.cr_await, found
        return frame


class EventLoopExecutor(WorkerExecutor):
    """Run the calls of coroutine functions on one event loop.

    They start in the order in which they were made, and overlap.
    """

    _hints = False
    _overlaps = True

    def __init__(self) -> None:
        super().__init__(1, "background-loop", LoopWorker)

    def _running(self, call: Call[Any]) -> Steps | None:
        workers: list[Any] = self._queue.workers
        return next((w.running[call] for w in workers if call in w.running), None)

    def _interrupt(self, call: Call[Any]) -> None:
        steps = self._running(call)
        task = steps and steps.task
        if steps is not None and task is not None:
            steps.interrupted = True
            with suppress(RuntimeError):
                task.get_loop().call_soon_threadsafe(task.cancel)

    def _stands(self, call: Call[Any]) -> str:
        steps = self._running(call)
        return "" if steps is None else where(steps.frame()) or super()._stands(call)

    def _serves(self, here: Thread) -> bool:
        if here.queue is self._queue:
            raise RuntimeError(
                "a coroutine that waits by result() for another call of an async function stops "
                "the event loop on which both run: write `await future` instead"
            )
        return False


event_loop = EventLoopExecutor()
