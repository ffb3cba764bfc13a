"""Coroutine functions, and awaiting calls."""

import asyncio
import concurrent.futures
import contextvars
import copy
import functools
import gc
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Log
from test_ending import run
from test_futures import until_waiting

from background import (
    FlushTimeout,
    InlineExecutor,
    ThreadExecutor,
    _flush,
    background,
    configure,
    flush,
    snapshot,
    stats,
)


class Shape:
    """Coroutine methods of every kind, decorated."""

    @background
    async def method(self, x: int) -> tuple[object, int]:
        return self, x

    @background
    @classmethod
    async def outer_class(cls, x: int) -> tuple[object, int]:
        return cls, x

    @classmethod
    @background
    async def inner_class(cls, x: int) -> tuple[object, int]:
        return cls, x

    @background
    @staticmethod
    async def outer_static(x: int) -> int:
        return x

    @staticmethod
    @background
    async def inner_static(x: int) -> int:
        return x

    async def __call__(self, x: int) -> int:
        return x + 1


@background
async def double(x: int, *, by: int = 2) -> int:
    """Multiply after a step of the loop."""
    await asyncio.sleep(0)
    return by * x


class Blocked:
    """The event loop, blocked until it is released, so that later calls wait."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        started = threading.Event()

        @background
        async def block() -> None:
            started.set()
            assert self.gate.wait(60)

        self.first = block()
        assert started.wait(20)


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    made = Blocked()
    yield made
    made.gate.set()


@pytest.fixture(params=["loop", "inline", "inline in a loop"])
def everywhere(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run coroutine functions on the loop, inline, and inline where a loop runs already."""
    if request.param == "loop":
        yield
    else:
        with configure(executor=InlineExecutor()):
            loop = asyncio.new_event_loop()
            if request.param == "inline in a loop":
                asyncio._set_running_loop(loop)
            yield
            asyncio._set_running_loop(None)
            loop.close()


@pytest.mark.usefixtures("everywhere")
def test_coroutine_functions_of_every_kind() -> None:
    """D1: coroutine functions, methods of every kind, partials and instances can be decorated."""
    shape = Shape()
    assert double(2).result(20) == 4
    assert double(2, by=3).result(20) == 6
    assert background(functools.partial(double.__wrapped__, by=5))(2).result(20) == 10
    assert background(Shape())(1).result(20) == 2
    assert shape.method(1).result(20) == (shape, 1)
    for owner in (shape, Shape):
        assert owner.outer_class(3).result(20) == (Shape, 3)
        assert owner.inner_class(4).result(20) == (Shape, 4)
        assert owner.outer_static(5).result(20) == 5
        assert owner.inner_static(6).result(20) == 6
    assert double.__doc__ == "Multiply after a step of the loop."


def test_no_other_executor() -> None:
    """D3: an async function on an executor that can't run it is a TypeError that says so."""

    async def fetch() -> None: ...

    with pytest.raises(TypeError, match=r"fetch on ThreadExecutor.*leave out executor"):
        background(executor=ThreadExecutor())(fetch)
    assert background(executor=InlineExecutor())(fetch)().done()
    with configure(executor=ThreadExecutor()):
        assert background(fetch)().result(20) is None


def test_they_start_in_order_and_overlap() -> None:
    """C2: calls of coroutine functions start in the order in which they were made, and overlap."""
    seen: list[int] = []
    last = asyncio.Event()

    @background
    async def step(i: int) -> None:
        seen.append(i)
        if i == 99:
            last.set()
        await last.wait()

    before = threading.active_count()
    futures = [step(i) for i in range(100)]
    for future in futures:
        future.result(20)
    assert seen == list(range(100))
    assert threading.active_count() <= before + 1


variable = contextvars.ContextVar("variable", default=0)


@pytest.mark.usefixtures("everywhere")
def test_context_variables() -> None:
    """C3: a coroutine sees the context variables as they were at the call, and changes none."""

    @background
    async def see() -> int:
        before = variable.get()
        variable.set(99)
        await asyncio.sleep(0)
        return before

    variable.set(1)
    first = see()
    variable.set(2)
    assert (first.result(20), see().result(20), variable.get()) == (1, 2, 2)


