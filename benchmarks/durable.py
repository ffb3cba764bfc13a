"""Measure durable queues side by side: `python -m benchmarks.durable`.

Each contender runs in processes of its own; the rivals are installed into an environment of
their own. Its file `durable_calls.py` is what they all call.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RIVALS = ["huey==3.5.4", "persist-queue==1.1.0", "litequeue==0.9"]
NAMES = ["ours", "huey", "persist-queue", "litequeue"]

# What a producer puts and a worker runs, in each queue's own words: (put, work). `work` runs
# calls until it is killed.
CALLS = """
import os, time
def write(path, text):
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{text}\\n".encode())
    os.close(file)
def call(path, text, data=b""):
    # "slow" is where the kill strikes
    if path:
        write(path, f"{text} {time.time()}")
    if text == "slow":
        time.sleep(1)
    if path and text == "slow":
        write(path, f"ended {time.time()}")
    if text == "poison":
        os.kill(os.getpid(), 9)
"""
QUEUES = {
    "ours": """
from background import SQLiteExecutor
executor = SQLiteExecutor(folder + "/queue", start_worker=False)
def put(*args):
    executor.submit(calls.call, *args)
def work():
    from background.__main__ import main
    main(["worker", folder + "/queue"])
""",
    "huey": """
from huey import SqliteHuey
huey = SqliteHuey(filename=folder + "/queue", results=False)
task = huey.task()(calls.call)
def put(*args):
    task(*args)
def work():
    import logging
    logging.disable(logging.CRITICAL)
    huey.create_consumer(workers=1, initial_delay=0.01, max_delay=0.01, backoff=1).run()
""",
    "persist-queue": """
import pickle
from persistqueue import SQLiteAckQueue
queue = SQLiteAckQueue(folder + "/queue", multithreading=True, auto_commit=True)
def put(*args):
    queue.put(args)
def work():
    while True:  # what its documentation shows
        try:
            item = queue.get(block=False)
        except Exception:
            time.sleep(0.01)
            continue
        calls.call(*item)
        queue.ack(item)
        queue.clear_acked_data(keep_latest=0)
""",
    "litequeue": """
import base64, pickle
from litequeue import LiteQueue
queue = LiteQueue(folder + "/queue")
def put(*args):
    queue.put(base64.b64encode(pickle.dumps(args)).decode())
def work():
    while True:
        message = queue.pop()
        if message is None:
            time.sleep(0.01)
            continue
        calls.call(*pickle.loads(base64.b64decode(message.data)))
        queue.done(message.message_id)
""",
}
PUT = """
numbers = json.loads(sys.argv[3])
times, errors = [], 0
data = os.urandom(1000)
for text, pause in numbers:
    before = time.perf_counter()
    try:
        put(sys.argv[2], text.replace("now", repr(time.time())), data)
    except Exception as error:
        errors += 1
    times.append(time.perf_counter() - before)
    if pause:
        time.sleep(pause)
