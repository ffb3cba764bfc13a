"""The rung Durable: calls on disk, and workers that outlive the program."""

import json
import os
import pickle
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import durable_calls as calls
import pytest
from conftest import GIL, Log

import background as package
from background import SQLiteExecutor, WorkerDied, flush, stats
from background._core import ledger
from background._executors.sqlite import file as file_module
from background._executors.sqlite import outcomes as outcomes_module
from background._executors.sqlite import store as store_module
from background._executors.sqlite import supervisor as supervisor_module
from background._executors.sqlite.access import StoreError
from background._executors.sqlite.locks import SUPERVISOR, Life
from background._executors.sqlite.store import Store

ROOT = str(Path(package.__file__).parent.parent)
HERE = str(Path(__file__).parent)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, HERE])}


def program(body: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a program in a process of its own."""
    head = "import os, signal, sys, time\nimport durable_calls as calls\n"
    head += "from background import SQLiteExecutor, background, flush\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(body), *map(str, arguments)],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def end(process: subprocess.Popen[str], code: int = 0, limit: float = 60) -> tuple[str, str]:
    """Wait for a program; return what it said."""
    try:
        out, err = process.communicate(timeout=limit)
    finally:
        process.kill()
    assert process.returncode == code, err
    return out, err


def command(*arguments: object) -> subprocess.Popen[str]:
    """Start a command of `python -m background`."""
    return subprocess.Popen(
        [sys.executable, "-m", "background", *map(str, arguments)],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def say(*arguments: object, code: int = 0) -> str:
    return end(command(*arguments), code)[0]


def eventually(condition: Callable[[], object]) -> None:
    """Wait for what only another process can bring about, and nobody tells."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def alive(file: Path) -> list[int]:
    store = Store(str(file), "NORMAL", 1000)
    pids = [worker.pid for worker in store.workers(Life(str(file)))]
    store.close()
    return pids


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Name a file for calls; afterwards, end the workers that still live."""
    path = tmp_path / "calls.db"
    yield path
    if path.exists():
        try:
            pids = alive(path)
        except StoreError:
            return
        for pid in pids:
            os.kill(pid, signal.SIGTERM)


@pytest.fixture
def executor(file: Path) -> Iterator[SQLiteExecutor]:
    """Make an executor whose workers end soon."""
    made = SQLiteExecutor(file, idle_timeout=0.5)
    yield made
    made.shutdown(wait=False)


@pytest.fixture
def quiet(file: Path) -> Iterator[SQLiteExecutor]:
    """Make an executor that starts no worker."""
    made = SQLiteExecutor(file, start_worker=False)
    yield made
    made.shutdown(wait=False, cancel_futures=True)


# -- Calls that survive --------------------------------------------------------------------


def test_calls_survive_the_kill_of_their_program(file: Path, tmp_path: Path) -> None:
    """Durable: a call is on disk when it returns, and runs though the program is killed then."""
    log = tmp_path / "log"
    killed = program(
        """
        executor = SQLiteExecutor(sys.argv[1], idle_timeout=0.5)
        for i in range(20):
            executor.submit(calls.write, sys.argv[2], str(i))
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        file,
        log,
    )
    end(killed, -signal.SIGKILL)
    with SQLiteExecutor(file, idle_timeout=0.5) as later:
        later.submit(abs, -1).result(60)  # behind them, with one worker
    assert calls.lines(log) == [str(i) for i in range(20)]


def test_outcomes_come_to_the_futures(executor: SQLiteExecutor, file: Path) -> None:
    """F1, E1: results and errors reach the program's futures; what was read leaves the file."""
    good, bad = executor.submit(pow, 2, 10), executor.submit(calls.fail, "no")
    assert good.result(60) == 1024
    with pytest.raises(ValueError, match="no") as caught:
        bad.result(60)
    notes = "\n".join(caught.value.__notes__)
    assert "fail(…), called at test_durable.py:" in notes
    assert "durable_calls.py" in notes  # the worker's traceback
    eventually(lambda: [call.state for call in executor.calls()] == ["failed"])
    (kept,) = executor.calls()
    assert kept.error == "ValueError: no"
    assert kept.traceback is not None
    assert "raise ValueError(text)" in kept.traceback


def test_a_dropped_failure_is_logged(executor: SQLiteExecutor, log: Log) -> None:
    """E1: a failure whose future was dropped is logged once."""
    executor.submit(calls.fail, "dropped")
    flush(60)
    assert len(log.errors) == 1
    assert "fail(…), called at test_durable.py:" in log.errors[0]


def test_functions_of_main(file: Path) -> None:
    """Durable: functions and classes of `__main__` travel by value, there and back."""
    out, _ = end(
        program(
            """
            class Point:
                def __init__(self, x): self.x = x
            class Oops(Exception): pass
            @background(executor=SQLiteExecutor(sys.argv[1], idle_timeout=0.2))
            def move(point, by):
                if by is None:
                    raise Oops(point.x)
                return Point(point.x + by)
            moved = move(Point(1), 2).result(60)
            print(type(moved) is Point, moved.x, type(move(Point(1), None).exception(60)) is Oops)
            """,
            file,
        )
    )
    assert out == "True 3 True\n"


