"""Soak the package: `python -m benchmarks.soak` (ten minutes; `--seconds 20` for a look).

Threads make calls of all kinds on all executors while workers are killed, calls end their
process, time out, can't be pickled, and executors come and go. After each round everything is
idle: then each call must have had the one outcome that it should, have run as often as it
should, and be in `stats()`; and threads, file descriptors and processes must be as many as
after the first round, and memory must not have grown. Linux alone has the `/proc` to look in.
"""

import argparse
import asyncio
import copy
import ctypes
import faulthandler
import gc
import importlib.util
import itertools
import logging
import operator
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import (
    CancelledError,
    Executor,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from background import (
    BackgroundError,
    BacklogFull,
    DaskExecutor,
    FlushTimeout,
    Future,
    InlineExecutor,
    ProcessExecutor,
    SQLiteExecutor,
    ThreadExecutor,
    WorkerDied,
    background,
    flush,
    stats,
)
from background._executors.foreign import ForeignExecutor

PRODUCERS = 6
LIMIT = 60.0  # seconds without progress, or until one call is done: then something hangs
TIMEOUT = 5.0  # of the executor whose calls may run so long, in seconds
TOKEN = "BACKGROUND_SOAK"  # in the environment of every process that comes of this one
MB = 1 << 20
# What may grow. Without a leak the blocks of Python's allocator grow by some hundreds in the
# first rounds (its caches, those of Dask, each new kind of error) and then stay, over 70,000
# calls. CPython 3.12 alone never frees an interned string, of which each call on Dask makes one.
# Resident memory, blurred by how glibc fills its pages, grew by 6 MB with the same blocks.
BLOCKS, CALLS_A_BLOCK = 3000, 5 if sys.version_info[:2] == (3, 12) else 50
MEMORY = 10 * MB

# -- What is called ------------------------------------------------------------------------


def mark(log: str, number: int) -> None:
    """Write down that a call runs."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, b"%d\n" % number)
    os.close(file)


def work(log: str, number: int, data: Any = None, seconds: float = 0.0) -> Any:
    mark(log, number)
    time.sleep(seconds)
    return number * 2, data


async def work_async(log: str, number: int, data: Any = None, seconds: float = 0.0) -> Any:
    mark(log, number)
    await asyncio.sleep(seconds)
    return number * 2, data


def fail(log: str, number: int) -> None:
    mark(log, number)
    raise ValueError(number)


async def fail_async(log: str, number: int) -> None:
    fail(log, number)


def leave(log: str, number: int) -> None:
    mark(log, number)
    os._exit(100 + number % 50)


def return_a_lock(log: str, number: int) -> Any:
    mark(log, number)
    return threading.Lock()


def nest(log: str, number: int, executor: Executor | str) -> Any:
    """Make a call on the same executor, perhaps on its only worker, and wait for it."""
    mark(log, number)
    if isinstance(executor, str):
        with SQLiteExecutor(executor, start_worker=False) as durable:
            return durable.submit(operator.mul, number, 2).result(LIMIT), None
    return executor.submit(operator.mul, number, 2).result(LIMIT), None


def chain(number: int, executors: list[Executor], depth: int) -> int:
    """Wait for a call on the next executor, which waits for one on the next."""
    if depth == 0:
        return number * 2
    following = executors[1:] + executors[:1]
    return following[0].submit(chain, number, following, depth - 1).result(LIMIT)


def start_chain(log: str, number: int, executors: list[Executor], depth: int) -> Any:
    mark(log, number)
    return chain(number, executors, depth), None


def meet(log: str, count: int) -> None:
    """Wait until so many calls run at a time."""
    mark(log, os.getpid())
    deadline = monotonic() + LIMIT
    while len(Path(log).read_bytes().splitlines()) < count:
        if monotonic() > deadline:
            raise TimeoutError(f"{count} workers did not meet")
        time.sleep(0.002)


# -- The processes and what they hold ------------------------------------------------------


class Process(NamedTuple):
    pid: int
    parent: int
    command: str


def processes() -> list[Process]:
    """Return the processes that come of this one, those that left its family, too."""
    token = f"{TOKEN}={os.environ[TOKEN]}".encode()
    found: dict[int, Process] = {}
    marked: set[int] = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has ended
                pid = int(folder.name)
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
                found[pid] = Process(pid, parent, " ".join(command.split("\0")))
                if token in (folder / "environ").read_bytes().split(b"\0"):
                    marked.add(pid)
    family = {os.getpid()}
    while more := {p.pid for p in found.values() if p.parent in family} - family:
        family |= more
    marked -= {os.getpid(), os.getppid()}
    return [process for pid, process in found.items() if pid in (family | marked) - {os.getpid()}]


class Sample(NamedTuple):
    """What the program holds."""

    threads: list[str]
    descriptors: list[str]
    processes: list[str]
    memory: int  # bytes
    blocks: int  # of Python's allocator: every object that lives is at least one

    def counts(self) -> tuple[int, int, int]:
        return len(self.threads), len(self.descriptors), len(self.processes)


def take_sample() -> Sample:
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc's: give back what is free
        ctypes.CDLL(None).malloc_trim(0)
    descriptors = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            descriptors.append(re.sub(r"\d{4,}", "…", os.readlink(f"/proc/self/fd/{name}")))
    named = {thread.ident: thread.name for thread in threading.enumerate()}
    threads = [
        named.get(ident) or f"at {frame.f_code.co_filename}:{frame.f_lineno}"
        for ident, frame in sys._current_frames().items()
    ]
    threads += ["not Python's"] * (len(os.listdir("/proc/self/task")) - len(threads))
    # One of ours lives only while there are failures that nobody has retrieved.
    threads = [name for name in threads if name != "background-failures"]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        sorted(re.sub(r"\d+$", "…", name) for name in threads),
        sorted(descriptors),
        sorted(process.command[-300:] for process in processes()),
        pages * os.sysconf("SC_PAGE_SIZE"),
        sys.getallocatedblocks(),
    )


# -- The account ---------------------------------------------------------------------------


class Made(NamedTuple):
    """A call whose future is kept, and what should come of it."""

    future: Future[Any]
    on: str
    number: int
    expected: Any  # the value, or the type of the error
    may: str = ""  # "cancelled" or "dropped", if it may be that as well


def same(one: Any, other: Any) -> bool:
    """Tell whether two results, a number and data, are equal."""
    if type(one) is not tuple or one[0] != other[0] or type(one[1]) is not type(other[1]):
        return False
    return bool(np.all(one[1] == other[1]))


class Log(logging.Handler):
    """What the package says, in a round."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[BaseException] = []
        self.callbacks = 0
        self.others: list[str] = []
        self.warnings: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            self.warnings[record.msg] += 1
        elif record.msg.startswith("a done callback of"):
            self.callbacks += 1
        elif "exception was never retrieved" in record.msg and record.exc_info:
            assert record.exc_info[1] is not None
            # Without what its traceback holds: the log is read later.
            self.failures.append(record.exc_info[1].with_traceback(None))
        else:
            self.others.append(record.getMessage())


class Soak:
    """The executors and the account."""

    def __init__(self, folder: Path, seed: int, cluster: "Cluster | None") -> None:
        self.folder, self.seed, self.cluster = folder, seed, cluster
        self.numbers = itertools.count(1)
        self.violations: list[str] = []
        self.totals: Counter[str] = Counter()
        self.path = str(folder / "calls.db")
        self.sqlite = SQLiteExecutor(self.path, idle_timeout=0.5)
        self.executors: dict[str, Any] = {
            "one thread": ThreadExecutor(),
            "four threads": ThreadExecutor(4),
            "inline": InlineExecutor(),
            "coroutines": None,  # they have an event loop
            "foreign": ForeignExecutor(ThreadPoolExecutor(2)),
            "process": ProcessExecutor(),
            "two processes": ProcessExecutor(2),
            "timeout": ProcessExecutor(timeout=TIMEOUT),
            "SQLite": self.sqlite,
        }
        self.in_memory = ["one thread", "four threads", "inline", "coroutines", "foreign"]
        self.in_processes = ["process", "two processes", "timeout"]
        # In this round: the processes that were killed, those that took a call with them (their
        # numbers may come again), and how many workers were killed, by the executor.
        self.killed: Counter[int] = Counter()
        self.hit: Counter[int] = Counter()
        self.kills: Counter[str] = Counter()
        self.runs: dict[int, tuple[int, int]] = {}  # how often a call may have run, in this round
        self.fails_unseen: dict[int, str] = {}  # dropped calls that fail, and where
        self.lock = threading.Lock()  # of what several threads count

    def violation(self, text: str) -> None:
        with self.lock:
            self.violations.append(text)
        print("VIOLATION:", text, flush=True)

    def expect(self, condition: object, text: Callable[[], str]) -> None:
        if not condition:
            self.violation(text())

    def may_die(self, on: str, error: BaseException) -> bool:
        """Tell whether a call may have died on this executor: each kill hits one call at most."""
        if type(error) is not WorkerDied:
            return False
        if on == "SQLite":
            return self.kills[on] >= 3
        if on == "Dask":
            return self.kills[on] >= 4
        if "before it had read" in str(error):  # killed while it started, three times in a row
            return sum(self.kills[name] for name in self.in_processes) >= 3
        found = re.search(
            r"the worker process (\d+) was killed by SIGKILL while it ran", str(error)
        )
        if found is None or error.exitcode != -signal.SIGKILL:
            return False
        pid = int(found[1])
        with self.lock:
            self.hit[pid] += 1
            return self.hit[pid] <= self.killed[pid]

    @contextmanager
    def dask(self) -> Iterator[None]:
        """Connect to the cluster."""
        if self.cluster is None:
            yield
            return
        from distributed import Client

        for name in ("distributed", "distributed.client"):  # workers are lost on purpose
            logging.getLogger(name).setLevel(logging.CRITICAL)
        complete = True
        with Client(self.cluster.address, set_as_default=False, timeout=LIMIT) as client:
            with DaskExecutor(client) as executor:
                self.executors["Dask"] = executor
                try:
                    yield
                finally:
                    del self.executors["Dask"]
            try:
                client.wait_for_workers(2, LIMIT)
            except TimeoutError:
                complete = False
        if not complete:
            print("Dask has given a killed worker up: here is a new cluster", flush=True)
            self.cluster.close()
            self.cluster.start()

    # -- A round ---------------------------------------------------------------------------

    def round(self, index: int, seconds: float) -> None:
        """Make calls for a while, then settle the account."""
        log, before = Log(), stats()
        logger = logging.getLogger("background")
        logger.addHandler(log)
        self.log = str(self.folder / f"round-{index}")
        Path(self.log).touch()
        self.until = monotonic() + seconds
        producers = [Producer(self, f"{self.seed}-{index}-{i}") for i in range(PRODUCERS)]
        threads = [threading.Thread(target=each.run, name="producer") for each in producers]
        with self.dask():
            for thread in threads:
                thread.start()
            self.join(threads, producers)
            counts = sum((each.counts for each in producers), Counter[str]())
            unseen = 0
            try:
                flush(LIMIT, check=True, progress=False)
            except BackgroundError as error:
                unseen = error.count
        logger.removeHandler(log)
        self.settle(counts, log, before, unseen)
        self.totals += counts

    def join(self, threads: list[threading.Thread], producers: list["Producer"]) -> None:
        """Wait for the producers; if nothing goes on any more, show where all threads stand."""
        before = -1
        while any(thread.is_alive() for thread in threads):
            progress = sum(each.counts["scenarios"] + each.counts["settled"] for each in producers)
            if progress != before:
                before = progress
                faulthandler.dump_traceback_later(LIMIT, exit=True)
            for thread in threads:
                thread.join(0.25)
            now = stats()
            done = now.succeeded + now.failed + now.cancelled + now.dropped
            if now.submitted != done + now.waiting + now.running:
                self.violation(f"does not add up: {now}")
        faulthandler.dump_traceback_later(3 * LIMIT, exit=True)

    def settle(self, counts: Counter[str], log: Log, before: Any, unseen: int) -> None:
        """Compare what was made with what ran, what was counted and what was said."""
        expect = self.expect
        # What was dropped is known by the log.
        told = {error.args[0] for error in log.failures if type(error) is ValueError}
        died = [error for error in log.failures if type(error) is not ValueError]
        for error in died:
            expect(self.may_die("a process", error), lambda error=error: f"logged: {error!r}")
        untold = set(self.fails_unseen) - told
        expect(told <= set(self.fails_unseen), lambda: f"logged though looked at: {told}")
        expect(
            len(untold) <= len(died),
            lambda: f"not logged: {[self.fails_unseen[n] for n in untold]}",
        )
        expect(len(told) == len(log.failures) - len(died), lambda: "failures logged twice")
        expect(log.callbacks == counts["bad callbacks"], lambda: f"{log.callbacks} callbacks said")
        for text in log.others:
            self.violation(f"logged: {text}")
        expect(unseen == len(log.failures), lambda: f"{unseen} unseen, {len(log.failures)} logged")
        # How often each ran.
        ran = Counter(map(int, Path(self.log).read_text().split()))
        again = lost = 0
        for number, (least, most) in self.runs.items():
            lost += max(least - ran[number], 0)
            again += max(ran[number] - most, 0)
        expect(not set(ran) - set(self.runs), lambda: f"unknown: {set(ran) - set(self.runs)}")
        expect(lost <= len(died), lambda: f"{lost} calls did not run, {len(died)} died unseen")
        # A durable call runs again after a kill. Dask runs all again that the worker held.
        kills = self.kills["SQLite"]
        expect(again <= kills, lambda: f"{again} runs too many, {kills} workers were killed")
        # What the package counts.
        now = stats()
        names = ("succeeded", "failed", "cancelled", "dropped")
        counted = {name: getattr(now, name) - getattr(before, name) for name in names}
        mine = {name: counts[name] for name in names}
        mine["failed"] += len(log.failures)
        mine["succeeded"] -= len(died) - len(untold)  # they were not to fail
        expect(counted == mine, lambda: f"stats: {counted}, the calls' outcomes: {mine}")
        made = now.submitted - before.submitted
        expect(made == counts["made"], lambda: f"{made} calls in stats, {counts['made']} made")
        expect(now.waiting == now.running == 0, lambda: f"not idle: {now}")
        open_calls = [c for c in self.sqlite.calls() if c.state in ("waiting", "running")]
        expect(not open_calls, lambda: f"open in the file: {open_calls}")
        self.sqlite._desk.store.purge(None)
        os.remove(self.log)
        counts["runs again"], counts["died unseen"] = again, len(died)
        counts.update({f"killed: {name}": kills for name, kills in self.kills.items()})
        for each in (self.runs, self.fails_unseen, self.killed, self.hit, self.kills):
            each.clear()

    def compare(self, before: Sample, now: Sample) -> None:
        """Compare what is held with what was held after the first round."""
        for name in ("threads", "descriptors", "processes"):
            held = Counter(getattr(now, name))
            held.subtract(Counter(getattr(before, name)))
            other = {each: count for each, count in held.items() if count}
            self.expect(held.total() == 0, lambda name=name, other=other: f"{name}: {other}")

    def fill(self) -> None:
        """Have all workers of all executors run, also those that come in place of killed ones."""
        sizes = {"four threads": 4, "foreign": 2, "two processes": 2}
        for name, executor in self.executors.items():
            if name not in ("coroutines", "SQLite"):
                path = str(self.folder / "meet")
                size = sizes.get(name, 1)
                for future in [executor.submit(meet, path, size) for _ in range(size)]:
                    future.result(LIMIT)
                os.remove(path)
        background(work_async)(os.devnull, 0).result(LIMIT)
        flush(LIMIT, progress=False)

    def sample(self, baseline: Sample | None) -> Sample:
        """Take a sample once everything is idle: as the baseline was, or for a second."""
        self.fill()
        deadline, since, last = monotonic() + LIMIT, monotonic(), None
        while True:
            sample = take_sample()
            if any(self.path in process for process in sample.processes):
                since = monotonic()  # a durable worker, which has yet to find that it is idle
            if sample.counts() != last:
                last, since = sample.counts(), monotonic()
            as_before = baseline is not None and last == baseline.counts()
            if as_before or (baseline is None and monotonic() > since + 1.5):
                return sample
            if monotonic() > deadline:
                return sample
            time.sleep(0.1)


class Producer:
    """A thread that makes calls at random; the same ones for the same seed."""

    def __init__(self, soak: Soak, seed: str) -> None:
        self.soak = soak
        self.dice = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.open: list[Made] = []

    def run(self) -> None:
        names = list(SCENARIOS)
        weights = list(SCENARIOS.values())
        while monotonic() < self.soak.until:
            scenario = self.dice.choices(names, weights)[0]
            try:
                getattr(self, scenario)()
                if len(self.open) > 40:
                    self.check()
            except BaseException:
                self.soak.violation(f"in {scenario}:\n{traceback.format_exc()}")
            self.counts["scenarios"] += 1
            self.counts[f"scenario: {scenario}"] += 1
            time.sleep(self.dice.expovariate(500))
        self.check()

    # -- Making and checking ---------------------------------------------------------------

    def any(self, *without: str) -> str:
        """Return the name of an executor."""
        return self.dice.choice([name for name in self.soak.executors if name not in without])

    def number(self, least: int = 1, most: int = 1, made: int = 1) -> int:
        """Return the number of a new call, which is expected to run so often."""
        number = next(self.soak.numbers)
        self.soak.runs[number] = least, most
        self.counts["made"] += made
        return number

    def put(self, on: str, function: Any, number: int, *args: Any, **options: Any) -> Future[Any]:
        """Make a call."""
        if on == "coroutines":
            function = {work: work_async, fail: fail_async}[function]
        made = background(executor=self.soak.executors[on], **options)(function)
        if on == "Dask" and self.soak.runs[number][1]:
            self.soak.runs[number] = self.soak.runs[number][0], 100
        # In no variable: the traceback of a failure on this thread keeps this frame.
        return made(self.soak.log, number, *args)  # type: ignore[no-any-return]

    def keep(
        self, on: str, function: Any, expected: Any, *args: Any, may: str = "", **options: Any
    ) -> Future[Any]:
        """Make a call whose outcome is checked later."""
        number = self.number()
        future = self.put(on, function, number, *args, **options)
        if expected is same:
            expected = number * 2, args[0] if args and function is work else None
        self.open.append(Made(future, on, number, expected, may))
        return future

    def check(self) -> None:
        """Check the outcomes of all calls whose futures are kept."""
        while self.open:
            self.settle(self.open.pop())
            self.counts["settled"] += 1

    def settle(self, made: Made) -> None:
        future, on, number, expected, may = made
        runs = self.soak.runs
        try:
            error = future.exception(LIMIT)
        except CancelledError:
            self.counts[may or "cancelled"] += 1
            self.soak.expect(may, lambda: f"cancelled on {on}: {future}")
            runs[number] = 0, int(on == "coroutines")  # which may be cancelled at an `await`
            return None
        except TimeoutError:
            return self.soak.violation(f"not done in {LIMIT} s on {on}: {future}")
        if error is None:
            self.counts["succeeded"] += 1
            right = type(expected) is tuple and same(future.result(), expected)
            return self.soak.expect(right, lambda: f"wrong result on {on}: {future}, {number}")
        self.counts["failed"] += 1
        noted = "called at soak.py" in "".join([*error.__notes__, str(error)])
        self.soak.expect(noted, lambda: f"no note: {error!r}")
        if expected is leave and type(error) is WorkerDied:
            code = None if on == "SQLite" else 100 + number % 50
            if error.exitcode == code:
                runs[number] = (0, 3) if on == "SQLite" else (1, 1)
                return None
        if type(error) is expected is TimeoutError:
            runs[number] = 0, 1
            return None
        if type(error) is expected and error.args == (number,):
            return None
        if self.soak.may_die(on, error):
            runs[number] = 0, 3 if on == "SQLite" else 1
            return None
        return self.soak.violation(f"on {on}: {future}: {error!r}, expected {expected}")

    # -- Scenarios -------------------------------------------------------------------------

    def plain(self) -> None:
        for _ in range(self.dice.randint(1, 5)):
            on = self.any()
            self.keep(on, work, same, *self.dice.choice([(), (b"small",), (None, 0.002)]))

    def failing(self) -> None:
        self.keep(self.any(), fail, ValueError)

    def dropped(self) -> None:
        """Drop futures: the calls run all the same, and a failure is logged."""
        on = self.any()
        if self.dice.random() < 0.5:
            number = self.number()
            self.soak.fails_unseen[number] = on
            self.put(on, fail, number)
        else:
            self.put(on, work, self.number())
            self.counts["succeeded"] += 1  # if not, its failure is logged

    def nested(self) -> None:
        on = self.any("coroutines")
        executor = self.soak.path if on == "SQLite" else self.soak.executors[on]
        self.keep(on, nest, same, executor)
        self.counts["made"] += on in self.soak.in_memory
        self.counts["succeeded"] += on in self.soak.in_memory

    def across(self) -> None:
        """Have workers of two executors wait for one another."""
        depth = self.dice.randint(1, 4)
        executors = [self.soak.executors[name] for name in ("one thread", "four threads")]
        on = self.dice.randrange(2)
        if on:
            executors.reverse()
        self.keep(("one thread", "four threads")[on], start_chain, same, executors, depth)
        self.counts["made"] += depth
        self.counts["succeeded"] += depth

    def cancelling(self) -> None:
        on = self.any()
        futures = [
            self.keep(on, work, same, None, 0.005, may="cancelled")
            for _ in range(self.dice.randint(2, 8))
        ]
        for future in self.dice.sample(futures, len(futures) // 2):
            if future.cancel():
                self.soak.expect(future.cancelled(), lambda f=future: f"cancelled: {f}")
        self.check()

    def bounded(self) -> None:
        on = self.any("timeout")
        overflow = self.dice.choice(["block", "drop_oldest", "drop_newest", "raise"])
        options = {"max_pending": self.dice.randint(1, 5), "overflow": overflow}
        function = work_async if on == "coroutines" else work
        decorated = background(executor=self.soak.executors[on], **options)(function)
        may = "dropped" if overflow.startswith("drop") else ""
        made = []
        for _ in range(self.dice.randint(5, 20)):
            number = self.number(most=100 if on == "Dask" else 1)
            try:
                future = decorated(self.soak.log, number, None, 0.001)
            except BacklogFull:
                self.soak.expect(overflow == "raise", lambda: "BacklogFull")
                self.counts["made"] -= 1
                self.soak.runs[number] = 0, 0
                self.counts["refused"] += 1
                continue
            made.append(Made(future, on, number, (number * 2, None), may))
        last = made[-1].future
        self.open += made
        self.check()
        self.soak.expect(
            overflow != "drop_oldest" or not last.cancelled(), lambda: "the latest was dropped"
        )

    def snapshots(self) -> None:
        """Change arguments after the call."""
        on = self.any("coroutines")
        data = self.dice.choice([[1, [2, 3]], np.arange(1000.0)])
        before = copy.deepcopy(data)
        snapshot = on in self.soak.in_memory
        number = self.number()
        future = self.put(on, work, number, data, snapshot=snapshot)
        self.open.append(Made(future, on, number, (number * 2, before)))
        data[0] = 100

    def big(self) -> None:
        size = self.dice.randint(1, 8) * MB
        data = np.arange(size // 8) if self.dice.random() < 0.5 else bytes(size)
        self.keep(self.any("timeout"), work, same, data)
        self.check()

    def awaiting(self) -> None:
        """Await futures in a loop of this thread; a wait that is given up leaves the call alone."""

        async def several() -> None:
            futures = [self.keep(self.any(), work, same, None, 0.002) for _ in range(5)]

            async def outcome(future: Future[Any]) -> Any:
                with suppress(WorkerDied):
                    return await future

            with suppress(TimeoutError):
                await asyncio.wait_for(outcome(futures[0]), 0.0005)
            await asyncio.wait_for(asyncio.gather(*map(outcome, futures)), LIMIT)
            self.soak.expect(all(f.done() for f in futures), lambda: "awaited, not done")

        asyncio.run(several())

    def waiting(self) -> None:
        """Wait as the standard library does."""
        futures = [self.keep(self.any(), work, same) for _ in range(5)]
        if self.dice.random() < 0.5:
            self.soak.expect(not wait(futures, LIMIT).not_done, lambda: "wait() left some")
        else:
            count = sum(1 for _ in as_completed(futures, LIMIT))
            self.soak.expect(count == 5, lambda: f"as_completed gave {count}")

    def flushing(self) -> None:
        """Flush; then all calls that this thread made are done."""
        with suppress(FlushTimeout):
            flush(self.dice.choice([0, 0.01, 0.05]), progress=False)
        flush(LIMIT, progress=False)
        left = [made.future for made in self.open if not made.future.done()]
        self.soak.expect(not left, lambda: f"flushed, not done: {left}")

    def callbacks(self) -> None:
        """Callbacks run once each, those that raise, too."""
        called: list[object] = []

        def bad(future: Future[Any]) -> None:
            called.append(future)
            raise ValueError("in a callback")

        future = self.keep(self.any(), work, same)
        future.add_done_callback(called.append)
        future.add_done_callback(bad)
        self.counts["bad callbacks"] += 1
        self.check()
        flush(LIMIT, progress=False)  # which waits for callbacks, too
        self.soak.expect(called == [future, future], lambda: f"callbacks: {called}")

    def unpicklable(self) -> None:
        on = self.dice.choice(
            [*self.soak.in_processes, *{"SQLite", "Dask"} & {*self.soak.executors}]
        )
        if self.dice.random() < 0.5:
            number = self.number(0, 0)
            future = self.put(on, work, number, threading.Lock())
        else:
            number = self.number()
            future = self.put(on, return_a_lock, number)
        error = future.exception(LIMIT)
        if error is None or ("_thread.lock" not in str(error) and not self.soak.may_die(on, error)):
            self.soak.violation(f"unpicklable on {on}: {error!r}")
        self.counts["failed"] += 1

    def leaving(self) -> None:
        """End the worker from within."""
        self.keep(self.dice.choice(["process", "two processes", "SQLite"]), leave, leave)

    def late(self) -> None:
        """Run into the time limit."""
        self.keep("timeout", work, TimeoutError, None, 100 * TIMEOUT)

    def kill(self) -> None:
        """Kill a worker."""
        on = self.dice.choice(["process", "two processes", "timeout", "SQLite", "SQLite"])
        pids = []
        if on == "SQLite":
            desk = self.soak.sqlite._desk
            pids = [worker.pid for worker in desk.store.workers(desk.life)]
        else:
            for worker in self.soak.executors[on]._queue.workers:
                if worker.process.channel is not None:
                    pids.append(worker.process.pid)
        if not pids:
            return
        pid = self.dice.choice(pids)
        with self.soak.lock:
            self.soak.kills[on] += 1
            self.soak.killed[pid] += 1
        if on == "SQLite" and self.dice.random() < 0.1:
            with suppress(OSError):
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                pid = parent if parent > 1 else pid
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def kill_on_dask(self) -> None:
        """Kill a worker of the cluster, which starts another one, unless that dies as it starts."""
        if self.soak.kills["Dask"] or monotonic() > self.soak.until - 2:
            return
        cluster = [p.pid for p in processes() if "--cluster" in p.command]
        workers = [p.pid for p in processes() if p.parent in cluster and "spawn_main" in p.command]
        if workers:
            self.soak.kills["Dask"] += 1
            os.kill(self.dice.choice(workers), signal.SIGKILL)

    def passing(self) -> None:
        """Make an executor and end it while its calls wait or run."""
        kind = self.dice.choice(["threads", "threads", "foreign", "process", "SQLite"])
        how = self.dice.choice(["wait", "don't wait", "cancel", "drop"])
        made: Any
        if kind == "threads":
            made = ThreadExecutor(self.dice.randint(1, 3))
        elif kind == "process":
            made = ProcessExecutor()
        elif kind == "foreign":
            made = ThreadPoolExecutor(2)
        else:
            path = self.soak.folder / f"passing-{next(self.soak.numbers)}.db"
            made = SQLiteExecutor(path, idle_timeout=0.1)
        decorated = background(executor=made)(work)
        for _ in range(self.dice.randint(1, 5)):
            number = self.number()
            future = decorated(self.soak.log, number, None, 0.002)
            may = "cancelled" if how == "cancel" else ""
            self.open.append(Made(future, kind, number, (number * 2, None), may))
        if how != "drop":
            made.shutdown(wait=how != "don't wait", cancel_futures=how == "cancel")
            # A foreign one refuses by the future.
            if kind != "foreign":
                try:
                    decorated(self.soak.log, self.number(0, 0, made=0))
                except RuntimeError:
                    pass
                else:
                    self.soak.violation(f"{made} was shut down and took a call")
        del decorated, made, future
        self.check()

    def fork(self) -> None:
        """Fork; the child has none of the calls of this process, and makes its own."""
        names = [name for name in self.soak.executors if name not in ("timeout", "Dask")]
        numbers = [self.number(made=0) for _ in names]
        failing = self.number(made=0)
        kept = [made.future for made in self.open]
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert all(future.done() for future in kept), kept
                futures = [self.put(*each) for each in zip(names, itertools.repeat(work), numbers)]
                self.put("one thread", fail, failing)
                right = False
                try:
                    flush(LIMIT / 2, check=True, progress=False)
                except BackgroundError as error:
                    right = error.count == 1
                except FlushTimeout:
                    open_on = [n for n, f in zip(names, futures, strict=True) if not f.done()]
                    os.write(2, f"the child of a fork still waits for {open_on}".encode())
                    raise
                assert right
                results = [(number * 2, None) for number in numbers]
                assert [future.result() for future in futures] == results
                now = stats()
                assert (now.submitted, now.succeeded) == (len(names) + 1, len(names)), now
                code = 0
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        deadline, status = monotonic() + 1.5 * LIMIT, (0, 0)
        while status[0] == 0 and monotonic() < deadline:
            time.sleep(0.01)
            status = os.waitpid(pid, os.WNOHANG)
        if status[0] == 0:
            os.kill(pid, signal.SIGABRT)  # faulthandler shows where it stands
            status = os.waitpid(pid, 0)
        self.soak.expect(status == (pid, 0), lambda: f"the child of a fork: {status}")


# How often each comes.
SCENARIOS = {
    "plain": 30,
    "failing": 10,
    "dropped": 15,
    "nested": 8,
    "across": 5,
    "cancelling": 6,
    "bounded": 8,
    "snapshots": 6,
    "big": 2,
    "awaiting": 3,
    "waiting": 4,
    "flushing": 3,
    "callbacks": 4,
    "unpicklable": 3,
    "leaving": 0.7,
    "late": 0.15,
    "kill": 2,
    "kill_on_dask": 0.2,
    "passing": 1.5,
    "fork": 0.7,
}

# -- The run -------------------------------------------------------------------------------


class Cluster:
    """A Dask cluster in a process of its own, so that this one holds what a client holds."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "benchmarks.soak", "--cluster"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().decode().strip()

    def close(self) -> None:
        self.process.communicate(timeout=LIMIT)


def host_cluster() -> None:
    """Be that process."""
    from distributed import LocalCluster

    with LocalCluster(
        2,
        threads_per_worker=1,
        memory_limit=0,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    ) as made:
        print(made.scheduler_address, flush=True)
        sys.stdin.read()


def soak(folder: Path, seconds: float, seed: int) -> int:
    """Soak for so many seconds and print what was found; return an exit code."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(3 * LIMIT, exit=True)
    logging.getLogger("background").propagate = False
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    start = said = monotonic()
    first: Sample | None = None
    memory, blocks = [], []
    length = max(2.0, min(seconds / 8, 15.0))
    if importlib.util.find_spec("distributed") is None:
        print("without Dask: distributed is not installed (background-futures[dask])", flush=True)
        cluster = None
    else:
        cluster = Cluster()
    it = Soak(folder, seed, cluster)
    for index in itertools.count():
        it.round(index, length)
        sample = it.sample(first)
        first = first or sample
        it.compare(first, sample)
        memory.append(sample.memory)
        blocks.append(sample.blocks)
        now = monotonic() - start
        last = (now + length > seconds and index > 1) or len(it.violations) > 20
        if monotonic() > said + 30 or index == 0 or last:
            said = monotonic()
            print(
                f"{now:5.0f} s: {it.totals['made']:,} calls, {it.totals['failed']:,} failed "
                f"and looked at, {it.totals['scenario: kill']} workers killed; "
                f"{sample.memory / MB:.1f} MB, {sample.blocks:,} blocks; "
                f"{len(it.violations)} violations",
                flush=True,
            )
        if last:
            break
    for executor in filter(None, it.executors.values()):
        executor.shutdown()
    if cluster is not None:
        cluster.close()
    faulthandler.dump_traceback_later(3 * LIMIT, exit=True)
    most = BLOCKS + it.totals["made"] // CALLS_A_BLOCK
    for name, figures, bound in (("bytes", memory, MEMORY), ("blocks", blocks, most)):
        growth = it.totals[f"growth in {name}"] = round(growth_of(figures))
        if growth > bound:
            it.violation(f"memory grew by {growth:,} {name}: {figures}")
    for name, count in sorted(it.totals.items()):
        print(f"{name:32} {count:10,}")
    for name in ("threads", "descriptors", "processes"):
        print(f"{name:32} {len(getattr(first, name)):10} {len(getattr(sample, name)):10}")
    return 1 if it.violations else 0


def growth_of(figures: list[int]) -> float:
    """Return how much they grew: by the median slope, so that one odd round has no say."""
    slopes = [
        (later - earlier) / (j - i)
        for i, earlier in enumerate(figures)
        for j, later in enumerate(figures)
        if i < j
    ]
    return statistics.median(slopes) * (len(figures) - 1)


def main() -> int:
    """Run the soak in a process of its own and see that it leaves nothing behind."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=None, help="that of a run to repeat")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cluster", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cluster:
        host_cluster()
        return 0
    if not os.path.exists("/proc/self/statm"):
        print("the soak needs /proc, which Linux has")
        return 2
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    if options.inside:
        return soak(options.inside, options.seconds, seed)
    print(f"CPython {sys.version.split()[0]}, --seconds {options.seconds:g} --seed {seed}")
    sys.stdout.flush()
    os.environ[TOKEN] = str(os.getpid())
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its thread ends with the first fork
    # So that glibc gives big blocks back. By itself it learns that they come often, and keeps
    # up to 64 MB for each thread, in which a leak would not be seen.
    os.environ.update(MALLOC_MMAP_THRESHOLD_=str(1 << 17), MALLOC_TRIM_THRESHOLD_=str(1 << 17))
    folder = tempfile.mkdtemp()
    command = [sys.executable, "-m", "benchmarks.soak", "--inside", folder]
    command += ["--seconds", str(options.seconds), "--seed", str(seed)]
    inside = subprocess.Popen(command)
    try:
        code = inside.wait(1.5 * options.seconds + 5 * LIMIT)
    except subprocess.TimeoutExpired:
        inside.send_signal(signal.SIGABRT)  # faulthandler shows where it stands
        code = inside.wait()
    finally:
        deadline = monotonic() + 20
        while (left := processes()) and monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            print("LEFT BEHIND:", process, flush=True)
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
    print("failed" if code or left else "passed", flush=True)
    return 1 if code or left else 0


if __name__ == "__main__":
    sys.exit(main())
