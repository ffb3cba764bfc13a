"""Try one feature on one way in a program of its own, and judge what came of it.

Run as `python features.py FEATURE WAY FOLDER` it is that program; `Trial` starts it and judges.
Free of any other import of this repository, so that the index's package of our import name
can be tried in an environment of its own.
"""

import asyncio
import functools
import gc
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calls
from calls import lines, until
from ways import PROCESSES, THREADS, Way

HERE = Path(__file__).parent
CALLS = 20  # that wait when a program ends


def ended(folder: str) -> list[str]:
    return [line.split()[1] for line in lines(folder) if line.startswith("ended ")]


# -- The judge's side ----------------------------------------------------------------------


class Trial:
    """A program that tries one feature on one way, in a folder of its own."""

    def __init__(self, python: str, way: str, path: str | None) -> None:
        self.python, self.way = python, way
        self.kind = {**THREADS, **PROCESSES}[way]
        self.folder = tempfile.mkdtemp(prefix="comparison-")
        self.env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        if path:
            self.env["PYTHONPATH"] = path
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *command: str) -> None:
        with open(f"{self.folder}/stderr", "ab") as err:
            self.process = subprocess.Popen(
                [self.python, *command],
                cwd=HERE,  # as a user starts a script; Dask's workers import from there
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )

    def begin(self, feature: str, sign: str) -> None:
        """Start the program and wait for its sign."""
        self.start(str(HERE / "features.py"), feature, self.way, self.folder)
        came = until(lambda: sign in lines(self.folder) or self.exits(0), 60)
        if not came or sign not in lines(self.folder):
            raise RuntimeError(f"no {sign!r} of {self.way}: {self.err}")

    def exits(self, seconds: float) -> bool:
        assert self.process
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def said(self, seconds: float) -> str:
        """Return the program's word, or what became of it instead."""
        here = Path(self.folder, "said")
        if not until(lambda: here.exists() or self.exits(0), seconds):
            return "hangs"
        if here.exists():
            return here.read_text()
        error = re.findall(r"^(\w+(?:Error|Exception|Exit))\b", self.err, re.M)
        return f"fails: {error[-1]}" if error else "fails"

    @property
    def err(self) -> str:
        return Path(self.folder, "stderr").read_text("utf-8", "replace")

    def lost(self) -> int:
        return CALLS - len(ended(self.folder))

    def kill(self) -> None:
        """Kill whatever is left."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


# -- The features --------------------------------------------------------------------------


@dataclass
class Feature:
    """What is tried: `run` in the program, `judge` beside it."""

    title: str
    ways: list[str]
    run: Callable[[Way, str], Any]
    judge: Callable[[Trial, str], str]

    def outcome(self, name: str, python: str, way: str, path: str | None) -> str:
        """Try it and return the word for the cell."""
        trial = Trial(python, way, path)
        if name in trial.kind.without:
            return f"— {trial.kind.without[name]}"
        try:
            return self.judge(trial, name)
        finally:
            trial.kill()
            shutil.rmtree(trial.folder, ignore_errors=True)


FEATURES: dict[str, Feature] = {}


def by_its_word(trial: Trial, name: str) -> str:
    """Have the program itself say the word."""
    trial.start(str(HERE / "features.py"), name, trial.way, trial.folder)
    return trial.said(30 + 2 * trial.kind.hang)


def feature(
    title: str, *kinds: dict[str, Any], judge: Callable[[Trial, str], str] = by_its_word
) -> Callable[[Callable[[Way, str], Any]], Callable[[Way, str], Any]]:
    """Add a feature, which all these ways are tried for."""

    def add(run: Callable[[Way, str], Any]) -> Callable[[Way, str], Any]:
        name = run.__name__
        FEATURES[name] = Feature(title, [way for kind in kinds for way in kind], run, judge)
        return run

    return add


def warm(way: Way) -> None:
    """Have the worker started, which may take some seconds."""
    outcome(lambda: way.result(way.call(calls.add, 1, 2)), 60)


def outcome(wait: Callable[[], Any], seconds: float) -> Any:
    """Return what comes, the exception that comes, or "hangs"."""
    got: list[Any] = []

    def look() -> None:
        try:
            got.append(wait())
        except BaseException as error:
            got.append(error)

    threading.Thread(target=look, daemon=True).start()
    until(lambda: got, seconds)
    return got[0] if got else "hangs"


@feature("calls run one at a time, in order", THREADS, PROCESSES)
def order(way: Way, folder: str) -> str:
    way.drop_many(calls.overlap, [(folder, number) for number in range(5)])
    if not until(lambda: len(ended(folder)) == 5, 20):
        return "hangs"
    expected = [f"{what} {number}" for number in range(5) for what in ("started", "ended")]
    return "yes" if lines(folder) == expected else "no"


def judge_end(trial: Trial, name: str) -> str:
    trial.begin(name, "made")
    if not trial.exits(trial.kind.patience):
        calls.open_gate(trial.folder)
        if not trial.exits(30):
            return "hangs"
    lost = trial.lost()
    return f"lost {lost} of {CALLS}" if lost else f"all {CALLS} run"


@feature("calls that wait when the program ends", THREADS, PROCESSES, judge=judge_end)
def end(way: Way, folder: str) -> None:
    way.drop_many(calls.hold_first, [(folder, number) for number in range(CALLS)])
    calls.write(folder, "made")


def judge_ctrl_c(trial: Trial, name: str) -> str:
    trial.begin(name, "made")
    if trial.exits(trial.kind.patience):
        return "— lost already"
    assert trial.process
    os.killpg(trial.process.pid, signal.SIGINT)  # as a terminal does
    if not trial.exits(10):
        calls.open_gate(trial.folder)
        if not trial.exits(20):
            return "hangs"
        lost = trial.lost()
        return "runs on, and loses some" if lost else "runs all of them first"
    if re.search(r"dropped \d+", trial.err):
        return "ends at once, says how many are dropped"
    trace = " with a traceback" if "Traceback" in trial.err else ""
    return f"ends at once{trace}, lost {trial.lost()} of {CALLS}"


@feature("Ctrl-C while the program's end waits", THREADS, PROCESSES, judge=judge_ctrl_c)
def ctrl_c(way: Way, folder: str) -> None:
    end(way, folder)


def judge_dropped(trial: Trial, name: str) -> str:
    trial.start(str(HERE / "features.py"), name, trial.way, trial.folder)
    if not trial.exits(60):
        return "hangs"
    log = lines(trial.folder)
    if "raised" in log:
        return "raised by its wait"
    words = [] if "ended next" in log else ["ends the worker"]
    if "ValueError: the call has failed" in trial.err:
        source = (HERE / "features.py").read_text("utf-8").splitlines()
        line = next(i for i, text in enumerate(source, 1) if text.endswith("# the call"))
        times = log.count("logged")  # with a traceback each
        once = "once" if times == 1 else f"{times} times"
        words.append(f"logged {once}" if times else "a traceback")
        placed = re.search(rf'features\.py(:|", line ){line}\b', trial.err)
        words.append(f"with{'' if placed else 'out'} the line of the call")
    return ", ".join(words) or "silent"


@feature("a failure whose future was dropped", THREADS, PROCESSES, judge=judge_dropped)
def dropped(way: Way, folder: str) -> None:
    def told(record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], ValueError):
            calls.write(folder, "logged")
        return True

    handler = logging.StreamHandler()
    handler.addFilter(told)
    logging.basicConfig(handlers=[handler])
    failing = way.prepared(calls.fail)
    failing(folder)  # the call
    way.drop(calls.note, folder, "next")
    if until(lambda: "ended next" in lines(folder), way.hang):
        try:
            way.wait()
        except ValueError:
            calls.write(folder, "raised")
        gc.collect()
        until(lambda: {"logged", "raised"} & set(lines(folder)), 2)  # who says it late


@feature("a call that waits for another one on the same worker", THREADS)
def nested(way: Way, folder: str) -> str:
    threads: list[int] = []
    done = threading.Event()

    def step(left: int) -> None:
        threads.append(threading.get_ident())
        if left:
            call = way.call(step, left - 1)
            way.result(call) if way.futures else done.wait()
            calls.write(folder, "both")
        else:
            done.set()

    way.call(step, 1)
    if not until(lambda: "both" in lines(folder), way.hang):
        return "hangs for ever"
    return "the worker runs it itself" if len(set(threads)) == 1 else "works"


@feature("wait for all calls, and what they start in turn", THREADS)
def wait_all(way: Way, folder: str) -> str:
    waits = threading.Event()
    refused: list[str] = []
    ran: list[bool] = []

    def child() -> None:
        time.sleep(0.3)  # longer than a wait that does not see it
        ran.append(True)

    def parent() -> None:
        waits.wait()
        time.sleep(0.3)  # until the wait has begun
        try:
            way.call(child)
        except RuntimeError as error:
            refused.append(str(error))

    way.call(parent)
    waits.set()
    if outcome(way.wait, way.hang) == "hangs":
        return f"`{way.waits}` hangs"
    if ran:
        return f"`{way.waits}`" if way.waits else "by hand"
    return f"no: `{way.waits}` {'refuses' if refused else 'misses'} these"


@feature("a call in the child of `os.fork`", THREADS, PROCESSES)
def fork(way: Way, folder: str) -> str:
    way.drop(calls.note, folder, "parent")
    assert until(lambda: "parent" in ended(folder))
    child = os.fork()
    if not child:
        try:
            way.drop(calls.note, folder, "child")
            until(lambda: "child" in ended(folder), way.hang)
        except BaseException as error:
            calls.write(folder, f"failed {type(error).__name__}")
        finally:
            os._exit(0)
    until(lambda: os.waitpid(child, os.WNOHANG)[0], way.hang + 5)
    if "child" in ended(folder):
        return "runs"
    failed = [line.split()[1] for line in lines(folder) if line.startswith("failed ")]
    return f"fails: {failed[0]}" if failed else "never runs"


@feature("context variables of the caller", THREADS, PROCESSES)
def context(way: Way, folder: str) -> str:
    way.drop(calls.see, folder)  # the worker has started
    assert until(lambda: lines(folder), 20)
    calls.caller.set("seen")
    way.drop(calls.see, folder)
    assert until(lambda: len(lines(folder)) == 2, 20)
    return lines(folder)[1]


@feature("a bounded backlog that keeps the latest call", THREADS)
def latest(way: Way, folder: str) -> str:
    bounded = way.latest(calls.hold_first)
    made = threading.Event()

    def make() -> None:
        for number in range(1, 50):
            bounded(folder, number)
        made.set()

    bounded(folder, 0)
    assert until(lambda: any(line.startswith("started 0 ") for line in lines(folder)))
    threading.Thread(target=make, daemon=True).start()
    if not made.wait(3):
        return "blocks the caller"
    calls.open_gate(folder)
    assert until(lambda: {"0", "49"} <= set(ended(folder)), 20)
    ran = len(ended(folder)) - 1
    return "yes" if ran == 1 else "no bound" if ran == 49 else f"{ran} of 49 run"


@feature("an argument that changes right after the call", THREADS, PROCESSES)
def live(way: Way, folder: str) -> str:
    shared = type(way) in THREADS.values()
    value: Any = [1] if shared else calls.Live(1)
    way.drop(calls.hold, folder, "first")
    assert until(lambda: lines(folder))
    handle = way.copying(calls.show)(folder, value)
    if shared:
        value[0] = 2
    else:
        value.value = 2
    calls.Live.changed.set()
    calls.open_gate(folder)
    shown = lambda: [line for line in lines(folder) if line.startswith("shown ")]  # noqa: E731
    assert until(shown, 20)
    del handle  # only now: Dask forgets a call whose future is dropped
    return f"as at the call{way.copies}" if shown() == ["shown 1"] else "as changed later"


@feature("decorates methods, class and static methods in either order", THREADS)
def methods(way: Way, folder: str) -> str:
    def function(*args: Any) -> Any:
        return args

    try:
        way.decorate(function)
    except NotImplementedError as error:
        return str(error)
    shapes: list[tuple[Callable[[], Any], Callable[[Any], tuple[Any, ...]]]] = [
        (lambda: way.decorate(function), lambda owner: (owner, 1)),
        (lambda: classmethod(way.decorate(function)), lambda owner: (type(owner), 1)),
        (lambda: way.decorate(classmethod(function)), lambda owner: (type(owner), 1)),
        (lambda: staticmethod(way.decorate(function)), lambda owner: (1,)),
        (lambda: way.decorate(staticmethod(function)), lambda owner: (1,)),
    ]
    right = 0
    for make, expected in shapes:
        try:
            owner = type("Owner", (), {"f": make()})()
            got = outcome(functools.partial(way.result, owner.f(1)), 3)
        except Exception:
            continue
        right += got == expected(owner)
    return f"{right} of {len(shapes)}"


@feature("`await` of a call", THREADS, PROCESSES)
def awaited(way: Way, folder: str) -> str:
    if not way.futures:
        return "no future"
    warm(way)

    def held(name: str) -> Any:
        at = f"{folder}/{name}"
        os.mkdir(at)
        threading.Timer(0.2, calls.open_gate, [at]).start()  # it is not done when awaited
        return way.call(calls.hold, at, 3)

    async def direct() -> Any:
        return await held("direct")

    async def wrapped() -> Any:
        return await asyncio.wrap_future(held("wrapped"))

    tries: dict[str, Callable[[], Any]] = {
        "yes": lambda: asyncio.run(direct()),
        "by `asyncio.wrap_future`": lambda: asyncio.run(wrapped()),
        way.own_await: way.awaited,
    }
    for word, attempt in tries.items():
        if outcome(attempt, way.hang) == 3:
            return word
    return "no"


TYPED = """
{prelude}

