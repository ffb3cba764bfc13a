"""Measure ways to have a function called in another process, beside threads and inline.

Run as `python processes.py NAME MEASURE NUMBER`; see `measuring`.
"""

import operator
import os
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import plots
from measuring import Call, Figures, main


class Contender:
    """A way to have a function called: `submit` it, then `wait` for all calls."""

    def __init__(self, name: str) -> None:
        self.workers = 1
        self.began: float | None = None  # to start its workers, if before the first call
        self.submit: Call = getattr(self, name)()
        self.kept: list[Any] = []

    def nothing(self) -> Call:
        return lambda function, *args: None

    def inline(self) -> Call:
        return lambda function, *args: function(*args)

    def thread_pool(self) -> Call:
        return ThreadPoolExecutor(1).submit

    def ours_thread(self) -> Call:
        from background import ThreadExecutor

        return ThreadExecutor().submit

    def process_pool(self) -> Call:
        return ProcessPoolExecutor(1).submit

    def more_executors(self) -> Call:
        from more_executors import Executors

        return Executors.process_pool(1).submit

    def loky(self) -> Call:
        import loky

        # For each call: it returns a new executor if the one before is broken.
        return lambda *args: loky.get_reusable_executor(1).submit(*args)

    def pebble(self) -> Call:
        import pebble

        pool = pebble.ProcessPool(1)
        return lambda function, *args: pool.schedule(function, args)

    def unsync(self) -> Call:
        from unsync import unsync

        self.workers = os.cpu_count() or 1  # it can't be told how many
        # Its workers, forked by the first call, know what was decorated by then.
        decorated = {function: unsync(cpu_bound=True)(function) for function in FUNCTIONS}
        return lambda function, *args: decorated[function](*args)

    def deco(self) -> Call:
        import deco

        decorated = {}  # each has a worker of its own

        def submit(function: Call, *args: Any) -> Any:
            if function not in decorated:
                decorated[function] = deco.concurrent(1)(named(function))
            return decorated[function](*args)

        return submit

    def joblib(self) -> Call:
        from joblib import Parallel, delayed

        self.workers = 2  # with one it runs the calls in the program itself

        def submit(function: Call, *args: Any) -> Any:
            return Parallel(2, return_as="generator")([delayed(function)(*args)])

        return submit

    def dask(self) -> Call:
        client = self.cluster()
        return lambda function, *args: client.submit(function, *args, pure=False)

    def ours(self) -> Call:
        from background import ProcessExecutor

        return ProcessExecutor().submit

    def ours_dask(self) -> Call:
        from background import DaskExecutor

        return DaskExecutor(self.cluster()).submit

    def cluster(self) -> Any:
        import distributed

        self.began = time.perf_counter()
        return distributed.Client(n_workers=1, threads_per_worker=1, dashboard_address=None)

    def call(self, function: Call, *args: Any) -> None:
        self.kept.append(self.submit(function, *args))  # Dask and joblib drop what nobody keeps

    def wait(self) -> None:
        for kept in self.kept:
            result(kept)
        self.kept.clear()


