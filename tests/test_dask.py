"""`DaskExecutor`: the contract on real clusters, all on this machine."""

import importlib
import importlib.util
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Log
from test_ending import run, script

from background import DaskExecutor, WorkerDied, background, flush, stats

pytest.importorskip("distributed")
import dask
from distributed import Client, LocalCluster

LIMIT = 120


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Start two worker processes of one thread; a call may kill two of them."""
    quiet: Any = {"dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(2, threads_per_worker=1, memory_limit="1GB", **quiet) as cluster,
        Client(cluster) as made,
    ):
        yield made


@pytest.fixture
def on_dask(client: Any, tmp_path: Path) -> Iterator[Any]:
    """Decorate functions to run on the two workers."""
    yield background(executor=DaskExecutor(client))
    (tmp_path / "go").touch()


def writer(path: Path) -> Callable[[object], None]:
    """Return a function that adds a line to a file."""
    name = str(path)  # a closure: workers can't import this module

    def write(line: object) -> None:
        with open(name, "a") as file:
            file.write(f"{line}\n")

    return write


def waiter(folder: Path) -> Callable[[], None]:
    """Return a function that says that it has started, and then waits for a file `go`."""
    name = str(folder)

    def hold() -> None:
        open(os.path.join(name, f"started-{os.getpid()}"), "w").close()
        while not os.path.exists(os.path.join(name, "go")):
            time.sleep(0.01)

    return hold


def wait_for_files(folder: Path, count: int) -> None:
    deadline = time.monotonic() + LIMIT
    while len(list(folder.glob("started-*"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_equal_and_dropped_calls_run(on_dask: Any, tmp_path: Path) -> None:
    """C1, W1: equal calls run each, dropped ones too, and a flush waits for all of them."""
    before = stats()
    write = on_dask(writer(tmp_path / "lines"))
    for _ in range(3):
        write("same")
    flush(LIMIT)
    assert (tmp_path / "lines").read_text() == "same\n" * 3
    assert stats().succeeded - before.succeeded == 3
    assert on_dask(os.getpid)().result(LIMIT) != os.getpid()


def test_values_are_those_of_the_call(on_dask: Any, client: Any, tmp_path: Path) -> None:
    """C4, F3: a call sees no later change; cancel is True only for what no worker was given."""
    holds = [on_dask(waiter(tmp_path))() for _ in range(2)]
    wait_for_files(tmp_path, 2)
    values, big = [1, 2], np.zeros(100_000)
    sums = [on_dask(sum)(values), on_dask(np.sum)(big)]
    values[0], big[0] = 100, 100
    write = on_dask(writer(tmp_path / "lines"))
    later = [write(i) for i in range(8)]
    assert [later[-1].cancel(), later[-2].cancel()] == [True, True]
    assert later[-1].cancelled()
    assert [hold.cancel() for hold in holds] == [False, False]
    bounded = background(executor=DaskExecutor(client), max_pending=1, overflow="drop_oldest")
    draw = bounded(writer(tmp_path / "lines"))
    drawn = [draw(f"drawn {i}") for i in range(3)]
    (tmp_path / "go").touch()
    flush(LIMIT)
    assert [future.cancelled() for future in drawn] == [True, True, False]
    assert [future.result() for future in sums] == [3, 0]
    lines = (tmp_path / "lines").read_text().split()
    assert sorted(lines) == sorted([*map(str, range(6)), "drawn", "2"])
    assert not later[0].cancel()


def test_ctrl_c_while_a_call_is_cancelled(
    on_dask: Any, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W5: a call ends all the same whose cancel() is interrupted, be it taken back or not."""
    ask = client.run_on_scheduler

    def interrupted(*args: Any, **kwargs: Any) -> None:
        if asks:
            ask(*args, **kwargs)
        raise KeyboardInterrupt

    holds = [on_dask(waiter(tmp_path))() for _ in range(2)]
    wait_for_files(tmp_path, 2)
    later = [on_dask(abs)(-i) for i in range(8)]
    monkeypatch.setattr(client, "run_on_scheduler", interrupted)
    for asks in (True, False):
        with pytest.raises(KeyboardInterrupt):
            later[-1 - asks].cancel()
    (tmp_path / "go").touch()
    flush(LIMIT)
    assert later[-1].result() == 7
    assert later[-2].cancelled() or isinstance(later[-2].exception(), WorkerDied)
    assert all(each.done() for each in holds)


