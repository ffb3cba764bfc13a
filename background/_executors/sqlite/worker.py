"""The program that runs durable calls.

A worker runs one call at a time in its main thread. It doesn't need the program that made the
calls.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from time import monotonic
from types import TracebackType
from typing import Any

from background._executors.process.worker import run
from background._executors.sqlite.access import StoreError
from background._executors.sqlite.locks import SOMEBODY, SUPERVISOR, Life, token
from background._executors.sqlite.store import Claim, Store
from background._executors.sqlite.supervisor import ENDED, FRESH, LOOK, TROUBLE, say
from background._pickling import pack_error, pack_result, unpack_call

__all__ = ["Worker", "work", "worker_of"]

OWN = (__file__, run.__code__.co_filename)  # whose frames a traceback needn't show
POLL = 0.01  # seconds between two looks of an idle worker: 0.03 % of a core
TELL = 60.0  # seconds between two lines about the same trouble
PRUNE = 600.0  # seconds between two looks for outcomes that nobody reads


def work(path: str, supervisor: int, idle_timeout: float | None, synchronous: str) -> None:
    """Be a worker."""
    global _here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # to print any name of a file is no error
            stream.reconfigure(errors="backslashreplace")
    _here = worker = Worker(path, supervisor, idle_timeout, synchronous)
    try:
        code = worker.loop()
    except StoreError as error:
        say(str(error))
        code = TROUBLE
    sys.exit(code)


class Worker:
    """Runs the calls of a file, one after the other, in the main thread of its process."""

    def __init__(
        self, path: str, supervisor: int, idle_timeout: float | None, synchronous: str
    ) -> None:
        self.path = path
        self.store, self.life = Store(path, synchronous, 1000), Life(path)
        self.idle_timeout = math.inf if idle_timeout is None else idle_timeout
        self.id = token()
        self.pid = os.getpid()
        self.supervisor = supervisor
        self.since = time.time()
        self.stop = False
        self.own_path = sys.path[:]
        self.program: int | None = None  # that made the last call
        self.place: dict[str, Any] = {}
        self.fresh = True  # nothing of a program is imported here yet

    def loop(self) -> int:
        """Run calls until told to end or idle; return an exit code."""

        def stop(*_: object) -> None:
            self.stop = True

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        self.life.hold(SOMEBODY)
        self.life.hold(self.id)
        self.store.join(self.id)
        idle_since = monotonic()
        look = prune = told = 0.0
        worked = False
        while not self.stop:
            claim = None
            alone = os.getppid() != self.supervisor  # killed: nobody would replace us either
            try:
                if alone:
                    # First off the list, then a look: the new supervisor looks for calls only
                    # once it is off the list itself, so that it sees those that were left to us.
                    self.life.drop(SOMEBODY)
                    if self.life.taken(SUPERVISOR):
                        return self.end(ENDED)
                for byte in (SOMEBODY, self.id):  # the last call may have lost them: see `Life`
                    self.life.hold(byte)
                if monotonic() >= look:
                    for owner in self.store.orphans(self.life):
                        self.store.bury(owner)
                    if worked:
                        self.store.shorten()
                        worked = False
                    look = monotonic() + LOOK
                if monotonic() >= prune:
                    self.store.prune(self.life)
                    prune = monotonic() + PRUNE
                claim = self.store.claim(self.id)
            except StoreError as error:
                if not error.passing:
                    raise
                if monotonic() >= told:
                    say(str(error))
                    told = monotonic() + TELL
                time.sleep(1.0)
            if claim is not None:
                if not self.fits(claim):
                    self.store.give_back(claim.id, self.id)
                    return self.end(FRESH)
                if not self.run(claim):
                    return self.end(FRESH)
                idle_since = monotonic()
                worked = True
                continue
            if alone or monotonic() - idle_since >= self.idle_timeout:
                self.life.drop(SOMEBODY)
                if not self.store.waits():  # the last look: see `supervise`
                    return self.end(ENDED)
                self.life.hold(SOMEBODY)
            time.sleep(POLL)
        return self.end(ENDED)

    def end(self, code: int) -> int:
        with contextlib.suppress(StoreError):
            self.store.leave(self.id)
        self.store.close()
        return code

    def fits(self, claim: Claim) -> bool:
        """Tell whether this process may run the call, or has other modules than its program."""
        place = json.loads(claim.place)
        if self.fresh:
            sys.path[:] = place["path"] + [p for p in self.own_path if p not in place["path"]]
        elif place["path"] != self.place["path"] or (
            claim.program != self.program and self.outdated()
        ):
            return False
        self.fresh = False
        self.program, self.place = claim.program, place
        return True

    def outdated(self) -> bool:
        """Tell whether a module of the program has changed since it was imported here."""
        folders = tuple(os.path.join(folder, "") for folder in self.place["path"])
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if file and file.startswith(folders):
                with contextlib.suppress(OSError):
                    if os.stat(file).st_ctime >= self.since:
                        return True
        return False

    def run_now(self, key: int) -> None:
        """Run a call that the running call waits for, unless another worker has it."""
        claim = self.store.claim(self.id, key)
        if claim is not None:
            self.run(claim)

    def run(self, claim: Claim) -> bool:
        """Run a call and write its outcome; return False if it was no longer ours to write."""
        outcome, error, trace = self.outcome(claim)
        told = 0.0
        if os.getpid() != self.pid:
            os._exit(0)  # a child that the call forked, and that came back from it
        while True:
            try:
                mine = self.store.finish(claim.id, self.id, outcome, error, trace)
                break
            except StoreError as trouble:
                if trouble.passing:  # to give up would mean to run the call again
                    if monotonic() >= told:
                        say(f"the outcome of {claim.call} can't be written yet: {trouble}")
                        told = monotonic() + TELL
                    time.sleep(1.0)
                elif error is None:
                    outcome, error, trace = failure(trouble)
                else:
                    raise
        if mine and error is not None:
            say(f"call {claim.id}, {claim.call}, failed: {error.splitlines()[0]}")
        if not mine:
            say(f"{claim.call} was given to another worker, whose outcome counts")
        return mine

    def outcome(self, claim: Claim) -> tuple[bytes, str | None, str | None]:
        """Run a call; return its result, or its failure with a line and a traceback."""
        try:
            try:
                enter(self.place["cwd"])
                data, *buffers = pickle.loads(claim.pickle)
                function, args, kwargs = unpack_call(data, buffers)
            except BaseException as error:
                with contextlib.suppress(BaseException):  # it takes no notes
                    BaseException.add_note(
                        error,
                        f"{claim.call} could not be loaded in its worker, in the folder "
                        f"{self.place['cwd']} with {self.place['path']} to import from",
                    )
                raise
            return pack_result(run(function, args, kwargs)), None, None
        except BaseException as error:
            # By the class: an exception may answer by force for its attributes.
            trace: TracebackType | None = vars(BaseException)["__traceback__"].__get__(error)
            while trace is not None and trace.tb_frame.f_code.co_filename in OWN:
                trace = trace.tb_next
            return failure(BaseException.with_traceback(error, trace))


def enter(folder: str) -> None:
    """Change to the working directory of a call.

    If it is gone, or can't be entered, the call runs in one that is gone, too: what needs none
    goes well, and a relative path is an error instead of a file elsewhere.
    """
    try:
        os.chdir(folder)
    except OSError:
        nowhere = tempfile.mkdtemp()
        os.chdir(nowhere)
        os.rmdir(nowhere)


def failure(error: BaseException) -> tuple[bytes, str, str]:
    """Return a failure as bytes, as a line, and with its traceback."""
    line, trace = type.__repr__(type(error)), "the traceback can't be shown"
    with contextlib.suppress(BaseException):  # its message and its notes may raise anything
        line = f"{type(error).__name__}"
        line = f"{line}: {error}".rstrip(": ")
    with contextlib.suppress(BaseException):
        trace = "".join(traceback.format_exception(error))
    return pack_error(error), line, trace


_here: Worker | None = None


def worker_of(path: str) -> Worker | None:
    """Return the worker of this file that this thread is, if it is one."""
    worker = _here
    if worker is None or (worker.path, worker.pid) != (path, os.getpid()):
        return None
    return worker if threading.current_thread() is threading.main_thread() else None
