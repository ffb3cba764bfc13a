"""The thread of a program that brings its calls' outcomes from the file to their futures."""

from __future__ import annotations

import _thread
import fcntl
import itertools
import os
import pickle
import subprocess
import threading
import time
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic
from typing import Any, NamedTuple

from background._core.call import Call
from background._core.ledger import Thread, let_go, this_thread, waiting
from background._core.naming import describe
from background._core.telling import ERROR, report
from background._errors import WorkerDied
from background._executors.sqlite.access import StoreError, open_beside
from background._executors.sqlite.locks import SOMEBODY, Life, token
from background._executors.sqlite.store import Outcome, Store
from background._executors.sqlite.supervisor import command, log_of
from background._pickling import unpack_error
from background._platform import interpreter

__all__ = ["Desk", "Ticket"]

POLL = 0.01  # seconds between two looks at the file while calls of this program are pending
CARE = 0.25  # seconds between two looks whether a worker lives


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
        self.refused: str | None = None  # why no worker can be started by any program like this
        if options is not None:
            try:
                interpreter()
            except RuntimeError as error:
                self.refused = str(error)
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

    def has_worker(self) -> bool:
        """Tell whether a worker lives, or was started a moment ago."""
        started = bool(self.starts) and monotonic() < self.starts[-1] + 5
        with suppress(OSError):
            return self.life.taken(SOMEBODY) or started
        return started

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
        except (OSError, RuntimeError) as error:  # the call is in the file all the same
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
                program = command("supervisor.detached", self.path, **self.options or {})
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
