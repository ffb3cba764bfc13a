"""What is measured, of whom, and what is to be reached; the scripts say how."""

from benchmarks.running import Measure

INDEX = "index_background"  # has our import name, and so an environment of its own
BARE = {"nothing": "no plots", "inline": "inline"}
THREADS = {
    "simple_queue": "SimpleQueue and a worker (the floor: no future, no errors)",
    "queue_task_done": "queue.Queue, a worker, task_done",
    "thread_pool": "ThreadPoolExecutor(1)",
    "thread_per_call": "a thread per call",
    INDEX: "the index's background",
    "more_executors": "more-executors, one thread",
    "pebble": "pebble, one thread",
    "unsync": "unsync, one thread",
    "deco": "deco, one thread",
    "joblib": "joblib, two threads",
    "dask": "Dask, one thread of the program",
    "ours_submit": "ThreadExecutor().submit",
    "ours": "@background",
}
PROCESSES = {
    "thread_pool": "ThreadPoolExecutor(1)",
    "ours_thread": "@background, a thread",
    "process_pool": "ProcessPoolExecutor(1)",
    "more_executors": "more-executors, one process",
    "loky": "loky, one process",
    "pebble": "pebble, one process",
    "unsync": "unsync, a process for each core",
    "deco": "deco, one process",
    "joblib": "joblib, two processes, a Parallel for each call",
    "dask": "Dask, one process",
    "ours_dask": "@background, DaskExecutor(client), one process",
    "ours": "@background, ProcessExecutor()",
}
DURABLE = {
    "huey": "huey",
    "persist-queue": "persist-queue",
    "litequeue": "litequeue",
    "ours": "@background, SQLiteExecutor(path)",
}
IMPORTS = {
    "concurrent.futures.thread": "concurrent.futures.thread",
    "more_executors": "more-executors",
    "pebble": "pebble",
    "unsync": "unsync",
    "deco": "deco",
    "loky": "loky",
    "joblib": "joblib",
    "distributed": "Dask",
    "huey": "huey",
    "persistqueue": "persist-queue",
    "litequeue": "litequeue",
    "wrapt": "wrapt",
    "background": "background",
    "background_beyond_wrapt": "background beyond wrapt",
}
GROWING = {
    "queue_task_done": "queue.Queue, task_done",
    "thread_pool": "ThreadPoolExecutor",
    "ours": "@background",
    "ours_uncollected": "@background, the garbage collector off",
}
COPIES = {"deepcopy": "copy.deepcopy", "array_copy": "array.copy", "snapshot": "snapshot"}
CASES = [
    "array, 10 KB",
    "array, 1 MB",
    "array, 50 MB",
    "four lists of 2,500 floats in a dict",
    "10,000 dicts in a list",
    "100 arrays of 1 KB in a dict",
]


def without(contenders: dict[str, str], *names: str) -> dict[str, str]:
    return {name: title for name, title in contenders.items() if name not in names}


POOLS = without(PROCESSES, "thread_pool", "ours_thread")
DRAWING = BARE | without(PROCESSES, "more_executors", "ours_dask")  # over what they stand on
WRITING = without(DRAWING, "loky", "pebble", "unsync", "deco", "joblib", "dask")
COLLECTED = without(GROWING, "ours_uncollected")

