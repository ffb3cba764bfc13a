"""The chapter Failures of the contract."""

import dataclasses
import logging
import logging.handlers
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future

import pytest
from conftest import GIL, Held, Log, let_die

from background import (
    BackgroundError,
    InlineExecutor,
    ThreadExecutor,
    background,
    check,
    flush,
    stats,
)
from background._core.failures import Watch


def fail(text: str = "no") -> None:
    raise ValueError(text)


def _raises(future: Future[None]) -> None:
    with pytest.raises(ValueError):
        future.result()


def test_a_dropped_failure_is_logged_once(executor: Executor, log: Log) -> None:
    """E1: a failure whose future was dropped is logged once, with traceback and place."""
    for i in range(1, 200):
        executor.submit(fail)
        flush()
        let_die()
        assert len(log.errors) == i
    record = next(r for r in log.records if r.levelname == "ERROR")
    assert re.fullmatch(
        r"fail\(…\), called at test_failures\.py:\d+ in "
        r"test_a_dropped_failure_is_logged_once failed and its exception was never retrieved",
        record.getMessage(),
    )
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
    trace = record.exc_info[2]  # none of our own frames; of a worker process, none at all
    assert trace is None or trace.tb_frame.f_code is fail.__code__
    assert "in fail" in logging.Formatter().format(record)


@pytest.mark.skipif(not GIL, reason="a future dies later, and nothing says when")
def test_flush_waits_for_the_log() -> None:
    """E1: a dropped failure has been logged when flush returns: the worker lets go first."""
    entered, gate = threading.Event(), threading.Event()

    class Slow(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:  # not emit: that holds a lock
            if record.levelno == logging.ERROR:
                entered.set()
                assert gate.wait(20)
            return True

    handler = Slow()
    logging.getLogger("background").addHandler(handler)
    try:
        background(fail)()
        assert entered.wait(20)
        flushing = threading.Thread(target=flush)
        flushing.start()
        flushing.join(0.3)
        assert flushing.is_alive()
        gate.set()
        flushing.join(20)
        assert not flushing.is_alive()
    finally:
        logging.getLogger("background").removeHandler(handler)


def test_a_failure_that_somebody_looked_at_is_not_logged(executor: Executor, log: Log) -> None:
    """E1: a failure reaches its user once: through the future where it is kept."""
    for look in (lambda f: f.exception(), _raises):
        future = executor.submit(fail)
        look(future)
        del future
    flush()
    assert log.errors == []
    flush(check=True)


def test_a_kept_failure_is_logged_when_it_is_dropped(log: Log) -> None:
    """E1: it is logged at the moment at which nobody can look any more."""
    future = background(fail)()
    flush()
    assert log.errors == []
    del future
    let_die()
    assert len(log.errors) == 1


def test_the_note(executor: Executor) -> None:
    """E1: the exception carries one note that names the call and where it was made."""

    def main() -> BaseException | None:
        return background(executor=executor)(fail)().exception()

    error = main()
    line = main.__code__.co_firstlineno + 1
    assert error is not None
    notes = [note for note in error.__notes__ if "called at" in note]
    assert notes == [f"fail(…), called at test_failures.py:{line} in main"]


def test_one_exception_raised_again_and_again() -> None:
    """E1: an exception that many calls raise doesn't gather a note for each."""
    error = KeyError("same")

    def again() -> None:
        raise error

    for _ in range(100):
        background(again)().exception()
    assert len(error.__notes__) == 1


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """An exception that takes no notes."""

    code: int


def test_an_exception_that_takes_no_notes(executor: Executor) -> None:
    """E1: an exception that refuses a note is the outcome all the same."""

    def freeze() -> None:
        raise FrozenError(3)

    assert executor.submit(freeze).exception() == FrozenError(3)


def test_check_raises_what_nobody_looked_at(executor: Executor, log: Log) -> None:
    """E2: flush(check=True) raises dropped and kept failures once, and that is a look."""
    executor.submit(fail, "dropped")
    kept = executor.submit(fail, "kept")
    seen = executor.submit(fail, "seen")
    seen.exception()
    with pytest.raises(BackgroundError) as caught:
        flush(check=True)
    assert sorted(str(error) for error in caught.value.exceptions) == ["dropped", "kept"]
    assert caught.value.count == 2
    del kept
    let_die()
    assert len(log.errors) == 1  # the dropped one alone
    flush(check=True)


def test_check_keeps_a_hundred_and_counts_all() -> None:
    """E2: of many failures the first hundred are raised, and all are counted."""
    for i in range(250):
        background(fail)(str(i))
    with pytest.raises(BackgroundError, match="250 background calls failed") as caught:
        flush(check=True)
    assert [str(error) for error in caught.value.exceptions] == [str(i) for i in range(100)]
    assert caught.value.count == 250
    flush(check=True)


def test_plain_flush_says_the_count_once(log: Log) -> None:
    """E2: flush() doesn't raise; it logs one line with the count of what is new."""
    background(fail)()
    background(fail)()
    flush()
    flush()
    assert [w for w in log.warnings if "failed" in w] == [
        "2 background calls failed and their exceptions were never retrieved; "
        "flush(check=True) raises them"
    ]


def test_a_group_can_be_split() -> None:
    """E2: except* works on a BackgroundError."""
    background(fail)()
    caught = []
    try:
        flush(check=True)
    except* ValueError as group:
        caught.append(group)
    assert isinstance(caught[0], BackgroundError)


def leave(kind: type[BaseException]) -> None:
    raise kind


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, MemoryError, GeneratorExit])
def test_no_exception_ends_a_worker(kind: type[BaseException]) -> None:
    """E3: whatever a call raises is its outcome, and the next call runs on the same thread."""
    with ThreadExecutor() as executor:
        before = executor.submit(threading.get_ident).result()
        assert type(executor.submit(leave, kind).exception()) is kind
        assert executor.submit(threading.get_ident).result() == before


