"""Corners of the contract in which a fresh pair of eyes found something."""

import asyncio
import copy
import multiprocessing
import pickle
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from conftest import Held, Log
from test_ending import run

from background import (
    InlineExecutor,
    ProcessExecutor,
    ThreadExecutor,
    background,
    configure,
    flush,
    snapshot,
    stats,
)


def test_a_burst_gets_all_workers() -> None:
    """C2: a burst that finds one worker idle gets the others, too."""
    with ThreadExecutor(4) as executor:
        for _ in range(20):
            executor.submit(abs, -1).result(20)
            meet = threading.Barrier(4)
            for future in [executor.submit(meet.wait, 20) for _ in range(4)]:
                future.result(30)


@pytest.mark.parametrize("inline", [True, False])
def test_the_end_of_the_stack(inline: bool) -> None:
    """E3, W1: wherever a RecursionError strikes, no call is lost and flush ends."""
    executor = InlineExecutor() if inline else ThreadExecutor()
    before = stats()

    @background(executor=executor)
    def walk(n: int) -> int:
        return walk(n + 1).result()

    def deep(n: int) -> int:
        return deep(n - 1) if n else walk(0).result()

    for depth in range(20):
        with pytest.raises(RecursionError):
            deep(depth)
    flush(20)
    now = stats()
    assert (now.waiting, now.running) == (0, 0)
    assert now.failed - before.failed == now.submitted - before.submitted


def fail(cause: BaseException | None = None) -> None:
    raise ValueError("failed") from cause


def test_the_log_leaves_the_callers_frames_alone() -> None:
    """E1: to log a failure closes no generator or coroutine that its cause passed."""

    def numbers(held: Held) -> Iterator[int]:
        try:
            raise OSError
        except OSError as error:
            background(executor=held.executor)(fail)(error)
        yield 1
        yield 2

    async def main(held: Held) -> str:
        try:
            raise OSError
        except OSError as error:
            background(executor=held.executor)(fail)(error)
        await asyncio.sleep(0)
        return "went on"

    held = Held()
    generator = numbers(held)
    assert next(generator) == 1
    held.gate.set()
    flush(20)  # the failure is logged, while the generator is suspended
    assert next(generator) == 2
    held = Held()
    coroutine = main(held)
    coroutine.send(None)
    held.gate.set()
    flush(20)
    with pytest.raises(StopIteration, match="went on"):
        coroutine.send(None)


def test_called_by_c(tmp_path: Path) -> None:
    """W5: a decorated function that C calls, where no Python code runs, is called."""
    lines, err = run(
        """
        from background import background, flush
        @background
        def plot(*args):
            tell(str(len(args)))
        atexit.register(plot, 1)
        sys.excepthook = plot
        raise ValueError
        """,
        tmp_path,
        1,
    )
    assert (sorted(lines), err) == (["1", "3"], "")


class Chart:
    @background
    def draw(self, x: int) -> int:
        return x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chart)

    __hash__ = None  # type: ignore[assignment]


draw = background(abs)


def test_copies_and_pickles() -> None:
    """D1: a decorated function is copied as itself; a decorated method can be pickled."""
    assert copy.copy(draw) is draw
    assert copy.deepcopy({"call": draw})["call"] is draw
    assert copy.deepcopy(Chart().draw)(2).result(20) == 2
    assert pickle.loads(pickle.dumps(Chart().draw))(3).result(20) == 3
    assert pickle.loads(pickle.dumps(Chart.draw))(Chart(), 4).result(20) == 4


def test_debug_sees_bounded_functions(held: Held, log: Log) -> None:
    """C4: the search for arguments that change looks at functions with `max_pending`, too."""
    values = [1]
    with configure(debug=True):
        background(executor=held.executor, max_pending=5)(len)(values)
    values.append(2)
    held.gate.set()
    flush(20)
    assert any("args[0] changed" in warning for warning in log.warnings)


def test_a_failure_after_one_that_was_seen_is_said(log: Log) -> None:
    """E2: flush says a new failure though an old one was looked at meanwhile."""
    first = background(fail)()
    flush(20)
    first.exception()
    second = background(fail)()
    flush(20)
    assert sum("1 background call failed" in warning for warning in log.warnings) == 2
    second.exception()


def test_ctrl_c_inline_is_seen_once(log: Log) -> None:
    """E1, I1: Ctrl-C in a call on the caller's thread reaches the caller, and is told once."""

    def strike() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        background(executor=InlineExecutor())(strike)()
    flush(20, check=True)
    assert log.errors == []


def test_finalizers_that_wait() -> None:
    """W1, F4: an argument that dies with its call may wait for calls; to flush is an error."""
    said: list[object] = []

    class Dies:
        def __del__(self) -> None:
            said.append(background(abs)(-1).result(20))
            try:
                flush(20)
            except RuntimeError as error:
                said.append(error)

    background(id)(Dies())
    flush(30)
    assert said[0] == 1
    assert isinstance(said[1], RuntimeError)


def test_a_flush_in_the_callback_of_a_cancelled_call(held: Held, log: Log) -> None:
    """W1: it is an error, not a wait for the call that is just being cancelled."""
    future = held.executor.submit(abs, -1)
    future.add_done_callback(lambda _: flush(20))
    assert future.cancel()
    (record,) = (record for record in log.records if record.levelname == "ERROR")
    assert record.exc_info is not None
    assert record.exc_info[0] is RuntimeError  # not the timeout


def test_a_worker_that_awaits() -> None:
    """F4: a call that awaits another one on its own worker, in a loop of its own, ends."""

    async def main() -> int:
        return await background(abs)(-7)  # type: ignore[misc]

    assert background(lambda: asyncio.run(main()))().result(20) == 7


class Uncopied:
    def __deepcopy__(self, memo: object) -> object:
        raise OSError("no copy")


def test_options_on_a_pool_of_processes() -> None:
    """C4: a copy that fails, and the search for changes, work where calls are pickled late."""
    snapshot.register(Uncopied, copy.deepcopy)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        failed = background(executor=pool, snapshot=True)(len)(Uncopied())  # type: ignore[arg-type]
        assert "no copy" in str(failed.exception(30))
        with configure(debug=True):
            watched = background(executor=pool)(len)([1, 2])
        assert watched.result(30) == 2


class HostileError(Exception):
    """An exception that answers for nothing."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError(name)


def throw_hostile() -> None:
    raise HostileError("hostile")


def test_hostile_exceptions() -> None:
    """E1: an exception that raises for every attribute ends no worker, and is an outcome."""
    with ProcessExecutor() as executor:
        pid = executor.submit(sys.getrecursionlimit).result(30)
        error = executor.submit(throw_hostile).exception(30)
        assert error is not None
        assert type(error).__name__ != "WorkerDied"
        assert executor.submit(sys.getrecursionlimit).result(30) == pid
    assert type(ThreadExecutor().submit(throw_hostile).exception(20)) is HostileError
