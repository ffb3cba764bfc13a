"""The chapter Calling of the contract."""

import contextvars
import gc
import logging
import sys
import threading
import time
import tracemalloc
import weakref
from concurrent.futures import Executor

import pytest
from conftest import Held, let_die

from background import SQLiteExecutor, ThreadExecutor, background, flush


def test_a_call_returns_at_once() -> None:
    """C1: a call returns before the function does, and runs on another thread."""
    gate = threading.Event()

    def where() -> int:
        assert gate.wait(10)
        return threading.get_ident()

    future = background(where)()
    assert not future.done()
    gate.set()
    assert future.result() != threading.get_ident()


def test_one_worker_keeps_the_order() -> None:
    """C2: with one worker calls start in the order in which they were made, one at a time."""
    seen: list[int] = []
    running = threading.Semaphore(1)

    @background
    def step(i: int) -> None:
        assert running.acquire(blocking=False)
        seen.append(i)
        running.release()

    futures = [step(i) for i in range(2000)]
    flush()
    assert all(future.exception() is None for future in futures)
    assert seen == list(range(2000))


def test_more_workers_overlap() -> None:
    """C2: with four workers four calls run at the same time."""
    barrier = threading.Barrier(4)
    with ThreadExecutor(4) as executor:
        futures = [executor.submit(barrier.wait, 10) for _ in range(8)]
        assert sorted(future.result(20) for future in futures) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_workers_that_sleep_all_wake() -> None:
    """C2: a burst wakes as many sleeping workers as it has calls, though it rings once."""
    before = sys.getswitchinterval()
    with ThreadExecutor(4) as executor:
        four = threading.Barrier(4)
        for future in [executor.submit(four.wait, 10) for _ in range(4)]:
            future.result(20)  # now there are four workers
        for _ in range(5):
            all_run = threading.Event()
            barrier = threading.Barrier(4, all_run.set)
            while not all(w.idle for w in executor._queue.workers):
                time.sleep(0)
            sys.setswitchinterval(60)  # no worker runs before all four calls are made
            futures = [executor.submit(barrier.wait, 10) for _ in range(4)]
            sys.setswitchinterval(before)
            assert all_run.wait(20)  # not result(): who waits for a call wakes a worker, too
            del futures


variable = contextvars.ContextVar("variable", default=0)


def test_context_variables(executor_in_memory: Executor) -> None:
    """C3: a call sees the context variables as they were at the call, and changes none."""
    variable.set(1)

    def see() -> int:
        before = variable.get()
        variable.set(99)
        return before

    first = background(executor=executor_in_memory)(see)()
    variable.set(2)
    assert (first.result(), executor_in_memory.submit(see).result()) == (1, 2)
    assert variable.get() == 2


class Big:
    """Something that can be seen to die."""


def fail(_: object) -> None:
    raise ValueError


@pytest.mark.usefixtures("no_collector")
def test_arguments_and_results_are_freed_at_once(executor: Executor) -> None:
    """C6: a done call holds neither arguments nor result, without the cyclic collector."""
    big = Big()
    alive = weakref.ref(big)
    kept = executor.submit(lambda _: None, big)
    by_name = executor.submit(lambda x: None, x=big)
    del big
    flush()
    let_die()
    assert alive() is None
    assert kept.done()
    assert by_name.done()

    future = executor.submit(Big)
    alive = weakref.ref(future.result())
    flush()
    del future
    let_die()
    assert alive() is None


@pytest.mark.usefixtures("no_collector")
def test_a_failure_makes_no_cycle(executor_in_memory: Executor) -> None:
    """C6: what a failed call worked on is freed with its future, or at once if that was dropped."""
    big = Big()
    alive = weakref.ref(big)
    future = executor_in_memory.submit(fail, big)
    del big
    flush()
    with pytest.raises(ValueError):
        future.result()
    assert alive() is not None  # for a debugger
    del future
    let_die()
    assert alive() is None

    logging.getLogger("background").setLevel(logging.CRITICAL + 1)
    big = Big()
    alive = weakref.ref(big)
    executor_in_memory.submit(fail, big)
    del big
    flush()
    logging.getLogger("background").setLevel(logging.NOTSET)
    let_die()
    assert alive() is None


@pytest.mark.usefixtures("no_collector")
def test_a_cancelled_call_holds_nothing(held: Held) -> None:
    """C6: cancelling frees the arguments, though the worker is busy."""
    big = Big()
    alive = weakref.ref(big)
    future = held.executor.submit(fail, big)
    del big
    assert future.cancel()
    let_die()
    assert alive() is None
    assert not held.executor._queue.calls  # type: ignore[attr-defined]


def growth(calls: int, executor: Executor) -> int:
    """Return the bytes by which so many calls grow the heap."""
    call = background(executor=executor)(abs)
    for _ in range(2000):
        call(-1)
    flush()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(calls):
        call(-1)
        if i % 100 == 0:
            flush()
    flush()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return after - before


def test_no_growth_with_finished_calls(executor: Executor) -> None:
    """C6: fifty thousand finished calls take less than one byte each."""
    if isinstance(executor, SQLiteExecutor):
        pytest.skip("takes half a minute; test_durable.py has a test of its own")
    assert growth(50_000, executor) < 50_000


def test_no_growth_with_failures(executor: Executor) -> None:
    """C6: three hundred dropped failures with a megabyte each leave next to nothing."""
    logging.getLogger("background").setLevel(logging.CRITICAL + 1)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(300):
        executor.submit(fail, bytearray(1 << 20))
        flush()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    logging.getLogger("background").setLevel(logging.NOTSET)
    assert after - before < 3 << 20
