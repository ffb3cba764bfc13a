"""The chapter Futures of the contract."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, as_completed, wait
from typing import Any
from unittest.mock import Mock

import pytest
from conftest import Held

from background import ThreadExecutor, background, flush


@pytest.fixture
def often() -> Iterator[None]:
    """Switch threads as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_timeout(held: Held) -> None:
    """F1: result and exception wait no longer than they are told."""
    with pytest.raises(TimeoutError, match=r"_hold\(…\), called at"):
        held.first.result(0.01)
    with pytest.raises(TimeoutError):
        held.first.exception(0)


def test_callbacks(held: Held) -> None:
    """F1: done callbacks run once, in their order, with the future; late ones at once."""
    seen: list[tuple[str, Future[Any]]] = []
    held.first.add_done_callback(lambda f: seen.append(("a", f)))
    held.first.add_done_callback(lambda f: seen.append(("b", f)))
    held.gate.set()
    flush()
    held.first.add_done_callback(lambda f: seen.append(("c", f)))
    assert seen == [("a", held.first), ("b", held.first), ("c", held.first)]


def test_an_outcome_is_set_once(held: Held) -> None:
    """F1: only the executor sets the outcome of a call."""
    from concurrent.futures import InvalidStateError

    with pytest.raises(InvalidStateError):
        held.first.set_result(None)
    with pytest.raises(InvalidStateError):
        held.first.set_exception(ValueError())


@pytest.mark.usefixtures("often")
def test_waiting_while_calls_end() -> None:
    """F1: wait, as_completed and callbacks miss no future that is done just then."""
    with ThreadExecutor(2) as executor:
        for _ in range(200):
            done, late = wait([executor.submit(abs, -i) for i in range(6)], timeout=20)
            assert (len(done), len(late)) == (6, 0)
            futures = as_completed([executor.submit(abs, -i) for i in range(6)], timeout=20)
            assert sorted(future.result() for future in futures) == [0, 1, 2, 3, 4, 5]
            called: list[object] = []
            for i in range(6):
                executor.submit(abs, i).add_done_callback(called.append)
            flush(20)
            assert len(called) == 6


def test_a_lock_asked_for_while_the_call_ends() -> None:
    """F1: who asks for the lock while a call ends sees it undone or done, and is woken."""
    from background._core.call import Call
    from background._core.executor import put

    with ThreadExecutor() as executor:
        ending, go = threading.Event(), threading.Event()

        class Slow(Call[int]):
            # Stand between the steps 2 and 3 of `_settle`: the worker has seen nobody.
            @property  # type: ignore[override]
            def _shared(self) -> Any:
                found = self.__dict__.get("found")
                if threading.current_thread().name.startswith("background") and not go.is_set():
                    ending.set()
                    assert go.wait(10)
                return found

            @_shared.setter
            def _shared(self, shared: Any) -> None:
                self.__dict__["found"] = shared
                if shared is not None:
                    go.set()

        bound = Mock(call=Slow)
        call = put(executor, abs, (-1,), None, sys._getframe(), bound)
        assert ending.wait(10)
        done, late = wait([call], timeout=10)  # makes the lock, and lets the worker go on
        assert (len(done), len(late)) == (1, 0)


def test_await() -> None:
    """F2: a future can be awaited, by several tasks, and a cancelled wait leaves the call alone."""

    async def main() -> list[int]:
        gate = threading.Event()
        waits = background(gate.wait)()
        first = asyncio.ensure_future(_await(waits))
        second = asyncio.ensure_future(_await(waits))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert await second is True
        return list(await asyncio.gather(*(_await(background(abs)(-i)) for i in range(20))))

    assert asyncio.run(main()) == list(range(20))


async def _await(future: Any) -> Any:
    return await future


def test_await_a_cancelled_call(held: Held) -> None:
    """F2: awaiting a cancelled call raises asyncio's CancelledError."""
    future = held.executor.submit(abs, 1)
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_await(future))


def test_cancel_before_the_start(held: Held) -> None:
    """F3: a waiting call can be cancelled, a running or done one can't."""
    ran: list[int] = []
    future = held.executor.submit(ran.append, 1)
    assert not held.first.cancel()
    assert future.cancel()
    assert future.cancel()
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result()
    held.gate.set()
    flush()
    assert not held.first.cancel()
    assert ran == []


