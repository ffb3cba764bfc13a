"""The chapter Waiting and ending of the contract."""

import _thread
import copy
import gc
import itertools
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import GIL, Held

import background as package
from background import (
    FlushTimeout,
    InlineExecutor,
    SQLiteExecutor,
    ThreadExecutor,
    background,
    configure,
    flush,
    stats,
)
from background._core import call as calls
from background._core import failures, ledger

HEAD = """\
import atexit, os, signal, sys, threading, time
def tell(text): os.write(1, (text + "\\n").encode())
"""


def script(body: str, tmp_path: Path) -> subprocess.Popen[str]:
    """Start a program in a process of its own."""
    path = tmp_path / "train.py"
    path.write_text(HEAD + textwrap.dedent(body))
    env = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(path)],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(body: str, tmp_path: Path, code: int = 0, limit: float = 60) -> tuple[list[str], str]:
    """Run a program to its end; return its lines and what it said on standard error."""
    with script(body, tmp_path) as process:
        try:
            out, err = process.communicate(timeout=limit)
        finally:
            process.kill()
    assert process.returncode == code, err
    return out.split("\n")[:-1], err


SLOW = """
from background import background, configure, flush
@background
def slow(i):
    time.sleep(0.02)
    tell(f"ran {i}")
for i in range(5):
    slow(i)
"""
RAN = [f"ran {i}" for i in range(5)]


@pytest.mark.parametrize(("end", "code"), [("", 0), ("sys.exit(3)", 3), ("1 / 0", 1)])
def test_the_end_drains(end: str, code: int, tmp_path: Path) -> None:
    """W3: normal exit, sys.exit and an uncaught exception drain the queue first."""
    lines, err = run(f"{SLOW}\n{end}\n", tmp_path, code)
    assert lines == RAN
    assert ("ZeroDivisionError" in err) == (end == "1 / 0")
    assert err.count("Traceback") == (end == "1 / 0")


def test_calls_from_everywhere_at_the_end(tmp_path: Path) -> None:
    """W3, W5, E4: calls of exit hooks, of __del__ and of a running thread are not lost."""
    lines, err = run(
        """
        atexit.register(lambda: call("a hook from before the import"))
        from background import background
        @background
        def call(text):
            time.sleep(0.02)
            tell(text)
        atexit.register(lambda: call("a hook from after the import"))
        class Late:
            def __del__(self):
                call("__del__")
        late = Late()
        main = threading.main_thread()
        def thread():
            main.join()
            call("a thread")
        threading.Thread(target=thread).start()
        call("main")
        """,
        tmp_path,
    )
    if not GIL:  # the interpreter lets late objects die after the modules that they need
        lines, err = [*(set(lines) | {"__del__"})], ""
    assert sorted(lines) == [
        "__del__",
        "a hook from after the import",
        "a hook from before the import",
        "a thread",
        "main",
    ]
    assert err == ""


def test_ctrl_c_while_the_end_waits(tmp_path: Path) -> None:
    """W3: Ctrl-C in the drain cancels the rest, says how many, and ends within a second."""
    body = """
        from background import background
        gate = threading.Event()
        @background
        def hang(i):
            gate.wait(60)
        for i in range(300):
            hang(i)
        """
    with script(body, tmp_path) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == (
                "the program's end waits for 300 background calls; Ctrl-C drops them\n"
            )
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            _, err = process.communicate(timeout=20)
            took = time.monotonic() - start
        finally:
            process.kill()
    assert err.startswith("interrupted: dropped 299 background calls that had not started; hang(…)")
    assert "Traceback" not in err
    assert process.returncode == 0
    assert took < 10  # a second, on a machine that does nothing else


def test_exit_timeout(tmp_path: Path) -> None:
    """W3, T2: a call that hangs holds the end up for exit_timeout; the log says where it stands."""
    lines, err = run(
        """
        from background import background, configure
        configure(exit_timeout=0.2)
        gate = threading.Event()
        @background
        def hang():
            tell("hangs")
            gate.wait()
        hang()
        hang()
        """,
        tmp_path,
    )
    assert lines == ["hangs"]
    assert err.startswith("exit_timeout=0.2 s has passed: dropped 1 background call that had not")
    assert "hang(…), called at train.py:" in err
    assert "stands at" in err
    assert "Traceback" not in err


