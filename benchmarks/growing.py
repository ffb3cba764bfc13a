"""Measure how the cost of a call grows: with calls that wait, with callers, with workers.

Run as `python growing.py NAME MEASURE NUMBER`, where the number is that of the calls; see
`measuring`. A column is a size.
"""

import gc
import logging
import resource
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from measuring import Call, Figures, Gate, main, nothing
from threads import queued

CALLERS = [1, 2, 4, 8, 16, 32, 64]
WORKERS = [1, 2, 4, 8, 16, 32]


class Contender:
    """Calls with any number of workers: `make` returns `wrap` and `wait`."""

    def __init__(self, name: str) -> None:
        self.name = name
        logging.disable()  # that 10,000 calls wait is what is wanted here
        if name == "ours_uncollected":
            gc.disable()

    def make(self, workers: int = 1) -> tuple[Call, Call]:
        if self.name == "queue_task_done":
            return queued(workers)
        if self.name == "thread_pool":
            pool = ThreadPoolExecutor(workers)
            return lambda function: lambda *args: pool.submit(function, *args), pool.shutdown
        from background import ThreadExecutor, background, flush

        return background(executor=ThreadExecutor(workers)), flush


def waiting(contender: Contender, calls: int) -> Figures:
    """Return the µs that a call costs its caller while the queue grows from a tenth to N."""
    figures: Figures = {}
    size = 1
    while size <= calls:
        costs = []
        for _ in range(max(1, min(200, 20_000 // size))):
            wrap, wait = contender.make()
            call = wrap(nothing)
            gate = Gate(wrap)
            for i in range(size // 10):
                call(i, 2)
            start = time.perf_counter()
            for i in range(size // 10, size):
                call(i, 2)
            costs.append((time.perf_counter() - start) / (size - size // 10) * 1e6)
            gate.open()
            wait()
            gate.close()
        figures[f"{size:,}"] = statistics.median(costs)
        size *= 10
    return figures


@dataclass
class Burst:
    """What a call took, in µs from the first call on, and how often a thread gave way."""

    made: float
    drained: float
    switches: float  # of 1,000 calls


def burst(contender: Contender, calls: int, callers: int = 1, workers: int = 1) -> Burst:
    wrap, wait = contender.make(workers)
    call = wrap(nothing)
    call(1, 2)
    ready = threading.Barrier(callers + 1)
    made: list[float] = []

    def produce() -> None:
        ready.wait()
        for i in range(calls // callers):
            call(i, 2)
        made.append(time.perf_counter())

    threads = [threading.Thread(target=produce) for _ in range(callers)]
    for thread in threads:
        thread.start()
    before = switches()
    ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    wait()
    drained = time.perf_counter()
    return Burst(
        (max(made) - start) / calls * 1e6,
        (drained - start) / calls * 1e6,
        (switches() - before) / calls * 1e3,
    )


def switches() -> int:
    """Return how often threads of this process have had to wait so far, for one another."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def callers(contender: Contender, calls: int) -> Figures:
    return {str(n): burst(contender, calls, callers=n).made for n in CALLERS}


def caller_switches(contender: Contender, calls: int) -> Figures:
    return {str(n): burst(contender, calls, callers=n).switches for n in CALLERS}


def workers(contender: Contender, calls: int) -> Figures:
    return {str(n): burst(contender, calls, workers=n).made for n in WORKERS}


def drained(contender: Contender, calls: int) -> Figures:
    return {str(n): burst(contender, calls, workers=n).drained for n in WORKERS}


def worker_switches(contender: Contender, calls: int) -> Figures:
    return {str(n): burst(contender, calls, workers=n).switches for n in WORKERS}


if __name__ == "__main__":
    main(Contender, waiting, callers, caller_switches, workers, drained, worker_switches)