def named(function: Call) -> Call:
    """Return a function for deco, which takes no builtins and finds functions by their name."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__name__ = function.__name__
    return call


def result(kept: Any) -> Any:
    """Return the result of a call, by what `submit` returned."""
    if hasattr(kept, "result"):
        return kept.result()
    return next(kept) if hasattr(kept, "send") else kept  # joblib has generators


# -- Loops --------------------------------------------------------------------------------


def computing(contender: Contender, steps: int) -> Figures:
    """Return the time of a step in a loop of steps of 28 µs, with a plot at every fourth."""
    losses = (0.5,) * 50
    contender.call(plots.plot, 0, losses)
    contender.wait()
    start = time.perf_counter()
    for i in range(steps):
        plots.square(losses, 28)
        if i % 4 == 3:
            contender.call(plots.plot, i, losses)
    made = time.perf_counter() - start
    contender.wait()
    return {"µs a step": made / steps * 1e6}


def loop(contender: Contender, steps: int, draw: Call) -> Figures:
    """Return the time of a step in a loop of steps of 5 ms, with a picture at every twentieth."""
    import numpy as np

    # A tuple, as a copy of a list that grows: deco passes lists on as objects of its own.
    losses, weights = (0.5,) * 50, np.ones((64, 64))
    with tempfile.TemporaryDirectory() as folder:
        contender.call(draw, 0, losses, weights, folder)
        contender.wait()
        start = time.perf_counter()
        for i in range(steps):
            plots.square(losses, 2_500)
            if i % 20 == 19:
                contender.call(draw, i, losses, weights, folder)
        made = time.perf_counter() - start
        contender.wait()
    return {"ms a step": made / steps * 1e3}


def figures(contender: Contender, steps: int) -> Figures:
    return loop(contender, steps, plots.draw)


def pages(contender: Contender, steps: int) -> Figures:
    return loop(contender, steps, plots.page)


def events(contender: Contender, steps: int) -> Figures:
    return loop(contender, steps, plots.event)


# -- Single calls -------------------------------------------------------------------------


def costs(contender: Contender, calls: int) -> Figures:
    """Return what a new worker, a small call, an idle round trip and 8 MB cost."""
    import numpy as np

    start = contender.began or time.perf_counter()
    result(contender.submit(operator.add, 1, 2))
    new = time.perf_counter() - start
    contender.call(plots.plot, 0, ())
    contender.wait()
    start = time.perf_counter()
    for i in range(calls):
        contender.call(plots.plot, i, ())
    made = time.perf_counter() - start
    contender.wait()
    trips: list[float] = []
    for i in range(100):
        time.sleep(0.002)
        start = time.perf_counter()
        result(contender.submit(operator.add, i, 2))
        trips.append(time.perf_counter() - start)
    array, copies, sends = np.ones(1_000_000), [], []
    for _ in range(20):
        start = time.perf_counter()
        array.copy()
        copied = time.perf_counter()
        sent = contender.submit(len, array)
        sends.append(time.perf_counter() - copied)
        copies.append(copied - start)
        result(sent)
    return {
        "small call, µs": made / calls * 1e6,
        "new worker, ms": new * 1e3,
        "idle round trip, ms": statistics.median(trips) * 1e3,
        "8 MB, in copies": statistics.median(sends) / statistics.median(copies),
    }


# -- A worker that is killed --------------------------------------------------------------


def killed(contender: Contender, seconds: int) -> Figures:
    """Return what becomes of the calls if the worker of the first one is killed."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        log.touch()
        said: dict[str, str] = {}  # how calls have ended

        def started() -> list[list[str]]:
            return [line.split() for line in log.read_text().splitlines()]

        def make(*names: str, hold: bool = False) -> list[threading.Thread]:
            return [follow(contender, said, name, str(log), hold) for name in names]

        def settle(threads: list[threading.Thread]) -> None:
            end = time.monotonic() + seconds
            for thread in threads:
                thread.join(max(end - time.monotonic(), 0))

        threads = make("first", *["other"] * (contender.workers - 1), hold=True)
        while len(started()) < contender.workers:
            time.sleep(0.001)
        waiting = [f"waiting {i}" for i in range(100)]
        threads += make(*waiting)
        time.sleep(0.2)  # for those who hand calls to a worker before it is free
        [victim] = [int(pid) for name, pid, _ in started() if name == "first"]
        before = time.time()
        os.kill(victim, signal.SIGKILL)
        Path(f"{log}-go").touch()
        settle(threads)
        settle(make("later"))
        stamps = [float(stamp) for _, _, stamp in started() if float(stamp) > before]
        again = sum(name == "first" for name, _, _ in started()) > 1
        fates = Counter(said.get(name, "never end") for name in waiting)
        return {
            "its call": "runs again" if again else said.get("first", "never ends"),
            "100 waiting calls": ", ".join(f"{n} {fate}" for fate, n in fates.most_common()),
            "a later call": said.get("later", "never ends"),
            "ms until a call runs": (min(stamps) - before) * 1e3 if stamps else "never",
        }


def mark(name: str, log: str, hold: bool) -> None:
    """Write into the log that a call has started, and hold its worker up until it may go on."""
    with open(log, "a") as file:
        file.write(f"{name.split()[0]} {os.getpid()} {time.time()}\n")
    while hold and not os.path.exists(f"{log}-go"):
        time.sleep(0.002)


def follow(contender: Contender, said: dict[str, str], name: str, *rest: Any) -> threading.Thread:
    """Make a call and note in a thread how it ends: not all can be waited for with a limit."""

    def end() -> None:
        try:
            result(kept)
        except BaseException as error:
            said[name] = f"failed: {type(error).__name__}"
        else:
            said[name] = "ran"

    thread = threading.Thread(target=end, daemon=True)
    try:
        kept = contender.submit(mark, name, *rest)
    except Exception as error:
        said[name] = f"refused: {type(error).__name__}"
        thread = threading.Thread(daemon=True)
    thread.start()
    return thread


FUNCTIONS = [operator.add, len, mark, plots.plot, plots.draw, plots.page, plots.event]

if __name__ == "__main__":
    main(Contender, computing, figures, pages, events, costs, killed)