def test_failures_at_the_end_are_logged(tmp_path: Path) -> None:
    """E1, W3: a kept failure that nobody has retrieved is logged when the program ends, once."""
    _, err = run(
        """
        from background import background
        @background
        def fail():
            raise ValueError("seen")
        kept = fail()
        fail()
        """,
        tmp_path,
    )
    assert err.count("ValueError: seen") == 2
    assert err.count("never retrieved") == 2


def test_forks_under_a_storm(tmp_path: Path) -> None:
    """W4: sixty forks while three threads call and one flushes: each child calls and flushes."""
    lines, err = run(
        """
        from background import ThreadExecutor, background, flush
        @background
        def call(i):
            return i
        stop = threading.Event()
        gate = threading.Event()
        other = ThreadExecutor()
        running, waiting = other.submit(gate.wait), other.submit(abs, -1)
        def storm():
            while not stop.is_set():
                call(1)
                time.sleep(0.0001)
        threads = [threading.Thread(target=storm) for _ in range(3)]
        threads.append(threading.Thread(target=flush))
        for thread in threads:
            thread.start()
        for _ in range(60):
            child = os.fork()
            if not child:
                signal.alarm(20)
                assert running.cancelled() and waiting.cancelled()
                future = call(3)
                flush()
                assert future.result(0) == 3 and other.submit(abs, -2).result() == 2
                tell("good")
                os._exit(0)
            os.waitpid(child, 0)
        stop.set()
        gate.set()
        for thread in threads:
            thread.join()
        """,
        tmp_path,
    )
    assert lines == ["good"] * 60
    assert err == ""


def test_a_fork_inside_a_wait(tmp_path: Path) -> None:
    """W4: a call for which a thread waits that forks, in a handler, is cancelled in the child."""
    lines, err = run(
        """
        import faulthandler
        from concurrent.futures import CancelledError
        from background import background
        gate = threading.Event()
        @background
        def hang():
            gate.wait(30)
        def handler(*_):
            if child := os.fork():
                os.waitpid(child, 0)
                gate.set()
            else:
                faulthandler.dump_traceback_later(10, exit=True)
        signal.signal(signal.SIGALRM, handler)
        future = hang()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            future.result()
        except CancelledError:
            tell("cancelled")
            os._exit(0)
        tell("done")
        """,
        tmp_path,
    )
    assert (lines, err) == (["cancelled", "done"], "")


def test_a_fork_inside_a_call(tmp_path: Path) -> None:
    """W4: a child that is forked inside a call can call and flush; the parent's call goes on."""
    lines, err = run(
        """
        from background import background, flush
        @background
        def call(i):
            return i
        @background
        def forks():
            child = os.fork()
            if not child:
                signal.alarm(20)
                call(1)
                flush()
                os._exit(7)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        tell(str(forks().result()))
        """,
        tmp_path,
    )
    assert (lines, err) == (["7"], "")


def test_a_child_leaves_failures_to_its_parent(tmp_path: Path) -> None:
    """E1, W4: a failure that the parent has not looked at is the parent's to log, once."""
    _, err = run(
        """
        from background import background, flush
        @background
        def fail():
            raise ValueError("seen")
        kept = fail()
        while not kept.done():
            time.sleep(0.001)
        if not os.fork():
            del kept
            flush(check=True)
            sys.exit()
        os.wait()
        """,
        tmp_path,
    )
    assert err.count("ValueError: seen") == 1


def test_a_multiprocessing_child_drains(tmp_path: Path) -> None:
    """W3, W4: calls of a forked multiprocessing child are run before it ends."""
    lines, err = run(
        SLOW.replace("for i in range(5):\n    slow(i)", "")
        + """
import multiprocessing
def child():
    for i in range(5):
        slow(i)
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
tell("joined")
""",
        tmp_path,
    )
    assert (lines, err) == ([*RAN, "joined"], "")


