"""Calls in a file: they run even if the program that made them is killed."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import math
import os
import pickle
import sys
import sysconfig
import weakref
from contextlib import suppress
from typing import Any

from background._core.call import Call
from background._core.executor import Executor
from background._core.ledger import this_thread, waiting
from background._core.naming import describe
from background._errors import SHUT_DOWN
from background._executors.elsewhere import end_call
from background._executors.sqlite.access import StoreError, resolve
from background._executors.sqlite.locks import holding
from background._executors.sqlite.outcomes import Desk, Ticket
from background._executors.sqlite.store import StoredCall
from background._executors.sqlite.worker import worker_of
from background._pickling import pack_call

__all__ = ["SQLiteExecutor"]

# Where the interpreter imports from anyway.
OWN = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]


class SQLiteExecutor(Executor):
    """Keep calls in a file and run them in a process of its own, which outlives this program.

    A call is on disk when it returns its future: it runs even if the program is killed now. It
    runs at least once, and exactly once as long as no worker is killed. One worker, which
    starts by itself with the first call, runs the calls of all programs that use the file in
    the order in which they were made.

    Args:
        path: the file; it is made, for this user alone, with the first call. It must be on a
            local disk, and it holds pickles: whoever can write it can run code as you. So it is
            refused in a folder that others may write into or own.
        synchronous: `"NORMAL"`: a call survives the end of any program; the last ones before a
            power cut may be lost. `"FULL"`: they survive that, too, for one fsync a call.
        start_worker: whether to start a worker if none lives. Without, run
            `python -m background worker PATH`.
        idle_timeout: seconds without a call after which a worker that was started ends.

    Functions that a worker can import go by name, with the directories to import them from;
    those of `__main__` go by value, which takes cloudpickle. Arguments, results and errors are
    pickled. Context variables stay behind. A call is done when the calls that it made in
    its turn in threads or processes are.

    The program's end doesn't wait for these calls; `flush` does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with SQLiteExecutor(f"{folder}/calls.db", idle_timeout=0.1) as executor:
    ...         executor.submit(pow, 2, 10).result(60)
    1024
    """

    _packs = True
    _outlives = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: str = "NORMAL",
        start_worker: bool = True,
        idle_timeout: float = 60.0,
    ) -> None:
        name = os.fspath(path)
        if not isinstance(name, str) or not name or name == ":memory:":
            raise TypeError(f"path must be the path of a file, not {path!r}")
        if synchronous not in ("NORMAL", "FULL"):
            raise ValueError(f'synchronous must be "NORMAL" or "FULL", not {synchronous!r}')
        if isinstance(idle_timeout, bool) or not isinstance(idle_timeout, int | float):
            raise TypeError(f"idle_timeout must be seconds, not {idle_timeout!r}")
        if not 0 <= idle_timeout < math.inf:
            raise ValueError(f"idle_timeout must be at least 0 seconds, not {idle_timeout!r}")
        self._path = resolve(name)
        self._options = (
            {"idle_timeout": idle_timeout, "synchronous": synchronous} if start_worker else None
        )
        self._synchronous = synchronous
        self._closed = False
        self._desk = Desk(self._path, synchronous, self._options)
        _executors.add(self)

    # -- The seam -------------------------------------------------------------------------

    def _pack(self, call: Call[Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
        try:
            views: list[memoryview] = []
            data = pack_call(call._function, args, call._kwargs, views)
            packed: object = pickle.dumps([data, *map(pickle.PickleBuffer, views)], 5)
        except Exception as error:
            packed = error.with_traceback(None)
        call._function = describe(call)  # as the file has it; what it refers to goes free
        call._context = None
        call._kwargs = packed
        return ()

    def _accept(self, call: Call[Any]) -> None:
        if self._closed:
            raise RuntimeError(SHUT_DOWN)
        desk, packed = self._desk, call._kwargs
        if not isinstance(packed, bytes):
            end_call(this_thread().queue, call, None, packed)
            return
        if desk.refused is not None and not desk.has_worker():  # it would wait for ever
            end_call(this_thread().queue, call, None, RuntimeError(desk.refused))
            return
        number = next(desk.numbers)
        try:
            desk.calls[number] = call  # before a worker can have run it
            key = desk.store.put(desk.program, number, describe(call), place(), packed)
            call._kwargs = Ticket(number, key)
            desk.see_to_worker()
            desk.attend()
        except StoreError as error:
            desk.calls.pop(number, None)
            # Without its frames, which hold the future.
            end_call(this_thread().queue, call, None, error.with_traceback(None))
        except BaseException:  # Ctrl-C
            if desk.calls.pop(number, None) is not None:
                with suppress(StoreError):
                    desk.store.take_back(desk.program, number)
            raise

    def _revoke(self, call: Call[Any]) -> bool:
        return holding(self._desk.taking, self._desk.revoke, call)

    def _resume(self, call: Call[Any]) -> None:
        ticket = call._kwargs
        if type(ticket) is Ticket and call in waiting:
            self._desk.calls[ticket.number] = call  # its outcome says whether it is cancelled
            self._desk.attend()

    def _wake(self) -> None:
        desk = self._desk
        worker = worker_of(self._path)
        if worker is not None:  # it waits for what it would never begin: F4
            for call in list(desk.calls.values()):
                ticket = call._kwargs
                if call in waiting and type(ticket) is Ticket:
                    worker.run_now(ticket.key)
        if not desk.attend():
            desk.run(own=False)  # no thread can be started: this one brings the outcomes

    def _stands(self, call: Call[Any]) -> str:
        return f" in a worker of {self._path}"

    def _outlook(self, count: int) -> str:
        stored = f"{count} durable call{'s are' if count != 1 else ' is'} stored in {self._path}"
        run = "them" if count != 1 else "it"
        if self._desk.has_worker():
            return f"{stored}; a worker will run {run}"
        return (
            f"{stored}; no worker is alive: `python -m background worker {self._path}` runs {run}"
        )

    # -- For people -----------------------------------------------------------------------

    def calls(self) -> list[StoredCall]:
        """Return the calls in the file as they stand, the oldest first.

        Those that wait and run, those that failed or killed their workers until they are
        purged, and those whose result nobody has read, for a day.

        Raises:
            OSError: the file can't be used; the message says why.
        """
        return self._desk.store.calls()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further calls; with `wait`, return when this program's calls are done.

        With `cancel_futures`, cancel those that have not started.
        """
        self._closed = True
        desk = self._desk
        calls = list(desk.calls.values())
        if cancel_futures:
            for call in calls:
                call.cancel()
        if wait:
            concurrent.futures.wait(calls)
        desk.close()

    def __del__(self) -> None:
        if desk := getattr(self, "_desk", None):
            desk.close()

    def __repr__(self) -> str:
        return f"SQLiteExecutor({self._path!r})"


# -- Where a call is made ------------------------------------------------------------------


def place() -> str:
    """Return the working directory and the directories to import from, for the worker."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # it was deleted
        folder = ""
    return _place(folder, tuple(sys.path))


@functools.lru_cache(maxsize=16)
def _place(folder: str, path: tuple[str, ...]) -> str:
    # Without those of the interpreter itself, which a worker has of its own.
    entries = [os.path.join(folder, entry) if entry else folder for entry in path]
    kept = [
        entry
        for entry in dict.fromkeys(entries)
        if entry not in OWN
        and os.path.dirname(entry) not in OWN  # lib-dynload
        and not os.path.basename(entry).startswith("python3")  # the standard library as a zip
    ]
    return json.dumps({"cwd": folder, "path": kept})


# -- Fork ----------------------------------------------------------------------------------

_executors: weakref.WeakSet[SQLiteExecutor] = weakref.WeakSet()


def after_fork_in_child() -> None:
    """Leave the calls to the parent: its futures are cancelled here, the calls go on."""
    for executor in list(_executors):
        executor._desk = Desk(executor._path, executor._synchronous, executor._options)


os.register_at_fork(after_in_child=after_fork_in_child)
