"""Calls on anybody's `concurrent.futures.Executor`."""

from __future__ import annotations

import concurrent.futures
import os
import sys
import threading
from contextlib import suppress
from functools import reduce
from types import FunctionType, MethodType
from typing import Any

from background._core.call import Call
from background._core.executor import Executor, run_here
from background._core.ledger import Thread, let_go, this_thread, threads, unended, waiting
from background._core.naming import describe
from background._core.telling import WARNING, report
from background._debug import Watched
from background._errors import SHUT_DOWN
from background._executors.elsewhere import drain_before_end_of, end_call, has_ended
from background._platform import pool_threads
from background._snapshot import Failed

__all__ = ["ForeignExecutor"]


class ForeignExecutor(Executor):
    """Run calls on an executor that knows nothing of this package.

    It is given a `Shipment` for each call. An error that its `submit` raises is the outcome
    of that call. A call that runs in another process counts as waiting until it is done.
    """

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        self._foreign = executor
        self._closed = False
        self._process = os.getpid()
        self._told = False  # of a fork
        self._shipments: dict[Call[Any], Shipment] = {}

    def _accept(self, call: Call[Any]) -> None:
        if self._closed:
            raise RuntimeError(SHUT_DOWN)
        forked = self._process != os.getpid()
        if forked or isinstance(call._function, Failed):
            # E4: the workers of the pool stayed behind at the fork; or there is nothing to run.
            if forked and not self._told:
                self._told = True
                report(
                    WARNING,
                    "%s: %r was made before this process was forked and has no workers here; "
                    "its calls run in their caller: make a pool in the child",
                    describe(call),
                    self._foreign,
                )
            run_here(call)
            del call
            return
        shipment = self._shipments[call] = Shipment(self, call)
        try:
            with pool_threads.as_daemons():
                future: Any = self._foreign.submit(shipment)
            shipment.future = future
            future.add_done_callback(shipment.done)
        except Exception as error:
            self._refused(shipment, error)
        else:
            drain_before_end_of(self._foreign)
        del call, shipment  # the traceback of a failure or a refusal keeps this frame

    def _refused(self, shipment: Shipment, error: Exception) -> None:
        """End a call that the executor did not take as it should."""
        shipment.future = None
        call = shipment.take()
        if call is None:
            return  # it runs, or has run, all the same
        if has_ended() or "new thread" in str(error):
            run_here(call)  # E4
        else:
            if isinstance(error, AttributeError) and error.name == "add_done_callback":
                error = TypeError(f"{self._foreign!r} returned {error.obj!r} instead of a Future")
            end_call(self._foreign, call, None, error)
        del call, error

    def _revoke(self, call: Call[Any]) -> bool:
        shipment = self._shipments.get(call)
        if shipment is None:
            return True
        future = shipment.future
        if future is None:  # it is just being handed over
            return not shipment.pickled
        shipment.revoked = True  # `done` leaves it to whoever asks now
        shipment.revoked = bool(future.cancel())
        return shipment.revoked

    def _resume(self, call: Call[Any]) -> None:
        shipment = self._shipments.get(call)
        if shipment is None or (shipment.future is None and not shipment.pickled):
            call._retract()  # `done` has left it to whoever asked, or was interrupted itself
        else:
            shipment.revoked = False
            if shipment.future is not None and shipment.future.done():
                shipment.done(shipment.future)

    def _forget(self, call: Call[Any]) -> None:
        if shipment := self._shipments.get(call):
            shipment.take()

    def _runs(self, call: Call[Any]) -> bool:
        shipment = self._shipments.get(call)
        future = None if shipment is None else shipment.future
        return future is not None and bool(future.running())

    def _travels(self) -> bool:
        return hasattr(self._foreign, "_processes")  # the standard library's, and loky's

    def _give_up(self, call: Call[Any]) -> bool:
        owner, left = call._owner, True
        for thread in threading.enumerate():
            if owner is not None and thread.ident == owner.ident:
                left = pool_threads.abandon(thread)
        if processes := getattr(self._foreign, "_processes", None):
            if shipment := self._shipments.get(call):
                shipment.take()  # nobody asks any more what becomes of it
            # The pool's own thread waits for them.
            try:
                self._foreign.shutdown(wait=False, kill_workers=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # loky's
            except TypeError:
                for process in list(processes.values()):
                    process.kill()
        return left

    def _serves(self, here: Thread) -> bool:
        return here.queue is self._foreign

    def _workers(self) -> list[Thread]:
        # Those that run calls of ours now; whether these are all, a pool of threads tells.
        size = getattr(self._foreign, "_max_workers", None)
        busy = [each for each in list(threads.values()) if each.queue is self._foreign]
        return busy if isinstance(size, int) and len(busy) >= size else []

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further calls, and shut the executor down."""
        self._closed = True
        self._foreign.shutdown(wait=wait, cancel_futures=cancel_futures)

    def __repr__(self) -> str:
        return f"ForeignExecutor({self._foreign!r})"


class Shipment:
    """What a foreign executor calls.

    In this process that runs the call. If the executor pickles it instead, function and
    arguments travel, and the outcome comes back by the executor's future.
    """

    def __init__(self, executor: ForeignExecutor, call: Call[Any]) -> None:
        self.executor = executor
        self.call: Call[Any] | None = call
        self.future: Any = None  # the executor's
        self.pickled = False
        self.revoked = False

    def take(self) -> Call[Any] | None:
        """Return the call, the first time."""
        call, self.call = self.call, None
        if call is not None and self.executor._shipments.pop(call, None) is not None:
            return call
        return None

    def __call__(self) -> None:
        """Run the call."""
        call = self.call
        if call is None:
            return
        here = this_thread()
        pool_threads.enter()
        outer, here.queue = here.queue, self.executor._foreign
        try:
            shared = call._run(here)
        except BaseException as error:  # raised into this thread, between our lines
            shared = None
            unended.append((call, error, here))
        here.queue = outer
        self.take()
        del call
        let_go(here, shared)

    def done(self, future: Any) -> None:
        """Take over what became of the executor's future, unless the call ran here."""
        self.future = None
        call = self.call
        if call is None or call not in waiting:
            return
        result, error = None, None
        if future.cancelled():
            self.take()
            if not self.revoked and call._retract():
                this_thread().cancelled += 1
            return
        try:
            error = future.exception(0)
            result = None if error is not None else future.result(0)
        except BaseException as problem:
            error = problem
        if self.take() is not None:
            end_call(self.executor._foreign, call, result, error)
        del call, result, error, future

    def __reduce__(self) -> tuple[Any, ...]:
        self.pickled = True
        call = self.call
        args = None if call is None else waiting.get(call)
        if call is None or args is None:
            return _nothing, ()  # it was cancelled
        function: Any = call._function
        if isinstance(function, Watched):  # there nothing is the same object
            function = function.function
        if isinstance(function, MethodType) and not _found_by_name(function):
            function, args = function.__func__, (function.__self__, *args)
        # A worker that can't import our `__main__` is sent functions by value (loky's cloudpickle).
        imports = isinstance(self.executor._foreign, concurrent.futures.ProcessPoolExecutor)
        if isinstance(function, FunctionType) and (imports or function.__module__ != "__main__"):
            with suppress(AttributeError, KeyError):
                named = _find(function.__module__, function.__qualname__)
                if named is not function and _undecorated(named) is function:
                    # Its name stands for the decorated function.
                    function = Named(function.__module__, function.__qualname__)
        return Sent, (function, args, call._kwargs or {})


class Sent:
    """A call in another process."""

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def __call__(self) -> Any:
        """Call the function; the outcome goes back with the executor's future."""
        return self.function(*self.args, **self.kwargs)


class Named:
    """A decorated function, pickled by name, to be called without its decorator."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        __import__(self.module)
        return _undecorated(_find(self.module, self.name))(*args, **kwargs)


def _found_by_name(method: MethodType) -> bool:
    """Tell whether a method is what its name finds: that of a decorated one finds another."""
    found = getattr(method.__self__, method.__name__, None)
    return type(found) is MethodType and found == method  # not a wrapper, which equals it


def _find(module: str, name: str) -> Any:
    return reduce(getattr, name.split("."), sys.modules[module])


def _undecorated(named: Any) -> Any:
    inner = named.__wrapped__
    return getattr(inner, "__func__", inner)


def _nothing() -> Any:
    """Stand for a call that was cancelled before it was pickled."""
    return int