@pytest.mark.parametrize("bound", [None, 20])
def test_ctrl_c_at_any_line(bound: int | None, tmp_path: Path) -> None:
    """W1, W5: whatever line Ctrl-C strikes, a call whose future was returned runs."""
    lines, err = run(
        f"""
        bound = {bound}
        """
        """
        from background import background, flush, stats
        ran, strikes = set(), 0
        @background(max_pending=bound)
        def call(i):
            ran.add(i)
        stop, kept, i, armed = threading.Event(), set(), 0, False
        def handler(*_):
            global armed
            if armed:  # once for each try, so that it strikes nowhere else
                armed = False
                raise KeyboardInterrupt
        signal.signal(signal.SIGINT, handler)
        def strike():
            while not stop.wait(0.001):
                os.kill(os.getpid(), signal.SIGINT)
        thread = threading.Thread(target=strike)
        thread.start()
        end = time.monotonic() + 3
        def train():  # of its own: CPython leaves jumps of a loop inside a try out of the try
            global i, armed
            armed = True
            while time.monotonic() < end:
                i += 1
                future = call(i)
                kept.add(i)
                if i % 300 == 0:
                    flush()
            armed = False
        while time.monotonic() < end:
            try:
                train()
            except KeyboardInterrupt:
                strikes += 1
        stop.set()
        thread.join()
        assert strikes > 100
        flush(20)
        tell(str(len(kept - ran)))
        now = stats()
        tell(str((now.waiting, now.running, now.succeeded == len(ran))))
        if bound:
            places, line = call._self_backlog.calls, call._self_backlog.line
            assert not places and not line, (places, line)
        """,
        tmp_path,
    )
    assert (lines, err) == (["0", "(0, 0, True)"], "")


@pytest.mark.parametrize(
    ("executor", "use"),
    [
        ("ThreadExecutor()", "result(20)"),
        ("SQLiteExecutor(__file__ + '.db', start_worker=False)", "cancel()"),
    ],
)
def test_ctrl_c_leaves_no_lock_taken(executor: str, use: str, tmp_path: Path) -> None:
    """W1, W5: whatever Ctrl-C strikes, a call or a wait, other threads call and wait as before."""
    lines, err = run(
        f"""
        from background import SQLiteExecutor, ThreadExecutor, background, flush
        from background._core.ledger import pending
        call = background(executor={executor})(abs)
        def use(): call(-1).{use}
        """
        """
        import random
        dice, strikes, armed = random.Random(7), 0, False
        def handler(*_):
            global armed
            if armed:
                armed = False
                raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, handler)
        def strike():
            global armed, strikes
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 100e-6))
            try:
                armed = True
                use()
                armed = False
            except KeyboardInterrupt:
                strikes += 1
        end = time.monotonic() + 1
        while time.monotonic() < end:
            strike()
        armed = False
        assert strikes > 100
        other = threading.Thread(target=use, daemon=True)
        other.start()
        other.join(20)
        tell(str(other.is_alive()))
        for each in list(pending):
            each.cancel()
        flush(20)
        """,
        tmp_path,
    )
    assert (lines, err) == (["False"], "")


