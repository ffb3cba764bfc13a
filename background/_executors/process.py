"""Calls in processes of their own: for what computes."""

from __future__ import annotations

import math
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from functools import partial
from types import CodeType
from typing import Any, cast

import background._channel as channels
from background._channel import CALL, MOVE, RAISED, Channel, Message
from background._core.call import Call
from background._core.failures import own_files
from background._core.ledger import logger, this_thread
from background._core.naming import describe
from background._errors import WorkerDied
from background._executors.workers import Queue, Worker, WorkerExecutor
from background._pickling import LARGE, dragged, pack_call, unpack_call, unpack_error

__all__ = ["ProcessExecutor"]

own_files.add(__file__)

PATIENCE = 1.0  # seconds that an idle worker process gets to end by itself
ATTEMPTS = 3  # how many processes may die before they have taken a call in
# Its end has the package's own imports left out: they would take four times as long as the
# rest. What the calls import is up to them.
PROGRAM = """\
import sys, types
sys.path[:] = {path!a}
sys.argv[:] = {argv!a}
sys.modules["background"] = types.ModuleType("background")
sys.modules["background"].__path__ = {folders!a}
from background._worker import main
del sys.modules["background"]
main({connection}, {life})
"""


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

    def leave(self) -> None:
        if not self.process.running:  # a call that was dropped at exit: it ends with the program
            self.process.end()


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
        logger.warning(
            "%s: %s, %s bytes, travels to the worker process with every call; "
            "pass it as an argument only when it changes, or move it with the function into a "
            "module that both import",
            describe(call),
            name,
            f"{size:,}",
        )


class Process:
    """A worker process, started when it is first needed and again after each death."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.pid: int | None = None
        self.exitcode: int | None = None
        self.running = False
        self.directory = b""  # the one that it was told last
        self.channel: Channel | None = None

    def run(self, data: bytes, copies: tuple[bytearray, ...]) -> Any:
        """Have a call run and return its result, or raise what it raised."""
        self.running = True
        try:
            kind, answer, buffers = self.exchange(data, copies)
            where = f"in the worker process {self.pid}"
        finally:
            self.running = False
        if kind == RAISED:
            raise unpack_error(answer, where)
        try:
            return pickle.loads(answer, buffers=buffers)
        except BaseException as error:
            with suppress(Exception):  # it takes no notes
                BaseException.add_note(error, "while the result was unpickled")
            raise

    def exchange(self, data: bytes, copies: tuple[bytearray, ...]) -> Message:
        ended = ""
        for _ in range(ATTEMPTS):
            try:
                channel = self.channel or self.start()
                self.move(channel)
                channel.send(CALL, data, copies)
                if self.answers_in_time(channel):
                    return channel.receive()
            except EOFError:
                raise WorkerDied(
                    f"the worker process {self.pid} {self.end(kill=True)} while it ran "
                    f"{running_call()}; only this call fails, and the next one gets a new process",
                    self.exitcode,
                ) from None
            except OSError:
                # It died with the call, or a part of it, unread: so that had not started, and
                # may go to a new process.
                ended = self.end(kill=True)
            else:
                self.end(kill=True)
                raise TimeoutError(
                    f"{running_call()} ran longer than timeout={self.timeout} s; "
                    "its process was ended, and the next call gets a new one"
                )
        raise WorkerDied(
            f"the worker process {ended} before it had read {running_call()}, {ATTEMPTS} times "
            "in a row; look for what it said on standard error",
            self.exitcode,
        )

    def move(self, channel: Channel) -> None:
        """Have the process follow the program to another directory."""
        with suppress(FileNotFoundError):  # it is gone
            if (directory := os.getcwdb()) != self.directory:
                channel.send(MOVE, directory)
                self.directory = directory

    def answers_in_time(self, channel: Channel) -> bool:
        if self.timeout is None or self.timeout > 1e6:  # more than poll can take
            return True
        poll = select.poll()
        poll.register(channel.connection, select.POLLIN)
        return bool(poll.poll(math.ceil(self.timeout * 1000)))

    def start(self) -> Channel:
        """Start the process; return once it can take calls, so that `timeout` is for those."""
        channel = self.launch()
        try:
            channel.receive()
        except EOFError:
            raise ConnectionResetError from None  # for `exchange`: no call had started
        return channel

    def launch(self) -> Channel:
        with _forking:
            ours, theirs = socket.socketpair()
            watched, life = os.pipe()  # which the process watches: it ends when this closes
            program = PROGRAM.format(
                path=list(map(str, sys.path)),
                argv=sys.argv,
                folders=list(sys.modules["background"].__path__),
                connection=theirs.fileno(),
                life=watched,
            )
            flags: list[str] = cast(Any, subprocess)._args_from_interpreter_flags()
            try:
                popen = subprocess.Popen(
                    [sys.executable, *flags, "-c", program],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), watched),
                    start_new_session=True,  # Ctrl-C in the terminal is for the program alone
                )
            except BaseException as error:
                ours.close()
                os.close(life)
                raise WorkerDied(
                    f"no worker process could be started for {running_call()}: {error}"
                ) from error
            finally:
                theirs.close()
                os.close(watched)
            self.pid, self.directory = popen.pid, b""
            popen.returncode = 0  # it is waited for below; Popen would warn of one that runs
            self.channel = Channel(ours)
            _open[self.channel] = life
            return self.channel

    def end(self, kill: bool = False) -> str:
        """End the process; return how it ended, in words."""
        channel, self.channel = self.channel, None
        if channel is None or self.pid is None or channel not in _open:  # or it is the parent's
            return "has not started"
        if not kill:
            try:
                channel.connection.shutdown(socket.SHUT_WR)
                channel.connection.settimeout(PATIENCE)
                channel.connection.recv(1)  # returns once the process has ended
            except TimeoutError:
                kill = True
            except OSError:
                pass  # it has ended already
        if kill:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        with _forking:
            channel.connection.close()
            os.close(_open.pop(channel))
        try:
            self.exitcode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # the program waits for any child
            self.exitcode = None
            return "ended"
        if self.exitcode >= 0:
            return f"ended with exit code {self.exitcode}"
        name = f"signal {-self.exitcode}"
        with suppress(ValueError):
            name = signal.Signals(-self.exitcode).name
        return f"was killed by {name}"


def running_call() -> str:
    call = this_thread().call
    return "a call" if call is None else describe(call)


_open: dict[Channel, int] = {}  # what the program has of its processes: a socket and a pipe each
# Held while that changes: a child forked at that moment would inherit a pipe of which nobody
# knows, and keep the process alive when its program is gone.
_forking = threading.RLock()  # the thread that holds it may fork, in a signal handler


def forget_processes() -> None:
    """Close what a forked child has of its parent's processes."""
    while _open:
        channel, life = _open.popitem()
        os.close(channel.connection.detach())
        os.close(life)
    _forking.release()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=forget_processes
)
