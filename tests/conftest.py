"""What all tests share."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

import background
from background import InlineExecutor, ThreadExecutor
from background._call import failures
from background._executors.foreign import ForeignExecutor

# Every executor keeps the contract: a new one joins by one line.
EXECUTORS: dict[str, Callable[[], Executor]] = {
    "thread": ThreadExecutor,
    "four threads": lambda: ThreadExecutor(4),
    "inline": InlineExecutor,
    "foreign": lambda: ForeignExecutor(ThreadPoolExecutor(1)),
}


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Make one executor after the other."""
    with EXECUTORS[request.param]() as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Start without failures of other tests; end without calls."""
    failures.take()
    yield
    background.flush(30)


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