class Strike:
    """Ctrl-C at the nth place where it can strike our code: a function's start or a call's end."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: Any, event: str, _: object) -> None:
        # In our own frames, and where a function that they call begins or ends. Not inside of
        # that: from CPython 3.14.0 on, Ctrl-C may leave a lock of the pool's taken there.
        frames = [frame] if event.startswith("c_") else [frame, frame.f_back]
        files = [each.f_code.co_filename for each in frames if each]
        if event == "c_call" or not any(file.startswith(failures._FOLDER) for file in files):
            return
        while frame is not None:
            # What is raised in these, the last two callbacks of weak references, goes no further.
            if frame.f_code.co_name in ("__del__", "_remove", "remove"):
                return
            frame = frame.f_back
        self.left -= 1
        if self.left == 0:
            sys.setprofile(None)
            raise KeyboardInterrupt


def struck(number: int, function: Callable[[], object]) -> bool:
    """Call a function with Ctrl-C at the nth place; return whether it struck."""
    sys.setprofile(Strike(number))
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def wait_in_vain(future: Any) -> None:
    with suppress(TimeoutError):
        future.result(0.001)


def refusing() -> Executor:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    return pool


STRUCK: dict[str, tuple[Callable[[], Executor], dict[str, Any]]] = {
    "a call": (ThreadExecutor, {}),
    "bounded": (ThreadExecutor, {"max_pending": 2}),
    "held up": (ThreadExecutor, {"max_pending": 1}),
    "the oldest is dropped": (ThreadExecutor, {"max_pending": 1, "overflow": "drop_oldest"}),
    "the newest is dropped": (ThreadExecutor, {"max_pending": 1, "overflow": "drop_newest"}),
    "cancel": (ThreadExecutor, {}),
    "cancel in a pool": (lambda: ThreadPoolExecutor(1), {}),
    "result": (ThreadExecutor, {}),
    "a done callback": (ThreadExecutor, {}),
    "wait": (ThreadExecutor, {}),
    "inline": (InlineExecutor, {}),
    "a pool refuses": (refusing, {}),
    "not to be pickled": (lambda: SQLiteExecutor("/nowhere/calls.db"), {}),
}


def open_when_held_up(backlog: Any, gate: threading.Event) -> None:
    while not backlog.line and not gate.is_set():
        time.sleep(0.0005)
    gate.set()


@pytest.mark.parametrize("what", STRUCK)
def test_ctrl_c_wherever_it_can_strike(
    what: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W5: wherever Ctrl-C strikes, no other call is lost, no place, and nothing waits for ever."""
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(calls, "PATIENCE", 1)
    make, options = STRUCK[what]
    gate, started = threading.Event(), threading.Event()
    here = ledger.this_thread()
    for number in itertools.count(1):
        gate.clear()
        started.clear()
        executor = make()
        if isinstance(executor, ThreadExecutor) or what == "cancel in a pool":
            executor.submit(lambda: started.set() or gate.wait(20))
            assert started.wait(20)
        ran: list[object] = []
        call: Any = background(executor=executor, **options)(ran.append)
        first = call(1) if started.is_set() else None
        if what == "held up":
            threading.Thread(target=open_when_held_up, args=(call._self_backlog, gate)).start()
        if what.startswith("cancel"):
            hit = struck(number, first.cancel)
        elif what == "result":
            hit = struck(number, partial(wait_in_vain, first))
        elif what == "a done callback":
            hit = struck(number, partial(first.add_done_callback, ran.append))
        elif what == "wait":
            hit = struck(number, partial(wait, [first], 0.001))
        else:
            hit = struck(number, partial(call, threading.Lock()))
        assert (here.call, here.settling, here.queue) == (None, None, None)
        gate.set()
        flush(20)
        if first is not None:
            assert first.done()
            assert ran[:1] == [1] or what.startswith("cancel") or what == "the oldest is dropped"
        if call._self_backlog:
            assert not call._self_backlog.calls
            assert not call._self_backlog.line
        if not hit:
            assert number > 10
            break


# A file that was being opened is closed by the collector, which CPython warns of from 3.13 on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_inside_a_durable_call(tmp_path: Path) -> None:
    """W5: wherever Ctrl-C strikes, a durable call is in the file and pending, or neither."""
    number, hit = 0, True
    while hit:
        number += 1
        executor = SQLiteExecutor(tmp_path / f"{number}.db", start_worker=False)
        call = background(executor=executor)(abs)
        hit = struck(number, partial(call, -1))
        made: list[Any] = list(ledger.pending)  # also one whose future was not returned
        assert [each.state for each in executor.calls()].count("waiting") == len(made)
        last: Any = call(-2)
        for each in [*made, last]:
            executor._desk.store.cancel(each._kwargs.key)  # as another program would
        flush(20)  # the thread that brings outcomes lives
        assert last.cancelled()
    assert number > 10
    gc.collect()  # here, where the warning is expected


def test_ctrl_c_while_a_durable_call_is_cancelled(tmp_path: Path) -> None:
    """W5: wherever Ctrl-C strikes cancel(), a durable call is cancelled here and in the file."""
    executor = SQLiteExecutor(tmp_path / "calls.db", start_worker=False)
    call = background(executor=executor)(abs)
    number, hit = 0, True
    while hit:
        number += 1
        future: Any = call(-number)
        hit = struck(number, future.cancel)
        future.cancel()
        flush(20)
        assert future.cancelled()
        assert executor.calls()[-1].state == "cancelled"
    assert number > 10


@pytest.mark.parametrize("queued", [True, False])
def test_ctrl_c_inside_a_call_takes_it_back(queued: bool) -> None:
    """W5: a call that Ctrl-C interrupts before it is made leaves nothing behind, and never runs."""

    class Struck(ThreadExecutor):
        def _accept(self, call: Any) -> None:
            if queued:
                super()._accept(call)
            raise KeyboardInterrupt

    ran: list[int] = []
    executor = Struck()
    executor._queue.short = False  # no worker comes before the strike
    with pytest.raises(KeyboardInterrupt):
        executor.submit(ran.append, 1)
    flush(10)
    assert ran == []
    assert stats().waiting == 0


