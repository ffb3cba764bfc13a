"""How each way is used by its own documentation, behind one interface.

With one worker wherever the way has such an option. Free of any other import of this
repository, and each rival is imported by its own way alone.
"""

import asyncio
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import calls

Call = Callable[..., Any]


class Way:
    """A way to have a function called.

    `waits` names what waits for all calls, or is empty if that is done by hand; `typed` is what
    a type checker reads: a prelude, and the call of `f` with an argument in place of `{}`.
    """

    title: str
    module = ""  # what must be installed for it
    futures = True
    waits = ""
    copies = ""  # what `copying` takes
    own_await = "in its own manner"
    made: list[Any] | None = None  # what a wait by hand goes through
    without: ClassVar[dict[str, str]] = {}  # feature: why it does not apply
    typed = "", "f({})"
    patience = 3.0  # seconds in which a program ends that waits for nothing
    hang = 8.0  # seconds after which what has not come never comes

    @classmethod
    def alone(cls) -> Any:
        """Make one in a script without a guard."""
        return cls()

    def call(self, function: Call, *args: Any) -> Any:
        """Make a call and return what there is to wait for."""
        return self.decorate(function)(*args)

    def decorate(self, function: Call) -> Any:
        """Return the function with its calls in the background."""
        raise NotImplementedError("no decorator")

    def many(self, function: Call, args: Iterable[tuple[Any, ...]]) -> Any:
        """Make many calls."""
        return [self.call(function, *each) for each in args]

    def drop(self, function: Call, *args: Any) -> None:
        """Make a call at whose outcome nobody will look."""
        self.call(function, *args)

    def drop_many(self, function: Call, args: Iterable[tuple[Any, ...]]) -> None:
        """Make many calls at whose outcomes nobody will look."""
        for each in args:
            self.drop(function, *each)

    def prepared(self, function: Call) -> Call:
        """Return what makes a call at whose outcome nobody will look."""
        return functools.partial(self.drop, function)

    def awaited(self) -> Any:
        """Await 3 from a call in the way's own manner, which `own_await` describes."""

    def result(self, handle: Any) -> Any:
        """Wait for the result of one call."""
        return handle.result()

    def wait(self) -> None:
        """Wait for all calls, as far as the way knows how to."""

    def latest(self, function: Call) -> Call:
        """Return the function with as few waiting calls as the way can be told to keep."""
        return lambda *args: self.call(function, *args)

    def copying(self, function: Call) -> Call:
        """Return the function with its arguments copied at the call, if the way can do that."""
        return lambda *args: self.call(function, *args)


# -- Threads -------------------------------------------------------------------------------


class Ours(Way):
    """`background`, with its default thread; `flush()` waits."""

    title = "`@background`"
    waits = "flush()"
    copies = ", with `snapshot=True`"
    typed = "from background import background\nf = background(f_)", "f({})"

    def __init__(self) -> None:
        import background

        self.ours = background
        self.options: dict[str, Any] = {}

    def decorate(self, function: Call) -> Any:
        return self.ours.background(**self.options)(function)

    def prepared(self, function: Call) -> Call:
        return self.decorate(function)  # called where its caller says

    def wait(self) -> None:
        self.ours.flush()

    def latest(self, function: Call) -> Call:
        limits: Any = {"max_pending": 1, "overflow": "drop_oldest"}
        return self.ours.background(**self.options, **limits)(function)

    def copying(self, function: Call) -> Call:
        return self.ours.background(**self.options, snapshot=True)(function)


class Pool(Way):
    """Any `concurrent.futures.Executor` that is none of ours."""

    waits = "shutdown()"
    pool: Any

    def call(self, function: Call, *args: Any) -> Any:
        return self.pool.submit(function, *args)

    def wait(self) -> None:
        self.pool.shutdown()


class ThreadPool(Pool):
    """`submit`; `shutdown()` waits."""

    title = "`ThreadPoolExecutor(1)`"
    typed = (
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)",
        "pool.submit(f_, {})",
    )

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.pool = ThreadPoolExecutor(1)


class Queue(Way):
    """A daemon thread, as the documentation of `queue` shows it; `join()` waits."""

    title = "a `queue.Queue` and a thread"
    futures = False
    waits = "join()"
    typed = "import queue\ncalls: queue.Queue[object] = queue.Queue()", "calls.put((f_, {}))"

    def __init__(self, size: int = 0) -> None:
        self.calls: Any = queue.Queue(size)
        threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        while True:
            function, args = self.calls.get()
            function(*args)
            self.calls.task_done()

    def call(self, function: Call, *args: Any) -> None:
        self.calls.put((function, args))

    def wait(self) -> None:
        self.calls.join()

    def latest(self, function: Call) -> Call:
        bounded = Queue(1)
        return lambda *args: bounded.call(function, *args)


