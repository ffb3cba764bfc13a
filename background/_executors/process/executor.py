"""Calls in processes of their own: for what computes."""

from __future__ import annotations

import threading
import weakref
from functools import partial
from types import CodeType
from typing import Any

import background._executors.process.channel as channels
from background._core.call import Call
from background._core.failures import own_files
from background._core.naming import describe
from background._core.telling import WARNING, report
from background._executors.process.child import Process
from background._executors.workers import Queue, Worker, WorkerExecutor
from background._pickling import LARGE, dragged, pack_call, unpack_call

__all__ = ["ProcessExecutor"]

own_files.add(__file__)


class ProcessExecutor(WorkerExecutor):
    """Run calls in `max_workers` processes, in the order in which they were made.

    For calls that compute, as drawing does: they hold the interpreter's lock, so that a thread
    would hold the program up. Works from a script without a `__main__` guard.

    Args:
        max_workers: the number of processes. They start with the first calls, sleep without
            waking up while there is nothing to do, and end with the program, however it ends.
        timeout: seconds that a call may run, or None for as long as it takes. One that runs
            longer is ended with its process and fails with a `TimeoutError`.

    Function and arguments are pickled when the call is made: what happens to them later is
    not seen by the call, and what the call does to them is not seen by the program. Functions
    and classes of `__main__`, closures and lambdas take cloudpickle:
    `pip install 'background-futures[process]'`. Context variables don't travel.

    A process that dies fails the call that it ran with `WorkerDied`; the next call gets a new
    one. Calls that a call makes in its turn run in its process, in threads, and it is done
    when they are.

    >>> with ProcessExecutor() as executor:
    ...     executor.submit(pow, 2, 10).result()
    1024
    """

    _packs = True
    _hints = False

    def __init__(self, max_workers: int = 1, timeout: float | None = None) -> None:
        if timeout is not None:
            if isinstance(timeout, bool) or not isinstance(timeout, int | float):
                raise TypeError(f"timeout must be seconds or None, not {timeout!r}")
            if not timeout > 0:
                raise ValueError(f"timeout must be greater than 0 seconds, not {timeout!r}")
        self._timeout = timeout
        super().__init__(max_workers, "background-process", partial(ProcessWorker, timeout))

    def _pack(self, call: Call[Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
        function, kwargs = call._function, call._kwargs
        call._kwargs = None
        views: list[memoryview] = []
        try:
            data = pack_call(function, args, kwargs, views)
            copies = list(map(bytearray, views))  # as they are now
        except Exception as error:
            call._function = Refused(function, error.with_traceback(None))
            return ()
        call._function = Packed(function)
        if len(data) + sum(map(len, copies)) >= LARGE:
            tell_of_dragged(function, call)
        return data, *copies

    def _stands(self, call: Call[Any]) -> str:
        for worker in self._queue.workers:
            if worker.thread is call._owner and isinstance(worker, ProcessWorker):
                pid = worker.process.pid
                return "" if pid is None else f" in the worker process {pid}"
        return super()._stands(call)

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "timeout": self._timeout}


class ProcessWorker(Worker):
    """A worker whose thread hands each call to a process and waits for the outcome."""

    def __init__(self, timeout: float | None, queue: Queue) -> None:
        super().__init__(queue)
        self.process = Process(timeout)

    def work(self) -> None:
        if not channels.in_worker:  # there the threads of the one process are enough
            _here.process = self.process
        super().work()

    def leave(self, deadline: float | None = None) -> None:
        if not self.process.running:  # a call that was dropped at exit: it ends with the program
            self.process.end(deadline=deadline)


_here = threading.local()  # .process: of the worker whose thread this is


class Packed(partial[Any]):
    """A call as bytes, named by its function, which `describe` finds as in any `partial`."""

    def __call__(self, /, data: bytes, *copies: bytearray) -> Any:
        process: Process | None = getattr(_here, "process", None)
        if process is not None:
            return process.run(data, copies)
        # In a worker process, or where no thread can be started (E4).
        function, args, kwargs = unpack_call(data, copies)
        return function(*args, **kwargs)


class Refused(partial[Any]):
    """A call that can't be pickled: it fails when its turn comes."""

    def __call__(self, /) -> Any:
        raise self.args[-1]  # the others are the function's, if that is a partial itself


_told: weakref.WeakSet[CodeType] = weakref.WeakSet()


def tell_of_dragged(function: Any, call: Call[Any]) -> None:
    """Say once of a function which large variables travel with each of its calls."""
    code = getattr(function, "__code__", None)
    if code is None or code in _told:
        return
    _told.add(code)
    for name, size in dragged(function):
        report(
            WARNING,
            "%s: %s, %s bytes, travels to the worker process with every call; "
            "pass it as an argument only when it changes, or move it with the function into a "
            "module that both import",
            describe(call),
            name,
            f"{size:,}",
        )