def test_calls_from_signal_handlers(tmp_path: Path) -> None:
    """W5: calls from a handler every 300 µs, in the middle of other calls and flushes."""
    lines, err = run(
        """
        from background import background, flush
        ran, made = [], 0
        @background
        def call():
            ran.append(1)
        def handler(*_):
            global made
            made += 1
            call()
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        end = time.monotonic() + 2
        mine = 0
        while time.monotonic() < end:
            call()
            mine += 1
            if mine % 500 == 0:
                flush(20)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # one may be under way
        signal.setitimer(signal.ITIMER_REAL, 0)
        flush(20)
        tell(str(len(ran) - made - mine))
        """,
        tmp_path,
    )
    assert (lines, err) == (["0"], "")


def test_calls_from_finalizers(executor: Executor) -> None:
    """W5: calls may be made from __del__ and from weakref callbacks."""
    made: list[Future[str]] = []
    call = background(executor=executor)(copy.copy)

    class Dies:
        def __del__(self) -> None:
            made.append(call("__del__"))

    for _ in range(100):
        dies = Dies()
        reference = weakref.ref(dies, lambda _: made.append(call("weakref")))
        del dies
        assert reference() is None
    flush()
    assert sorted(f.result(0) for f in made) == ["__del__"] * 100 + ["weakref"] * 100


