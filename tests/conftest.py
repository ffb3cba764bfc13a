"""What all tests share."""

import gc
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import hypothesis
import pytest

import background
from background import InlineExecutor, ProcessExecutor, SQLiteExecutor, ThreadExecutor
from background._core import telling
from background._core.failures import failures
from background._executors.foreign import ForeignExecutor

hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Every executor keeps the contract: a new one joins by one line.
IN_MEMORY: dict[str, Callable[[], Executor]] = {
    "thread": ThreadExecutor,
    "four threads": lambda: ThreadExecutor(4),
    "inline": InlineExecutor,
    "foreign": lambda: ForeignExecutor(ThreadPoolExecutor(1)),
}
EXECUTORS: dict[str, Callable[[], Executor]] = {
    **IN_MEMORY,
    "process": ProcessExecutor,
    "sqlite": lambda: SQLiteExecutor(tempfile.mkdtemp() + "/calls.db", idle_timeout=1),
}


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Make one executor after the other."""
    with EXECUTORS[request.param]() as made:
        yield made


@pytest.fixture(params=IN_MEMORY)
def executor_in_memory(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Make one executor after the other whose calls share the program's memory."""
    with IN_MEMORY[request.param]() as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Start without failures of other tests; end without calls."""
    failures.take()
    telling._runs.clear()
    yield
    background.flush(30)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Leave it to reference counts alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


def let_die() -> None:
    """Without the GIL, have objects die that another thread let go of than the one that made them.

    There the interpreter puts that off until the maker comes to know, or until a collection.
    """
    for _ in range(0 if GIL else 5):  # a collection that another one forestalls does nothing
        gc.collect()
        time.sleep(0.001)


class Held:
    """One worker that waits until it is released, so that later calls wait."""

    def __init__(self) -> None:
        self.executor = ThreadExecutor()
        self.gate = threading.Event()
        self.started = threading.Event()
        self.first = self.executor.submit(self._hold)
        assert self.started.wait(10)

    def _hold(self) -> None:
        self.started.set()
        assert self.gate.wait(60)


@pytest.fixture
def held() -> Iterator[Held]:
    """Hold one worker by `held.gate`."""
    made = Held()
    yield made
    made.gate.set()


class Log(logging.Handler):
    """The records of the logger `background`."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def errors(self) -> list[str]:
        return [r.getMessage() for r in self.records if r.levelno == logging.ERROR]

    @property
    def warnings(self) -> list[str]:
        return [r.getMessage() for r in self.records if r.levelno == logging.WARNING]


@pytest.fixture
def log() -> Iterator[Log]:
    """Listen to what the package says."""
    logger, handler = logging.getLogger("background"), Log()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
