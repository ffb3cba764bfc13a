"""Calls on the machines of a Dask cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import importlib.util
import os
import pickle
import threading
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol, cast

from background._core.call import Call
from background._core.executor import Executor, run_here, stand_in
from background._core.failures import own_files
from background._core.ledger import this_thread, waiting
from background._core.naming import describe
from background._errors import SHUT_DOWN, WorkerDied
from background._executors.dask.cluster import Cluster
from background._executors.elsewhere import drain_before_end_of, end_call, has_ended
from background._executors.process.channel import RAISED
from background._executors.process.worker import outcome
from background._pickling import pack_call, unpack_call, unpack_error

__all__ = ["DaskExecutor"]

own_files.add(__file__)

PATIENCE = 10.0  # seconds that the scheduler gets to answer whether a call may be cancelled
# Tells this process from the workers, who learn it with each call.
PROGRAM = uuid.uuid4().hex
_in_worker = False  # this process has run a call of another program


class Client(Protocol):
    """What is used of `distributed.Client`."""

    id: str
    status: str

    def get_executor(self, **kwargs: Any) -> Any: ...
    def sync(self, func: Any, *args: Any, **kwargs: Any) -> Any: ...
    def run_on_scheduler(self, function: Any, *args: Any, **kwargs: Any) -> Any: ...


class DaskExecutor(Executor):
    """Run calls on a Dask cluster, of many machines or of this one.

    Args:
        client: a `distributed.Client`, which stays yours: `shutdown` doesn't close it. Without
            one, a cluster of one-threaded worker processes on this machine, one for each core,
            is started by the first call, which waits for it (about a second), and ends with
            the executor or the program, however that ends. Its scheduler is a thread of the
            program and its workers are started as commands, not by `multiprocessing`, so that
            this works from a script without a `__main__` guard, which `LocalCluster()` would
            run again in each worker.
            Nobody else can connect: they speak TLS by a key of their own.

    Calls start in order and one at a time only on a cluster of one worker with one thread.
    The package, in the same version, must be installed for scheduler and workers, and so must
    the modules of the functions; those of `__main__` go by value. The cluster that is started
    without a client imports modules from where the program does when it is started. Function and
    arguments are pickled when the call is made: what happens to them later is not seen by the
    call. Large ones stay on the scheduler until the call is done; bound such calls by
    `max_pending`. Context variables don't travel.

    Dask runs a call again if its worker dies, before or after the call was done: up to four
    times in all, then its future fails with `WorkerDied`. A call that has side effects must
    bear that. If the connection to the scheduler is lost, the calls that were not done fail
    with `WorkerDied`, too, and later ones wait until the client has reconnected.

    `cancel` asks the scheduler and is True only if no worker was ever given the call. Workers
    are given a few calls more than they run, whose start nobody can rule out: for them, too,
    it is False. A call counts as waiting until it is done. Calls that a call makes on a
    `DaskExecutor` in its turn run inside it, at once.

    Needs `pip install 'background-futures[dask]'`.
    """

    _packs = True

    def __init__(self, client: Client | None = None) -> None:
        if importlib.util.find_spec("distributed") is None:
            raise ModuleNotFoundError(
                "DaskExecutor needs Dask's distributed: pip install 'background-futures[dask]'",
                name="distributed",
            )
        if client is not None and not hasattr(client, "get_executor"):
            raise TypeError(
                f"client must be a distributed.Client, not {client!r}; "
                "write DaskExecutor(Client(address))"
            )
        if getattr(client, "asynchronous", False):
            raise TypeError("client must not be asynchronous; write Client(address)")
        self._client: Any = client
        self._cluster: Cluster | None = None  # of our own
        self._pool: Any = None  # the client as an executor
        self._starting = threading.RLock()  # held while the two are made
        self._closed = False
        self._process = os.getpid()
        self._sent: dict[Call[Any], Sent] = {}

    # -- The seam -------------------------------------------------------------------------

    def _pack(self, call: Call[Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
        function, kwargs = call._function, call._kwargs
        call._function, call._kwargs = Packed(function), None
        views: list[memoryview] = []
        try:
            data = pack_call(function, args, kwargs, views)
            return data, *map(bytearray, views)  # as they are now
        except Exception as error:
            return (error.with_traceback(None),)

    def _accept(self, call: Call[Any]) -> None:
        if self._closed:
            raise RuntimeError(SHUT_DOWN)
        sent = self._sent[call] = Sent(describe(call).partition("(…)")[0])
        args = waiting.get(call)  # after `_sent`: from there on nobody but us may cancel it
        here = _in_worker or has_ended() or self._process != os.getpid()
        if args is None or here or isinstance(args[0], Exception):
            # Cancelled already, or in a worker, at the program's end, in the child of a fork
            # (E4), or not to be pickled, which becomes the outcome.
            self._sent.pop(call)
            run_here(call)
            del call, args
            return
        try:
            pool = self._connected()
            with without_warning():
                future = pool.submit(run_there, PROGRAM, call._born, *args, key=sent.key)
            sent.future = future
            drain_before_end_of(pool)
            # In a box: Dask's future keeps the callback until it has returned.
            future.add_done_callback(partial(self._done, [call]))
        except Exception as error:
            if self._sent.pop(call, None) is not None:
                end_call(self._pool, call, None, error.with_traceback(None))
        del call, args

    def _connected(self) -> Any:
        """Return the client as an executor, after starting a cluster if none was given."""
        with self._starting:
            if self._pool is None:
                if self._client is None:
                    self._cluster = Cluster()
                    self._client = self._cluster.client
                # Dask's helper thread must run before the program's end, which waits for
                # calls but lets no thread start; a scheduler in this process needs it, too.
                offload = importlib.import_module("distributed.utils").offload
                with suppress(Exception):  # on the event loop's own thread there is no waiting
                    self._client.sync(offload, int, asynchronous=False)
                # By default it would run equal calls once.
                self._pool = self._client.get_executor(pure=False)
            return self._pool

    def _done(self, box: list[Call[Any]], future: concurrent.futures.Future[Any]) -> None:
        """Take over what became of a call."""
        call = box.pop()
        sent = self._sent.get(call)
        if sent is None:
            return  # it was cancelled
        result: Any = None
        error: BaseException | None = None
        if future.cancelled():
            if sent.asked:
                return  # whoever asks ends it
            error = WorkerDied(
                f"Dask gave {describe(call)} up: the connection to the scheduler was lost, or "
                "the client was closed or restarted before the call was done; it may have run "
                "or run still; call it again, and flush() before the client is closed"
            )
        elif (raised := future.exception()) is not None:
            error = explained(call, raised)
            del raised
        else:
            try:
                kind, answer, buffers = future.result()
                if kind == RAISED:
                    error = unpack_error(answer, "in a Dask worker")
                else:
                    result = pickle.loads(answer, buffers=buffers)
            except BaseException as problem:
                error = problem.with_traceback(None)
                with suppress(Exception):  # it takes no notes
                    BaseException.add_note(error, "while the result was unpickled")
        if self._sent.pop(call, None) is not None:
            end_call(self._pool, call, result, error)
        del call, future, result, error

    def _revoke(self, call: Call[Any]) -> bool:
        sent = self._sent.get(call)
        if sent is None or sent.future is None or self._client.status != "running":
            return False  # it is done, or just being handed over, or nobody can be asked
        sent.asked = True  # `_done` leaves it to us
        try:
            taken = self._client.run_on_scheduler(
                take_back, sent.key, self._client.id, callback_timeout=PATIENCE, asynchronous=False
            )
        except Exception:  # no answer, or this is the event loop's own thread
            taken = False
        sent.asked = taken is True or sent.future.cancelled()
        if not sent.asked and sent.future.done():  # meanwhile
            self._done([call], sent.future)
        return sent.asked

    def _resume(self, call: Call[Any]) -> None:
        if sent := self._sent.get(call):
            sent.asked, future = False, sent.future
            if future is not None and future.cancelled():
                call._retract()
            elif future is not None and future.done():
                self._done([call], future)

    def _forget(self, call: Call[Any]) -> None:
        self._sent.pop(call, None)

    def _stands(self, call: Call[Any]) -> str:
        return " on Dask"

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further calls; with `wait`, return when the last one is done.

        With `cancel_futures`, cancel those that no worker has been given. A cluster that was
        started by the executor ends then; without `wait`, with the program.
        """
        self._closed = True
        calls = list(self._sent)
        if cancel_futures:
            for call in calls:
                call.cancel()
        if wait:
            concurrent.futures.wait(calls)
            if self._cluster is not None:
                self._cluster.close()

    def __repr__(self) -> str:
        return f"DaskExecutor({'' if self._client is None else self._client!r})"

    def __reduce__(self) -> Any:
        return DaskExecutor, ()  # in a worker, where calls run at once