def test_check_wraps_what_a_group_cant_hold() -> None:
    """E2: a SystemExit in a call is the cause of an exception in the group."""
    background(leave)(SystemExit)
    with pytest.raises(BackgroundError) as caught:
        flush(check=True)
    assert type(caught.value.exceptions[0].__cause__) is SystemExit


def test_a_done_callback_that_fails(held: Held, log: Log) -> None:
    """E3: a done callback that raises is logged, the others run, the worker lives."""

    def bad(_: object) -> None:
        raise SystemExit

    seen: list[object] = []
    held.first.add_done_callback(bad)
    held.first.add_done_callback(seen.append)
    held.gate.set()
    assert held.executor.submit(abs, -1).result() == 1
    assert seen == [held.first]
    assert len(log.errors) == 1


@pytest.mark.parametrize("inline", [True, False])
def test_calls_from_our_own_log(inline: bool) -> None:
    """W5: a logging handler on our logger may make calls, failing ones included."""
    made = []

    class Calls(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(made) < 5:
                made.append(0)
                background(executor=InlineExecutor() if inline else None)(fail)()

    handler = Calls()
    logging.getLogger("background").addHandler(handler)
    try:
        background(fail)()
        for _ in range(5):  # the log may come from the flush itself, and its call after that
            flush(20)
    finally:
        logging.getLogger("background").removeHandler(handler)
    assert len(made) == 5


def test_ctrl_c_in_an_inline_call() -> None:
    """I1: Ctrl-C in a call on the caller's own thread is for the program, too."""
    with pytest.raises(KeyboardInterrupt):
        background(executor=InlineExecutor())(leave)(KeyboardInterrupt)


def test_weird_callables() -> None:
    """E1: a callable that answers for its attributes by failing code is named by its type."""

    class Weird:
        def __call__(self) -> None:
            raise ValueError

        def __getattr__(self, name: str) -> None:
            raise RuntimeError(name)

    made: Callable[[], None] = Weird()
    error = ThreadExecutor().submit(made).exception()
    assert error is not None
    assert error.__notes__[0].startswith("Weird(…), called at")


def test_check_raises_while_others_are_pending(held: Held) -> None:
    """E2: check() raises the failures of what is done, once, and waits for nothing."""
    check()
    InlineExecutor().submit(fail)
    with pytest.raises(BackgroundError, match="1 background call failed and its exception was"):
        check()
    check()
    assert not held.first.done()


def test_a_flush_that_times_out_raises_the_failures(held: Held) -> None:
    """E2: flush(timeout, check=True) raises the failures, with the timeout as a note."""
    InlineExecutor().submit(fail)
    with pytest.raises(BackgroundError) as caught:
        flush(0, check=True)
    assert caught.value.__notes__[0].startswith("FlushTimeout: 1 call is not done after 0 s")
    assert not held.first.done()


def test_check_says_what_was_logged(log: Log) -> None:
    """E2: failures that were logged before they are raised are said to have been."""
    background(fail)()
    kept = background(fail)()
    flush()
    let_die()
    assert len(log.errors) == 1
    with pytest.raises(BackgroundError, match="never retrieved; 1 logged before"):
        check()
    del kept


def test_check_raises_though_the_first_hundred_were_retrieved() -> None:
    """E2: failures of which no exception was kept are raised by their number."""
    futures = [background(fail)() for _ in range(150)]
    for future in futures[:100]:
        assert future.exception()
    with pytest.raises(BackgroundError, match="50 background calls failed") as caught:
        flush(check=True)
    assert caught.value.count == 50
    check()


class Heard(Log):
    """Sets an event at each error."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if record.levelno == logging.ERROR:
            self.heard.set()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    """Listen, and be told of kept failures at once."""
    monkeypatch.setattr(Watch, "PATIENCE", 0.2)
    handler = Heard()
    logging.getLogger("background").addHandler(handler)
    yield handler
    logging.getLogger("background").removeHandler(handler)


def test_a_kept_failure_is_told_after_a_while(heard: Heard) -> None:
    """E1: a failure whose future is kept is logged once, and result() still raises it."""
    futures = [background(fail)() for _ in range(300)]
    flush()
    assert heard.heard.wait(20)
    for future in futures[:200]:
        _raises(future)
    with pytest.raises(BackgroundError, match="100 background calls"):
        check()
    futures.clear()
    let_die()
    # All at once, or some before the others if the machine is slow.
    assert 1 <= len(heard.errors) < 10
    assert "fail(…), called at test_failures.py" in heard.errors[0]


def test_a_failure_that_is_being_retrieved_is_not_told(heard: Heard) -> None:
    """E1: a failure that somebody waits for isn't logged meanwhile."""
    gate = threading.Event()

    def held() -> None:
        assert gate.wait(20)
        raise ValueError

    seen: list[Future[None]] = []
    future = background(held)()
    future.add_done_callback(seen.append)
    gate.set()
    flush()
    background(fail)()  # dropped, so logged at once
    other = background(fail)()
    flush()
    heard.heard.clear()
    assert heard.heard.wait(20)  # the other one is due after the first
    assert len(heard.errors) == 2
    assert future.exception()
    assert other.exception()


def test_the_watch_ends_with_the_failures(heard: Heard) -> None:
    """E1: the thread that tells of kept failures lives only while there are any."""
    future = background(fail)()
    flush()
    assert heard.heard.wait(20)
    for thread in threading.enumerate():
        if thread.name == "background-failures":
            thread.join(20)
            assert not thread.is_alive()
    assert future.exception()


@pytest.mark.parametrize("kind", [OSError, SystemExit, GeneratorExit])
@pytest.mark.filterwarnings("error")
def test_a_log_handler_that_raises(
    kind: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    """B5: what a log handler raises reaches neither worker nor flush, and the failure is told."""

    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if threading.current_thread() is not threading.main_thread():
                raise kind("log server down")
            raise OSError("log server down")

    logger, handler = logging.getLogger("background"), Raises()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        background(fail)("mine")
        flush()
        let_die()
        assert background(abs)(-1).result() == 1
    finally:
        logger.propagate = True
        logger.removeHandler(handler)
    err = capsys.readouterr().err
    assert "ValueError: mine" in err
    assert "log server down" in err


def test_a_logger_that_was_disabled(log: Log) -> None:
    """B5: a logger that dictConfig has disabled tells failures all the same."""
    logger = logging.getLogger("background")
    logger.disabled = True
    try:
        background(fail)()
        flush()
        let_die()
    finally:
        logger.disabled = False
    assert len(log.errors) == 1


SILENCED = {
    "logging.config.dictConfig({'version': 1})": True,
    "logging.disable()": True,
    "logging.getLogger().addHandler(logging.NullHandler())": True,
    "logging.getLogger().setLevel('CRITICAL')": True,
    "logging.basicConfig(handlers=[logging.FileHandler(os.devnull)])": False,
    "sys.stderr = None": True,
    "sys.stderr = open(os.devnull, 'w'); sys.stderr.close()": True,
    "logging.getLogger('background').setLevel('CRITICAL')": False,
    "logging.getLogger('background').addHandler(logging.NullHandler())": False,
    "logging.getLogger('background').addFilter(lambda record: False)": False,
    "logging.getLogger('background').propagate = False": True,
}


@pytest.mark.parametrize("setting", SILENCED)
def test_what_silences(setting: str) -> None:
    """B5: standard error gets a failure that no handler took, unless silence was asked for."""
    program = f"""
import logging, logging.config, os, sys
from background import background
{setting}
def boom(): raise ValueError("mine")
background(boom)()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ("ValueError: mine" in done.stderr) is SILENCED[setting], done.stderr


class Shipper(logging.Handler):
    """Ships each record in the background, to a host that is down."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.made += 1
        assert self.made < 100
        background(fail)("down")


@pytest.mark.parametrize("through_queue", [False, True])
def test_a_handler_whose_calls_fail(
    through_queue: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """B5: a handler that makes calls which fail is not called for their failures without end."""
    logger, shipper = logging.getLogger("background"), Shipper()
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, shipper)  # type: ignore[arg-type]
    handler = logging.handlers.QueueHandler(records) if through_queue else shipper  # type: ignore[arg-type]
    listener.start()
    logger.addHandler(handler)
    try:
        background(fail)("mine")
        for _ in range(5):
            flush(20)
            let_die()
    finally:
        logger.removeHandler(handler)
        listener.stop()
        flush(20)
        let_die()
    assert shipper.made <= 6  # the failure, and a line of each flush
    assert "ValueError: down" in capsys.readouterr().err


def test_a_standard_error_whose_calls_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """B5: a `sys.stderr` that makes calls which fail is not written to without end."""
    made = []

    class Tee:
        def write(self, text: str) -> None:
            made.append(text)
            assert len(made) < 100
            background(fail)("down")

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stderr", Tee())
    logger = logging.getLogger("background")
    monkeypatch.setattr(logger, "propagate", False)
    background(fail)("mine")
    for _ in range(5):
        flush(20)
        let_die()
    assert len(made) <= 12  # the failure and a line of each flush, and one more for each


def test_no_time_is_negative() -> None:
    """E3: a call that a done callback makes has waited for no less than no time."""
    before = stats().seconds_waiting
    with ThreadExecutor() as executor:
        future = executor.submit(time.sleep, 0.01)

        def again(_: object) -> None:
            time.sleep(0.05)
            executor.submit(abs, 1)

        future.add_done_callback(again)
        future.result()
    assert stats().seconds_waiting >= before


def test_a_thread_of_a_handler_whose_calls_fail(capsys: pytest.CaptureFixture[str]) -> None:
    """B5: a handler that makes its calls by a function on a thread of its own ends, too."""
    records: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
    made = []
    enough = threading.Event()

    def ship() -> None:
        while records.get() is not None:
            made.append(0)
            if len(made) == 3_000:
                enough.set()
                return
            background(fail)("down")

    thread = threading.Thread(target=ship)
    thread.start()
    logger, handler = logging.getLogger("background"), logging.handlers.QueueHandler(records)  # type: ignore[arg-type]
    logger.addHandler(handler)
    logger.propagate = False
    try:
        background(fail)("mine")
        err = ""
        deadline = time.monotonic() + 60
        while "ValueError: down" not in err and time.monotonic() < deadline:
            flush(20)
            assert not enough.wait(0.01)
            err += capsys.readouterr().err
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
        records.put(None)
        thread.join(20)
    assert len(made) < 3_000