def test_arguments_as_they_were_at_the_call(quiet: SQLiteExecutor, file: Path) -> None:
    """C4: the call gets the values as they were when it was made."""
    values = [1, 2]
    future = quiet.submit(sum, values)
    values.append(39)
    say("worker", "--drain", file)
    assert future.result(60) == 3


def test_what_cannot_be_pickled(executor: SQLiteExecutor) -> None:
    """Durable: arguments and results that can't be pickled are a clear error in the future."""
    error = executor.submit(len, [threading.Lock()]).exception(60)
    assert "args[0][0]" in str(error)
    result = executor.submit(calls.unpicklable)
    with pytest.raises(pickle.PicklingError, match=r"the result is a \S*lock"):
        result.result(60)
    assert executor.submit(abs, -1).result(60) == 1


def test_large_arguments(executor: SQLiteExecutor) -> None:
    """Durable: arguments of 50 MB arrive."""
    assert executor.submit(calls.size, bytes(50_000_000)).result(60) == 50_000_000


def test_the_file_does_not_grow(quiet: SQLiteExecutor, file: Path) -> None:
    """C6: neither the file nor the program grows with the number of finished calls."""
    sizes = []
    for _ in range(4):
        for _ in range(200):
            quiet.submit(calls.size, bytes(2000))
        say("worker", "--drain", file)
        flush(60)
        eventually(lambda: not quiet.calls())
        sizes.append(file.stat().st_size)
    assert sizes[3] <= sizes[1] + 40_000
    assert not quiet._desk.calls


def test_unread_results_are_kept_for_a_day(quiet: SQLiteExecutor, file: Path) -> None:
    """Durable: a result that its program didn't read stays for a day, whatever the clock does."""
    end(program("SQLiteExecutor(sys.argv[1], start_worker=False).submit(abs, -1)", file))
    say("worker", "--drain", file)
    store, life = quiet._desk.store, quiet._desk.life
    assert [call.state for call in quiet.calls()] == ["succeeded"]
    store._do("UPDATE states SET ended = ended + 1e6")  # the clock was set back since
    store.prune(life)
    assert quiet.calls()
    store._do("UPDATE states SET ended = ended - 1e6 - 80000")
    store.prune(life)
    assert quiet.calls()
    store._do("UPDATE states SET ended = ended - 10000")
    store.prune(life)
    assert not quiet.calls()