def test_context_variables_of_calls_that_wait(blocked: Blocked) -> None:
    """C3: calls that start together have each the context of its own caller."""

    @background
    async def see() -> int:
        return variable.get()

    futures = []
    for i in (1, 2):
        variable.set(i)
        futures.append(see())
    blocked.gate.set()
    assert [future.result(20) for future in futures] == [1, 2]


def test_cancel_before_the_start(blocked: Blocked) -> None:
    """F3: a coroutine that has not started is cancelled like any other call."""
    future = double(1)
    assert future.cancel()
    assert future.cancelled()
    blocked.gate.set()
    flush(20)


def test_cancel_after_the_start() -> None:
    """F3: a running coroutine is asked to end: cancel says False, and the future tells."""
    started = threading.Semaphore(0)

    @background
    async def wait(stubborn: bool) -> str:
        started.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not stubborn:
                raise
        return "stayed"

    before = stats()
    goes, stays = wait(False), wait(True)
    for _ in range(2):
        assert started.acquire(timeout=20)
    assert goes.running()
    assert not goes.cancel()
    assert not stays.cancel()
    assert stays.result(20) == "stayed"
    with pytest.raises(concurrent.futures.CancelledError):
        goes.result(20)
    assert goes.cancelled()
    flush(20)
    now = stats()
    assert now.cancelled - before.cancelled == 1
    assert now.running == 0


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError]
)
def test_failures(error: type[BaseException], log: Log) -> None:
    """E1, E3: whatever a coroutine raises is its outcome, with a note, and the loop goes on."""

    @background
    async def fail() -> None:
        await asyncio.sleep(0)
        raise error("at all")

    try:
        raised = fail().exception(20)
    except KeyboardInterrupt as inline:  # meant for the program, too
        raised = inline
    assert type(raised) is error
    assert "fail(…), called at test_async.py" in raised.__notes__[0]
    assert double(1).result(20) == 2
    if error is not KeyboardInterrupt:
        del raised
        fail()
        flush(20)
        assert len(log.errors) == 1


def test_a_part_that_exits() -> None:
    """E3: SystemExit in a task that a coroutine started is the call's, and the loop goes on."""

    async def part() -> None:
        raise SystemExit

    @background
    async def whole() -> None:
        await asyncio.gather(asyncio.create_task(part()))

    assert isinstance(whole().exception(20), SystemExit)
    assert double(1).result(20) == 2


def test_flush_waits_for_what_coroutines_call() -> None:
    """W1: calls made in a coroutine or a task of it are made by its call; flush inside raises."""
    ran: list[int] = []
    gate = threading.Event()
    child = background(ran.append)

    async def part(i: int) -> None:
        await asyncio.sleep(0)
        child(i)
        with pytest.raises(RuntimeError, match="would wait for that call itself"):
            flush()

    @background
    async def whole() -> None:
        await asyncio.get_running_loop().run_in_executor(None, gate.wait, 20)
        await asyncio.gather(*[part(i) for i in range(3)])
        child(3)

    future = whole()
    threading.Timer(0.01, gate.set).start()
    flush(20)
    assert sorted(ran) == [0, 1, 2, 3]
    assert future.result(0) is None


def test_waits_inside_a_coroutine() -> None:
    """F4: result() or wait() for another coroutine on the loop that it stops is a RuntimeError."""

    @background
    async def outer(how: str) -> int:
        inner = double(4)
        if how == "await":
            return await inner
        if how == "result":
            return inner.result()
        concurrent.futures.wait([inner])
        return inner.result(0)

    assert outer("await").result(20) == 8
    for how in ("result", "wait"):
        with pytest.raises(RuntimeError, match="await future"):
            outer(how).result(20)