def test_a_dropped_failure_is_logged_before_a_flush_returns(
    client: Any, tmp_path: Path, log: Log
) -> None:
    """E1, W1: a dropped failure is logged when flush() returns, whatever Dask still keeps."""
    executor, gate = DaskExecutor(client), threading.Event()
    hold = waiter(tmp_path)

    def fail() -> None:
        hold()
        raise ValueError

    future = executor.submit(fail)
    kept = executor._sent[future].future
    assert kept is not None
    kept.add_done_callback(lambda _: gate.wait(LIMIT))
    del future
    (tmp_path / "go").touch()
    flush(LIMIT)
    assert len(log.errors) == 1
    gate.set()


def test_failures(on_dask: Any, log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """E1: each failure is a clear outcome, naming the call; a dropped one is logged."""

    class Odd(Exception):
        pass

    def fail() -> None:
        raise Odd("odd")

    error = on_dask(fail)().exception(LIMIT)
    assert isinstance(error, Odd)
    assert any("in a Dask worker:\nTraceback" in note for note in error.__notes__)
    assert any("fail(…), called at test_dask.py" in note for note in error.__notes__)

    assert isinstance(on_dask(sys.exit)(3).exception(LIMIT), SystemExit)

    error = on_dask(lambda: threading.Lock())().exception(LIMIT)
    assert "the result is a _thread.lock, which can't be pickled" in str(error)
    error = on_dask(len)([threading.Lock()]).exception(LIMIT)
    assert isinstance(error, pickle.PicklingError)
    assert "args[0][0] is a _thread.lock" in str(error)

    (tmp_path / "only_here.py").write_text("def function(): pass")
    monkeypatch.syspath_prepend(tmp_path)
    error = on_dask(importlib.import_module("only_here").function)().exception(LIMIT)
    assert isinstance(error, ModuleNotFoundError)
    assert "while the worker process unpickled the call" in "".join(error.__notes__)

    on_dask(fail)()
    flush(LIMIT)
    assert len(log.errors) == 1


def test_large_values(on_dask: Any) -> None:
    """C4: 32 MB go both ways without a warning, and arrive as what can be changed."""

    def change(array: Any) -> Any:
        array[0] = 7
        return array

    array = np.zeros(4 << 20)
    changed = on_dask(change)(array).result(LIMIT)
    assert (array[0], changed[0], changed.nbytes) == (0, 7, 32 << 20)


def test_a_call_that_kills_workers(on_dask: Any, tmp_path: Path) -> None:
    """E1: a call that kills its workers, or passes their memory, fails; others run on."""
    write = writer(tmp_path / "lines")

    def die() -> None:
        write("died")
        os._exit(3)

    def grow() -> None:
        kept = b"x" * 1_200_000_000
        time.sleep(600 + len(kept))  # until the worker is killed

    killed = on_dask(die)()
    with pytest.raises(WorkerDied, match=r"gave die.*: 2 workers died .* may be blamed") as caught:
        killed.result(LIMIT)
    assert type(caught.value.__cause__).__name__ == "KilledWorker"
    assert (tmp_path / "lines").read_text() == "died\n" * 2
    assert isinstance(on_dask(grow)().exception(LIMIT), WorkerDied)
    assert on_dask(pow)(2, 3).result(LIMIT) == 8


def start(*args: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", *args]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_the_scheduler_is_killed(tmp_path: Path) -> None:
    """E1: by their command line: the call fails when the scheduler dies, later ones run."""
    file = str(tmp_path / "scheduler.json")
    options = ["--scheduler-file", file, "--dashboard-address", "127.0.0.1:0"]
    scheduler = "distributed.cli.dask_scheduler", *options, "--host", "127.0.0.1"
    worker = "distributed.cli.dask_worker", *options, "--nthreads", "1", "--no-nanny"
    started = [start(*scheduler, "--port", "0"), start(*worker, "--death-timeout", "60")]
    try:
        with Client(scheduler_file=file, timeout=LIMIT) as client:
            address = client.scheduler.address
            on_dask = background(executor=DaskExecutor(client))
            hold = on_dask(waiter(tmp_path))()
            wait_for_files(tmp_path, 1)
            started[0].kill()
            with pytest.raises(WorkerDied, match="connection to the scheduler was lost"):
                hold.result(LIMIT)
            later = on_dask(pow)(2, 3)
            started += [start(*scheduler, "--port", address.rpartition(":")[2])]
            started += [start(*worker, "--death-timeout", "60")]
            assert later.result(LIMIT) == 8
    finally:
        (tmp_path / "go").touch()
        for process in started:
            process.kill()
            process.wait()


IN_THE_PROGRAM = """
import threading
import pytest
from background import background, flush
ran = []
gate = threading.Event()
nested = background(ran.append)

def flushes():
    nested(1)
    with pytest.raises(RuntimeError, match="would wait for that call itself"):
        flush()

def hold():
    gate.wait(60)
"""


def test_in_the_program_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W1, E1: a cluster of threads here: flush knows what its calls make; close ends them."""
    quiet: Any = {
        "processes": False,
        "protocol": "tcp",
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": 50,
    }
    (tmp_path / "in_the_program.py").write_text(IN_THE_PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("in_the_program")
    with LocalCluster(1, threads_per_worker=2, **quiet) as cluster, Client(cluster) as client:
        on_dask = background(executor=DaskExecutor(client))
        on_dask(module.flushes)()
        flush(LIMIT, check=True)
        assert module.ran == [1]
        waits = on_dask(module.hold)()
        client.close()
        assert isinstance(waits.exception(LIMIT), WorkerDied)
        error = on_dask(pow)(2, 3).exception(LIMIT)
        assert isinstance(error, WorkerDied) or "clos" in str(error)
        module.gate.set()


BODY = """
from background import DaskExecutor, background, flush
{after}
@background(executor=DaskExecutor(client))
def slow(i, wait=0.1):
    time.sleep(wait)
    with open({path!r}, "a") as file:
        file.write(f"{{i}}\\n")
    return i
@background(executor=DaskExecutor(client))
def fail():
    raise ValueError("seen")
atexit.register(lambda: slow("at exit"))
"""
CONNECT = "from distributed import Client; client = Client({address!r})"


@pytest.mark.parametrize("first", [True, False])
def test_the_end_drains(client: Any, first: bool, tmp_path: Path) -> None:
    """W3, W4: the end waits before the client closes, whoever came first; a fork doesn't hang."""
    connect = CONNECT.format(address=client.scheduler.address)
    path = tmp_path / "lines"
    body = BODY.format(after="" if first else connect, path=str(path))
    _, err = run(
        f"""{connect if first else ""}
{body}
fail()
for i in range(5):
    slow(i)
if os.fork() == 0:
    signal.alarm(20)
    assert slow("fork", 0).result() == "fork"
    flush()
    os._exit(0)
os.wait()
""",
        tmp_path,
    )
    lines = path.read_text().split("\n")[:-1]
    assert sorted(lines) == sorted(["fork", *map(str, range(5)), "at exit"]), err
    assert err.count("Traceback") == 2, err  # the failure's, here and there
    assert "seen" in err


@pytest.mark.parametrize("end", ["", "flush(); os.kill(os.getpid(), 9)"])
def test_a_cluster_of_its_own(end: str, tmp_path: Path) -> None:
    """W3: without a client and a guard a cluster starts, and ends with the program."""
    path = tmp_path / "lines"
    body = BODY.format(after="client = None", path=str(path))
    with script(f"{body}\nfor i in range(3): slow(i)\n{end}", tmp_path) as process:
        try:
            _, err = process.communicate(
                timeout=LIMIT
            )  # workers hold the pipe as long as they live
        finally:
            process.kill()
    assert process.returncode == (-9 if end else 0), err
    lines = path.read_text().split("\n")[:-1]
    assert sorted(lines) == ["0", "1", "2", *([] if end else ["at exit"])], err
    assert end or "Traceback" not in err  # a worker may tell of its loss of the scheduler


def test_shutdown(client: Any, tmp_path: Path) -> None:
    """F1: shutdown waits for the calls, takes no more, and leaves the client alone."""
    with DaskExecutor(client) as executor:
        future = executor.submit(pow, 2, 3)
    assert future.done()
    with pytest.raises(RuntimeError, match="was shut down"):
        executor.submit(pow, 2, 3)
    assert client.status == "running"
    wait([future])


def test_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """D3: a wrong client, or Dask's absence, is one sentence that says what to write."""
    with pytest.raises(TypeError, match=r"write DaskExecutor\(Client\(address\)\)"):
        DaskExecutor("tcp://127.0.0.1:8786")  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'background-futures\[dask\]'"):
        DaskExecutor()


def test_modules_beside_the_script(tmp_path: Path) -> None:
    """Dask: a cluster of our own imports from where the program does, beside its script, too."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "helpers.py").write_text("def twice(x):\n    return 2 * x\n")
    (folder / "train.py").write_text(
        "from background import DaskExecutor, background\n"
        "import helpers\n"
        "print(background(executor=DaskExecutor())(helpers.twice)(21).result(90))\n"
    )
    done = subprocess.run(
        [sys.executable, str(folder / "train.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.stdout == "42\n", done.stderr
