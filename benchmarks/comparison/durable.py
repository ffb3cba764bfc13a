"""Try one feature on one queue on disk, in programs of its own, and judge what came of it.

Run as `python durable.py put|work WAY FOLDER [WHAT]` it is such a program.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import calls
from calls import lines, until
from ways import DURABLE, Durable

HERE = Path(__file__).parent


class Trial:
    """A queue in a folder of its own, with programs that put calls into it and run them."""

    def __init__(self, way: str, path: str) -> None:
        self.way = way
        self.ours = way == "ours_durable"
        self.folder = tempfile.mkdtemp(prefix="comparison-")
        self.env = {**os.environ, "PYTHONPATH": path}
        self.programs: list[subprocess.Popen[bytes]] = []

    def start(self, role: str, *what: str) -> subprocess.Popen[bytes]:
        with open(f"{self.folder}/{role}-errors", "ab") as err:
            program = subprocess.Popen(
                [sys.executable, str(HERE / "durable.py"), role, self.way, self.folder, *what],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )
        self.programs.append(program)
        return program

    def put(self, what: str) -> int:
        """Have a program put calls, and return its exit code."""
        return self.start("put", what).wait(60)

    def work(self) -> subprocess.Popen[bytes]:
        return self.start("work")

    def count(self, start: str) -> int:
        return sum(line.startswith(start) for line in lines(self.folder))

    def waits_for(self, start: str, number: int = 1, seconds: float = 20) -> bool:
        return until(lambda: self.count(start) >= number, seconds)

    def errors(self, role: str) -> str:
        return Path(self.folder, f"{role}-errors").read_text("utf-8", "replace")

    def end(self) -> None:
        calls.open_gate(self.folder)
        for program in self.programs:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


PUTS: dict[str, Callable[[Durable, str], Any]] = {}
FEATURES: dict[str, tuple[str, Callable[[Trial], str]]] = {}


def puts(function: Callable[[Durable, str], Any]) -> Callable[[Durable, str], Any]:
    PUTS[function.__name__] = function
    return function


def feature(title: str) -> Callable[[Callable[[Trial], str]], Callable[[Trial], str]]:
    def add(judge: Callable[[Trial], str]) -> Callable[[Trial], str]:
        FEATURES[judge.__name__] = title, judge
        return judge

    return add


@puts
def twenty_then_die(queue: Durable, folder: str) -> None:
    for number in range(20):
        queue.put(calls.note, folder, number)
    os.kill(os.getpid(), signal.SIGKILL)


@puts
def dying_then_next(queue: Durable, folder: str) -> None:
    queue.put(calls.die_first, folder, 0)
    queue.put(calls.note, folder, "next")


@puts
def held(queue: Durable, folder: str) -> None:
    queue.put(calls.hold, folder, "it")


@puts
def failing_then_next(queue: Durable, folder: str) -> None:
    queue.put(calls.fail, folder)
    queue.put(calls.note, folder, "next")


@puts
def kept(queue: Durable, folder: str) -> None:
    if "in fail" in queue.failures():
        calls.write(folder, "kept")


@puts
def sum_and_wait(queue: Durable, folder: str) -> None:
    if queue.result(queue.put(calls.add, 1, 2)) == 3:
        calls.write(folder, "came back")


@puts
def closing(queue: Durable, folder: str) -> None:
    queue.put(lambda: calls.note(folder, "closure"))


@puts
def changing(queue: Durable, folder: str) -> None:
    live = calls.Live(1)
    queue.put(calls.show, folder, live)
    live.value = 2
    calls.Live.changed.set()


@puts
def one_alone(queue: Durable, folder: str) -> None:
    queue.put_alone(calls.note, folder, "it")


@feature("calls of a program that is killed right after them")
def survives(trial: Trial) -> str:
    trial.put("twenty_then_die")
    trial.work()
    trial.waits_for("ended ", 20)
    lost = 20 - trial.count("ended ")
    return f"lost {lost} of 20" if lost else "all 20 run"


@feature("calls run one at a time, in order")
def order(trial: Trial) -> str:
    trial.put("twenty_then_die")
    trial.work()
    trial.waits_for("ended ", 20)
    return "yes" if lines(trial.folder) == [f"ended {n}" for n in range(20)] else "no"


@feature("who starts the worker")
def starts(trial: Trial) -> str:
    trial.put("one_alone")
    return "the first call" if trial.waits_for("ended ", seconds=5) else "you do"


@feature("a call whose worker is killed")
def killed(trial: Trial) -> str:
    trial.put("held")
    first = trial.work()
    assert trial.waits_for("started it"), trial.errors("work")
    kill_worker(trial, first)
    if not trial.ours:  # whose command is a supervisor, too
        trial.work()
    return "runs again" if trial.waits_for("started it", 2, 12) else "is lost"


def kill_worker(trial: Trial, program: subprocess.Popen[bytes]) -> None:
    pid = int(lines(trial.folder)[0].split()[2])
    os.kill(pid, signal.SIGKILL)
    if not trial.ours:
        program.wait(20)


@feature("a call that kills every worker")
def poison(trial: Trial) -> str:
    calls.open_gate(trial.folder)
    trial.put("dying_then_next")
    worker = trial.work()
    tries = lambda: trial.count("started 0")  # noqa: E731
    while tries() < 6:
        before = tries()
        if worker.poll() is not None:  # a supervisor's part, for those who bring none
            worker = trial.work()
        if not until(lambda: tries() > before or worker.poll() is not None, 5):  # noqa: B023
            break
    times = "once" if tries() == 1 else f"{tries()} times" if tries() < 6 else "again and again"
    return f"tried {times}, the next one {'runs' if trial.count('ended next') else 'never runs'}"


@feature("a long call, when a second worker starts")
def long(trial: Trial) -> str:
    trial.put("held")
    trial.work()
    assert trial.waits_for("started it"), trial.errors("work")
    trial.work()
    return "runs twice" if trial.waits_for("started it", 2, 5) else "runs once"


@feature("a call that fails")
def failed(trial: Trial) -> str:
    trial.put("failing_then_next")
    worker = trial.work()
    until(lambda: trial.count("ended next") or worker.poll() is not None)
    if not trial.count("ended next"):
        return "ends the worker"
    logged = "the call has failed" in trial.errors("work")
    if trial.ours or not logged:
        trial.put("kept")
    if trial.count("kept"):
        return "kept with its traceback"
    return "logged by the worker" if logged else "silent"


@feature("the result comes back to the caller")
def result(trial: Trial) -> str:
    trial.work()
    if trial.put("sum_and_wait"):
        return "no" if "NotImplementedError" in trial.errors("put") else "fails"
    return "yes" if trial.count("came back") else "no"


@feature("a lambda or a closure")
def closure(trial: Trial) -> str:
    if trial.put("closing"):
        error = trial.errors("put").strip().splitlines()[-1].split(":")[0].split(".")[-1]
        return f"fails: {error}"
    trial.work()
    return "works" if trial.waits_for("ended closure", seconds=5) else "is lost in the worker"


@feature("an argument that changes right after the call")
def live(trial: Trial) -> str:
    calls.open_gate(trial.folder)
    trial.put("changing")
    trial.work()
    assert trial.waits_for("shown "), trial.errors("work")
    return "as at the call" if lines(trial.folder) == ["shown 1"] else "as changed later"


def outcome(name: str, way: str, path: str) -> str:
    """Try it and return the word for the cell."""
    trial = Trial(way, path)
    try:
        return FEATURES[name][1](trial)
    finally:
        trial.end()


def main() -> None:
    """Put calls, or run them."""
    role, way, folder, *what = sys.argv[1:]
    queue = DURABLE[way](folder)
    if role == "work":
        queue.work()
    else:
        PUTS[what[0]](queue, folder)


if __name__ == "__main__":
    main()