def test_a_call_that_awaits_itself() -> None:
    """F4: a call that awaits itself is a RuntimeError, not a hang."""
    futures: list[Any] = []
    made = threading.Event()

    @background
    async def myself() -> None:
        assert made.wait(20)
        await futures[0]

    futures.append(myself())
    made.set()
    with pytest.raises(RuntimeError, match="awaits itself"):
        futures[0].result(20)


def test_threads_and_coroutines_wait_for_one_another() -> None:
    """F4: a thread's call may wait for a coroutine, and a coroutine await a thread's call."""
    with ThreadExecutor() as executor:
        add = background(executor=executor)(lambda: double(5).result(20) + 1)

        @background
        async def outer() -> int:
            return await add() + 1

        assert outer().result(20) == 12


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_a_coroutine_awaits_a_call_behind_the_one_that_waits_for_it(
    late: bool, tasks: bool
) -> None:
    """F4: a worker that waits for a coroutine runs what that awaits, whoever comes first."""
    with ThreadExecutor() as executor:
        waits = background(executor=executor)(lambda number: -number)
        (worker,) = executor._queue.workers
        awaits = threading.Event()

        @background
        async def inner() -> int:
            return await waits(5)

        @background
        async def outer() -> int:
            if late:
                while worker.thread is None or worker.thread.waits_for is None:
                    await asyncio.sleep(0.001)
            behind = inner() if tasks else waits(5)
            asyncio.get_running_loop().call_later(0.01, awaits.set)
            if tasks:
                return sum(await asyncio.gather(behind, waits(1)))
            return await behind

        def ahead() -> int:
            future = outer()
            assert late or awaits.wait(20)
            return future.result(20)

        assert executor.submit(ahead).result(30) == (-6 if tasks else -5)


def test_two_coroutines_await_a_call_behind_those_that_wait_for_them() -> None:
    """F4: two workers that wait for coroutines run what both of these await."""
    with ThreadExecutor(2) as executor:
        both = threading.Barrier(3)
        behind: list[Any] = []

        @background
        async def awaits(number: int) -> int:
            return await behind[0] + number

        def ahead(number: int) -> int:
            both.wait(20)
            both.wait(20)
            return awaits(number).result(20)

        calls = [executor.submit(ahead, number) for number in (1, 2)]
        both.wait(20)
        behind.append(executor.submit(abs, -5))
        both.wait(20)
        assert [call.result(30) for call in calls] == [6, 7]


def test_a_call_that_a_coroutine_awaits_waits_behind_the_one_that_waits_for_that() -> None:
    """F4: a worker runs the call for which it waits if the circle closes by a coroutine."""
    with ThreadExecutor() as one, ThreadExecutor() as two:
        awaits = threading.Event()

        def on_two() -> int:
            assert awaits.wait(20)
            until_waiting(one, 1)
            return one.submit(abs, -5).result(20)

        @background
        async def coroutine() -> int:
            future = two.submit(on_two)
            asyncio.get_running_loop().call_later(0.01, awaits.set)
            return await future

        assert one.submit(lambda: coroutine().result(20)).result(30) == 5


@pytest.mark.parametrize(("depth", "width"), [(1200, 1), (50, 2)])
def test_many_coroutines_await_each_other(depth: int, width: int) -> None:
    """F4: what a worker waits for may be deep, and reached by more ways than can be walked."""
    layers: list[list[Any]] = []
    with ThreadExecutor() as executor:

        @background
        async def node(layer: int) -> int:
            if layer == 0:
                return await executor.submit(abs, -1)
            return max(await asyncio.gather(*layers[layer - 1]))

        def top() -> int:
            for layer in range(depth):
                layers.append([node(layer) for _ in range(width)])
            return layers[-1][0].result(60)

        assert executor.submit(top).result(60) == 1


def test_a_finalizer_waits_for_a_coroutine() -> None:
    """F4: the end of a call for which others wait may itself wait for a coroutine that awaits."""
    with ThreadExecutor() as one, ThreadExecutor() as two, ThreadExecutor() as three:
        closed: list[int] = []

        @background
        async def close() -> int:
            return await three.submit(abs, -7)

        class Connection:
            def __del__(self) -> None:
                closed.append(close().result(20))

        gate = threading.Event()

        def use(connection: object) -> bool:
            return gate.wait(20)

        used = one.submit(use, connection=Connection())
        waits = two.submit(lambda: used.result(20))
        until_waiting(two, 1)
        gate.set()
        assert waits.result(30) is True
        assert closed == [7]


