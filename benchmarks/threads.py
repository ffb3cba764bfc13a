"""Measure ways to have a function called in a thread of this process.

Run as `python threads.py NAME MEASURE NUMBER`; see `measuring`.
"""

import gc
import os
import queue
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from measuring import Call, Figures, Gate, Unable, main, nothing


class Contender:
    """A way to have a function called: `wrap` it, then `wait` for all calls."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.wrap, self.wait = getattr(self, name)()

    def nothing(self) -> tuple[Call, Call]:
        return lambda function: lambda *args: None, lambda: None

    def inline(self) -> tuple[Call, Call]:
        return lambda function: function, lambda: None

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
        return queued(1)

    def thread_pool(self) -> tuple[Call, Call]:
        pool = ThreadPoolExecutor(1)
        return lambda function: lambda *args: pool.submit(function, *args), last(pool.submit)

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

    def pebble(self) -> tuple[Call, Call]:
        import pebble

        pool = pebble.ThreadPool(max_workers=1)
        return lambda function: lambda *args: pool.schedule(function, args), last(pool.submit)

    def unsync(self) -> tuple[Call, Call]:
        from unsync import unsync

        unsync.thread_executor = pool = ThreadPoolExecutor(1)  # as its author says to
        return unsync, last(pool.submit)

    def more_executors(self) -> tuple[Call, Call]:
        from more_executors import Executors

        pool = Executors.thread_pool(max_workers=1)
        return lambda function: Executors.bind(pool, function), last(pool.submit)

    def deco(self) -> tuple[Call, Call]:
        import deco

        decorated: list[Any] = []  # each has a pool of its own

        def wrap(function: Call) -> Call:
            def call(*args: Any) -> Any:  # for builtins, which it doesn't take
                return function(*args)

            call.__name__ = function.__name__  # by which it finds the function
            decorated.append(deco.concurrent.threaded(1)(call))
            return decorated[-1]

        def wait() -> None:
            for function in decorated:
                function.wait()

        return wrap, wait

    def joblib(self) -> tuple[Call, Call]:
        return unable, unable

    def dask(self) -> tuple[Call, Call]:
        import distributed

        client = distributed.Client(
            processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None
        )
        futures: list[Any] = []  # what nobody keeps is not run

        def wrap(function: Call) -> Call:
            return lambda *args: futures.append(client.submit(function, *args, pure=False))

        def wait() -> None:
            distributed.wait(futures)
            futures.clear()

        return wrap, wait

    def ours(self) -> tuple[Call, Call]:
        from background import background, flush

        return background, flush

    def ours_submit(self) -> tuple[Call, Call]:
        from background import ThreadExecutor, flush

        executor = ThreadExecutor()
        return lambda function: lambda *args: executor.submit(function, *args), flush


def queued(workers: int) -> tuple[Call, Call]:
    """Return what people write by hand, as the documentation of `queue` shows it."""
    calls: Any = queue.Queue()

    def work() -> None:
        while True:
            function, args, kwargs = calls.get()
            function(*args, **kwargs)
            calls.task_done()

    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()

    def wrap(function: Call) -> Call:
        def call(*args: Any, **kwargs: Any) -> None:
            calls.put((function, args, kwargs))

        return call

    return wrap, calls.join


def last(submit: Call) -> Call:
    """Return what waits for one more call, which a single worker runs last."""
    return lambda: submit(nothing, 1, 2).result()


def unable(*args: Any) -> Any:
    raise Unable("takes all calls at once, not one after the other")


def burst(contender: Contender, calls: int) -> Figures:
    """Return what a call costs its caller in a burst, and the calls drained a second."""
    if contender.name == "joblib":
        return batch(calls)
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


def batch(calls: int) -> Figures:
    """Return the same for joblib, which takes all calls at once; with one worker it runs none."""
    from joblib import Parallel, delayed

    def run(count: int) -> Any:
        parallel = Parallel(2, return_as="generator", prefer="threads", pre_dispatch="all")
        return parallel(delayed(nothing)(i, 2) for i in range(count))

    list(run(10))
    start = time.perf_counter()
    results = run(calls)
    made = time.perf_counter()
    list(results)
    return {
        "µs a call": (made - start) / calls * 1e6,
        "calls/s": calls / (time.perf_counter() - start),
    }


def paced(contender: Contender, calls: int) -> Figures:
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


def waiting(contender: Contender, calls: int) -> Figures:
    """Return the bytes that a waiting call takes."""
    if contender.name == "thread_per_call":
        raise Unable("its calls never wait")
    call = contender.wrap(nothing)
    call(1, 2)
    contender.wait()
    gate = Gate(contender.wrap)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(calls):
        call(i, 2)
    time.sleep(0.5)  # for those who pass them on in another thread
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    gate.open()
    contender.wait()
    return {"bytes": (after - before) / calls}


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def finished(contender: Contender, calls: int) -> Figures:
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


def loop(contender: Contender, steps: int) -> Figures:
    """Return the time of a step in a loop with a plot that waits 20 ms at every tenth."""
    data = [0.5] * 200
    plot = contender.wrap(time.sleep)
    start = time.perf_counter()
    for i in range(steps):
        step(data)
        if i % 10 == 9:
            plot(0.02)
    made = time.perf_counter() - start
    contender.wait()
    return {"ms a step": made / steps * 1e3}


if __name__ == "__main__":
    main(Contender, burst, paced, waiting, finished, loop)
