"""Calls in a file: they run even if the program that made them is killed."""

from __future__ import annotations

import _thread
import concurrent.futures
import fcntl
import functools
import itertools
import json
import math
import os
import pickle
import subprocess
import sys
import sysconfig
import threading
import time
import weakref
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic
from typing import Any, NamedTuple

from background._core.call import Call
from background._core.executor import Executor
from background._core.ledger import Thread, let_go, this_thread, waiting
from background._core.naming import describe
from background._core.telling import ERROR, report
from background._errors import SHUT_DOWN, WorkerDied
from background._executors.elsewhere import end_call
from background._executors.sqlite.access import StoreError, open_beside, resolve
from background._executors.sqlite.locks import SOMEBODY, Life, holding, token
from background._executors.sqlite.store import Outcome, Store, StoredCall
from background._executors.sqlite.worker import command, log_of, worker_of
from background._pickling import pack_call, unpack_error

__all__ = ["SQLiteExecutor"]

POLL = 0.01  # seconds between two looks at the file while calls of this program are pending
# Where the interpreter imports from anyway.
OWN = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
CARE = 0.25  # seconds between two looks whether a worker lives


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


class Ticket(NamedTuple):
    """Which call of its program and of the file it is; in the place of its arguments."""

    number: int
    key: int