def test_a_wait_round_two_executors_never_hangs() -> None:
    """F4: a coroutine that stops the loop for a thread's call that waits for it is an error."""
    futures: list[Any] = []
    made = threading.Event()
    with ThreadExecutor() as executor:

        def in_thread() -> None:
            assert made.wait(20)
            futures[0].result(20)

        @background
        async def on_loop() -> None:
            assert made.wait(20)
            futures[1].result(20)

        futures += [on_loop(), executor.submit(in_thread)]
        made.set()
        errors = [future.exception(20) for future in futures]
    assert any("would never end" in str(error) for error in errors)


class Big:
    """Something that can be seen to die."""


def test_nothing_is_kept() -> None:
    """C6: a coroutine that is done leaves neither arguments nor result nor failure behind."""

    @background
    async def use(big: object, fails: bool) -> object:
        await asyncio.sleep(0)
        if fails:
            raise ValueError
        return Big()

    gc.collect()
    gc.disable()
    try:
        for fails in (False, True):
            big = Big()
            alive = weakref.ref(big)
            future = use(big, fails)
            del big
            flush(20)
            double(0).result(20)  # the loop is past the last step of the other
            if fails:
                error = future.exception()
                assert isinstance(error, ValueError)
                assert error.__traceback__ is not None
                assert error.__traceback__.tb_frame.f_code.co_name == "use"  # not one of ours
                del future, error
            else:
                dies = weakref.ref(future.result())
                del future
                assert dies() is None
            assert alive() is None
    finally:
        gc.enable()


def test_an_awaited_failure_leaves_no_cycle() -> None:
    """C6: the failure of an awaited call keeps its future only as long as somebody has it."""
    fails = background(pow)
    futures: list[Any] = []

    async def awaits() -> None:
        future = fails(0, -1)
        futures.append(weakref.ref(future))
        with suppress(ZeroDivisionError):
            await future
        del future  # the traceback keeps this frame

    in_coroutine = background(awaits)
    gc.collect()
    gc.disable()
    try:
        asyncio.run(awaits())
        in_coroutine().result(20)
        flush(20)
        assert [future() for future in futures] == [None, None]
    finally:
        gc.enable()


def test_no_growth() -> None:
    """C6: ten thousand finished calls take less than five bytes each."""
    for _ in range(200):
        double(1)
    flush(20)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(10_000):
        double(1)
        if i % 100 == 0:
            flush(20)
    flush(20)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 50_000


def test_bounds(blocked: Blocked) -> None:
    """C5: max_pending bounds the coroutines that wait to start."""
    ran: list[int] = []

    @background(max_pending=1, overflow="drop_oldest")
    async def latest(i: int) -> None:
        ran.append(i)

    futures = [latest(i) for i in range(5)]
    blocked.gate.set()
    flush(20)
    assert ran == [4]
    assert [future.cancelled() for future in futures] == [True] * 4 + [False]