class Sent:
    """What is known of a call that Dask has."""

    __slots__ = ("asked", "future", "key")

    def __init__(self, name: str) -> None:
        self.key = f"{name}-{uuid.uuid4().hex}"  # Dask learns by the name how long calls take
        self.future: concurrent.futures.Future[Any] | None = None
        self.asked = False  # whether it may be cancelled


class Packed(partial[Any]):
    """A call as bytes, or why it can't be; named by its function, as `describe` finds it."""

    def __call__(self, /, data: bytes | Exception, *buffers: bytearray) -> Any:
        if isinstance(data, Exception):
            raise data
        function, args, kwargs = unpack_call(data, buffers)
        return function(*args, **kwargs)


_quiet = threading.RLock()  # Dask's settings are the process's: one change at a time


@contextmanager
def without_warning() -> Generator[None, None, None]:
    """Keep Dask from advice on graphs of more than 10 MB: there is none, just a call."""
    config: Any = importlib.import_module("dask.config")
    with _quiet, config.set({"distributed.admin.large-graph-warning-threshold": 1 << 60}):
        yield


# -- On the cluster -----------------------------------------------------------------------


def run_there(
    program: str, born: float, data: bytes, *buffers: bytearray
) -> tuple[int, bytes, list[bytearray]]:
    """Run a call in a worker and return its outcome as a message."""
    global _in_worker
    own_thread = program == PROGRAM  # LocalCluster(processes=False)
    _in_worker = _in_worker or not own_thread
    # Copies, should it run again here: what a call does to its arguments is for it alone.
    kind, answer, views = outcome(
        data, list(map(bytearray, buffers)), partial(run_beside, born) if own_thread else None
    )
    return kind, answer, list(map(bytearray, views))