MEASURES = {
    "burst": Measure(
        "threads",
        "A burst of 20,000 calls",
        THREADS,
        number=20_000,
        few=2_000,
        tenth=("thread_per_call", "dask"),
        base="thread_pool",
        reaches=(
            ("µs a call", "ours", "thread_pool", "at most 0.30"),
            ("µs a call", "ours", "queue_task_done", "at most 0.8"),
            ("calls/s", "ours", "thread_pool", "at least 3"),
        ),
        text="A thread per call and Dask: 2,000 calls. joblib takes all calls at once.",
    ),
    "paced": Measure(
        "threads",
        "A call every 2 ms, the worker asleep",
        THREADS,
        number=300,
        few=50,
        base="thread_pool",
    ),
    "waiting": Measure(
        "threads",
        "Bytes a waiting call takes",
        THREADS,
        number=20_000,
        few=2_000,
        rounds=2,
        tenth=("dask",),
        base="thread_pool",
        reaches=(("bytes", "ours", "thread_pool", "at most 0.3"),),
    ),
    "finished": Measure(
        "threads",
        "Growth over a million finished calls",
        {name: THREADS[name] for name in ("queue_task_done", "thread_pool", "ours")},
        number=1_000_000,
        few=20_000,
        rounds=1,
    ),
    "imports": Measure(
        "imports",
        "What an import takes",
        IMPORTS,
        number=2,
        few=1,
        rounds=3,
        text="Reach for background beyond wrapt: at most 15 ms.",
    ),
    "snapshots": Measure(
        "snapshots",
        "A copy of the arguments, in µs",
        COPIES,
        number=200,
        few=1,
        reaches=tuple((case, "snapshot", "deepcopy", "at most 1") for case in CASES),
    ),
    "loop": Measure(
        "threads",
        "A loop with a plot that waits 20 ms at every tenth step",
        BARE | without(THREADS, "simple_queue", "ours_submit"),
        number=400,
        few=40,
        base="nothing",
        text="Reach for @background: at most 1.05.",
    ),
    "computing": Measure(
        "processes",
        "A loop with a plot of 0.8 ms at every fourth step",
        DRAWING,
        number=12_000,
        few=800,
        tenth=("joblib", "dask"),
        base="nothing",
        text="Reach for ProcessExecutor: at most 1.10.",
    ),
    "figures": Measure(
        "processes",
        "A loop with a matplotlib figure at every twentieth step",
        DRAWING,
        number=240,
        few=40,
        base="nothing",
        text="Reach for ProcessExecutor: at most 1.10.",
    ),
    "pages": Measure(
        "processes",
        "A loop with a plotly page at every twentieth step",
        WRITING,
        number=240,
        few=40,
        base="nothing",
        text="An HTML page with a curve and a heat map of 64 by 64, with plotly.js beside it.",
    ),
    "events": Measure(
        "processes",
        "A loop with a figure and an image for TensorBoard at every twentieth step",
        WRITING,
        number=240,
        few=40,
        base="nothing",
        text="By tensorboardX, into an event file.",
    ),
    "costs": Measure(
        "processes",
        "What a process costs",
        POOLS,
        number=2_000,
        few=100,
        tenth=("joblib", "dask", "ours_dask"),
        base="process_pool",
        text="The pools of others pickle later, in a thread: what is changed after the call "
        "leaks into it. Reaches for ProcessExecutor: at most 30 µs, 100 ms, 0.3 ms and 2 copies.",
    ),
    "killed": Measure(
        "processes",
        "When a worker is killed in a call",
        POOLS,
        number=10,
        few=5,
        rounds=1,
        text="While 100 calls wait for the worker, it gets SIGKILL; later, when they have ended "
        "or 10 seconds have passed, one more call is made. A second worker, where there is one, "
        "goes on at once.",
    ),
    "durable": Measure(
        "durable",
        "Durable calls of 1 KB",
        DURABLE,
        function="costs",
        number=3_000,
        few=300,
        rounds=3,
        base="huey",
        text="Made as fast as possible while one worker drains; from idle to the start; then "
        "drained by the worker alone. Reach: 100 µs, 5 ms (99 %), 25 ms from idle, 2,500 calls/s.",
    ),
    "durable_killed": Measure(
        "durable",
        "When the worker of durable calls is killed",
        DURABLE,
        function="killed",
        number=12,
        few=2,
        rounds=1,
        text="huey is at-most-once by design; litequeue, from 0.13 on, gives back what a worker "
        "has held for longer than a lease, here of 5 s. The loops of the workers are those of "
        "the projects' documentation.",
    ),
    "durable_shared": Measure(
        "durable",
        "2,000 durable calls, two workers",
        DURABLE,
        function="shared",
        number=2_000,
        few=200,
        rounds=1,
    ),
    "growing_waiting": Measure(
        "growing",
        "µs a call costs while so many come to wait",
        GROWING,
        function="waiting",
        number=1_000_000,
        few=1_000,
        rounds=1,
        text="From a tenth of the number to the number, the worker being held up. Flat up to "
        "some 1,000. Beyond, the calls that wait leave the processor's caches and take new "
        "memory; and the garbage collector, whenever a quarter more objects have come, visits "
        "all that wait: most of the rise is gone with it off.",
    ),
    "growing_callers": Measure(
        "growing",
        "µs a call costs all callers together, with so many threads that call",
        COLLECTED,
        function="callers",
        number=20_000,
        few=2_000,
        rounds=3,
        text="From the first call to the last, for each call; threads take turns at the "
        "interpreter's lock, so that one of N callers waits N times as long. Flat, but for the "
        "switches that the next table counts: @background has no lock at which callers could "
        "queue; ThreadPoolExecutor.submit holds two.",
    ),
    "growing_caller_switches": Measure(
        "growing",
        "Switches between threads in 1,000 calls, with so many threads that call",
        COLLECTED,
        function="caller_switches",
        number=20_000,
        few=2_000,
        rounds=1,
    ),
    "growing_workers": Measure(
        "growing",
        "µs a call costs its caller, with so many workers",
        COLLECTED,
        function="workers",
        number=20_000,
        few=2_000,
        rounds=3,
        text="Flat, but for the workers that the caller wakes up and that then take their turns "
        "at the interpreter's lock: the switches that the last table counts.",
    ),
    "growing_drained": Measure(
        "growing",
        "µs a call takes until all are done, with so many workers",
        COLLECTED,
        function="drained",
        number=20_000,
        few=2_000,
        rounds=3,
    ),
    "growing_worker_switches": Measure(
        "growing",
        "Switches between threads in 1,000 calls, with so many workers",
        COLLECTED,
        function="worker_switches",
        number=20_000,
        few=2_000,
        rounds=1,
    ),
}
