"""Functions that are decorated where they are called: nothing of them stays."""

import functools
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, as_completed, wait

import pytest

from background import Future, ProcessExecutor, ThreadExecutor, background, flush
from background._executors.workers import WorkerExecutor


class Large:
    pass


def test_what_was_decorated_goes_with_its_call(no_collector: None) -> None:
    """C6: a function that was decorated for one call is freed without the collector."""
    large = Large()
    gone = weakref.ref(large)
    with ThreadPoolExecutor(1) as pool:
        background(executor=pool)(functools.partial(isinstance, large, Large))().result(20)
        background(functools.partial(isinstance, large, Large))().result(20)
        flush()
        del large
        pool.submit(int).result(20)  # the pool has let go of what it ran before
        background(abs)(-1).result(20)
    assert gone() is None


def until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError(f"the process {pid} lives on")


def test_a_kept_future_keeps_no_workers(no_collector: None) -> None:
    """C6: an executor that was dropped ends its workers though a future of it is kept."""
    in_process = background(executor=ProcessExecutor())
    pid = in_process(os.getpid)().result(20)
    kept = in_process(abs)(-1)
    failed = in_process(abs)("no number")  # type: ignore[arg-type]
    flush()
    del in_process
    until_gone(pid)
    assert kept.result() == 1
    with pytest.raises(TypeError):
        failed.result()


def asked(executor: WorkerExecutor) -> int:
    return sum(worker.asked for worker in executor._queue.workers)


def wait_by_callback(future: Future[int]) -> None:
    called = threading.Event()
    future.add_done_callback(lambda _: called.set())
    assert called.wait(20)


@pytest.mark.parametrize(
    "wait_for",
    [
        lambda future: future.result(20),
        lambda future: wait([future], 20),
        lambda future: list(as_completed([future], 20)),
        wait_by_callback,
    ],
)
def test_calls_that_follow_each_other_have_one_worker(wait_for: object) -> None:
    """C2: a second worker starts only when the first is not free, however one waits."""
    with ThreadExecutor(4) as executor:
        for _ in range(1000):
            wait_for(executor.submit(abs, -1))  # type: ignore[operator]
        assert asked(executor) == 1


def test_a_callback_that_takes_long_holds_up_no_other_worker() -> None:
    """C2: a worker that runs done callbacks is not free."""
    with ThreadExecutor(2) as executor:
        gate, entered, first = threading.Event(), threading.Event(), threading.Event()
        future = executor.submit(first.wait, 20)
        future.add_done_callback(lambda _: entered.set() or gate.wait(20))
        first.set()
        assert entered.wait(20)
        assert executor.submit(abs, -1).result(20) == 1
        gate.set()


def test_workers_that_have_ended_are_not_listed() -> None:
    """C6: `threading.enumerate` lists no thread of an executor that was shut down."""
    before = set(threading.enumerate())
    for _ in range(3):
        with ThreadExecutor() as executor:
            assert executor.submit(abs, -1).result(20) == 1
    deadline = time.monotonic() + 20
    while set(threading.enumerate()) - before:  # the last lines of a thread come after its end
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.001)