def test_a_long_wait_names_the_line(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """T2: a wait that a coroutine holds up names the line at which the coroutine stands."""
    monkeypatch.setattr(_flush, "PATIENCE", 0.05)
    started = threading.Event()

    async def part() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    @background
    async def whole() -> None:
        await part()

    future = whole()
    assert started.wait(20)
    with pytest.raises(FlushTimeout):
        flush(0.2)
    future.cancel()
    flush(20)
    assert "whole(…), called at test_async.py" in log.warnings[0]
    assert "test_async.py" in log.warnings[0].partition("stands at")[2]


def test_awaits_from_several_loops(blocked: Blocked) -> None:
    """F2: a call is awaited from several loops at once; who stops waiting leaves it alone."""
    future = double(3)
    waiting = threading.Barrier(3)
    results: list[object] = []

    async def patient() -> None:
        waits = [asyncio.ensure_future(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting.wait(20)
        waits[0].cancel()
        results.extend(await asyncio.gather(*waits, return_exceptions=True))

    async def wait() -> int:
        return await future

    async def impatient() -> None:
        waiting.wait(20)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait(), 0.01)
        results.append("gone")

    threads = [threading.Thread(target=asyncio.run, args=(f(),)) for f in (patient, impatient)]
    for thread in threads:
        thread.start()
    waiting.wait(20)
    threads[1].join(20)
    blocked.gate.set()
    threads[0].join(20)
    assert results[0] == "gone"
    assert isinstance(results[1], asyncio.CancelledError)
    assert results[2:] == [6, 6]


PROGRAM = """
import asyncio
from background import background, configure, flush
@background
async def slow(i):
    await asyncio.sleep(0.02)
    tell(f"ran {i}")
    return i
"""


def test_the_end_drains_coroutines(tmp_path: Path) -> None:
    """W3, E4: the end waits for coroutines; calls that come after it run in their caller."""
    lines, err = run(
        PROGRAM
        + """
atexit.register(lambda: tell(f"late {slow('at exit').result()}"))
import background as b
atexit.unregister(b._exit.drain_at_exit)
atexit.register(lambda: slow("early"))
def last():
    b._exit.drain_at_exit()
    slow("last")
atexit.register(last)
for i in range(3): slow(i)
1 / 0
""",
        tmp_path,
        code=1,
    )
    assert lines[:3] == [f"ran {i}" for i in range(3)]
    assert lines[3:] == ["ran last", "ran early", "ran at exit", "late at exit"]
    assert err.count("Traceback") == 1


def test_exit_timeout_drops_coroutines(tmp_path: Path) -> None:
    """W3: coroutines that never end hold the end no longer than exit_timeout, silently."""
    _, err = run(
        PROGRAM
        + """
@background
async def never():
    started.set()
    await asyncio.Event().wait()
started = threading.Event()
never()
started.wait(30)
configure(exit_timeout=0.2)
""",
        tmp_path,
    )
    assert "0.2 s has passed" in err
    assert "never(…), called at train.py" in err
    assert "Traceback" not in err


def test_a_fork_has_a_loop_of_its_own(tmp_path: Path) -> None:
    """W4: parent and child of a fork go on, also when a coroutine forks."""
    lines, err = run(
        PROGRAM
        + """
running = slow(0)
def fork():
    if os.fork() == 0:
        signal.alarm(20)
        assert running.done()
        slow("in the child").result()
        flush()
        os._exit(0)
    assert os.wait()[1] == 0
fork()
@background
async def forks():
    if os.fork() == 0: os._exit(0)
    assert os.wait()[1] == 0
    return await slow("after")
forks().result(20)
flush()
""",
        tmp_path,
    )
    assert sorted(lines) == ["ran 0", "ran after", "ran in the child"]
    assert "Traceback" not in err


def test_with_the_other_options(log: Log) -> None:
    """C4, D1: snapshots, and the search for arguments that change, work on coroutine functions."""

    async def first(values: list[int]) -> int:
        return values[0]

    class Uncopied:
        def __deepcopy__(self, memo: object) -> object:
            raise ValueError("no copy")

    snapshot.register(Uncopied, copy.deepcopy)
    loop_is_busy, gate = threading.Event(), threading.Event()

    async def hold() -> None:
        loop_is_busy.set()
        assert gate.wait(20)  # the loop itself stands still

    background(hold)()
    assert loop_is_busy.wait(20)
    values = [1]
    copied = background(snapshot=True)(first)(values)
    failed = background(snapshot=True)(first)([Uncopied()])  # type: ignore[list-item]
    with configure(debug=True):
        watched = background(first)(values)
    values[0] = 2
    gate.set()
    assert (copied.result(20), watched.result(20)) == (1, 2)
    assert "no copy" in str(failed.exception(20))
    assert any("args[0] changed between" in warning for warning in log.warnings)