class Thread(Way):
    """`threading.Thread(target=…).start()`; a list of them is joined."""

    title = "a thread per call"
    futures = False
    typed = (
        "import threading",
        "threading.Thread(target=f_, args=({},)).start()",
    )

    def __init__(self) -> None:
        self.made = []

    def call(self, function: Call, *args: Any) -> None:
        thread = threading.Thread(target=function, args=args)
        if self.made is not None:
            self.made.append(thread)
        thread.start()

    def wait(self) -> None:
        while self.made:
            self.made.pop().join()


class Index(Way):
    """`@background.task` with `background.n = 1`; its list of results is gone through."""

    title = "the index's `background`"
    module = "background"
    typed = "import background\nf = background.task(f_)", "f({})"

    def __init__(self) -> None:
        import background

        self.rival: Any = background
        self.rival.n = 1

    def decorate(self, function: Call) -> Any:
        return self.rival.task(function)

    def wait(self) -> None:
        for future in self.rival.results:
            future.exception()


class Unsync(Way):
    """`@unsync`, on a `ThreadPoolExecutor(1)`; the futures are waited for one by one.

    With `cpu_bound=True` it uses a `ProcessPoolExecutor`, whose column holds for it.
    """

    title = "unsync"
    module = "unsync"
    own_await = "in its own event loop"
    typed = "from unsync import unsync\nf = unsync(f_)", "f({})"

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        from unsync import unsync

        self.unsync: Any = unsync
        self.unsync.thread_executor = ThreadPoolExecutor(1)
        self.made = []

    def decorate(self, function: Call) -> Any:
        return self.unsync(function)

    def call(self, function: Call, *args: Any) -> Any:
        future = self.decorate(function)(*args)
        if self.made is not None:
            self.made.append(future)
        return future

    def drop(self, function: Call, *args: Any) -> None:
        self.call(function, *args)
        if self.made:
            self.made.pop()

    def wait(self) -> None:
        for future in self.made or []:
            future.result()

    def awaited(self) -> Any:
        async def main() -> Any:
            return await self.call(calls.add, 1, 2)

        return self.unsync(main)().result()


class Deco(Way):
    """`@concurrent.threaded(processes=1)`; `wait()` waits."""

    title = "deco"
    module = "deco"
    waits = "wait()"
    typed = "from deco import concurrent\nf = concurrent.threaded(processes=1)(f_)", "f({})"

    def __init__(self) -> None:
        from deco import concurrent

        self.kind: Any = concurrent.threaded
        self.decorated: dict[Call, Any] = {}

    def decorate(self, function: Call) -> Any:
        return self.kind(processes=1)(function)

    def call(self, function: Call, *args: Any) -> Any:
        if function not in self.decorated:
            self.decorated[function] = self.decorate(function)
        return self.decorated[function](*args)

    def wait(self) -> None:
        for decorated in list(self.decorated.values()):
            decorated.wait()


class MoreExecutors(Pool):
    """`Executors.thread_pool(max_workers=1)`; `shutdown()` waits.

    As a decorator it is used by `bind`, and bounded by `with_throttle(1, block=True)`.
    """

    title = "more-executors"
    module = "more_executors"
    typed = (
        "from more_executors import Executors\npool = Executors.thread_pool(max_workers=1)",
        "pool.submit(f_, {})",
    )

    def __init__(self) -> None:
        from more_executors import Executors

        self.kind: Any = Executors
        self.pool = Executors.thread_pool(max_workers=1)

    def decorate(self, function: Call) -> Any:
        return self.kind.bind(self.pool, function)

    def latest(self, function: Call) -> Call:
        bounded = self.kind.thread_pool(max_workers=1).with_throttle(1, block=True)
        return lambda *args: bounded.submit(function, *args)


class Pebble(Way):
    """`ThreadPool(max_workers=1).schedule`; `close()` and `join()` wait.

    As a decorator it is used by `concurrent.thread(pool=…)`.
    """

    title = "pebble"
    module = "pebble"
    waits = "join()"
    typed = (
        "from pebble import ThreadPool, concurrent\n"
        "f = concurrent.thread(pool=ThreadPool(max_workers=1))(f_)",
        "f({})",
    )

    def __init__(self) -> None:
        import pebble

        self.pool: Any = pebble.ThreadPool(max_workers=1)
        self.kind: Any = pebble.concurrent.thread

    def decorate(self, function: Call) -> Any:
        return self.kind(pool=self.pool)(function)

    def call(self, function: Call, *args: Any) -> Any:
        return self.pool.schedule(function, args=args)

    def wait(self) -> None:
        self.pool.close()
        self.pool.join()