def run_beside(born: float, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call in a thread of the program; calls that it makes count as made when it was."""
    here = this_thread()
    outer, here.call = here.call, stand_in(function, born)
    try:
        return function(*args, **kwargs)
    finally:
        here.call = outer


async def take_back(key: str, client: str, dask_scheduler: Any = None) -> bool:
    """Forget a call if no worker was ever given it: on the scheduler, whose thread this is."""
    for _ in range(100):  # it comes by another connection, and may come later
        if key in dask_scheduler.tasks:
            break
        await asyncio.sleep(0.01)
    call = dask_scheduler.tasks.get(key)
    states = ("waiting", "queued", "no-worker")
    if call is None or call.state not in states or call.run_id is not None:
        return False
    dask_scheduler.client_releases_keys(keys=[key], client=client)
    # Should the client have given up asking, it learns of it.
    dask_scheduler.report({"op": "cancelled-keys", "keys": [key]}, client=client)
    return True


def explained(call: Call[Any], error: BaseException) -> BaseException:
    """Return an error of Dask's, not the call's own, so that it can be understood."""
    error = error.with_traceback(None)
    if type(error).__name__ == "KilledWorker":
        times = cast(Any, error).allowed_failures + 1
        died = WorkerDied(
            f"Dask gave {describe(call)} up: {times} worker{'s' * (times != 1)} died (or passed "
            "its memory limit and was killed) that had been given it. It may be the cause, and "
            f"may have run up to {times} times, in part or whole; but Dask blames every call "
            "that a dying worker had, so one that only waited there may be blamed for another. "
            "Look at the worker's log; run the call alone to find out"
        )
        died.__cause__ = error
        return died
    with suppress(Exception):  # it takes no notes
        BaseException.add_note(
            error,
            "this comes from Dask, not from the call, which may not have run; if something is "
            "missing there: scheduler and workers need background-futures, in this version",
        )
    return error