def test_the_clock_set_back(
    quiet: SQLiteExecutor, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C2: calls run in the order in which they were made though the clock is set back."""
    now = time.time()
    for i in range(5):
        monkeypatch.setattr(store_module.time, "time", lambda i=i: now - 1000 * i)
        quiet.submit(calls.write, str(tmp_path / "log"), str(i))
    monkeypatch.undo()
    say("worker", "--drain", file)
    assert calls.lines(tmp_path / "log") == ["0", "1", "2", "3", "4"]


# -- Cancel, flush, exit, fork --------------------------------------------------------------


def test_cancel_is_exact(executor: SQLiteExecutor, tmp_path: Path) -> None:
    """F3: while the worker drains, a call is cancelled or runs, never both and never neither."""
    log = str(tmp_path / "log")
    executor.submit(abs, -1).result(60)  # the worker is there
    futures = [executor.submit(calls.write, log, str(i)) for i in range(400)]
    cancelled = {i for i in reversed(range(400)) if futures[i].cancel()}
    flush(60)
    ran = {int(line) for line in calls.lines(log)}
    assert ran == set(range(400)) - cancelled
    assert 0 < len(cancelled) < 400
    assert {i for i in range(400) if futures[i].cancelled()} == cancelled
    assert all(futures[i].cancel() == (i in cancelled) for i in range(400))


def test_a_running_call_cannot_be_cancelled(executor: SQLiteExecutor, tmp_path: Path) -> None:
    """F3: after the start `cancel` says False, and the future says that it runs."""
    future = executor.submit(calls.held, str(tmp_path / "call"))
    calls.until(f"{tmp_path}/call.started")
    assert not future.cancel()
    eventually(future.running)
    Path(f"{tmp_path}/call.gate").touch()
    assert future.result(60) == "held"
    assert not future.cancel()


def test_a_cancel_by_somebody_else(quiet: SQLiteExecutor) -> None:
    """F3: a call that another program cancels in the file is cancelled in its future."""
    future = quiet.submit(abs, -1)
    before = stats().cancelled
    quiet._desk.store.cancel(quiet.calls()[0].id)
    eventually(future.cancelled)
    assert stats().cancelled == before + 1


def test_an_interrupted_call(quiet: SQLiteExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """W5: Ctrl-C while a call is written makes it whole or not at all."""
    put = Store.put

    def interrupted(*arguments: Any) -> int:
        put(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quiet.submit(abs, -1)
    assert not quiet.calls()
    assert not quiet._desk.calls


def test_flush_waits_for_this_programs_calls(executor: SQLiteExecutor, tmp_path: Path) -> None:
    """W1: `flush` waits for the calls of this program, not for those of others."""
    path = str(tmp_path / "call")
    mine = executor.submit(calls.held, f"{path}1")
    other = program(
        "SQLiteExecutor(sys.argv[1]).submit(calls.held, sys.argv[2])", executor._path, f"{path}2"
    )
    end(other)
    with pytest.raises(TimeoutError):
        flush(0.1)
    Path(f"{path}1.gate").touch()
    flush(60)
    assert mine.done()
    calls.until(f"{path}2.started")
    assert [call.state for call in executor.calls()] == ["running"]
    Path(f"{path}2.gate").touch()


def test_the_end_does_not_wait(file: Path) -> None:
    """W3: a program's end doesn't wait for durable calls, and says what becomes of them."""
    body = """
    from background import configure
    executor = SQLiteExecutor(sys.argv[1], start_worker=False)
    futures = [executor.submit(abs, -1) for _ in range(int(sys.argv[2]))]
    """
    _, err = end(program(body, file, 3))
    assert err == (
        f"3 durable calls are stored in {file}; no worker is alive: "
        f"`python -m background worker {file}` runs them\n"
    )
    _, err = end(program(body, file, 0))
    assert err == ""
    say("worker", "--drain", file)
    with SQLiteExecutor(file) as later:
        assert [call.state for call in later.calls()] == ["succeeded"] * 3


def test_forks(executor: SQLiteExecutor, file: Path) -> None:
    """W4: a child's inherited futures are cancelled, its own calls work, the parent's go on."""
    out, err = end(
        program(
            """
            import warnings; warnings.simplefilter("ignore", DeprecationWarning)
            executor = SQLiteExecutor(sys.argv[1], idle_timeout=0.5)
            future = executor.submit(calls.held, sys.argv[2])
            calls.until(sys.argv[2] + ".started")
            for i in range(5):
                executor.submit(abs, -1)
                child = os.fork()
                if not child:
                    signal.alarm(50)
                    mine = executor.submit(pow, 2, 3)
                    print(future.cancelled(), future.cancel(), mine.cancel(), flush=True)
                    flush()
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
            open(sys.argv[2] + ".gate", "w").close()
            print(future.result(60))
            flush()
            """,
            file,
            file.parent / "call",
        )
    )
    assert out == "True True True\n" * 5 + "held\n"
    assert err == ""


def test_calls_from_signal_handlers(executor: SQLiteExecutor) -> None:
    """W5: a signal handler may make calls in the middle of making calls."""
    nested: list[Any] = []

    def handler(*_: object) -> None:
        nested.append(executor.submit(abs, -2))
        signal.setitimer(signal.ITIMER_REAL, 0.001)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    try:
        futures = [executor.submit(abs, -1) for _ in range(300)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    flush(60)
    assert {future.result(0) for future in futures} == {1}
    assert {future.result(0) for future in nested} == {2}


@pytest.mark.parametrize("moment", ["opening", "reading"])
def test_a_signal_handler_in_the_middle(
    moment: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W5: a handler that comes while the file is opened, or read, is not locked out by that."""
    store = Store(str(file), "NORMAL", 1000)
    nested: list[int] = []

    def handler() -> None:
        if not nested:
            nested.append(0)
            if moment == "reading":  # what is read is of the past, where nothing can be written
                Store(str(file), "NORMAL", 1000).put(1, 4, "somebody", "{}", b"")
            nested[0] = store.put(1, 1, "handler", "{}", b"")

    prepare = file_module.prepare

    class Struck:
        """A connection that a handler interrupts after each step of Python's."""

        def __init__(self, connection: sqlite3.Connection) -> None:
            self.connection = connection

        def __getattr__(self, name: str) -> Any:
            return lambda *args: (getattr(self.connection, name)(*args), handler())[0]

    def begins(connection: Any, path: str) -> None:
        prepare(Struck(connection) if nested == [] else connection, path)  # type: ignore[arg-type]

    if moment == "opening":
        monkeypatch.setattr(file_module, "prepare", begins)
    else:
        store.put(1, 2, "main", "{}", b"")
        store.put(1, 3, "main", "{}", b"")
        store._connection = Struck(store._connection)  # type: ignore[assignment, arg-type]
    store.calls()
    store.put(1, 5, "main", "{}", b"")
    made = [call.call for call in store.calls()]
    assert made.count("handler") == 1
    assert made[-1] == "main"
    store.close()


def test_a_call_that_waits_for_a_call(executor: SQLiteExecutor, file: Path) -> None:
    """F4: a durable call that waits for another one on the only worker runs it itself."""
    assert executor.submit(calls.wait_for_another, str(file), 3).result(60) == 3


def test_after_shutdown(file: Path) -> None:
    """F1: `shutdown` waits for this program's calls; later ones are refused."""
    executor = SQLiteExecutor(file, idle_timeout=0.5)
    future = executor.submit(abs, -1)
    executor.shutdown()
    assert future.done()
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(abs, -1)


def test_an_old_sqlite(executor: SQLiteExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """D3: a Python whose SQLite is too old fails the call, and says what is needed."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 0))
    assert "needs SQLite 3.35" in str(executor.submit(abs, -1).exception(20))


def test_options() -> None:
    """D3: wrong options are errors that say what to write."""
    with pytest.raises(TypeError, match="path"):
        SQLiteExecutor(":memory:")
    with pytest.raises(ValueError, match="FULL"):
        SQLiteExecutor("calls.db", synchronous="OFF")
    with pytest.raises(TypeError, match="seconds"):
        SQLiteExecutor("calls.db", idle_timeout="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seconds"):
        SQLiteExecutor("calls.db", idle_timeout=-1)


def test_full_synchronisation(file: Path) -> None:
    """Durable: `synchronous="FULL"` syncs each call, `"NORMAL"` none."""
    for synchronous, number in (("NORMAL", 1), ("FULL", 2)):
        with SQLiteExecutor(file, synchronous=synchronous, start_worker=False) as executor:
            assert executor._desk.store._do("PRAGMA synchronous").rows == [(number,)]


@pytest.mark.skipif(not GIL, reason="a future dies later, and nothing says when")
def test_a_dropped_failure_is_logged_before_flush_returns(
    executor: SQLiteExecutor, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E1: nobody holds a failed call any more when those who wait for it are woken."""
    logged: list[int] = []

    def let_go(*args: Any) -> None:
        logged.append(len(log.errors))
        ledger.let_go(*args)

    monkeypatch.setattr(outcomes_module, "let_go", let_go)
    executor.submit(calls.fail, "no")
    flush(60)
    assert logged == [1]


# -- Workers -------------------------------------------------------------------------------


def test_many_programs_start_one_worker(file: Path) -> None:
    """Durable: programs that start at once share one worker."""
    body = """
    executor = SQLiteExecutor(sys.argv[1], idle_timeout=5)
    sys.stdin.readline()
    print(*executor.submit(calls.who).result(60))
    """
    programs = [program(body, file, stdin=subprocess.PIPE) for _ in range(10)]
    for process in programs:  # all at once
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = {end(process)[0] for process in programs}
    assert len(said) == 1
    ((worker, supervisor),) = [map(int, line.split()) for line in said]
    os.kill(supervisor, signal.SIGTERM)
    eventually(lambda: gone(worker) and gone(supervisor))


def gone(pid: int) -> bool:
    """Tell whether a process is no more; one that waits for a parent that doesn't look is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_an_idle_worker_ends(file: Path) -> None:
    """Durable: a worker ends after a time without calls, is no child, and leaves none."""
    with SQLiteExecutor(file, idle_timeout=0.1) as executor:
        worker, supervisor = executor.submit(calls.who).result(60)
        with pytest.raises(ChildProcessError):
            os.waitpid(supervisor, os.WNOHANG)
        eventually(lambda: gone(worker) and gone(supervisor))
        assert not alive(file)
        assert executor.submit(calls.who).result(60)[1] != supervisor


def test_a_call_that_comes_as_the_worker_ends(file: Path) -> None:
    """Durable: a call made just as the last worker ends is not left behind."""
    with SQLiteExecutor(file, idle_timeout=0) as executor:
        for i in range(25):
            future = executor.submit(calls.who)
            if i % 2:
                worker, _ = future.result(60)
                eventually(lambda worker=worker: gone(worker))  # its supervisor is about to end
        flush(60)


@pytest.mark.parametrize("workers", [2, 8])
def test_several_workers(quiet: SQLiteExecutor, file: Path, tmp_path: Path, workers: int) -> None:
    """Durable: several workers on one file run each call once."""
    log = str(tmp_path / "log")
    for i in range(300):
        quiet.submit(calls.write, log, str(i))
    say("worker", "--workers", workers, "--drain", file)
    flush(60)
    assert sorted(map(int, calls.lines(log))) == list(range(300))


def test_a_killed_worker(executor: SQLiteExecutor, file: Path, tmp_path: Path) -> None:
    """Durable: a call whose worker is killed is given to the next one, before later calls."""
    log = str(tmp_path / "log")
    first, second = executor.submit(calls.die_once, log), executor.submit(calls.write, log, "next")
    assert first.result(60) == "survived"
    second.result(60)
    assert calls.lines(log) == ["ran", "ran", "next"]


def test_the_supervisor_is_killed(file: Path, tmp_path: Path) -> None:
    """Durable: all that runs is killed; the program that waits starts a new worker."""
    log = str(tmp_path / "log")
    with SQLiteExecutor(file, idle_timeout=0.5) as executor:
        worker, supervisor = executor.submit(calls.who).result(60)
        os.kill(supervisor, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        executor.submit(calls.write, log, "ran").result(60)
    assert calls.lines(log) == ["ran"]


def test_a_new_supervisor_waits_for_the_worker_of_a_killed_one(file: Path, tmp_path: Path) -> None:
    """Durable: a worker whose supervisor was killed ends its call before another one begins."""
    log, gate = str(tmp_path / "log"), tmp_path / "gate"
    with SQLiteExecutor(file, idle_timeout=5) as executor:
        worker, supervisor = executor.submit(calls.who).result(60)
        first = executor.submit(calls.alone_for_a_second, log, str(gate))
        eventually(lambda: calls.lines(log))
        second = executor.submit(calls.write_pid, log)
        os.kill(supervisor, signal.SIGKILL)
        eventually(lambda: gone(supervisor))
        # As a program starts it that finds nobody alive.
        options = {"idle_timeout": 0.1, "synchronous": "NORMAL"}
        start = supervisor_module.command("supervisor.detached", str(file), **options)
        with subprocess.Popen(start, env=environment()) as process:
            eventually(lambda: Life(str(file)).taken(SUPERVISOR))
            gate.touch()
            assert first.result(60) == "alone"
            assert second.result(60) != worker
            assert process.wait(60) == 0


def test_a_worker_whose_supervisor_is_replaced_as_it_starts(
    quiet: SQLiteExecutor, file: Path
) -> None:
    """Durable: a worker without a supervisor leaves the calls to one that is there."""
    future = quiet.submit(calls.who)
    life = Life(str(file))
    life.hold(SUPERVISOR)
    options = {"supervisor": 1, "idle_timeout": None, "synchronous": "NORMAL"}
    start = supervisor_module.command("worker.work", str(file), **options)
    try:
        done = subprocess.run(start, env=environment(), timeout=60, check=False)
    finally:
        life.drop(SUPERVISOR)
    assert done.returncode == supervisor_module.ENDED
    assert future.cancel()


def test_a_poison_call(executor: SQLiteExecutor, file: Path, tmp_path: Path) -> None:
    """Durable: a call that kills its worker is tried three times, then dead; others go on."""
    log = str(tmp_path / "log")
    poison = executor.submit(calls.die, log)
    leaves = executor.submit(calls.leave, 0)
    healthy = executor.submit(abs, -1)
    with pytest.raises(WorkerDied, match=r"die\(…\), called at .* 3 times.*retry"):
        poison.result(60)
    assert isinstance(leaves.exception(60), WorkerDied)
    assert healthy.result(60) == 1
    assert calls.lines(log) == ["died"] * 3
    assert [call.state for call in executor.calls()] == ["dead", "dead"]
    assert "was killed by SIGKILL" in Path(f"{file}.log").read_text()


def test_a_stopped_worker(quiet: SQLiteExecutor, file: Path, tmp_path: Path) -> None:
    """Durable: the call of a stopped worker is not given to another, and ends when it goes on."""
    path = str(tmp_path / "call")
    future = quiet.submit(calls.held, path)
    first = command("worker", "--drain", file)
    calls.until(f"{path}.started")
    pid = int(calls.lines(f"{path}.log")[0].split()[1])
    os.kill(pid, signal.SIGSTOP)
    say("worker", "--drain", file)  # another one finds nothing to do
    assert [call.state for call in quiet.calls()] == ["running"]
    Path(f"{path}.gate").touch()
    os.kill(pid, signal.SIGCONT)
    end(first)
    assert future.result(60) == "held"
    assert len(calls.lines(f"{path}.log")) == 1


def test_a_worker_that_was_thought_dead(quiet: SQLiteExecutor, file: Path, tmp_path: Path) -> None:
    """Durable: a worker whose call was given to another can't overwrite its outcome."""
    path = str(tmp_path / "call")
    future = quiet.submit(calls.lose_the_lock, path, f"{file}-lock")
    first = command("worker", "--drain", file)
    calls.until(f"{path}.first")
    second = command("worker", "--drain", file)
    calls.until(f"{path}.second")
    Path(f"{path}.first.gate").touch()
    _, err = end(first)
    assert "was given to another worker" in err
    Path(f"{path}.second.gate").touch()
    end(second)
    assert future.result(60) == "second"
    assert calls.lines(f"{path}.log") == ["ran", "ran"]


def test_a_worker_takes_its_lock_again(quiet: SQLiteExecutor, file: Path, tmp_path: Path) -> None:
    """Durable: a call that loses the worker's lock endangers itself alone, not the next one."""
    path = str(tmp_path / "call")
    Path(f"{path}.first.gate").touch()
    quiet.submit(calls.lose_the_lock, path, f"{file}-lock")
    future = quiet.submit(calls.held, f"{path}2")
    first = command("worker", "--drain", file)
    calls.until(f"{path}2.started")
    say("worker", "--drain", file)
    Path(f"{path}2.gate").touch()
    end(first)
    assert future.result(60) == "held"
    assert len(calls.lines(f"{path}2.log")) == 1


def test_a_call_that_holds_the_gil(quiet: SQLiteExecutor, file: Path, tmp_path: Path) -> None:
    """Durable: a call that never gives up the interpreter's lock runs once."""
    log, pipe = str(tmp_path / "log"), tmp_path / "pipe"
    os.mkfifo(pipe)
    future = quiet.submit(calls.hold_the_gil, log, bytes(pipe))
    first = command("worker", "--drain", file)
    calls.until(log)
    say("worker", "--drain", file)
    assert [call.state for call in quiet.calls()] == ["running"]

    def let_it_go() -> bool:
        with suppress(OSError):  # nobody reads yet
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            return True
        return False

    eventually(let_it_go)
    end(first)
    future.result(60)
    assert calls.lines(log) == ["ran"]


def test_a_killed_worker_whose_child_lives(executor: SQLiteExecutor, tmp_path: Path) -> None:
    """Durable: a worker is seen to be dead though a child that its call forked lives on."""
    assert executor.submit(calls.leave_a_child, str(tmp_path / "child")).result(60) == "second"


def test_a_child_that_comes_back(executor: SQLiteExecutor, tmp_path: Path) -> None:
    """Durable: a child that a call forked, and that returns from it, writes no outcome."""
    log = str(tmp_path / "log")
    worker, _ = executor.submit(calls.who).result(60)
    assert executor.submit(calls.fork_and_return, log).result(60) == worker
    assert executor.submit(calls.who).result(60)[0] == worker
    assert calls.lines(log) == ["returned"] * 2


def said_after_start(worker: subprocess.Popen[str]) -> str:
    """Return the first line that a worker writes after the one that says that it starts."""
    assert worker.stderr is not None
    assert "runs the calls in" in worker.stderr.readline()
    return worker.stderr.readline()


def test_ctrl_c_ends_a_worker(quiet: SQLiteExecutor, file: Path, tmp_path: Path) -> None:
    """Durable: Ctrl-C ends a worker in the foreground after its call; the next one waits."""
    path = str(tmp_path / "call")
    first, second = quiet.submit(calls.held, path), quiet.submit(abs, -1)
    worker = command("worker", file)
    calls.until(f"{path}.started")
    worker.send_signal(signal.SIGINT)
    assert worker.stderr is not None
    assert "ends after the current call" in said_after_start(worker)
    assert [call.state for call in quiet.calls()] == ["running", "waiting"]
    Path(f"{path}.gate").touch()
    assert end(worker) == ("", "")
    assert first.result(60) == "held"
    assert not second.done()


def test_a_second_ctrl_c(quiet: SQLiteExecutor, file: Path, tmp_path: Path) -> None:
    """Durable: a second Ctrl-C kills the current call, which then waits for another worker."""
    path = str(tmp_path / "call")
    future = quiet.submit(calls.held, path)
    worker = command("worker", file)
    calls.until(f"{path}.started")
    pid = int(calls.lines(f"{path}.log")[0].split()[1])
    worker.send_signal(signal.SIGINT)
    assert worker.stderr is not None
    assert "the same signal again kills that" in said_after_start(worker)
    for _ in range(5):  # within a second it counts once, as `timeout` sends it
        worker.send_signal(signal.SIGINT)
    assert not gone(pid)
    time.sleep(1.1)
    worker.send_signal(signal.SIGINT)
    end(worker)
    assert gone(pid)
    Path(f"{path}.gate").touch()
    say("worker", "--drain", file)
    assert future.result(60) == "held"


def test_no_worker_can_be_started(
    executor: SQLiteExecutor, file: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durable: where no worker can be started the call waits in the file, and that is said."""

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "no further process")

    monkeypatch.setattr(outcomes_module.subprocess, "run", refuse)
    future = executor.submit(abs, -1)
    assert [call.state for call in executor.calls()] == ["waiting"]
    say("worker", "--drain", file)
    assert future.result(60) == 1
    assert len(log.errors) == 1
    assert "no worker can be started" in log.errors[0]


def test_a_frozen_program_starts_no_worker(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P4: where the interpreter is the program itself, calls fail or wait for other workers."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with SQLiteExecutor(file) as executor:
        error = executor.submit(abs, -1).exception(20)
        assert "workers are started by a Python interpreter" in str(error)
        assert executor.calls() == []
    with SQLiteExecutor(file, start_worker=False) as executor:
        future = executor.submit(abs, -1)
        say("worker", "--drain", file)
        assert future.result(60) == 1


# -- Code ----------------------------------------------------------------------------------


def test_modules_of_the_same_name(file: Path, tmp_path: Path) -> None:
    """Durable: programs whose modules share a name, or change, get their own code."""
    said = []
    for folder, text in [("one", "1"), ("two", "2"), ("two", "333")]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "mine.py").write_text(f"def get(): return {text}\n")
        out, _ = end(
            program(
                """
                sys.path.insert(0, os.getcwd())
                import mine
                executor = SQLiteExecutor(sys.argv[1], idle_timeout=3)
                print(executor.submit(mine.get).result(60), executor.submit(calls.where).result(60))
                """,
                file,
                cwd=tmp_path / folder,
            )
        )
        said.append(out.split())
    folders = [str(tmp_path / folder) for folder in ("one", "two", "two")]
    assert said == [list(pair) for pair in zip(["1", "2", "333"], folders, strict=True)]


def test_code_that_is_gone(quiet: SQLiteExecutor, file: Path, tmp_path: Path) -> None:
    """Durable: a call whose code can't be loaded fails with the reason; the worker goes on."""
    folder = tmp_path / "gone"
    folder.mkdir()
    (folder / "mine.py").write_text("def get(): return 1\n")
    body = """
    sys.path.insert(0, os.getcwd())
    import mine
    SQLiteExecutor(sys.argv[1], start_worker=False).submit(mine.get)
    """
    end(program(body, file, cwd=folder))
    (folder / "mine.py").unlink()
    future = quiet.submit(abs, -1)
    say("worker", "--drain", file)
    assert future.result(60) == 1
    (call,) = quiet.calls()
    assert call.error == "ModuleNotFoundError: No module named 'mine'"
    assert f"{folder}" in (call.traceback or "")
    (folder / "mine.py").write_text("def get(): return 1\n")
    assert say("retry", file, call.id) == (
        f"1 call waits again\nno worker is alive: python -m background worker {file}\n"
    )
    say("worker", "--drain", file)
    assert [call.state for call in quiet.calls()] == ["succeeded"]


# -- The file ------------------------------------------------------------------------------


def test_the_file_is_its_owners_alone(file: Path) -> None:
    """Durable: the file and all beside it have mode 0600, whatever the umask."""
    before = os.umask(0)
    try:
        with SQLiteExecutor(file, idle_timeout=0.1) as executor:
            executor.submit(abs, -1).result(60)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys([file.name + end for end in ENDINGS], 0o600)


ENDINGS = ["", "-wal", "-shm", "-lock", ".log"]


@pytest.mark.parametrize("ending", ENDINGS[:4])
def test_a_file_that_others_may_write(file: Path, quiet: SQLiteExecutor, ending: str) -> None:
    """Durable: a file that others may write is refused with a sentence."""
    Path(f"{file}{ending}").touch()
    Path(f"{file}{ending}").chmod(0o602)
    error = quiet.submit(abs, -1).exception(60)
    assert "may be written by others (mode 602)" in str(error)


def make_foreign(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE photos (id)")
    connection.close()


def make_empty(file: Path) -> None:
    with SQLiteExecutor(file, start_worker=False) as executor:
        executor.calls()


def make_newer(file: Path) -> None:
    make_empty(file)
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def make_truncated(file: Path) -> None:
    make_empty(file)
    os.truncate(file, 5000)


FAULTS = {
    "foreign": (make_foreign, "something else"),
    "newer": (make_newer, "newer version"),
    "truncated": (make_truncated, "damaged"),
    "text": (lambda file: file.write_text("not a database " * 500), "nor of SQLite"),
    "folder": (lambda file: file.mkdir(), "not a file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_of_no_use(quiet: SQLiteExecutor, file: Path, fault: str) -> None:
    """Durable: a file that is of no use is a clear error in the future; the loop goes on."""
    make, message = FAULTS[fault]
    make(file)
    if file.is_file():
        file.chmod(0o600)
    for _ in range(3):
        error = quiet.submit(abs, -1).exception(60)
        assert isinstance(error, OSError)
        assert message in str(error)
        assert str(file) in str(error)
    _, err = end(command("worker", file), 2)
    assert message in err
    assert "Traceback" not in err
    if file.is_dir():
        file.rmdir()


def test_a_locked_file(quiet: SQLiteExecutor, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Durable: a lock of another program is waited for, then is a clear error in the future."""
    future = quiet.submit(abs, -1)
    monkeypatch.setattr(file_module, "PATIENCE", 0.1)
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    error = quiet.submit(abs, -1).exception(60)
    assert "was locked by another program" in str(error)
    assert not future.cancel()  # it can't be said for certain: so it is not cancelled
    connection.close()
    assert future.cancel()


def test_a_folder_that_cannot_be_written(file: Path) -> None:
    """Durable: a folder that this user may not write is a clear error in the future."""
    file.parent.chmod(0o555)
    out, err = end(
        program(
            """
            if not os.getuid():
                os.setgid(65534), os.setuid(65534)
            executor = SQLiteExecutor(sys.argv[1])
            print(executor.submit(abs, -1).exception(60))
            print("goes on")
            """,
            file,
        )
    )
    assert f"{file} can't be made: Permission denied" in out
    assert out.endswith("goes on\n")
    assert err == ""


def test_a_file_size_limit(file: Path) -> None:
    """Durable: a file that can't grow is a clear error in the future; later calls are good."""
    out, _ = end(
        program(
            """
            import resource as res
            executor = SQLiteExecutor(sys.argv[1], start_worker=False)
            futures = [executor.submit(calls.size, b"")]
            soft, hard = res.getrlimit(res.RLIMIT_FSIZE)
            res.setrlimit(res.RLIMIT_FSIZE, (1_000_000, hard))
            futures.append(executor.submit(calls.size, bytes(2_000_000)))
            res.setrlimit(res.RLIMIT_FSIZE, (soft, hard))
            futures.append(executor.submit(calls.size, b"12"))
            print(futures[1].exception(60))
            print(*[call.state for call in executor.calls()])
            """,
            file,
        )
    )
    first, states = out.splitlines()
    assert str(file) in first
    assert "disk" in first
    assert states == "waiting waiting"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(small: Path, tmp_path: Path) -> None:
    """Durable: a full disk is a clear error in the future; with space again, all goes on."""
    with SQLiteExecutor(small / "calls.db", idle_timeout=0.3) as executor:
        waiting = executor.submit(calls.held, str(tmp_path / "call"))
        calls.until(f"{tmp_path}/call.started")
        filler = small / "filler"
        with suppress(OSError):
            filler.write_bytes(bytes(4_000_000))
        futures = [executor.submit(len, bytes(100_000)) for _ in range(20)]
        assert "the disk is full" in str(futures[-1].exception(60))
        filler.unlink()
        Path(f"{tmp_path}/call.gate").touch()
        assert waiting.result(60) == "held"
        assert executor.submit(abs, -1).result(60) == 1


def test_a_network_file_system(
    quiet: SQLiteExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durable: a network file system is refused, where it can be told."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr(file_module, "MOUNTS", mounts)
    assert "network file system (nfs4" in str(quiet.submit(abs, -1).exception(60))
    mounts.write_text(f"server:/x / nfs rw 0 0\n/dev/vda {tmp_path} ext4 rw 0 0\n")
    assert not quiet.submit(abs, -1).done()


def test_a_file_that_is_moved_away(quiet: SQLiteExecutor, file: Path, tmp_path: Path) -> None:
    """Durable: calls whose file is moved away fail, and later ones go into a new file."""
    lost = quiet.submit(abs, -1)
    for ending in ENDINGS[:3]:
        os.rename(f"{file}{ending}", tmp_path / f"away{ending}")
    with pytest.raises(RuntimeError, match="no longer in"):
        lost.result(60)
    future = quiet.submit(abs, -2)
    say("worker", "--drain", file)
    assert future.result(60) == 2


# -- For people ----------------------------------------------------------------------------


def test_status(quiet: SQLiteExecutor, file: Path, tmp_path: Path) -> None:
    """Durable: `status` says what waits, runs and has failed, with the workers; also as JSON."""
    path = str(tmp_path / "call")
    quiet.submit(calls.fail, "no")
    quiet.submit(calls.held, path)
    waiting = [quiet.submit(abs, -1) for _ in range(13)]
    worker = command("worker", file)
    calls.until(f"{path}.started")
    text = say("status", file)
    pid = calls.lines(f"{path}.log")[0].split()[1]
    assert text.startswith(f"{file}: 1 running, 13 waiting, 1 failed\nworker {pid}, alive for ")
    assert re.search(rf"\n +2  running  held\(…\), called at .* for \d+ s, in worker {pid}\n", text)
    assert re.search(r"\n +1  failed   fail\(…\), called at .* ago: ValueError: no\n", text)
    assert "…  waiting  and 3 more" in text
    known = json.loads(say("status", "--json", file))
    assert [call["state"] for call in known["calls"]] == ["failed", "running"] + ["waiting"] * 13
    assert [worker["pid"] for worker in known["workers"]] == [int(pid)]
    assert waiting[0].cancel()
    worker.send_signal(signal.SIGTERM)
    Path(f"{path}.gate").touch()
    end(worker)
    quiet.shutdown(wait=False, cancel_futures=True)


def test_retry_and_purge(quiet: SQLiteExecutor, file: Path, tmp_path: Path) -> None:
    """Durable: failed calls are kept until they are tried again or purged, all or by id."""
    log = str(tmp_path / "log")
    futures = [quiet.submit(calls.fail, str(i)) for i in range(3)]
    futures.append(quiet.submit(calls.die, log))
    say("worker", "--drain", file)
    assert [type(future.exception(60)) for future in futures] == [ValueError] * 3 + [WorkerDied]
    assert say("retry", file, 2, 4).startswith("2 calls wait again\n")
    states = [(call.state, call.attempts) for call in quiet.calls()]
    assert states == [("failed", 1), ("waiting", 0), ("failed", 1), ("waiting", 0)]
    assert say("purge", file, 1) == "1 call deleted\n"
    assert say("purge", file, 99, code=1) == "0 calls deleted\n"
    say("worker", "--drain", file)
    assert calls.lines(log) == ["died"] * 6
    assert say("purge", file) == "3 calls deleted\n"
    assert say("status", file) == f"{file}: no calls\nno worker is alive\n"


def test_commands_without_a_file(file: Path) -> None:
    """Durable: the commands that look make no file, and say so in one sentence."""
    for name in ("status", "retry", "purge"):
        _, err = end(command(name, file), 2)
        assert err == f"python -m background {name}: there is no file {file}\n"
    assert not file.exists()


def test_a_call_that_ends_while_it_is_cancelled(
    executor: SQLiteExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F3: cancel() that comes too late returns False, and the outcome is there."""
    desk, comes, ended = executor._desk, threading.Event(), threading.Event()
    cancel, end_call = desk.store.cancel, desk.end

    def end(*outcome: Any) -> None:
        comes.set()
        end_call(*outcome)
        ended.set()

    def too_late(key: int) -> bool:
        assert comes.wait(60)
        ended.wait(0.5)  # in vain: we hold the call
        return cancel(key)

    monkeypatch.setattr(desk, "end", end)
    monkeypatch.setattr(desk.store, "cancel", too_late)
    future, other = executor.submit(abs, -1), executor.submit(calls.held, str(tmp_path / "other"))
    assert not future.cancel()
    assert future.result(60) == 1
    (tmp_path / "other.gate").touch()
    assert other.result(60) == "held"


def test_a_call_that_is_made_while_another_thread_shuts_down(
    executor: SQLiteExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1: a call that found the executor open is done, though that was shut down meanwhile."""
    before = set(threading.enumerate())
    executor.submit(abs, -1).result(60)
    (brings_outcomes,) = set(threading.enumerate()) - before
    put = executor._desk.store.put

    def interrupted(*call: Any) -> int:
        calls, executor._desk.calls = executor._desk.calls, {}  # as just before it was entered
        executor.shutdown()
        brings_outcomes.join(60)
        executor._desk.calls = calls
        return put(*call)

    monkeypatch.setattr(executor._desk.store, "put", interrupted)
    assert executor.submit(abs, -2).result(60) == 2


# -- What the program holds ----------------------------------------------------------------


def open_files(folder: Path) -> list[str]:
    """Return which files of a folder this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in found if path.startswith(str(folder))]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux's /proc")
def test_an_executor_that_is_shut_down_closes_its_files(tmp_path: Path) -> None:
    """Durable: executors that come and go leave no file open, and those that stay keep theirs."""
    first, other = tmp_path / "first.db", tmp_path / "other.db"
    with SQLiteExecutor(first, idle_timeout=0.5) as staying:
        for path in (first, other):
            with SQLiteExecutor(path, idle_timeout=0.5) as passing:
                assert staying.submit(abs, -1).result(60) == 1
                assert passing.submit(abs, -1).result(60) == 1
        eventually(lambda: not any(path.startswith(str(other)) for path in open_files(tmp_path)))
        assert any(path.endswith("-lock") for path in open_files(tmp_path))
        assert staying.submit(abs, -1).result(60) == 1
    eventually(lambda: not open_files(tmp_path))
