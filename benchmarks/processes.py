"""Measure plots that compute: inline, in a thread, and in processes of several kinds.

`python processes.py NAME MEASURE NUMBER` measures one contender in a process of its own and
prints the figures as JSON; `section` has all of them measured and returns the tables.
"""

import json
import operator
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]

TITLES = {
    "nothing": "no plots",
    "inline": "inline",
    "thread": "@background, a thread",
    "process_pool": "ProcessPoolExecutor(1)",
    "loky": "loky, one worker",
    "pebble": "pebble, one worker",
    "ours": "@background, ProcessExecutor()",
}
POOLS = ["process_pool", "loky", "pebble", "ours"]
# measure: (title, contenders, number, number when quick)
MEASURES: dict[str, tuple[str, list[str], int, int]] = {
    "computing": ("A loop with a plot of 0.8 ms at every fourth step", list(TITLES), 12_000, 800),
    "figures": ("A loop with a real figure at every twentieth step", list(TITLES), 240, 40),
    "costs": ("What a process costs", POOLS, 2_000, 100),
}


class Contender:
    """A way to have a function called: `wrap` it, then `wait` for all calls."""

    def __init__(self, name: str) -> None:
        self.last: Any = None
        self.submit: Call = getattr(self, name)()

    def inline(self) -> Call:
        return lambda function, *args: function(*args)

    def thread(self) -> Call:
        from background import ThreadExecutor

        return ThreadExecutor().submit

    def process_pool(self) -> Call:
        from concurrent.futures import ProcessPoolExecutor

        return ProcessPoolExecutor(1).submit

    def loky(self) -> Call:
        import loky

        return loky.get_reusable_executor(1).submit

    def pebble(self) -> Call:
        import pebble

        pool = pebble.ProcessPool(1)
        return lambda function, *args: pool.schedule(function, args)

    def ours(self) -> Call:
        from background import ProcessExecutor

        return ProcessExecutor().submit

    def wrap(self, function: Call) -> Call:
        def call(*args: Any) -> Any:
            self.last = self.submit(function, *args)
            return self.last

        return call

    def wait(self) -> None:
        if hasattr(self.last, "result"):  # one worker: the last one is done last
            self.last.result()


def square(data: list[float], times: int) -> float:
    """Compute a fixed amount."""
    total = 0.0
    for _ in range(times):
        total += sum([x * x for x in data])
    return total


def plot(step: int, losses: list[float]) -> float:
    """Stand for a plot that computes for 0.8 ms."""
    return square(losses * 4, 110)


def draw(step: int, losses: list[float], weights: Any) -> None:
    """Draw a loss curve and an image of the weights."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3))
    left, right = figure.subplots(1, 2)
    left.plot(losses)
    left.set_title(f"step {step}")
    right.imshow(weights)
    figure.savefig(io.BytesIO(), format="png")


def computing(contender: Contender | None, steps: int) -> dict[str, float]:
    """Return the seconds of a loop of steps of 28 µs, with a plot at every fourth."""
    losses = [0.5] * 50
    call = contender.wrap(plot) if contender else None
    if contender and call:
        call(0, losses)
        contender.wait()
    start = time.perf_counter()
    for i in range(steps):
        square(losses, 28)
        if call and i % 4 == 3:
            call(i, losses)
    made = time.perf_counter() - start
    if contender:
        contender.wait()
    return {"seconds": made}


def figures(contender: Contender | None, steps: int) -> dict[str, float]:
    """Return the seconds of a loop of steps of 5 ms, with a figure at every twentieth."""
    import numpy as np

    losses, weights = [0.5] * 50, np.ones((64, 64))
    call = contender.wrap(draw) if contender else None
    if contender and call:
        call(0, losses, weights)
        contender.wait()
    start = time.perf_counter()
    for i in range(steps):
        square(losses, 2_500)
        if call and i % 20 == 19:
            call(i, losses, weights)
    made = time.perf_counter() - start
    if contender:
        contender.wait()
    return {"seconds": made}


def costs(contender: Contender | None, calls: int) -> dict[str, float]:
    """Return what a new worker, a small call, an idle round trip and 8 MB cost."""
    import numpy as np

    assert contender is not None
    start = time.perf_counter()
    contender.submit(operator.add, 1, 2).result()
    new = time.perf_counter() - start
    small = contender.wrap(plot)
    small(0, [])
    contender.wait()
    start = time.perf_counter()
    for i in range(calls):
        small(i, [])
    made = time.perf_counter() - start
    contender.wait()
    trips: list[float] = []
    for i in range(100):
        time.sleep(0.002)
        start = time.perf_counter()
        contender.submit(operator.add, i, 2).result()
        trips.append(time.perf_counter() - start)
    array, copies, sends = np.ones(1_000_000), [], []
    for _ in range(20):
        start = time.perf_counter()
        array.copy()
        copied = time.perf_counter()
        future = contender.submit(len, array)
        sends.append(time.perf_counter() - copied)
        copies.append(copied - start)
        future.result()
    return {
        "new worker, ms": new * 1e3,
        "small call, µs": made / calls * 1e6,
        "idle round trip, ms": statistics.median(trips) * 1e3,
        "8 MB, in copies": statistics.median(sends) / statistics.median(copies),
    }


def section(env: dict[str, str], rounds: int, quick: bool) -> list[str]:
    """Have all contenders measured in turn and return the tables as Markdown."""
    lines: list[str] = []
    for measure, (title, contenders, number, few) in MEASURES.items():
        table: dict[str, dict[str, list[float]]] = {}
        for _ in range(rounds):
            for name in contenders:
                command = [sys.executable, __file__, name, measure, str(few if quick else number)]
                out = subprocess.run(
                    command, env=env, capture_output=True, text=True, timeout=300, check=False
                )
                if out.returncode:
                    print(out.stderr[-2000:], file=sys.stderr)
                    continue
                for key, value in json.loads(out.stdout.split("\n")[-2]).items():
                    table.setdefault(name, {}).setdefault(key, []).append(value)
        lines += ["", f"### {title}", "", *rows(table)]
        if measure == "costs":
            lines += [
                "",
                "The pools of others pickle later, in a thread: what is changed after the call "
                "leaks into it. Reaches: at most 100 ms, 30 µs, 0.3 ms and 2 copies.",
            ]
    return lines


def rows(table: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return a table, with ratios to the bare loop where there is one."""
    keys = list(next(iter(table.values())))
    ratio = "nothing" in table
    lines = ["| | " + " | ".join(keys) + (" | ratio |" if ratio else " |")]
    lines.append("|---" * (len(keys) + 1 + ratio) + "|")
    for name, row in table.items():
        cells = [
            f"{statistics.median(row[key]):.2f} ({min(row[key]):.2f} to {max(row[key]):.2f})"
            for key in keys
        ]
        if ratio:
            bare = statistics.median(table["nothing"]["seconds"])
            cells.append(f"{statistics.median(row['seconds']) / bare:.2f}")
        lines.append(f"| {TITLES[name]} | " + " | ".join(cells) + " |")
    return [*lines, "", "Reach for ProcessExecutor: at most 1.10."] if ratio else lines


def main() -> None:
    """Measure once and print the figures."""
    name, measure, number = sys.argv[1:]
    contender = None if name == "nothing" else Contender(name)
    print(json.dumps(globals()[measure](contender, int(number))), flush=True)


if __name__ == "__main__":
    main()
