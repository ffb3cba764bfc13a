"""The chapter Telling of the contract."""

import time
from collections.abc import Callable
from functools import partial

import pytest
from conftest import Held, Log

from background import (
    FlushTimeout,
    InlineExecutor,
    ThreadExecutor,
    _flush,
    flush,
)
from background._core import call, executor, ledger
from background._core.hints import Computing
from background._executors import workers


class Clock:
    """The clocks of a machine on which time passes only as a call says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.cpu = 1.0
        for module in (call, executor, ledger, workers):
            monkeypatch.setattr(module, "monotonic", lambda: self.wall)
        monkeypatch.setattr(ledger, "thread_time", lambda: self.cpu)
        monkeypatch.setattr(call, "computing", Computing())

    def waits(self, seconds: float = 0.1) -> None:
        self.wall += seconds

    def computes(self, seconds: float = 0.1) -> None:
        self.wall += seconds
        self.cpu += seconds

    def fails(self) -> None:
        self.computes()
        raise ValueError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_call_that_computes_is_told(clock: Clock, log: Log) -> None:
    """T1: a function that computes is named once, with its share, its cost and the remedy."""
    with ThreadExecutor() as executor:
        for _ in range(50):
            executor.submit(clock.computes, 0.3)
            executor.submit(clock.waits, 0.01)
    assert len(log.warnings) == 1
    assert log.warnings[0].startswith("Clock.computes(…), called at test_telling.py:")
    assert "computed for 100 % of the 1.2 s that 4 calls took: 1.2 s in which" in log.warnings[0]
    assert "@background(executor=ProcessExecutor())" in log.warnings[0]


@pytest.mark.parametrize("burst", [True, False])
def test_a_call_that_waits_is_not_told(burst: bool, clock: Clock, log: Log) -> None:
    """T1: a function that waits never gets the hint, whatever short calls compute beside it."""
    held = Held()
    for _ in range(50):
        for _ in range(150):
            held.executor.submit(clock.computes, 0.0009)
        held.executor.submit(clock.waits)
        if not burst:
            held.gate.set()
            flush(20)
    held.gate.set()
    flush(20)
    assert log.warnings == []


def test_only_calls_of_threads_are_told(clock: Clock, log: Log) -> None:
    """T1: a call on its caller's own thread, and one that fails, get no hint."""
    inline, thread = InlineExecutor(), ThreadExecutor()
    for _ in range(50):
        inline.submit(clock.computes)
        thread.submit(clock.fails).exception()
    assert log.warnings == []


class Weird:
    """A callable that fails when it is asked for anything."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def __call__(self) -> None:
        self.call()

    def __getattr__(self, name: str) -> None:
        raise RuntimeError(name)


def test_callables_of_every_kind_are_told(clock: Clock, log: Log) -> None:
    """T1: partials, builtins and callables that answer for nothing are named, too."""
    with ThreadExecutor() as executor:
        for _ in range(50):
            executor.submit(partial(Weird(clock.computes)))
    assert len(log.warnings) == 1
    assert log.warnings[0].startswith("Weird(…), called at")


def test_a_long_wait_explains_itself(held: Held, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """T2: a long wait names the call that holds it up, its place, and where it stands."""
    monkeypatch.setattr(_flush, "PATIENCE", 0.01)
    start = time.monotonic()
    with pytest.raises(FlushTimeout):
        flush(0.3)
    took = time.monotonic() - start
    # After 0.01 s and at each tenfold, not more often.
    assert 1 <= len(log.warnings) <= sum(took > 0.01 * 10**i for i in range(5))
    said = log.warnings[0]
    assert "_hold(…), called at conftest.py:" in said
    assert "stands at" in said
    assert "in Event.wait" in said or "in Condition.wait" in said