class Desk:
    """Where a program's calls wait for their outcome, and the thread that brings it.

    The thread polls the file while calls are pending, sleeps without waking up while none
    is, and does not keep the executor alive.
    """

    def __init__(self, path: str, synchronous: str, options: dict[str, Any] | None) -> None:
        # The workers move the log into the file; this program does so only where none does.
        self.store, self.life = Store(path, synchronous, 64_000), Life(path)
        self.path = path
        self.options = options
        self.program = token()
        self.numbers = itertools.count(1)
        self.calls: dict[int, Call[Any]] = {}
        # Held while a call is cancelled in the file, and while one is taken off the desk: so
        # the thread that brings outcomes leaves a cancelled one to whoever cancelled it.
        self.taking = threading.RLock()
        self.bell: SimpleQueue[None] = SimpleQueue()
        self.asked = False
        self.post = [None]  # as for the workers of `ThreadExecutor`
        self.closed = False
        self.version: int | None = None  # of the file, when it was looked at
        self.care_at = 0.0
        self.starts: list[float] = []  # when a worker was started that was not seen yet
        self.told = False

    # -- The worker -----------------------------------------------------------------------

    def see_to_worker(self) -> None:
        """Start a worker if none lives."""
        if self.options is None:
            return
        trouble = ""
        try:
            if self.life.taken(SOMEBODY):
                if self.starts:
                    self.starts.clear()
                return
            if self.starts and monotonic() < self.starts[-1] + 1:
                return
            self.starts.append(monotonic())
            self.start_worker()
            if len(self.starts) > 5:
                trouble = "it ends as soon as it starts"
        except OSError as error:  # the call is in the file all the same
            trouble = str(error)
        if trouble and not self.told:
            self.told = True
            report(
                ERROR,
                "no worker can be started for the calls in %s, which wait there: %s; %s may say "
                "more, and `python -m background worker %s` runs one",
                self.path,
                trouble,
                log_of(self.path),
                self.path,
            )

    def start_worker(self) -> None:
        """Start a worker that is no child of this program, unless another program does just now."""
        log = open_beside(str(log_of(self.path)), os.O_WRONLY | os.O_APPEND)
        try:
            # The lock goes with the descriptor to the new process, which drops it once it can
            # be seen. Whoever comes until then, be it one of a hundred programs, leaves it.
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            if not self.life.taken(SOMEBODY):
                program = command("detached", self.path, **self.options or {})
                # The shell ends at once and leaves its child to the system, so that it never
                # becomes a zombie of this program; a fork of our own could catch another
                # thread's locks.
                subprocess.run(
                    ["/bin/sh", "-c", '"$@" &', "sh", *program],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=os.path.dirname(self.path),
                    start_new_session=True,
                    check=False,
                )
        finally:
            os.close(log)

    # -- The thread -----------------------------------------------------------------------

    def attend(self) -> bool:
        """Wake the thread; return False if it can't be started."""
        if self.bell.empty():
            self.bell.put(None)
        if not self.asked:
            try:
                _thread.start_new_thread(self.bootstrap, ())
                self.asked = True
            except RuntimeError:
                return False
        return True

    def bootstrap(self) -> None:
        try:
            self.post.pop()
        except IndexError:
            return
        try:
            threading.Thread(target=self.run, name="background-sqlite", daemon=True).start()
        except RuntimeError:
            self.run()

    def close(self) -> None:
        """Let the thread end once no call is pending."""
        self.closed = True
        self.bell.put(None)
        if not self.asked:
            self.let_go()

    def let_go(self) -> None:
        """Close the files."""
        self.store.close()
        self.life.close()

    def run(self, *, own: bool = True) -> None:
        """Bring outcomes; without a thread of its `own`, until no call is pending."""
        here = this_thread()
        while self.calls or not self.closed:
            if not self.calls:
                if not own:
                    return
                self.bell.get()
                continue
            try:
                self.look(here)
            except StoreError as error:
                if not error.passing:
                    self.fail_all(here, error)
            except BaseException as error:  # raised into this thread, between our lines
                message = "the thread that brings outcomes from %s goes on"
                report(ERROR, message, self.path, error=error)
            time.sleep(POLL)
        self.let_go()
        self.post, self.asked = [None], False
        if self.calls:  # made by a thread that had found the executor open
            self.attend()

    def look(self, here: Thread) -> None:
        """Bring what is new."""
        now = monotonic()
        careful = now >= self.care_at
        version = self.store.version()
        if version != self.version or careful:
            self.version = version
            for number in self.store.running(self.program):
                call = self.calls.get(number)
                if call is not None:
                    call._start(here)
                del call
            outcomes = self.store.outcomes(self.program)
            for outcome in outcomes:
                self.end(outcome, here)
            if outcomes:
                self.version = None  # there may be more
                with suppress(StoreError):  # the disk is full: next time
                    self.store.read(outcomes)
        if careful:
            self.care_at = now + CARE
            if self.calls:
                self.see_to_worker()
                self.miss(here)

    def take(self, number: int) -> list[Call[Any]]:
        """Take a call off the desk; it is in the list if it was there, and held by that alone.

        So nobody holds it any more when it is let go of.
        """
        with self.taking:
            call = self.calls.pop(number, None)
        return [] if call is None else [call]

    def revoke(self, call: Call[Any]) -> bool:
        """Cancel a call in the file and take it off the desk, unless it has started."""
        ticket = call._kwargs
        if type(ticket) is not Ticket or ticket.number not in self.calls or call not in waiting:
            return False
        with suppress(StoreError):
            # Whoever pops it from the desk ends it: the thread that brings outcomes, or we.
            return self.store.cancel(ticket.key) and self.calls.pop(ticket.number, None) is call
        return False

    def end(self, outcome: Outcome, here: Thread) -> None:
        """End a call as it ended in the file."""
        box = self.take(outcome.number)
        if not box:
            return
        if outcome.state == "cancelled":
            if box.pop()._retract():
                here.cancelled += 1
            return
        result: Any = None
        error: BaseException | None = None
        try:
            if outcome.state == "dead":
                error = WorkerDied(
                    f"{describe(box[0])} was running when its worker was killed, "
                    f"{outcome.attempts} times: it won't be tried again, but for "
                    f"`python -m background retry {self.path} {outcome.id}`; "
                    f"{log_of(self.path)} may say more"
                )
            elif outcome.state == "failed":
                error = unpack_error(outcome.outcome or b"", "The traceback in the worker")
            else:
                result = pickle.loads(outcome.outcome or b"")
        except BaseException as raised:  # unpickling runs code of the program's
            error = raised.with_traceback(None)
        self.settle(box, here, result, error)

    def settle(
        self, box: list[Call[Any]], here: Thread, result: Any, error: BaseException | None
    ) -> None:
        """End a call that was taken."""
        call = box.pop()
        call._start(here)
        if call.done():
            return
        shared = call._finish(here, result, error)
        del call, result, error
        let_go(here, shared)

    def miss(self, here: Thread) -> None:
        """Fail calls that are no longer in the file."""
        tickets = [call._kwargs for call in itertools.islice(list(self.calls.values()), 100)]
        numbers = {ticket.key: ticket.number for ticket in tickets if type(ticket) is Ticket}
        for key in self.store.gone(list(numbers)):
            if box := self.take(numbers[key]):
                error = RuntimeError(
                    f"{describe(box[0])} is no longer in {self.path}: it was purged, or the file "
                    "was moved away"
                )
                self.settle(box, here, None, error)

    def fail_all(self, here: Thread, error: StoreError) -> None:
        """Fail all calls whose outcome can't be read."""
        for number in list(self.calls):
            if box := self.take(number):
                told = StoreError(f"the outcome of {describe(box[0])} can't be read: {error}")
                self.settle(box, here, None, told)


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
