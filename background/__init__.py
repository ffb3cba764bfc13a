"""Run slow calls in the background, and wait for all of them once.

>>> from background import background, flush
>>> drawn = []
>>> @background
... def plot(step):
...     drawn.append(step)      # slow in real life: a network, a disk, a drawing
>>> for step in range(3):
...     future = plot(step)     # returns at once
>>> flush()                     # every call is done
>>> drawn
[0, 1, 2]

A call returns a `Future` at once; a worker thread runs the calls one at a time, in the order
in which they were made. `flush()` waits for all of them, and so does the program's end. A
failure reaches you once: through its future if you keep it, else through the logger
`background`, with the place of the call. `flush(check=True)` raises all that nobody
retrieved, and `check()` those of the calls that are done, without waiting.

Arguments are passed, not copied: over a function that draws what the program changes in place,
write `@background(snapshot=True)`.
"""

from typing import TYPE_CHECKING, Any

from background._core.future import Future
from background._decorator import background
from background._errors import BackgroundError, BacklogFull, FlushTimeout, WorkerDied
from background._executors.dask.executor import DaskExecutor
from background._executors.inline import InlineExecutor
from background._executors.process.executor import ProcessExecutor
from background._executors.threads import ThreadExecutor
from background._exit import drain_at_exit as _  # noqa: F401
from background._flush import check, flush
from background._settings import configure
from background._snapshot import snapshot
from background._stats import stats

if TYPE_CHECKING:
    from background._executors.sqlite.executor import SQLiteExecutor

__all__ = [
    "BackgroundError",
    "BacklogFull",
    "DaskExecutor",
    "FlushTimeout",
    "Future",
    "InlineExecutor",
    "ProcessExecutor",
    "SQLiteExecutor",
    "ThreadExecutor",
    "WorkerDied",
    "background",
    "check",
    "configure",
    "flush",
    "snapshot",
    "stats",
]


def __getattr__(name: str) -> Any:
    # Loaded by those who use it: it takes as long to import as all the rest.
    if name == "SQLiteExecutor":
        from background._executors.sqlite.executor import SQLiteExecutor

        return globals().setdefault(name, SQLiteExecutor)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # for `help`, and for completion