def f_(x: int) -> str:
    return str(x)

{decorated}
reveal_type({good})
{bad}
"""


def judge_typed(trial: Trial, name: str) -> str:
    prelude, call = trial.kind.typed
    *imports, last = prelude.split("\n")
    decorated, imports = (last, imports) if last.startswith("f = ") else ("", [*imports, last])
    bad = call.format('"text"')
    source = TYPED.format(
        prelude="\n".join(imports), decorated=decorated, good=call.format("1"), bad=bad
    )
    Path(trial.folder, "typed.py").write_text(source)
    number = source.splitlines().index(bad) + 1
    options = ["--strict", "--cache-dir", "/dev/null", "--python-executable", trial.python]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "typed.py"],
        cwd=trial.folder,
        env={
            **trial.env,
            **({"MYPYPATH": trial.env["PYTHONPATH"]} if "PYTHONPATH" in trial.env else {}),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    ).stdout
    revealed = re.search(r'Revealed type is "(.*)"', checked)
    if not revealed:
        return "mypy is not installed"
    result = re.search(r"(\w+)\[(?:builtins\.)?str\]", revealed[1])
    right = f"`{result[1]}[R]`" if result else "untyped" if trial.kind.futures else "no future"
    wrong = re.search(rf"typed\.py:{number}: error: .*\[arg-type\]", checked)
    return f"{right}, arguments {'checked' if wrong else 'unchecked'}"


@feature("a type checker sees", THREADS, judge=judge_typed)
def typed(way: Way, folder: str) -> None:
    """Run nothing: mypy reads it."""


@feature("arguments and results of finished calls that it keeps", THREADS, PROCESSES)
def memory(way: Way, folder: str) -> str:
    way.made = None  # nor do we keep any
    alive: list[weakref.ref[calls.Large]] = []

    def make() -> None:
        for _ in range(200):
            large = calls.Large()
            alive.append(weakref.ref(large))
            handle = way.call(calls.same, large)
        if way.futures:
            way.result(handle)

    make()
    for last in ("last", "and another"):
        way.drop(calls.note, folder, last.split()[0])
        assert until(lambda last=last: last.split()[0] in ended(folder), 20)

    def kept() -> int:
        gc.collect()
        return sum(ref() is not None for ref in alive)

    if until(lambda: not kept(), 3):
        return "nothing"
    before = kept()
    way.wait()
    return f"{before} of 200" + f" until `{way.waits}`" * (kept() == 0)


def judge_no_guard(trial: Trial, name: str) -> str:
    script = f"{trial.folder}/script.py"
    words = []
    for number, method in enumerate(("", "forkserver")):
        Path(script).write_text(
            f"import sys, os, multiprocessing; sys.path.insert(0, {str(HERE)!r})\n"
            + f"multiprocessing.set_start_method({method!r}, force=True)\n" * bool(method)
            + f"import calls, ways\nway = ways.{trial.kind.__name__}.alone()\n"
            f"handle = way.call(calls.note, {trial.folder!r}, {number})\n"
            f"if way.result(handle) == {number}:\n"
            f"    calls.write({trial.folder!r}, 'result {number}')\n"
        )
        trial.start(script)
        came = until(
            lambda n=number: f"result {n}" in lines(trial.folder) or trial.exits(0),
            2 * trial.kind.hang,
        )
        words.append(came and lines(trial.folder).count(f"result {number}") == 1)
        trial.kill()
    return {(True, True): "works", (True, False): "only by fork"}.get(tuple(words), "fails")


@feature("in a script without a `__main__` guard", PROCESSES, judge=judge_no_guard)
def no_guard(way: Way, folder: str) -> None:
    """Run nothing: the script is of its own."""


@feature("a lambda or a closure", PROCESSES)
def closure(way: Way, folder: str) -> str:
    warm(way)
    seven = 7
    got = outcome(lambda: way.result(way.call(lambda: seven)), way.hang)
    return "works" if got == 7 else f"fails: {type(got).__name__}"


@feature("a worker is killed", PROCESSES)
def killed(way: Way, folder: str) -> str:
    handles = way.many(calls.die_first, [(folder, number) for number in range(6)])
    assert until(lambda: any(line.startswith("started 0 ") for line in lines(folder)))
    calls.open_gate(folder)
    if isinstance(handles, list):
        first, *others = [
            outcome(functools.partial(way.result, each), way.hang) for each in handles
        ]
    else:  # a batch
        first = outcome(lambda: list(handles), way.hang)
        others = [first] * 5
    ran = sum(other == number for number, other in enumerate(others, 1))
    after = outcome(lambda: way.result(way.call(calls.add, 1, 2)), way.hang)
    if isinstance(first, BaseException) and ran == 5 and after == 3:
        return "its call alone fails"
    its = "hangs" if first == "hangs" else "fails"
    return (
        f"its call {its}, {'none' if ran == 5 else 5 - ran} of 5 that wait "
        f"{'hang' if 'hangs' in others else 'fail'}, the next one "
        + ("runs" if after == 3 else "hangs" if after == "hangs" else "is refused")
    )


@feature("an exception that can't be unpickled", PROCESSES)
def odd_error(way: Way, folder: str) -> str:
    warm(way)
    got = outcome(lambda: way.result(way.call(calls.fail_oddly, folder)), way.hang)
    after = outcome(lambda: way.result(way.call(calls.add, 1, 2)), way.hang)
    its = "its call hangs" if got == "hangs" else "its call fails"
    return f"{its}, the next one " + (
        "runs" if after == 3 else "hangs" if after == "hangs" else "is refused"
    )


def judge_orphan(trial: Trial, name: str) -> str:
    trial.begin(name, "made")
    assert trial.process
    worker = next(int(line.split()[2]) for line in lines(trial.folder) if "started" in line)
    trial.process.kill()
    trial.process.wait()

    def gone() -> bool:
        try:
            return "\nState:\tZ" in Path(f"/proc/{worker}/status").read_text()
        except OSError:
            return True

    if until(gone, 3 + trial.kind.patience):
        return "ends with it"
    calls.open_gate(trial.folder)
    return "ends after its call" if until(gone, 5) else "is left behind"


@feature("the worker, when the program is killed", PROCESSES, judge=judge_orphan)
def orphan(way: Way, folder: str) -> None:
    way.drop_many(calls.hold, [(folder, "it")])
    until(lambda: lines(folder))
    calls.write(folder, "made")
    threading.Event().wait()


def main() -> None:
    """Try it here."""
    name, way, folder = sys.argv[1:]
    word = FEATURES[name].run({**THREADS, **PROCESSES}[way](), folder)
    if word is not None:
        Path(folder, "saying").write_text(word)
        os.rename(f"{folder}/saying", f"{folder}/said")
        os._exit(0)  # how the way ends is another feature


if __name__ == "__main__":
    main()