# -- Processes -----------------------------------------------------------------------------


class OursProcess(Ours):
    """`background(executor=ProcessExecutor())`; `flush()` waits."""

    title = "`ProcessExecutor()`"
    copies = ""
    copying = Way.copying  # it pickles at the call

    def __init__(self) -> None:
        super().__init__()
        self.options = {"executor": self.ours.ProcessExecutor()}


class ProcessPool(Pool):
    """`submit`, with the default start method; `shutdown()` waits."""

    title = "`ProcessPoolExecutor(1)`"

    def __init__(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self.pool = ProcessPoolExecutor(1)


class Loky(Pool):
    """`get_reusable_executor(1).submit`; `shutdown()` waits."""

    title = "loky"
    module = "loky"

    @property
    def pool(self) -> Any:  # type: ignore[override]
        import loky

        return loky.get_reusable_executor(1)  # a new one, if the one before is broken


class PebbleProcess(Pebble):
    """`ProcessPool(max_workers=1).schedule`; `close()` and `join()` wait."""

    title = "pebble"
    module = "pebble"

    def __init__(self) -> None:
        import pebble

        self.pool = pebble.ProcessPool(max_workers=1)
        self.kind = pebble.concurrent.process


class Joblib(Way):
    """`Parallel(n_jobs=2, return_as="generator")` over a batch, which doesn't hold up the loop."""

    title = "joblib"
    module = "joblib"
    without: ClassVar[dict[str, str]] = dict.fromkeys(
        ["live", "memory"], "it takes a batch and reads it as it goes"
    )

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def many(self, function: Call, args: Iterable[tuple[Any, ...]]) -> Any:
        from joblib import Parallel, delayed

        parallel = Parallel(n_jobs=2, return_as="generator", pre_dispatch="all")
        return parallel(delayed(function)(*each) for each in args)

    def call(self, function: Call, *args: Any) -> Any:
        return self.many(function, [args])

    def result(self, handle: Any) -> Any:
        return next(handle)

    def drop_many(self, function: Call, args: Iterable[tuple[Any, ...]]) -> None:
        self.batches.append(self.many(function, args))  # it would cancel them, dropped

    def drop(self, function: Call, *args: Any) -> None:
        self.drop_many(function, [args])

    def wait(self) -> None:
        for batch in self.batches:
            list(batch)


class DecoProcess(Deco):
    """`@concurrent(processes=1)`; `wait()` waits."""

    title = "deco"
    module = "deco"

    def __init__(self) -> None:
        super().__init__()
        from deco import concurrent

        self.kind = concurrent


class Dask(Way):
    """`submit(…, pure=False)` of a `Client(n_workers=1, threads_per_worker=1)`; `wait` waits.

    Calls at which nobody looks are made by `fire_and_forget`.
    """

    title = "Dask"
    module = "distributed"
    patience = 8.0
    hang = 30.0
    own_await = "by an asynchronous client"

    def __init__(self) -> None:
        from distributed import Client, fire_and_forget

        self.forget = fire_and_forget
        self.client: Any = Client(n_workers=1, threads_per_worker=1, dashboard_address=None)
        self.made: list[Any] | None = []

    def call(self, function: Call, *args: Any) -> Any:
        future = self.client.submit(function, *args, pure=False)
        if self.made is not None:
            self.made.append(future)
        return future

    def awaited(self) -> Any:
        from distributed import Client

        async def main() -> Any:
            async with Client(self.client.scheduler.address, asynchronous=True) as client:
                return await client.submit(calls.add, 1, 2)

        return asyncio.run(main())

    def drop(self, function: Call, *args: Any) -> None:
        self.forget(self.client.submit(function, *args, pure=False))

    def wait(self) -> None:
        from distributed import wait

        wait(self.made)


class OursDask(OursProcess):
    """`background(executor=DaskExecutor(client))` with a client of one worker and one thread.

    Without a guard `DaskExecutor()`, which starts a cluster itself.
    """

    title = "`DaskExecutor()`"
    module = "distributed"
    patience = 8.0
    hang = 30.0

    def __init__(self) -> None:
        Ours.__init__(self)
        from distributed import Client

        client: Any = Client(n_workers=1, threads_per_worker=1, dashboard_address=None)
        self.options = {"executor": self.ours.DaskExecutor(client)}

    @classmethod
    def alone(cls) -> Any:
        way = cls.__new__(cls)
        Ours.__init__(way)
        way.options = {"executor": way.ours.DaskExecutor()}
        return way


# -- Queues on disk ------------------------------------------------------------------------


class Durable:
    """A queue in a folder: `put` a call there, and `work` until the process is killed."""

    title: str
    module = ""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "queue")

    def put(self, function: Call, *args: Any) -> Any:
        raise NotImplementedError

    def put_alone(self, function: Call, *args: Any) -> Any:
        """Make a call and let the way start a worker, if it does."""
        return self.put(function, *args)

    def result(self, handle: Any) -> Any:
        """Wait for the result of a call."""
        raise NotImplementedError("no results")

    def failures(self) -> str:
        """Return what the queue tells of failed calls."""
        return ""

    def work(self) -> None:
        raise NotImplementedError


