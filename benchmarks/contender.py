"""One contender in a process of its own: measure it and print the figures as JSON.

Run as `python contender.py NAME MEASURE`. Imports nothing of this repository but the
contender, so that the index's package of our import name can run in an environment of its own.
"""

import gc
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Call = Callable[..., Any]


def nothing(a: Any, b: Any) -> None:
    """Stand for a call that costs nothing."""


class Contender:
    """A way to have a function called: `wrap` it, then `wait` for all calls."""

    def __init__(self, name: str) -> None:
        self.wrap, self.wait = getattr(self, name)()

    def simple_queue(self) -> tuple[Call, Call]:
        calls: Any = queue.SimpleQueue()

        def work() -> None:
            while True:
                function, args = calls.get()
                function(*args)

        threading.Thread(target=work, daemon=True).start()

        def wait() -> None:
            done = threading.Event()
            calls.put((done.set, ()))
            done.wait()

        return lambda function: lambda *args: calls.put((function, args)), wait

    def queue_task_done(self) -> tuple[Call, Call]:
        calls: Any = queue.Queue()

        def work() -> None:
            while True:
                function, args, kwargs = calls.get()
                function(*args, **kwargs)
                calls.task_done()

        threading.Thread(target=work, daemon=True).start()

        def wrap(function: Call) -> Call:
            def call(*args: Any, **kwargs: Any) -> None:
                calls.put((function, args, kwargs))

            return call

        return wrap, calls.join

    def thread_pool(self) -> tuple[Call, Call]:
        pool = ThreadPoolExecutor(1)
        wait = lambda: pool.submit(nothing, 1, 2).result()  # noqa: E731
        return lambda function: lambda *args: pool.submit(function, *args), wait

    def thread_per_call(self) -> tuple[Call, Call]:
        started: list[threading.Thread] = []

        def wrap(function: Call) -> Call:
            def call(*args: Any) -> None:
                thread = threading.Thread(target=function, args=args)
                started.append(thread)
                thread.start()

            return call

        def wait() -> None:
            while started:
                started.pop().join()

        return wrap, wait

    def index_background(self) -> tuple[Call, Call]:
        import background

        background.n = 1
        futures: list[Any] = []

        def wrap(function: Call) -> Call:
            task = background.task(function)
            return lambda *args: futures.append(task(*args))

        def wait() -> None:
            while futures:
                futures.pop().result()

        return wrap, wait

    def ours(self) -> tuple[Call, Call]:
        from background import background, flush

        return background, flush

    def ours_submit(self) -> tuple[Call, Call]:
        from background import ThreadExecutor, flush

        executor = ThreadExecutor()
        return lambda function: lambda *args: executor.submit(function, *args), flush


def burst(contender: Contender, calls: int) -> dict[str, float]:
    """Return what a call costs its caller in a burst, and the calls drained a second."""
    call = contender.wrap(nothing)
    call(1, 2)
    contender.wait()
    start = time.perf_counter()
    for i in range(calls):
        call(i, 2)
    made = time.perf_counter()
    contender.wait()
    return {
        "µs a call": (made - start) / calls * 1e6,
        "calls/s": calls / (time.perf_counter() - start),
    }


def waiting(contender: Contender, calls: int) -> dict[str, float]:
    """Return the bytes that a waiting call takes."""
    import tracemalloc

    gate = threading.Event()
    contender.wrap(lambda: gate.wait())()
    call = contender.wrap(nothing)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(calls):
        call(i, 2)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    gate.set()
    contender.wait()
    return {"bytes": (after - before) / calls}


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(contender: Contender, calls: int) -> dict[str, float]:
    """Return the megabytes by which so many finished calls grow the process."""
    call = contender.wrap(nothing)

    def run(count: int) -> None:
        for i in range(count):
            call(i, 2)
            if i % 1000 == 0:
                contender.wait()
        contender.wait()
        gc.collect()

    run(20_000)
    before = resident()
    run(calls)
    return {"MB": (resident() - before) / 1e6}


def step(data: list[float]) -> float:
    """Compute a fixed amount, some milliseconds, as a training does between two plots."""
    total = 0.0
    for _ in range(250):
        total += sum([x * x for x in data])
    return total


def loop(contender: Contender | None, steps: int) -> dict[str, float]:
    """Return the seconds of a loop with a plot that waits 20 ms at every tenth step."""
    data = [0.5] * 200
    plot = contender.wrap(lambda _: time.sleep(0.02)) if contender else None
    start = time.perf_counter()
    for i in range(steps):
        step(data)
        if plot is not None and i % 10 == 9:
            plot(i)
    made = time.perf_counter() - start
    if contender:
        contender.wait()
    return {"seconds": made}


def paced(contender: Contender, calls: int) -> dict[str, float]:
    """Return what a call costs its caller when the worker sleeps: one every 2 ms."""
    call = contender.wrap(nothing)
    costs: list[float] = []
    for i in range(calls):
        time.sleep(0.002)
        start = time.perf_counter()
        call(i, 2)
        costs.append(time.perf_counter() - start)
    contender.wait()
    costs.sort()
    return {"median µs": costs[calls // 2] * 1e6, "p99 µs": costs[calls * 99 // 100] * 1e6}


def main() -> None:
    """Measure once and print the figures."""
    name, measure, number = sys.argv[1:]
    contender = None if name == "nothing" else Contender(name)
    print(json.dumps(globals()[measure](contender, int(number))), flush=True)


if __name__ == "__main__":
    main()
