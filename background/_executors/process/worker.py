"""The program of a worker process: it runs calls one after the other.

It is started by `ProcessExecutor` and loads no more of the package than it needs: what the
calls import is up to them.
"""

from __future__ import annotations

import contextvars
import faulthandler
import fcntl
import functools
import importlib
import os
import pickle
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any

import background._executors.process.channel as channels
from background._executors.process.channel import RAISED, READY, RETURNED, STATE, Channel
from background._pickling import pack_error, pack_result, unpack_call
from background._platform import open_standard_streams

__all__ = ["main", "outcome", "run"]

# What a scheduler or a supervisor sends to all processes of a job at once. The program decides
# what it means: a worker ends when the program does, and never in the middle of a call before.
LEFT_TO_THE_PROGRAM = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def main(connection: int, life: int, tracker: int | None) -> None:
    """Run the calls that come over a connection until it is closed.

    `life` is a pipe whose other end the program holds: it closes when the program ends, however
    it does, and then this process must not live on. `tracker` belongs to the program's process
    that cleans up shared memory.
    """
    channels.in_worker = True
    open_standard_streams()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the mask of the thread that started us
    leave_signals_to_the_program()
    end_with(life)
    for descriptor in (life, connection):
        # What a call starts or forks must hold neither: they would seem open after our end.
        os.set_inheritable(descriptor, False)
        os.register_at_fork(after_in_child=functools.partial(os.close, descriptor))
    if tracker is not None:
        # As `multiprocessing` does it: a tracker of our own would unlink, when we end, the
        # shared memory that the program and other workers still use.
        os.set_inheritable(tracker, False)
        importlib.import_module("multiprocessing.resource_tracker")._resource_tracker._fd = tracker
    channel = Channel(socket.socket(fileno=connection))
    with suppress(EOFError, OSError):
        channel.send(READY, b"")
        while True:
            serve(channel)
    channel.connection.detach()  # it closes when the process has ended, which the program sees


def ignore(*_: object) -> None:
    """Do nothing: not SIG_IGN, which the programs that a call starts would inherit."""


def leave_signals_to_the_program() -> None:
    before = {number: signal.signal(number, ignore) for number in LEFT_TO_THE_PROGRAM}

    def restore() -> None:  # in what a call forks, such as the workers of a pool
        for number, handler in before.items():
            if signal.getsignal(number) is ignore:
                signal.signal(number, handler)

    os.register_at_fork(after_in_child=restore)


def end_with(life: int) -> None:
    """See to it that this process ends once nobody holds the pipe's other end.

    By a signal, because a call may hold the interpreter's lock for long.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC)
        if select.select([life], [], [], 0)[0]:  # it has ended already
            os._exit(1)
    else:
        threading.Thread(target=lambda: os._exit(len(os.read(life, 1)) + 1), daemon=True).start()


def serve(channel: Channel) -> None:
    """Run one call and send its outcome."""
    try:
        kind, data, buffers = channel.receive()
    except MemoryError as error:
        return channel.send(RAISED, pack_error(error))
    if kind == STATE:
        return follow(pickle.loads(data))
    kind, answer, views = outcome(data, buffers)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # what the call printed is seen before its outcome
            stream.flush()
    return channel.send(kind, answer, views)


def follow(state: dict[str, Any]) -> None:
    """Take over what has changed in the program since the last call."""
    if "cwd" in state:
        with suppress(OSError):  # there is no such directory any more
            os.chdir(state["cwd"])
    for name, value in state.get("environ", {}).items():
        with suppress(KeyError, ValueError):
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    if "path" in state:
        sys.path[:] = state["path"]
        importlib.invalidate_caches()
    if "authkey" in state:  # what `multiprocessing`'s managers ask of who connects
        process: Any = importlib.import_module("multiprocessing.process")
        process.current_process().authkey = state["authkey"]
    if state.get("faulthandler") and sys.stderr is not None and not faulthandler.is_enabled():
        with suppress(Exception):  # a standard error without a descriptor
            faulthandler.enable()


def outcome(
    data: bytearray | bytes,
    buffers: list[bytearray],
    run_by: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any] | None = None,
) -> tuple[int, bytes, list[memoryview]]:
    """Run one call, by `run` if not otherwise, and return its outcome as a message."""
    views: list[memoryview] = []
    try:
        try:
            function, args, kwargs = unpack_call(data, buffers)
        except BaseException as error:
            with suppress(Exception):  # it takes no notes
                BaseException.add_note(error, "while the worker process unpickled the call")
            raise
        return RETURNED, pack_result((run_by or run)(function, args, kwargs), views), views
    except BaseException as error:
        # By the class: an exception may answer by force for its attributes.
        trace: TracebackType | None = vars(BaseException)["__traceback__"].__get__(error)
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        return RAISED, pack_error(BaseException.with_traceback(error, trace)), []


def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one call, and wait for the calls that it made in its turn."""
    here = outer = None
    if core := sys.modules.get("background._core.executor"):
        here = core.this_thread()
        outer = here.call
        here.call = core.stand_in(function, monotonic())
    try:
        return contextvars.copy_context().run(function, *args, **kwargs)
    finally:
        if here is not None:
            here.call = outer
        if (ledger := sys.modules.get("background._core.ledger")) and ledger.pending:
            with ledger.Drain(monotonic(), at_exit=True) as drain:
                drain.wait()