@pytest.mark.usefixtures("often")
def test_cancel_against_the_start() -> None:
    """F3: of two cancels and a start at the same time exactly one wins, thousands of times."""
    with ThreadExecutor() as executor, ThreadExecutor() as canceller:
        for _ in range(3000):
            ran: list[int] = []
            future = executor.submit(ran.append, 1)
            other = canceller.submit(future.cancel)
            mine = future.cancel()
            theirs = other.result(20)
            flush(20)
            assert (mine or theirs) == future.cancelled()
            assert future.cancelled() != bool(ran)


def test_a_chain_of_nested_calls() -> None:
    """F4: fifty calls on one worker, each waiting for the next, end."""

    @background
    def chain(n: int) -> int:
        return n and chain(n - 1).result() + 1

    assert chain(50).result(30) == 50


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fan_out(workers: int) -> None:
    """F4: a call may wait for many others, also by wait, as_completed and map."""
    with ThreadExecutor(workers) as executor:

        def fan() -> int:
            done, late = wait([executor.submit(abs, -i) for i in range(20)])
            assert not late
            later = as_completed([executor.submit(abs, -i) for i in range(20)])
            return (
                sum(f.result() for f in done)
                + sum(f.result() for f in later)
                + sum(executor.map(abs, range(20)))
            )

        assert executor.submit(fan).result(30) == 3 * sum(range(20))


def test_two_calls_wait_for_each_others_children() -> None:
    """F4: two calls that wait for each other's children end."""
    with ThreadExecutor(2) as executor:
        children: dict[int, Future[int]] = {}
        both = threading.Barrier(2)

        def parent(me: int) -> int:
            children[me] = executor.submit(abs, -me)
            both.wait(10)
            return children[3 - me].result()

        first, second = executor.submit(parent, 1), executor.submit(parent, 2)
        assert (first.result(30), second.result(30)) == (2, 1)


def test_across_executors() -> None:
    """F4: a worker runs a waiting call of an executor whose worker waits for it in turn."""
    with ThreadExecutor() as one, ThreadExecutor() as two:

        def there() -> int:
            return one.submit(abs, -5).result()

        assert one.submit(lambda: two.submit(there).result()).result(30) == 5


def until_waiting(executor: ThreadExecutor, count: int) -> None:
    """Wait until so many workers wait for another call."""
    deadline = time.monotonic() + 20
    while sum(worker.waits_for is not None for worker in executor._workers()) != count:
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def test_across_executors_when_the_other_one_waits_already() -> None:
    """F4: a worker that waits for a running call runs what that one waits for in turn."""
    with ThreadExecutor() as one, ThreadExecutor() as two:

        def here() -> int:
            future = two.submit(lambda: one.submit(abs, -5).result(20))
            until_waiting(two, 1)
            return future.result(20)

        assert one.submit(here).result(30) == 5


def test_two_executors_all_of_whose_workers_wait() -> None:
    """F4: the last worker to wait, of many that wait in several circles, sees that."""
    with ThreadExecutor() as one, ThreadExecutor(2) as two:
        both = threading.Barrier(2)

        def there(others: int) -> int:
            both.wait(20)
            until_waiting(one, 1)
            until_waiting(two, others)
            return one.submit(abs, -1).result(20)

        def here() -> int:
            running = [two.submit(there, 0), two.submit(there, 1)]
            return two.submit(abs, -1).result(20) + sum(future.result(20) for future in running)

        assert one.submit(here).result(30) == 3


def test_a_call_that_waits_for_itself(held: Held) -> None:
    """F4: a wait that would never end is a RuntimeError that names the call."""
    me: list[Future[Any]] = []
    me.append(held.executor.submit(lambda: me[0].result()))
    held.gate.set()
    with pytest.raises(RuntimeError, match="would never end"):
        me[0].result(30)


def test_two_calls_that_wait_for_each_other() -> None:
    """F4: two running calls that wait for each other both end."""
    with ThreadExecutor(2) as executor:
        calls: list[Future[Any]] = []
        both = threading.Barrier(3)

        def meet(other: int) -> object:
            both.wait(10)
            return calls[other].result()

        calls += [executor.submit(meet, 1), executor.submit(meet, 0)]
        both.wait(10)
        errors = [call.exception(30) for call in calls]
        assert RuntimeError in map(type, errors)


