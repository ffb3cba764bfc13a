"""A storm over a durable executor: everybody is killed at random moments."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import durable_calls
from test_durable import ENDINGS, environment

from background import SQLiteExecutor
from background._executors.sqlite.locks import SOMEBODY, Life
from background._executors.sqlite.store import Store

PRODUCER = """
import os, sys, time
from background import SQLiteExecutor
import durable_calls
file, log, said, name = sys.argv[1:]
executor = SQLiteExecutor(file, idle_timeout=2)
said = os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(100_000):
    executor.submit(durable_calls.storm, log, f"{name} {number}")
    os.write(said, f"{name} {number}\\n".encode())
    time.sleep(0.004)
"""


def storm(folder: Path, wanted: int, kills: int) -> Counter[str]:
    """Make calls, kill those who make and run them, and check what ran; return counts."""
    file, log, said = (str(folder / name) for name in ("calls.db", "log", "said"))
    dice = random.Random(7)
    counts: Counter[str] = Counter()
    producers: list[subprocess.Popen[bytes]] = []
    store, life = Store(file, "NORMAL", 64_000), Life(file)
    deadline = time.monotonic() + 500
    few = max(kills // 20, 1)
    while (
        counts["workers killed"] < kills
        or min(counts["producers killed"], counts["supervisors killed"]) < few
        or counts["said"] < wanted
    ):
        assert time.monotonic() < deadline, counts
        while len(producers) < 2:
            command = [sys.executable, "-c", PRODUCER, file, log, said, str(counts["producers"])]
            producers.append(subprocess.Popen(command, env=environment()))
            counts["producers"] += 1
        time.sleep(dice.uniform(0.005, 0.15))
        workers = [worker.pid for worker in store.workers(life)]
        counts["said"] = len(durable_calls.lines(said))
        if dice.random() < 0.9:
            if not workers:
                continue
            kind, pid = "workers killed", dice.choice(workers)
            if dice.random() < 0.1:
                kind, pid = "supervisors killed", parent(pid)
        else:
            kind, producer = "producers killed", producers.pop(dice.randrange(len(producers)))
            pid = producer.pid
        if pid > 1:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            counts[kind] += 1
        if kind == "producers killed":
            producer.wait()
    for producer in producers:
        producer.kill()
        producer.wait()
    # A last call, not `worker --drain`: that would run beside a worker which a producer had
    # started and which is not to be seen yet, and upset the order.
    with SQLiteExecutor(file, idle_timeout=0) as executor:
        executor.submit(durable_calls.storm, log, "last 0").result(deadline - time.monotonic())
    assert not [call for call in store.calls() if call.state in ("waiting", "running")]
    while life.taken(SOMEBODY):  # it ends by itself
        assert time.monotonic() < deadline
        time.sleep(0.05)
    said_lines = durable_calls.lines(said)
    began = [line.removeprefix("+ ") for line in durable_calls.lines(log) if line[0] == "+"]
    ended = [line.removeprefix("- ") for line in durable_calls.lines(log) if line[0] == "-"]
    dead = {call.id for call in store.calls() if call.state == "dead"}
    store.close()
    counts["said"] = len(said_lines)
    counts["lost"] = len(set(said_lines) - set(ended))
    counts["begun again"] = len(began) - len(set(began))
    counts["ended again"] = len(ended) - len(set(ended))
    counts["dead"] = len(dead)
    # Each call that began again was in a worker that was killed, and a kill hits one call.
    # One that was hit three times, a rare bad luck, is dead and not lost.
    assert counts["lost"] <= counts["dead"], counts
    assert counts["begun again"] <= counts["workers killed"], counts
    # There never are two workers at a time: the calls of a program begin in order.
    last: dict[str, int] = {}
    for line in began:
        name, number = line.split()
        counts["out of order"] += int(number) < last.get(name, 0)
        last[name] = max(int(number), last.get(name, 0))
    assert not counts["out of order"], counts
    return counts


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test_a_storm(tmp_path: Path) -> None:
    """Durable: whoever is killed, no call is lost, and none runs twice but in killed workers."""
    storm(tmp_path, wanted=600, kills=10)
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("log", "said"),
        *("calls.db" + ending for ending in ENDINGS),
    }


if __name__ == "__main__":  # FOLDER CALLS KILLS
    print(dict(storm(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
