"""The promise C5: bounds on waiting calls."""

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
from conftest import Held, Log
from test_ending import run

from background import (
    BacklogFull,
    Future,
    InlineExecutor,
    _backlog,
    background,
    flush,
    stats,
)
from background._core import ledger
from background._core.hints import forget_growth

DROPS = ["drop_oldest", "drop_newest", "raise"]
ALL = ["block", *DROPS]


def backlog_of(function: Any) -> _backlog.Backlog:
    return function._self_backlog


def in_thread(function: Callable[..., Any], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def wait_until(true: Callable[[], object]) -> None:
    """Wait until another thread has come so far; what it waits for takes no time of its own."""
    for _ in range(100_000):
        if true():
            return
        threading.Event().wait(0.0005)
    raise AssertionError("it never came so far")


class Counted:
    """A bounded function behind a held worker, and what it was called with."""

    def __init__(self, held: Held, overflow: str, max_pending: int = 1) -> None:
        self.ran: list[int] = []
        self.call: Any = background(
            executor=held.executor,
            max_pending=max_pending,
            overflow=overflow,  # type: ignore[call-overload]
        )(self.ran.append)
        self.backlog = backlog_of(self.call)

    def blocked(self, number: int) -> threading.Thread:
        """Make a call in a thread of its own, and return it once the thread is held up."""
        length = len(self.backlog.line)
        thread = in_thread(lambda: self.call(number))
        wait_until(lambda: len(self.backlog.line) > length)
        return thread


def test_block_lets_in_who_came_first(held: Held) -> None:
    """C5: `block` holds callers up until a call starts, and wakes them in their order."""
    plot = Counted(held, "block")
    before = stats().seconds_blocked
    first = plot.call(0)
    threads = [plot.blocked(number) for number in range(1, 6)]
    assert stats().waiting == 1
    assert not first.done()
    held.gate.set()
    for thread in threads:
        thread.join(20)
    flush(20)
    assert plot.ran == list(range(6))
    assert not plot.backlog.calls
    assert not plot.backlog.line
    assert stats().seconds_blocked > before


def test_nobody_overtakes(held: Held) -> None:
    """C5: a free place is left to those who are in line already."""
    plot = Counted(held, "block")
    ahead = _backlog.Waiter(0)
    plot.backlog.line.append(ahead)
    thread = plot.blocked(1)
    plot.backlog._ring()
    assert ahead.bell.get(timeout=20) is None
    assert not plot.backlog.calls
    plot.backlog.line.remove(ahead)
    plot.backlog._ring()
    thread.join(20)
    assert len(plot.backlog.calls) == 1


def test_a_place_that_is_freed_before_the_sleep(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C5: a place freed between the look for one and the sleep wakes the caller."""
    plot = Counted(held, "block")
    waiting = plot.call(0)
    attempt = plot.backlog._try
    freed = []

    def free_too_late(call: Any) -> bool:
        got = attempt(call)
        if plot.backlog.line and not freed:
            freed.append(waiting.cancel())
        return got

    monkeypatch.setattr(plot.backlog, "_try", free_too_late)
    in_thread(plot.call, 1).join(20)
    assert freed == [True]
    held.gate.set()
    flush(20)
    assert plot.ran == [1]


def test_two_want_the_last_place(held: Held) -> None:
    """C5: of two that want the last place at the same moment exactly one gets it."""
    plot = Counted(held, "drop_newest")
    both, counted = threading.Barrier(2), threading.Barrier(2, timeout=20)
    own = threading.local()

    class Calls(dict[Any, None]):
        def __len__(self) -> int:
            own.counts = getattr(own, "counts", 0) + 1
            if own.counts == 2:  # before one of them gives up
                count = super().__len__()
                counted.wait()
                return count
            return super().__len__()

        def __setitem__(self, key: Any, value: None) -> None:
            both.wait(20)  # both have seen the place
            super().__setitem__(key, value)
            both.wait(20)  # and both try to take it

    plot.backlog.calls = Calls()
    futures: list[Future[None]] = []
    threads = [in_thread(lambda: futures.append(plot.call(1))) for _ in range(2)]
    for thread in threads:
        thread.join(20)
    assert sorted(future.cancelled() for future in futures) == [False, True]
    assert len(list(plot.backlog.calls)) == 1


def test_the_others_do_not_wait(held: Held) -> None:
    """C5: beyond the bound the oldest or the newest call is cancelled, or BacklogFull raised."""
    before = stats()
    oldest, newest, full = (Counted(held, overflow, 2) for overflow in DROPS)
    dropped = [oldest.call(i).cancelled for i in range(5)]
    assert [cancelled() for cancelled in dropped] == [True] * 3 + [False] * 2
    assert [newest.call(i).cancelled() for i in range(5)] == [False] * 2 + [True] * 3
    for i in range(2):
        full.call(i)
    with pytest.raises(BacklogFull, match=r"called at test_backlog\.py.*block") as caught:
        full.call(2)
    assert caught.value.max_pending == 2
    assert caught.value.function == "list.append"
    now = stats()
    assert now.dropped - before.dropped == 6
    assert now.cancelled == before.cancelled
    assert now.submitted - before.submitted == 12
    held.gate.set()
    flush(20)
    assert (oldest.ran, newest.ran, full.ran) == ([3, 4], [0, 1], [0, 1])


def test_the_latest_state(held: Held) -> None:
    """C5: one place and `drop_oldest` leave the latest call, of callers of many threads, too."""
    plot = Counted(held, "drop_oldest")
    threads = [in_thread(list, map(plot.call, range(1000))) for _ in range(3)]
    for thread in threads:
        thread.join(30)
    plot.call(-1)
    held.gate.set()
    flush(20)
    assert plot.ran == [-1]


def test_a_cancelled_call_frees_its_place(held: Held) -> None:
    """C5: cancelling a waiting call lets a blocked caller go on."""
    plot = Counted(held, "block")
    waiting = plot.call(0)
    thread = plot.blocked(1)
    assert waiting.cancel()
    thread.join(20)
    assert not thread.is_alive()
    assert stats().waiting == 1


def test_instances_share_the_bound(held: Held) -> None:
    """C5: a method has one bound for all instances; each function has one of its own."""
    options = background(executor=held.executor, max_pending=1, overflow="drop_newest")

    class Shape:
        @options
        def draw(self) -> None: ...

        @options
        @classmethod
        def both(cls) -> None: ...

    assert [Shape().draw().cancelled() for _ in range(2)] == [False, True]
    assert [Shape.both().cancelled() for _ in range(2)] == [False, True]


@pytest.mark.parametrize("overflow", ALL)
def test_a_worker_calls_into_its_full_backlog(executor_in_memory: Executor, overflow: str) -> None:
    """C5: a call that makes more calls of its own function than may wait never deadlocks."""
    ran: list[int] = []
    refused: list[BacklogFull] = []

    @background(executor=executor_in_memory, max_pending=2, overflow=overflow)  # type: ignore[call-overload,untyped-decorator]
    def crawl(depth: int) -> None:
        ran.append(depth)
        for _ in range(4 if depth else 0):
            try:
                crawl(depth - 1)
            except BacklogFull as full:
                refused.append(full)

    before = stats().dropped
    crawl(4).result(20)
    flush(20)
    made = 1 + 4 * sum(depth > 0 for depth in ran)
    assert made == len(ran) + len(refused) + stats().dropped - before
    if overflow == "block":
        assert len(ran) == sum(4**i for i in range(5))


@pytest.mark.parametrize("overflow", ALL)
def test_nothing_is_lost_in_a_storm(executor_in_memory: Executor, overflow: str) -> None:
    """C5: callers on many threads: every call runs, is dropped or refused, and no place leaks."""
    before = stats()
    ran: list[int] = []
    refused: list[int] = []
    call = background(executor=executor_in_memory, max_pending=3, overflow=overflow)(ran.append)  # type: ignore[call-overload]

    def storm() -> None:
        for i in range(500):
            try:
                call(i)
            except BacklogFull:
                refused.append(i)

    threads = [in_thread(storm) for _ in range(4)]
    for thread in threads:
        thread.join(60)
    flush(20)
    now = stats()
    assert now.waiting == now.running == 0
    assert len(ran) + len(refused) + now.dropped - before.dropped == 2000
    assert now.submitted - before.submitted == 2000 - len(refused)
    assert not backlog_of(call).calls
    assert not backlog_of(call).line


def test_inline_calls_never_wait() -> None:
    """C5: a call that runs at once needs a place for a moment only, nested ones, too."""

    @background(executor=InlineExecutor(), max_pending=1)
    def count(n: int) -> int:
        return n and 1 + count(n - 1).result()

    assert count(20).result() == 20


def strike(number: signal.Signals) -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def test_ctrl_c_while_held_up(held: Held) -> None:
    """C5: Ctrl-C ends the wait for a place: the call is not made and the place not lost."""
    plot = Counted(held, "block")
    waiting = plot.call(0)
    before = stats()

    def interrupt() -> None:
        wait_until(lambda: plot.backlog.line)
        strike(signal.SIGINT)

    thread = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        plot.call(1)
    thread.join(20)
    assert stats().submitted == before.submitted
    assert not plot.backlog.line
    assert waiting.cancel()
    plot.call(2)  # the place is free
    held.gate.set()
    flush(20)
    assert plot.ran == [2]


def test_flush_waits_for_a_call_that_a_call_is_held_up_with(held: Held) -> None:
    """C5, W1: who waits for a call waits for those it makes, also for one that is held up."""
    going, gate = threading.Event(), threading.Event()

    def plot(number: int) -> None:
        if number:
            going.set()
            gate.wait(20)

    bounded: Any = background(executor=held.executor, max_pending=1)(plot)
    bounded(0)
    inline = background(executor=InlineExecutor())(lambda: bounded(1))
    in_thread(inline)
    wait_until(lambda: backlog_of(bounded).line)
    flushed = in_thread(flush)
    wait_until(lambda: ledger.drains)
    held.gate.set()
    assert going.wait(20)
    flushed.join(0.3)
    assert flushed.is_alive()
    gate.set()
    flushed.join(20)


def test_a_signal_handler_while_held_up(held: Held) -> None:
    """C5: a handler's call goes first where its own thread is held up: it stands in its place."""
    plot = Counted(held, "block")
    plot.call(0)
    entered = threading.Event()

    def handler(*_: object) -> None:
        entered.set()
        plot.call(1)

    before = signal.signal(signal.SIGUSR1, handler)

    def interrupt() -> None:
        wait_until(lambda: plot.backlog.line)
        strike(signal.SIGUSR1)
        entered.wait(20)
        held.gate.set()

    thread = in_thread(interrupt)
    try:
        plot.call(2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    thread.join(20)
    flush(20)
    assert plot.ran == [0, 1, 2]
    assert not plot.backlog.calls


def test_a_call_while_one_takes_the_last_place(held: Held) -> None:
    """C5: a handler that comes between the taking of the last place and its use never waits."""
    plot = Counted(held, "block")
    accept = held.executor._accept
    inner: list[Any] = []

    def interrupted(call: Any) -> None:
        if not inner:
            inner.append(None)
            inner[0] = plot.call(1)
        accept(call)

    held.executor._accept = interrupted  # type: ignore[method-assign]
    plot.call(2)
    assert len(plot.backlog.calls) == 2
    held.gate.set()
    flush(20)
    assert plot.ran == [1, 2]
    assert not plot.backlog.calls


def test_shutdown_while_held_up(held: Held) -> None:
    """C5: who is held up when the executor is shut down gets its error, and no place is lost."""
    plot = Counted(held, "block")
    plot.call(0)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            plot.call(1)
        except RuntimeError as error:
            errors.append(error)

    thread = in_thread(call)
    wait_until(lambda: plot.backlog.line)
    held.executor.shutdown(wait=False, cancel_futures=True)
    thread.join(20)
    assert "shut down" in str(errors[0])
    assert not plot.backlog.calls
    assert stats().waiting == 0


def test_flush_does_not_wait_for_who_is_held_up(held: Held) -> None:
    """W1: a call whose caller is still held up is not made yet: no earlier flush waits."""
    gate = threading.Event()

    def draw(number: int) -> None:
        assert number == 0 or gate.wait(20)

    call = background(executor=held.executor, max_pending=1)(draw)
    call(0)
    thread = in_thread(call, 1)
    wait_until(lambda: backlog_of(call).line)
    flushing = in_thread(flush, 20)
    wait_until(lambda: ledger.drains)
    held.gate.set()
    flushing.join(20)
    assert not flushing.is_alive()
    gate.set()
    thread.join(20)


def test_a_long_wait_explains_itself(held: Held, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """T2: who is held up for long says by which call, since when, and where that one stands."""
    monkeypatch.setattr(_backlog, "PATIENCE", 0.01)
    plot = Counted(held, "block")
    plot.call(0)
    thread = plot.blocked(1)
    wait_until(lambda: log.warnings)
    said = log.warnings[0]
    assert "list.append(…), called at test_backlog.py" in said
    assert "max_pending=1" in said
    assert "Held._hold(…), called at conftest.py" in said
    assert "stands at" in said
    held.gate.set()
    thread.join(20)


def test_a_fork_has_free_places(tmp_path: Path) -> None:
    """W4: the child of a fork has a free backlog, also where a thread of its parent was held up."""
    lines, _ = run(
        """
        from background import background, flush
        gate, started = threading.Event(), threading.Event()
        def hold():
            started.set(); gate.wait(30)
        def call(i):
            tell(f"ran {i} {'here' if os.getpid() == parent else 'there'}")
        parent = os.getpid()
        background(hold)()
        started.wait(30)
        call = background(max_pending=1)(call)
        call(1)
        line = call._self_backlog.line
        threading.Thread(target=call, args=(2,)).start()
        def fork(*_):
            if os.fork() == 0:
                call(3); flush(10); os._exit(0)
            os.wait()
        while not line: time.sleep(0.001)
        fork()
        def forked_and_back(*_):
            if os.fork():
                os.wait(); gate.set()
        signal.signal(signal.SIGALRM, forked_and_back)
        def strike():
            while len(line) < 2: time.sleep(0.001)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
        threading.Thread(target=strike).start()
        call(4)
        flush(20)
        """,
        tmp_path,
    )
    assert sorted(lines) == ["ran 1 here", "ran 2 here", "ran 3 there", "ran 4 here", "ran 4 there"]


@pytest.mark.parametrize("drops", [False, True])
def test_the_end_frees_who_is_held_up(drops: bool, tmp_path: Path) -> None:
    """W3: a thread that is held up when the program ends neither hangs nor breaks its end."""
    lines, err = run(
        f"""
        from background import background, configure, flush
        gate, started, drops = threading.Event(), threading.Event(), {drops}
        def hold():
            started.set(); gate.wait(30)
        background(hold)()
        started.wait(30)
        call = background(max_pending=1)(lambda i: tell(f"ran {{i}}"))
        call(1)
        def caller():
            call(2)
            tell("made")
        line = call._self_backlog.line
        threading.Thread(target=caller, daemon=True).start()
        while not line: time.sleep(0.001)
        if drops:
            configure(exit_timeout=0.1)
        else:
            threading.Timer(0.1, gate.set).start()
        """,
        tmp_path,
    )
    assert "Traceback" not in err
    assert ("dropped" in err) == drops
    if not drops:
        assert "ran 1" in lines


def test_an_unbounded_backlog_is_said(held: Held, log: Log) -> None:
    """C5: 10,000 waiting calls are said once, and 100,000, with the function and the growth."""
    forget_growth()
    call = background(executor=held.executor)(abs)
    futures = [call(-1) for _ in range(9_000)]
    assert not log.warnings
    for _ in range(2):
        futures += [call(-1) for _ in range(2_000)]
    assert [said.partition(";")[0].partition(" more")[0] for said in log.warnings] == [
        "10,000 calls wait to start, 9,000"
    ]
    assert "abs(…), called at test_backlog.py" in log.warnings[0]
    assert "max_pending" in log.warnings[0]
    futures += [call(-1) for _ in range(100_000)]
    assert len(log.warnings) == 2
    assert log.warnings[1].startswith("100,000 calls")
    held.executor.shutdown(wait=False, cancel_futures=True)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"max_pending": True}, TypeError, "whole number"),
        ({"max_pending": 1.5}, TypeError, "whole number"),
        ({"max_pending": 0}, ValueError, "greater than 0"),
        ({"max_pending": -1}, ValueError, "greater than 0"),
        ({"max_pending": 1, "overflow": "drop"}, ValueError, "drop_oldest"),
        ({"max_pending": 1, "overflow": []}, ValueError, "drop_oldest"),
        ({"overflow": "raise"}, TypeError, "max_pending"),
    ],
)
def test_options_that_make_no_sense(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    """D3: options that are wrong or contradict one another say what to write."""
    with pytest.raises(error, match=says):
        background(**options)