def test_a_future_cant_be_pickled(executor: Executor) -> None:
    """F1: pickling a future says what to do instead."""
    import pickle

    with pytest.raises(TypeError, match="result"):
        pickle.dumps(executor.submit(abs, 1))


def test_repr(held: Held) -> None:
    """F1: a future shows its call, its place and its state."""
    assert repr(held.first).endswith("in __init__: running>")
    waiting = held.executor.submit(abs, 1)
    assert repr(waiting).startswith("<Future of abs(…), called at test_futures.py:")
    assert repr(waiting).endswith(": pending>")
    waiting.cancel()
    assert repr(waiting).endswith(": cancelled>")
    held.gate.set()
    flush()
    assert repr(held.first).endswith(": returned NoneType>")
    failed = held.executor.submit(int, "one")
    flush()
    assert repr(failed).endswith(": raised ValueError>")


def test_shutdown(held: Held) -> None:
    """F1: shutdown refuses later calls, runs or cancels the earlier ones, and can wait."""
    kept = held.executor.submit(abs, -1)
    held.executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="shut down"):
        held.executor.submit(abs, 1)
    held.gate.set()
    held.executor.shutdown()
    assert kept.result(0) == 1
    other = Held()
    late = other.executor.submit(abs, -1)
    other.executor.shutdown(wait=False, cancel_futures=True)
    assert late.cancelled()
    other.gate.set()
    flush()


def test_a_dropped_executor_runs_its_calls_and_ends() -> None:
    """F1: calls of an executor that nobody holds are run, then its thread ends."""
    executor = ThreadExecutor()
    future = executor.submit(threading.current_thread)
    thread = future.result()
    del executor, future
    thread.join(10)
    assert not thread.is_alive()


def standing_in(name: str, ident: int) -> bool:
    """Tell whether a thread is inside a function of that name."""
    frame = sys._current_frames().get(ident)
    while frame is not None:
        if frame.f_code.co_name == name and "concurrent" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


WAITS: dict[str, Callable[[Any], object]] = {
    "wait": lambda future: wait([future]),
    "as_completed": lambda future: list(as_completed([future])),
}


@pytest.mark.parametrize("how", WAITS)
@pytest.mark.parametrize("first", ["the standard wait", "result"])
def test_a_circle_through_the_standard_wait(how: str, first: str) -> None:
    """F4: of two calls that wait for each other, one by `wait`, the second one is told."""
    with ThreadExecutor() as one, ThreadExecutor() as other:
        made, go, ident = threading.Event(), threading.Event(), []
        futures: dict[str, Any] = {}

        def by_the_library() -> None:
            ident.append(threading.get_ident())
            assert made.wait(20)
            if first == "result":
                assert go.wait(20)
            WAITS[how](futures["by result"])

        def by_result() -> object:
            assert made.wait(20)
            if first != "result":
                assert go.wait(20)
            return futures["by the library"].result()

        futures["by the library"] = one.submit(by_the_library)
        futures["by result"] = other.submit(by_result)
        made.set()
        if first == "result":
            until_waiting(other, 1)
        else:
            deadline = time.monotonic() + 20
            while not (ident and standing_in(how, ident[0])):
                assert time.monotonic() < deadline
                time.sleep(0.001)
        go.set()
        errors = [future.exception(20) for future in futures.values()]
        assert any("never end" in str(error) for error in errors)


def test_a_wait_with_a_timeout_is_no_circle() -> None:
    """F4: a wait that ends by its timeout may be for a call that waits for this one."""
    with ThreadExecutor() as one, ThreadExecutor() as other:
        made = threading.Event()
        futures: list[Any] = []

        def waits() -> int:
            assert made.wait(20)
            until_waiting(other, 1)
            return len(wait([futures[1]], timeout=0.01).not_done)

        futures.append(one.submit(waits))
        futures.append(other.submit(lambda: made.wait(20) and futures[0].result(20)))
        made.set()
        assert futures[0].result(20) == 1
        assert futures[1].result(20) == 1
