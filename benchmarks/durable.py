"""Measure durable queues: what a call costs, and what becomes of it when its worker dies.

Run as `python durable.py NAME MEASURE NUMBER`; see `measuring`. Who puts calls and who runs
them are processes of their own.
"""

import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from measuring import Figures, main

LEASE = 5  # seconds after which litequeue takes a worker for dead
MODULES = {
    "ours": "background",
    "huey": "huey",
    "persist-queue": "persistqueue",
    "litequeue": "litequeue",
}

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
    main(["worker", "--create", folder + "/queue"])
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
    looked = time.monotonic()
    while True:
        message = queue.pop()
        if message is None:
            time.sleep(0.01)
            if hasattr(queue, "retry_expired") and time.monotonic() > looked + 1:
                queue.retry_expired(threshold_seconds=LEASE)  # since its version 0.13
                looked = time.monotonic()
            continue
        calls.call(*pickle.loads(base64.b64decode(message.data)))
        claim = {"claim_id": message.claim_id} if hasattr(message, "claim_id") else {}
        queue.done(message.message_id, **claim)
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
    """One contender, and a folder of its own for each measurement."""

    def __init__(self, name: str) -> None:
        importlib.import_module(MODULES[name])
        self.name = name
        self.anew()

    def anew(self) -> None:
        self.place = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.folder = self.place.name
        Path(self.folder, "calls.py").write_text(CALLS)
        self.log = Path(self.folder, "log")
        self.log.touch()
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, code: str, *arguments: object) -> subprocess.Popen[bytes]:
        code = HEAD + f"LEASE = {LEASE}" + QUEUES[self.name] + code
        return subprocess.Popen(
            [sys.executable, "-c", code, self.folder, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def put(self, numbers: list[tuple[str, float]]) -> tuple[list[float], int]:
        """Make calls in a process of its own; return what each took, and how many failed."""
        process = self.start(PUT, self.log, json.dumps(numbers))
        out, _ = process.communicate(timeout=300)
        times, errors = json.loads(out)
        return times, errors

    def work(self) -> subprocess.Popen[bytes]:
        self.workers.append(self.start("work()"))
        return self.workers[-1]

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()]

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
                with suppress(subprocess.TimeoutExpired):
                    worker.communicate(timeout=3)
                worker.kill()
            worker.communicate()


def costs(queue: Queue, number: int) -> Figures:
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


def killed(queue: Queue, seconds: int) -> Figures:
    """Return what becomes of a call whose worker is killed, and of one that kills its worker."""
    queue.put([("slow", 0), ("next", 0)])
    worker = queue.work()
    assert queue.wait(lambda lines: lines, 30)
    victims = [worker.pid]
    if queue.name == "ours":  # the worker, not its supervisor, which has the other one's part
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text()
        victims = [int(pid) for pid in children.split()]
    before = time.time()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    if queue.name != "ours":
        queue.work()
    again = queue.wait(lambda lines: sum(line[0] == "slow" for line in lines) > 1, seconds)
    stamps = [float(line[1]) for line in queue.lines() if line[0] == "slow"]
    queue.stop()

    queue.anew()
    queue.put([("poison", 0), ("next", 0)])
    for _ in range(20):  # a supervisor's part, for those who bring none
        gone = queue.work().poll
        queue.wait(lambda lines, gone=gone: served(lines) or gone() is not None, seconds)
        if served(queue.lines()):
            break
    lines = queue.lines()
    tried = sum(line[0] == "poison" for line in lines)
    queue.stop()
    return {
        "its worker is killed": (
            f"run again after {stamps[1] - before:.2f} s"
            if again
            else f"lost: not run again in {seconds} s"
        ),
        "it kills its worker": (
            f"tried {tried} time{'s' * (tried != 1)}; "
            f"the next call {'ran' if served(lines) else 'never ran'}"
        ),
    }


def served(lines: list[list[str]]) -> bool:
    return any(line[0] == "next" for line in lines)


def shared(queue: Queue, number: int) -> Figures:
    """Return how often two workers together ran a call twice or not at all."""
    queue.put([(str(i), 0) for i in range(number)])
    for _ in range(2):
        queue.work()
    queue.wait(lambda lines: len({line[0] for line in lines}) == number, 60)
    time.sleep(0.5)  # for those who run one twice
    ran = [line[0] for line in queue.lines()]
    queue.stop()
    return {"run twice": len(ran) - len(set(ran)), "not run": number - len(set(ran))}


if __name__ == "__main__":
    main(Queue, costs, killed, shared)