print(json.dumps([times, errors]), flush=True)
os._exit(0)
"""
HEAD = """
import json, os, sys, time
folder = sys.argv[1]
sys.path.insert(0, folder)
import calls
"""


class Queue:
    """One contender in a folder of its own."""

    def __init__(self, python: str, name: str) -> None:
        self.python, self.name = python, name
        self.folder = tempfile.mkdtemp()
        Path(self.folder, "calls.py").write_text(CALLS)
        self.log = self.folder + "/log"
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, code: str, *arguments: str) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        if self.name != "ours":
            del env["PYTHONPATH"]
        return subprocess.Popen(
            [self.python, "-c", HEAD + QUEUES[self.name] + code, self.folder, *arguments],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def put(self, numbers: list[tuple[str, float]], log: bool = True) -> tuple[list[float], int]:
        """Make calls in a process of its own; return what each took, and how many failed."""
        process = self.start(PUT, self.log if log else "", json.dumps(numbers))
        out, _ = process.communicate(timeout=300)
        times, errors = json.loads(out)
        return times, errors

    def work(self) -> subprocess.Popen[bytes]:
        self.workers.append(self.start("work()"))
        return self.workers[-1]

    def lines(self) -> list[list[str]]:
        if not os.path.exists(self.log):
            return []
        return [line.split() for line in Path(self.log).read_text().splitlines()]

    def wait(self, condition: Callable[[list[list[str]]], object], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not condition(self.lines()):
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
                try:
                    worker.communicate(timeout=3)
                except subprocess.TimeoutExpired:
                    worker.kill()
            worker.communicate()


def costs(queue: Queue, number: int) -> dict[str, float]:
    """Return what a call costs while a worker drains, the idle latency, the drained calls."""
    queue.put([("first", 0)])
    queue.work()
    assert queue.wait(lambda lines: len(lines) == 1, 30)
    latencies = [("now", 0.05)] * 20
    queue.put(latencies)
    assert queue.wait(lambda lines: len(lines) == 21, 30)
    idle = [float(line[1]) - float(line[0]) for line in queue.lines()[1:]]
    times, errors = queue.put([("busy", 0)] * number)
    # Then the worker alone has the machine.
    queue.wait(lambda lines: len(lines) >= 21 + number - errors, 120)
    queue.stop()
    queue.put([("drained", 0)] * number)
    queue.work()
    queue.wait(lambda lines: sum(line[0] == "drained" for line in lines) >= number, 120)
    queue.stop()
    stamps = [float(line[1]) for line in queue.lines() if line[0] == "drained"]
    times.sort()
    return {
        "µs a call": statistics.median(times) * 1e6,
        "99 %, ms": times[int(len(times) * 0.99)] * 1e3,
        "most, ms": times[-1] * 1e3,
        "errors": errors,
        "ms from idle": statistics.median(idle) * 1e3,
        "calls/s": (len(stamps) - 1) / (stamps[-1] - stamps[0]),
    }


def kills(python: str, name: str) -> dict[str, str]:
    """Return what becomes of a call whose worker is killed, and of one that kills its worker."""
    said = {}
    queue = Queue(python, name)
    queue.put([("slow", 0), ("next", 0)])
    first = queue.work()
    assert queue.wait(lambda lines: lines, 30)
    victims = [first.pid]
    if name == "ours":  # the worker, not its supervisor, which has the other one's part
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text()
        victims = [int(pid) for pid in children.split()]
    killed = time.time()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    if name != "ours":
        queue.work()
    again = queue.wait(lambda lines: sum(line[0] == "slow" for line in lines) > 1, 12)
    stamps = [float(line[1]) for line in queue.lines() if line[0] == "slow"]
    said["its worker is killed"] = (
        f"run again after {stamps[1] - killed:.2f} s" if again else "lost: not run again in 12 s"
    )
    queue.stop()
    queue = Queue(python, name)
    queue.put([("poison", 0), ("next", 0)])
    worker = queue.work()
    for _ in range(20):  # a supervisor's part, for those who bring none
        if queue.wait(lambda lines: any(line[0] == "next" for line in lines), 1.5):
            break
        if worker.poll() is not None:
            worker = queue.work()
    tried = sum(line[0] == "poison" for line in queue.lines())
    served = any(line[0] == "next" for line in queue.lines())
    said["it kills its worker"] = (
        f"tried {tried} times; the next call {'ran' if served else 'never ran'}"
    )
    queue.stop()
    queue = Queue(python, name)
    number = 2000
    queue.put([(str(i), 0) for i in range(number)])
    for _ in range(2):
        queue.work()
    queue.wait(lambda lines: len({line[0] for line in lines}) == number, 60)
    time.sleep(0.5)  # for those who run one twice
    ran = [line[0] for line in queue.lines()]
    said["two workers, 2,000 calls"] = (
        f"{len(ran) - len(set(ran))} run twice, {number - len(set(ran))} not run"
    )
    queue.stop()
    return said


def table(rows: dict[str, dict[str, Any]]) -> str:
    keys = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for name, cells in rows.items():
        shown = [
            f"{cell:,.2f}"
            if isinstance(cell, float) and cell < 100
            else f"{cell:,.0f}"
            if isinstance(cell, float | int)
            else cell
            for cell in (cells[key] for key in keys)
        ]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durable", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it runs")
    options = parser.parse_args()
    rounds, number = (1, 300) if options.quick else (3, 5000)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        rival = str(Path(folder, "bin", "python"))
        install = [rival, "-m", "pip", "install", "--quiet", *RIVALS]
        subprocess.run(install, check=True)
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
        for _ in range(rounds):
            for name in NAMES:  # in turn, so that noise hits all
                python = sys.executable if name == "ours" else rival
                measured[name].append(costs(Queue(python, name), number))
        said = {name: kills(sys.executable if name == "ours" else rival, name) for name in NAMES}
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in measured.items()
    }
    print(table(medians), table(said), sep="\n\n")


if __name__ == "__main__":
    main()