class OursDurable(Durable):
    """`submit`, and `python -m background worker` where a worker is started by hand."""

    title = "`SQLiteExecutor`"
    start_worker = False

    def put(self, function: Call, *args: Any) -> Any:
        from background import SQLiteExecutor

        options: dict[str, Any] = {"start_worker": self.start_worker, "idle_timeout": 1}
        return SQLiteExecutor(self.path, **options).submit(function, *args)

    def put_alone(self, function: Call, *args: Any) -> Any:
        self.start_worker = True
        return self.put(function, *args)

    def result(self, handle: Any) -> Any:
        return handle.result(20)

    def failures(self) -> str:
        from background import SQLiteExecutor

        return str(SQLiteExecutor(self.path).calls())

    def work(self) -> None:
        from background.__main__ import main

        main(["worker", "--create", self.path])


class Huey(Durable):
    """`SqliteHuey`, `task()`, and a consumer with one thread."""

    title = "huey"
    module = "huey"

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        from huey import SqliteHuey

        self.huey: Any = SqliteHuey(filename=self.path)
        self.tasks = {function: self.huey.task()(function) for function in calls.FUNCTIONS}

    def put(self, function: Call, *args: Any) -> Any:
        return (self.tasks.get(function) or self.huey.task()(function))(*args)

    def result(self, handle: Any) -> Any:
        return handle.get(blocking=True, timeout=20)

    def work(self) -> None:
        import logging

        logging.basicConfig()  # as its command does
        self.huey.create_consumer(workers=1, initial_delay=0.01, max_delay=0.01, backoff=1).run()


class PersistQueue(Durable):
    """`SQLiteAckQueue` and the documented loop of `get` and `ack`."""

    title = "persist-queue"
    module = "persistqueue"

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        from persistqueue import SQLiteAckQueue

        self.queue: Any = SQLiteAckQueue(self.path, multithreading=True, auto_commit=True)

    def put(self, function: Call, *args: Any) -> Any:
        return self.queue.put((function, args))

    def work(self) -> None:
        from persistqueue import Empty

        while True:
            try:
                item = self.queue.get(block=False)
            except Empty:
                calls.until(lambda: False, 0.01)
                continue
            function, args = item
            function(*args)
            self.queue.ack(item)


class LiteQueue(Durable):
    """The documented loop of `pop` and `done`.

    It calls `retry_expired(threshold_seconds=2)` where the version has that.
    """

    title = "litequeue"
    module = "litequeue"

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        import litequeue

        self.queue: Any = litequeue.LiteQueue(self.path)

    def put(self, function: Call, *args: Any) -> Any:
        import base64
        import pickle

        return self.queue.put(base64.b64encode(pickle.dumps((function, args))).decode())

    def work(self) -> None:
        import base64
        import pickle

        expires = hasattr(self.queue, "retry_expired")  # since 0.11, on Python 3.12 and newer
        while True:
            if expires:
                self.queue.retry_expired(threshold_seconds=2)
            message = self.queue.pop()
            if message is None:
                calls.until(lambda: False, 0.01)
                continue
            function, args = pickle.loads(base64.b64decode(message.data))
            function(*args)
            claim = {"claim_id": message.claim_id} if expires else {}
            self.queue.done(message.message_id, **claim)


THREADS: dict[str, type[Way]] = {
    "ours": Ours,
    "thread_pool": ThreadPool,
    "queue": Queue,
    "thread": Thread,
    "index": Index,
    "unsync": Unsync,
    "deco": Deco,
    "more_executors": MoreExecutors,
    "pebble": Pebble,
}
PROCESSES: dict[str, type[Way]] = {
    "ours_process": OursProcess,
    "process_pool": ProcessPool,
    "loky": Loky,
    "pebble_process": PebbleProcess,
    "joblib": Joblib,
    "deco_process": DecoProcess,
    "ours_dask": OursDask,
    "dask": Dask,
}
DURABLE: dict[str, type[Durable]] = {
    "ours_durable": OursDurable,
    "huey": Huey,
    "persist_queue": PersistQueue,
    "litequeue": LiteQueue,
}
