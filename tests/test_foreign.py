"""Any `concurrent.futures.Executor`: what its authors promise, and what they don't."""

import gc
import itertools
import logging
import math
import multiprocessing
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import (
    CancelledError,
    Executor,
    Future,
    InvalidStateError,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from typing import Any

import loky
import pytest
from conftest import Log
from test_ending import run

from background import (
    FlushTimeout,
    ProcessExecutor,
    ThreadExecutor,
    background,
    configure,
    flush,
    stats,
)
from background._core.ledger import pending
from background._executors.foreign import ForeignExecutor

POOLS: dict[str, Callable[[], Executor]] = {
    "threads": lambda: ThreadPoolExecutor(1),
    "processes": lambda: ProcessPoolExecutor(1, multiprocessing.get_context("spawn")),
    "loky": lambda: loky.ProcessPoolExecutor(1),
}


class Big:
    """Something that can be seen to die."""

    def __len__(self) -> int:
        return 0

    def __reduce__(self) -> tuple[Any, ...]:
        return list, ()  # it need not be known in the other process


@pytest.fixture(scope="module", params=POOLS)
def pool(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Make one pool after the other, each once: a process takes its time to start."""
    with POOLS[request.param]() as made:
        yield made


def test_calls_and_futures(pool: Executor) -> None:
    """D1, F1: a call on any executor has a future of ours, with the function's own outcome."""
    before = stats()
    power = background(executor=pool)(pow)
    futures = [power(2, i) for i in range(20)]
    flush(60)
    assert [future.result() for future in futures] == [2**i for i in range(20)]
    assert not futures[0].cancel()
    assert stats().succeeded - before.succeeded == 20
    with configure(executor=pool):
        assert background(math.hypot)(3, 4).result(60) == 5


def test_failures_have_notes_and_are_logged(pool: Executor, log: Log) -> None:
    """E1: a failure on any executor names its call, and is logged once if nobody retrieves it."""
    root = background(executor=pool)(math.sqrt)
    with pytest.raises(ValueError) as own:  # its words differ by Python
        math.sqrt(-1)
    with pytest.raises(ValueError, match=re.escape(str(own.value))) as caught:
        root(-1).result(60)
    note = r"sqrt(…), called at test_foreign.py"
    assert any(note in said for said in caught.value.__notes__)
    root(-2)
    flush(60)
    assert len(log.errors) == 1
    assert note in log.errors[0]


def test_a_pool_that_breaks(log: Log) -> None:
    """E1: a worker process that dies fails its call, later calls too, and nothing hangs."""
    with POOLS["processes"]() as pool:
        end = background(executor=pool)(os._exit)(3)
        assert "terminated abruptly" in str(end.exception(60))
        later = background(executor=pool)(pow)(2, 2)
        assert "can not be used" in str(later.exception(60)) or "abruptly" in str(later.exception())
        flush(60)
    assert not log.errors


def test_a_failure_and_its_arguments_are_freed(pool: Executor) -> None:
    """C6: nothing that was called on any executor stays, without the cyclic collector."""
    call = background(executor=pool)(len)
    gc.disable()
    big = Big()
    alive = weakref.ref(big)
    future = call(big)
    del big
    flush(60)
    pool.submit(int).result(60)  # its worker has let go of the call before
    gc.enable()
    assert future.result() == 0
    assert alive() is None


def test_nested_waits_run_here() -> None:
    """F4: a call on a pool of one thread that waits for another one there runs it itself."""
    with ThreadPoolExecutor(1) as pool:
        inner = background(executor=pool)(pow)
        assert background(executor=pool)(lambda: inner(2, 3).result(20))().result(20) == 8


def test_a_pool_that_does_not_say_its_size() -> None:
    """F4: a wait in a worker for a call on any pool ends."""

    class Pool(ThreadPoolExecutor):
        _max_workers: Any

    with Pool(1) as pool:
        size = background(executor=pool)(len)
        size("one").result(20)
        pool._max_workers = None
        assert background(lambda: size("four").result(20))().result(30) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_nested_waits_across_executors(workers: int) -> None:
    """F4: a worker runs a call that waits in a pool all of whose threads wait for it in turn."""
    with ThreadPoolExecutor(workers) as pool, ThreadExecutor() as ours:
        together = threading.Barrier(workers)
        size = background(executor=pool)(len)

        @background(executor=ours)
        def there() -> int:
            return size("four").result(20)

        @background(executor=pool)
        def here() -> int:
            together.wait(20)
            return there().result(20)

        calls = [here() for _ in range(workers)]
        assert [call.result(30) for call in calls] == [4] * workers


def test_flush_inside_is_an_error() -> None:
    """W1: flush inside a call on a pool is a RuntimeError, and its children are waited for."""
    with ThreadPoolExecutor(1) as pool:
        ran: list[int] = []
        child = background(executor=pool)(ran.append)
        assert isinstance(background(executor=pool)(flush)().exception(20), RuntimeError)
        background(executor=pool)(lambda: [child(i) for i in range(3)])()
        flush(20)
        assert ran == [0, 1, 2]


class Bad(Executor):
    """An executor that does what it is told, if that."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []
        self.work: list[Callable[[], Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.futures.append(Future())
        self.work.append(lambda: fn(*args, **kwargs))
        return self.futures[-1]


def test_submit_raises(log: Log) -> None:
    """E1: an error of the executor's submit is the outcome of the call, told as any other."""

    class Refusing(Bad):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            raise OSError("no room")

    before = stats()
    call = background(executor=Refusing())(pow)
    future = call(1, 2)
    with pytest.raises(OSError, match="no room") as caught:
        future.result(0)
    assert "pow(…), called at" in caught.value.__notes__[0]
    del future, caught
    gc.disable()
    call(3, 4)
    gc.enable()
    assert len(log.errors) == 1
    assert not pending
    assert stats().failed - before.failed == 2


def test_it_completes_late() -> None:
    """F1: a call is done when its function is, however late the executor says so."""
    bad = Bad()
    future = background(executor=bad)(pow)(2, 3)
    assert not future.running()
    bad.work[0]()
    assert future.result(0) == 8
    bad.futures[0].set_result(None)
    assert future.result(0) == 8
    assert not pending


def test_it_completes_twice() -> None:
    """F1: what an executor does to its own future twice concerns it alone."""
    bad = Bad()
    future = background(executor=bad)(pow)(2, 3)
    bad.work[0]()
    bad.work[0]()
    bad.futures[0].set_result(1)
    with pytest.raises(InvalidStateError):
        bad.futures[0].set_result(2)
    assert future.result(0) == 8


def test_it_never_completes() -> None:
    """W1: flush names a call that its executor never runs, and it can be cancelled."""
    bad = Bad()
    future = background(executor=bad)(pow)(2, 3)
    with pytest.raises(FlushTimeout, match=r"pow\(…\), called at test_foreign"):
        flush(0)
    assert future.cancel()
    assert bad.futures[0].cancelled()
    flush(0)


def test_it_is_done_before_it_began() -> None:
    """F1: an executor that returns a finished future has given the outcome."""

    class Early(Bad):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future = super().submit(fn, *args, **kwargs)
            future.set_result("early")
            return future

    early = Early()
    assert background(executor=early)(pow)(2, 3).result(0) == "early"
    early.work[0]()  # nothing runs twice
    assert not pending


def test_it_runs_in_submit() -> None:
    """F1: an executor that runs the function before it returns is as good as any."""

    class Inline(Bad):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future: Future[Any] = Future()
            future.set_result(fn(*args, **kwargs))
            return future

    assert background(executor=Inline())(pow)(2, 3).result(0) == 8
    assert isinstance(background(executor=Inline())(math.sqrt)(-1).exception(0), ValueError)


def test_it_returns_no_future() -> None:
    """E1: an executor that returns something else fails the call, saying so."""

    class Nothing(Bad):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            return None

    error = background(executor=Nothing())(pow)(2, 3).exception(0)
    assert isinstance(error, TypeError)
    assert "returned None instead of a Future" in str(error)


def test_it_is_cancelled_from_outside() -> None:
    """F3: a future that its executor cancels cancels ours."""
    before = stats().cancelled
    bad = Bad()
    future = background(executor=bad)(pow)(2, 3)
    bad.futures[0].cancel()
    with pytest.raises(CancelledError):
        future.result(0)
    assert stats().cancelled == before + 1
    bad.work[0]()
    flush(0)


@pytest.mark.parametrize("lies", [False, True])
def test_cancel_does_not_lie(lies: bool) -> None:
    """F3: cancel of a call that runs returns False, whatever the executor says."""

    class Lying(Future[Any]):
        def cancel(self) -> bool:
            return True

    class Wrong(Bad):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            super().submit(fn, *args, **kwargs)
            self.futures[-1] = Lying() if lies else self.futures[-1]
            return self.futures[-1]

    bad = Wrong()
    answers: list[bool] = []
    future: Any = background(executor=bad)(lambda: answers.append(future.cancel()))()
    bad.futures[0].set_running_or_notify_cancel()
    assert future.running()
    bad.work[0]()
    assert answers == [False]
    assert future.result(0) is None


def test_bounds_hold() -> None:
    """C5: the bound counts what an executor has not started; the dropped are counted as such."""
    bad = Bad()
    before = stats()
    call = background(executor=bad, max_pending=1, overflow="drop_oldest")(pow)
    futures = [call(2, i) for i in range(3)]
    assert [future.cancelled() for future in futures] == [True, True, False]
    assert [future.cancelled() for future in bad.futures] == [True, True, False]
    now = stats()
    assert (now.dropped - before.dropped, now.cancelled - before.cancelled) == (2, 0)
    bad.futures[2].set_running_or_notify_cancel()
    assert not call(2, 3).cancelled()  # the running one can't be dropped and waits no more
    assert not futures[2].cancelled()
    for work in bad.work:
        work()
    flush(0)
    assert futures[2].result() == 4


def test_done_callbacks_on_odd_threads() -> None:
    """C5: a done callback that calls into a full backlog never blocks a pool's thread."""
    bad = Bad()
    call = background(executor=bad, max_pending=1)(pow)
    first = call(2, 1)
    first.add_done_callback(lambda _: [call(2, i) for i in range(3)])
    thread = threading.Thread(target=bad.futures[0].set_result, args=(7,), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert first.result(0) == 7
    for work in bad.work[1:]:
        work()
    flush(0)


def test_shutdown(log: Log) -> None:
    """E1: a call on a pool that was shut down fails, and says so once."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    background(executor=pool)(pow)(1, 2)
    flush(20)
    assert len(log.errors) == 1


def test_not_an_executor() -> None:
    """D3: what is no executor is a TypeError that says what to write."""
    with pytest.raises(TypeError, match=r"write ThreadPoolExecutor\(\)"):
        background(executor=ThreadPoolExecutor)  # type: ignore[call-overload]


PROGRAM = """
import multiprocessing, loky
from concurrent.futures import ThreadPoolExecutor, ProcessPoolExecutor
from background import background, configure, flush
pool = {pool}
in_pool = background(executor=pool)
class Shape:
    @in_pool
    def draw(self, i): tell(f"drawn {{i}}")
@in_pool
def slow(i, more=True):
    time.sleep(0.02)
    tell(f"ran {{i}}")
    return i
"""


@pytest.mark.parametrize(
    "pool", ["ThreadPoolExecutor(1)", "ProcessPoolExecutor(1)", "loky.ProcessPoolExecutor(1)"]
)
@pytest.mark.parametrize("end", ["", "1 / 0"])
def test_the_end_drains_pools(pool: str, end: str, tmp_path: Path) -> None:
    """W3: the program's end drains a pool before the pool ends; later calls run in their caller."""
    lines, err = run(
        PROGRAM.format(pool=pool)
        + f"""
if __name__ == "__main__":
    atexit.register(lambda: slow("at exit"))
    def then(future): slow(f"after {{future.result()}}")
    for i in range(3):
        slow(i).add_done_callback(then)
        Shape().draw(i)
    def thread():
        threading.main_thread().join()
        slow("thread")
    threading.Thread(target=thread).start()
    {end}
""",
        tmp_path,
        code=int(bool(end)),
    )
    ran = [f"ran {i}" for i in range(3)] + [f"ran after {i}" for i in range(3)]
    ran += [f"drawn {i}" for i in range(3)] + ["ran at exit", "ran thread"]
    assert sorted(lines) == sorted(ran), err
    assert err.count("Traceback") == bool(end), err


def test_exit_timeout_ends_what_never_completes(tmp_path: Path) -> None:
    """W3: an executor that never completes holds the end no longer than `exit_timeout`."""
    _, err = run(
        """
        from concurrent.futures import Executor, Future
        from background import background, configure
        class Never(Executor):
            def submit(self, fn, *args): return Future()
        configure(exit_timeout=0.1)
        background(executor=Never())(print)(1)
        """,
        tmp_path,
    )
    assert "dropped 1 background call" in err
    assert "Traceback" not in err


def test_ctrl_c_drops_what_waits_in_a_pool(tmp_path: Path) -> None:
    """W3: at the end of the program `exit_timeout` drops what a pool has not started."""
    lines, err = run(
        PROGRAM.format(pool="ThreadPoolExecutor(1)")
        + """
configure(exit_timeout=0.1)
release = threading.Event()
threading.Timer(1, release.set).start()
background(executor=pool)(release.wait)()
for i in range(50):
    slow(i)
""",
        tmp_path,
    )
    assert lines == []
    assert "dropped 50 background calls" in err
    assert "Traceback" not in err


def test_a_fork_does_not_hang(tmp_path: Path) -> None:
    """W4: in a fork's child, where a pool has no threads any more, its calls run in the caller."""
    lines, _ = run(
        PROGRAM.format(pool="ThreadPoolExecutor(1)")
        + """
slow(1)
flush()
if os.fork() == 0:
    signal.alarm(20)
    assert slow(2).result() == 2
    flush()
    os._exit(0)
assert os.wait()[1] == 0
""",
        tmp_path,
    )
    assert lines == ["ran 1", "ran 2"]


def test_a_logging_pool_is_silent() -> None:
    """T3: what goes wrong in a pool is said on our logger, not on that of concurrent.futures."""
    seen = Log()
    logger = logging.getLogger("concurrent.futures")
    logger.addHandler(seen)
    with ThreadPoolExecutor(1) as pool:
        background(executor=pool)(math.sqrt)(-1).exception(20)
    logger.removeHandler(seen)
    assert not seen.records


@pytest.mark.parametrize("make", [ProcessExecutor, lambda: ForeignExecutor(ProcessPoolExecutor(1))])
def test_map_sends_chunks(make: Callable[[], Executor]) -> None:
    """F1: `map(chunksize=…)` sends so many items as one call, with the same results and errors."""
    before = stats().submitted
    with make() as executor:
        assert list(executor.map(pow, range(1000), itertools.repeat(2), chunksize=100)) == [
            i * i for i in range(1000)
        ]
        assert stats().submitted - before == 10
        results = executor.map(math.sqrt, [4, 9, -1, 16], chunksize=2)
        assert [next(results), next(results)] == [2, 3]
        with pytest.raises(ValueError, match="math domain"):
            next(results)
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(abs, [1], chunksize=0)


class Draws:
    @classmethod
    def name(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x


def test_a_class_method_on_a_pool_of_processes() -> None:
    """D1: a class method that is decorated where it is called travels to a pool of processes."""
    with ProcessPoolExecutor(1) as pool:
        assert background(executor=pool)(Draws.name)(3).result(60) == ("Draws", 3)
