"""The chapter Failures of the contract."""

import dataclasses
import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future

import pytest
from conftest import GIL, Held, Log, let_die

from background import BackgroundError, InlineExecutor, ThreadExecutor, background, flush


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
        "2 background calls failed and nobody looked; flush(check=True) raises them"
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