@pytest.mark.parametrize("workers", [0, 1])
def test_no_thread_can_be_started(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """E4: where no thread starts, a call runs in its caller or by the workers that there are."""

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    executor = ThreadExecutor(2)
    if workers:
        executor.submit(abs, 1).result()
    monkeypatch.setattr(_thread, "start_new_thread", fail)
    futures = [executor.submit(abs, -i) for i in range(10)]
    assert [future.result(10) for future in futures] == list(range(10))


def test_ctrl_c_while_a_worker_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """W5: Ctrl-C before or after the start of a worker's thread leaves an executor that works."""
    start = _thread.start_new_thread

    def before(*_: object) -> None:
        raise KeyboardInterrupt

    def after(*args: Any) -> None:
        start(*args)
        raise KeyboardInterrupt

    for strike in (before, after):
        executor = ThreadExecutor()
        monkeypatch.setattr(_thread, "start_new_thread", strike)
        with pytest.raises(KeyboardInterrupt):
            executor.submit(abs, -1)
        monkeypatch.setattr(_thread, "start_new_thread", start)
        seen: list[int] = []
        for i in range(1000):
            executor.submit(seen.append, i)
        assert executor.submit(abs, -1).result(20) == 1
        assert seen == list(range(1000))


def test_callers_that_ask_for_the_worker_at_once() -> None:
    """C2: threads that make the first calls together get one worker, and it runs all."""
    for _ in range(50):
        executor = ThreadExecutor()
        together = threading.Barrier(4)
        idents: list[int] = []

        def first(executor: ThreadExecutor = executor, together: Any = together) -> None:
            together.wait(20)
            executor.submit(lambda: idents.append(threading.get_ident()))  # noqa: B023

        callers = [threading.Thread(target=first) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        flush(20)
        assert len(idents) == 4
        assert len(set(idents)) == 1


def test_thread_start_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """E4: the call runs though `Thread.start` fails."""

    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert ThreadExecutor().submit(abs, -1).result(10) == 1


def test_flush_waits_for_all_executors(held: Held) -> None:
    """W1: flush waits for the calls of every executor, on any thread."""
    ran: list[int] = []
    maker = threading.Thread(target=lambda: held.executor.submit(ran.append, 1))
    maker.start()
    maker.join()
    background(ran.append)(2)
    threading.Timer(0.05, held.gate.set).start()
    flush(20)
    assert sorted(ran) == [1, 2]


def test_flush_waits_for_children() -> None:
    """W1: flush waits for the calls that calls make, and for those that these make."""
    ran: list[int] = []
    with ThreadExecutor() as other:

        def nest(depth: int) -> None:
            if depth:
                other.submit(nest, depth - 1)
            ran.append(depth)

        for _ in range(50):
            ran.clear()
            background(nest)(20)
            flush(20)
            assert ran == list(range(20, -1, -1))


def test_flush_ends_under_a_stream() -> None:
    """W1: flush doesn't wait for later calls of other threads."""
    stop = threading.Event()

    def stream() -> None:
        while not stop.is_set():
            background(time.sleep)(0.001)
            time.sleep(0.0005)  # twice as fast as they are done: the queue never empties

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        for _ in range(5):
            flush(30)
    finally:
        stop.set()
        thread.join()


def test_several_threads_flush() -> None:
    """W1: several threads may flush at once, and each waits for what was made before."""
    missed: list[int] = []

    def work() -> None:
        for i in range(100):
            futures = [background(abs)(i) for _ in range(5)]
            flush(30)
            if not all(future.done() for future in futures):
                missed.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missed == []


def test_a_flush_that_ends_while_a_call_does(held: Held) -> None:
    """W1: a flush that ends while a worker tells all flushes of a call hides none of them."""

    class Ends(ledger.Drain):
        @property  # type: ignore[override]
        def watched(self) -> None:
            if self in ledger.drains:
                ledger.drains.remove(self)  # as `flush` does on another thread, just now

        @watched.setter
        def watched(self, call: Any) -> None: ...

    with ledger.Drain(time.monotonic()) as second:
        ledger.drains.insert(0, Ends(0.0))
        assert second._look()  # it watches the call that is held
        held.gate.set()
        assert second.bell.get(timeout=20) is None
    assert ledger.drains == []


def test_flush_timeout(held: Held) -> None:
    """W1: a timeout names what is pending and loses nothing."""
    late = held.executor.submit(abs, -1)
    with pytest.raises(FlushTimeout, match=r"2 calls are not done after 0.01 s: .*_hold") as caught:
        flush(0.01)
    assert caught.value.pending == 2
    assert "abs(…), called at test_ending.py:" in caught.value.calls[1]
    held.gate.set()
    flush(20)
    assert late.result(0) == 1


@pytest.mark.parametrize("inline", [True, False])
def test_flush_inside_a_call(inline: bool) -> None:
    """W1: flush inside a call is a RuntimeError that names the call, not a hang."""
    executor: Any = InlineExecutor() if inline else None
    error = background(executor=executor)(flush)().exception()
    assert type(error) is RuntimeError
    assert "flush(…), called at" in str(error)


def test_configure_restores() -> None:
    """I1: as a context manager, configure restores what was before."""
    with configure(executor=InlineExecutor()):
        assert background(threading.get_ident)().result() == threading.get_ident()
    assert background(threading.get_ident)().result() != threading.get_ident()


@pytest.mark.parametrize("bad", [{"exit_timeout": "1"}, {"exit_timeout": True}, {"executor": 1}])
def test_configure_refuses(bad: dict[str, Any]) -> None:
    """D3: a wrong setting is a TypeError, and nothing is set."""
    with pytest.raises(TypeError):
        configure(**bad)
    with pytest.raises(ValueError):
        configure(exit_timeout=-1)
    with pytest.raises(ValueError):
        ThreadExecutor(0)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"timeout": "3"}, TypeError),
        ({"timeout": True}, TypeError),
        ({"timeout": math.nan}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"check": "no"}, TypeError),
        ({"progress": 1}, TypeError),
    ],
)
def test_flush_refuses(bad: dict[str, Any], error: type[Exception]) -> None:
    """D3: a wrong option of flush is an error that says what it must be."""
    (name,) = bad
    with pytest.raises(error, match=f"^{name} must be "):
        flush(**bad)


def test_stats(held: Held) -> None:
    """Counts: submitted is the sum of the others at every moment."""
    before = stats()
    held.executor.submit(abs, 1)
    held.executor.submit(abs, 1).cancel()
    held.executor.submit(abs, "x").add_done_callback(lambda f: f.exception())  # type: ignore[arg-type]
    now = stats()
    assert (now.running, now.waiting, now.cancelled - before.cancelled) == (1, 2, 1)
    held.gate.set()
    flush()
    now = stats()
    assert (now.running, now.waiting, now.failed - before.failed) == (0, 0, 1)
    done = now.succeeded + now.failed + now.cancelled + now.dropped
    assert now.submitted == now.waiting + now.running + done
    assert now.seconds_running > before.seconds_running
    assert now.seconds_waiting > before.seconds_waiting
