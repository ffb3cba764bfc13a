"""The supervisor: it keeps workers running, and replaces those that died.

It runs no call and so outlives any of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from time import monotonic
from typing import Any

from background._executors.sqlite.access import StoreError
from background._executors.sqlite.locks import SHARED, Life
from background._executors.sqlite.store import Store
from background._platform import interpreter

__all__ = ["ENDED", "FRESH", "LOOK", "TROUBLE", "command", "log_of", "say", "supervise"]

# A worker's exit codes: it has ended, it wants a new process in its place, the file is of no
# use. Unlikely ones, because the call may end the process by `os._exit`.
ENDED, FRESH, TROUBLE = 190, 191, 192
LOOK = 0.1  # seconds between two looks for workers that were killed

# Started by a path of its own, not by `-m`: the working directory has no say in what is
# imported, and what this interpreter needed to find the package stays out of the calls' way.
BOOT = """\
import json, sys
own = sys.path[:]
sys.path += json.loads(sys.argv.pop())
from background._executors.sqlite.%s import %s as start
sys.path[:] = own
start(sys.argv[1], **json.loads(sys.argv.pop()))
"""


def command(start: str, path: str, **options: object) -> list[str]:
    """Return the command of a process that runs `supervisor.detached` or `worker.work`."""
    places = [os.path.abspath(place) for place in sys.path]
    return [
        *(interpreter(), "-P", "-u", "-c", BOOT % tuple(start.split("."))),
        *(path, json.dumps(options), json.dumps(places)),
    ]


def say(text: str) -> None:
    """Write a line into the log of the workers, which is their standard error."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{os.getpid()}] {text}\n"
    with contextlib.suppress(OSError):
        os.write(
            2, line.encode(errors="backslashreplace")
        )  # not print: this may be in a signal handler


def log_of(path: str) -> Path:
    """Return the file into which detached workers write."""
    return Path(path + ".log")


def supervise(
    path: str, workers: int, idle_timeout: float | None, synchronous: str, *, beside: bool = True
) -> int:
    """Keep workers running until they are told to end or are idle; return an exit code.

    The first SIGINT or SIGTERM lets each end after its current call, the second one kills them.
    Unless they may run `beside` others, those that live are waited for.
    """
    store, life = Store(path, synchronous, 1000), Life(path)
    store.waits()  # a file that is of no use is an error now
    for byte in SHARED:
        life.hold(byte)
    with contextlib.suppress(OSError):
        # Whoever started this program had locked the log, so that nobody starts another one
        # before this one can be seen; we share the lock with the file.
        fcntl.flock(2, fcntl.LOCK_UN)
    options = {"idle_timeout": idle_timeout, "synchronous": synchronous}
    start = command("worker.work", path, supervisor=os.getpid(), **options)
    children: dict[int, float] = {}
    stops = code = deaths = 0
    told: dict[int, float] = {}  # when each signal came last

    def tell_all(number: int) -> None:
        for pid in list(children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(number: int, _: object) -> None:
        nonlocal stops
        # `timeout` sends each signal twice, to the program and to its group.
        before, told[number] = told.get(number, -math.inf), monotonic()
        if told[number] < before + 1:
            return
        stops += 1
        tell_all(signal.SIGTERM if stops == 1 else signal.SIGKILL)
        if stops == 1:
            say("ends after the current call; the same signal again kills that, to be run again")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    say(f"runs the calls in {path}")
    wanted = workers
    # A worker whose supervisor was killed ends after its current call, now that we can be seen.
    while not beside and not stops and store.workers(life):
        time.sleep(LOOK)
    while True:
        while len(children) < wanted and not stops:
            # In a process group of its own: Ctrl-C comes to this program alone.
            pid = os.posix_spawn(start[0], start, os.environ, setpgroup=0)
            children[pid] = monotonic()
            if stops:  # it came between the two lines above
                os.kill(pid, signal.SIGTERM)
        if children:
            pid, status = os.wait()
            lived = monotonic() - children.pop(pid, 0.0)
            exit_code = os.waitstatus_to_exitcode(status)
            if exit_code == TROUBLE:
                code, stops = 2, stops or 1
                tell_all(signal.SIGTERM)
            elif exit_code == ENDED:
                wanted -= 1
            elif exit_code != FRESH:
                how = f"exited with code {exit_code}"
                if exit_code < 0:
                    how = f"was killed by {signal.Signals(-exit_code).name}"
                say(f"worker {pid} {how}; the call that it ran goes to the next one")
                # Not to burn a core where no worker can live at all.
                deaths = deaths + 1 if lived < 1 else 0
                time.sleep(min(max(deaths - 10, 0) * 0.1, 1.0))
            continue
        # First off the list, then a last look: who makes a call first writes it, then looks
        # whether somebody is on the list. So one of the two sees the other.
        for byte in SHARED:
            life.drop(byte)
        if stops or not (store.waits() or store.orphans(life)):
            store.close()
            return code
        for byte in SHARED:
            life.hold(byte)
        wanted = workers


def detached(path: str, **options: Any) -> None:
    """Be the supervisor that a program has started."""
    try:
        sys.exit(supervise(path, 1, **options, beside=False))
    except StoreError as error:
        say(str(error))
        sys.exit(2)
