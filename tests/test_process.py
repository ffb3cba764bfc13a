"""Calls in processes of their own, and all that may happen to a process."""

import array
import asyncio
import contextvars
import fcntl
import functools
import logging
import os
import random
import resource
import select
import signal
import subprocess
import sys
import termios
import textwrap
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Log
from test_ending import run, script

import background as package
from background import (
    FlushTimeout,
    ProcessExecutor,
    ThreadExecutor,
    WorkerDied,
    _flush,
    flush,
)
from background._executors.process.channel import Channel
from background._executors.process.child import Process

ROOT = Path(package.__file__).parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def executor() -> Iterator[ProcessExecutor]:
    with ProcessExecutor() as made:
        yield made


def process_of(executor: ProcessExecutor) -> Process:
    return executor._queue.workers[0].process  # type: ignore[attr-defined, no-any-return]


def die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended, whoever its parent is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 30)[0], f"{pid} lives on"
    finally:
        os.close(descriptor)


# -- From anywhere --------------------------------------------------------------------------

PROGRAM = """
from background import ProcessExecutor, background, flush
print("once", flush=True)
scale = 2
class Point:
    def __init__(self, x):
        self.x = x
    def double(self):
        return Point(self.x * scale)
class Odd(Exception):
    pass
@background(executor=ProcessExecutor())
def area(point):
    if point.x % 2:
        raise Odd(point.x)
    return point.double()
result = area(Point(4)).result()
assert type(result) is Point and result.x == 8
scale = 3
assert area(Point(4)).result().x == 12
assert type(area(Point(5)).exception()) is Odd
assert background(executor=ProcessExecutor())(lambda x: x + scale)(1).result() == 4
flush()
print("done")
"""


@pytest.mark.parametrize("how", ["script", "-c", "stdin", "-m", "interactive", "no directory"])
def test_from_anywhere(how: str, tmp_path: Path) -> None:
    """D1, Process: works from every kind of program, which is not run again in the worker."""
    if how == "no directory" and sys.version_info[:3] == (3, 13, 0):
        pytest.skip(
            "there CPython 3.13.0 finds no name missing in a module: it can't import socket"
        )
    pkg = tmp_path / "pkg"
    pkg.mkdir()
    (pkg / "__init__.py").write_text("")
    (pkg / "__main__.py").write_text(PROGRAM)
    script = pkg / "__main__.py"
    command = {
        "script": [str(script)],
        "-c": ["-c", PROGRAM],
        "stdin": ["-"],
        "-m": ["-m", "pkg"],
        "interactive": ["-i", "-q"],
        "no directory": ["-c", f"import os; os.rmdir('../gone')\n{PROGRAM}"],
    }[how]
    cwd = tmp_path
    if how == "no directory":
        (cwd := tmp_path / "gone").mkdir()
    # The interactive interpreter ends a block at the first line that is not indented.
    typed = f"exec({PROGRAM!r})\n" if how == "interactive" else PROGRAM
    out = subprocess.run(
        [sys.executable, *command],
        input=typed if how in ("stdin", "interactive") else None,
        env=ENV,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert out.stdout.split() == ["once", "done"], out.stderr


MODULE = """
from background import ProcessExecutor, background
import os
in_process = background(executor=ProcessExecutor())
@in_process
def draw(x):
    return os.getpid(), x
class Chart:
    def __init__(self, x):
        self.x = x
    @in_process
    def method(self, y):
        return os.getpid(), self.x + y
    @in_process
    @classmethod
    def class_method(cls, y):
        return os.getpid(), (cls.__name__, y)
    @staticmethod
    @in_process
    def static_method(y):
        return os.getpid(), y
    def __call__(self, y):
        return os.getpid(), self.x * y
    class Inner:
        @classmethod
        @in_process
        def deep(cls, y):
            return os.getpid(), y
"""


def test_importable_functions_need_no_cloudpickle(tmp_path: Path) -> None:
    """D1: decorated functions and methods of modules go by name, with plain pickle."""
    (tmp_path / "plots.py").write_text(MODULE)
    (tmp_path / "cloudpickle.py").write_text("raise ImportError")
    lines, err = run(
        """
        import plots
        from plots import Chart
        results = [
            plots.draw(1), plots.draw(x="__main__"), Chart(1).method(2), Chart.class_method(3),
            Chart(1).class_method(3), Chart.static_method(4), Chart.Inner.deep(5),
            plots.in_process(Chart(2))(3), plots.in_process(len)("four"),
        ]
        results = [future.result(20) for future in results]
        pids = {result[0] for result in results[:-1]}
        assert len(pids) == 1 and os.getpid() not in pids
        tell(str([result[1] for result in results[:-1]] + results[-1:]))
        def of_main(): pass
        future = plots.in_process(of_main)()
        tell(str(future.exception(20)))
        tell(str(plots.in_process(len)([lambda: 1]).exception(20)))
        """,
        tmp_path,
    )
    assert err == ""
    assert lines[0] == "[1, '__main__', 3, ('Chart', 3), ('Chart', 3), 4, 5, 6, 4]"
    mend = (
        "can't be pickled by name alone; pip install 'background-futures[process]' for cloudpickle"
    )
    assert lines[1] == f"the function is a function of_main, which {mend}"
    assert lines[2] == f"args[0][0] is a function <lambda>, which {mend}"


def test_the_worker_is_like_the_program(tmp_path: Path) -> None:
    """Process: the worker has the program's path, arguments, flags, and current directory."""
    lines, err = run(
        """
        from background import ProcessExecutor, background
        sys.path.append("/nowhere")
        sys.argv[1:] = ["--steps", "3"]
        @background(executor=ProcessExecutor())
        def look():
            return sys.path, sys.argv, sys.warnoptions, os.getcwd()
        assert look().result() == (sys.path, sys.argv, sys.warnoptions, os.getcwd())
        os.chdir(os.path.dirname(__file__))
        tell(str(look().result()[3] == os.getcwd()))
        """,
        tmp_path,
    )
    assert (lines, err) == (["True"], "")


# -- What goes over --------------------------------------------------------------------------


def test_arguments_are_those_of_the_call(executor: ProcessExecutor) -> None:
    """C4: what is changed in place after the call is not seen by it, large arrays included."""
    small, large = [1], np.zeros(100_000)
    futures = []
    for i in range(20):
        small[0] = i
        large[:] = i
        futures.append(executor.submit(lambda a, b: (a[0], b[0], b[-1]), small, b=large))
    assert [future.result(20) for future in futures] == [(i, i, i) for i in range(20)]


def scaled(values: Any) -> Any:
    values *= 2
    return values


def test_arrays_are_writable_there_and_here(executor: ProcessExecutor) -> None:
    """Process: an array is an array of its own in the call, and so is its result."""
    for size in (3, 1_000_000):
        given = np.ones(size)
        result = executor.submit(scaled, given).result(20)
        result += 1
        assert (given.sum(), result.sum()) == (size, 3 * size)


def test_a_large_array_is_copied_once(executor: ProcessExecutor) -> None:
    """Process: a large array takes one copy at the call, no more."""
    large = np.zeros(4_000_000)
    executor.submit(len, large[:10]).result(20)
    tracemalloc.start()
    executor.submit(len, large)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert large.nbytes <= peak < 1.1 * large.nbytes


class Hook:
    """An object whose pickling raises what it is told."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def test_what_cant_be_pickled_is_named(executor: ProcessExecutor) -> None:
    """E1: what can't be pickled fails that call alone, and the error says where it is."""
    lock = threading.Lock()
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    held = {"lock": [lock]}
    wrong: list[tuple[Future[Any], str]] = [
        (
            executor.submit(print, 1, held),
            r"args\[1\]\['lock'\]\[0\] is a _thread.lock, which can't",
        ),
        (executor.submit(print, end=lock), r"kwargs\['end'\] is a _thread.lock"),  # type: ignore[call-overload]
        (executor.submit(lambda: held), r"held, which the function refers to,\['lock'\]\[0\] is"),
        (executor.submit(print, functools.partial(print, lock)), r"args\[0\].args\[0\] is a _thr"),
        (executor.submit(print, deep), r"args\[0\] is nested too deeply"),
        (
            executor.submit(print, (Hook(SystemExit("x")),)),
            r"args\[0\]\[0\] is a .*Hook, which .*x",
        ),
        (executor.submit(print, Hook(MemoryError())), r"args\[0\] is a .*Hook"),
    ]
    assert executor.submit(abs, -1).result(20) == 1
    for future, message in wrong:
        with pytest.raises(Exception, match=message) as caught:
            future.result(20)
        assert "called at test_process.py" in caught.value.__notes__[0]
    with pytest.raises(KeyboardInterrupt):  # Ctrl-C while a call is pickled takes it back
        executor.submit(print, Hook(KeyboardInterrupt()))


def test_results_that_cant_be_pickled(executor: ProcessExecutor) -> None:
    """E1: a result that can't be pickled fails the call, and the error says what it is."""
    with pytest.raises(Exception, match=r"the result\['lock'\] is a _thread.lock"):
        executor.submit(lambda: {"lock": threading.Lock()}).result(20)


class LostError(Exception):
    """An exception that can be pickled and not unpickled: the constructor fails."""

    def __init__(self) -> None:
        super().__init__(self)

    def __reduce__(self) -> Any:
        return int, ("x",)


class HoldsLockError(Exception):
    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


class TwoArgumentsError(Exception):
    def __init__(self, path: str, code: int) -> None:
        super().__init__(f"{path}: {code}")
        self.code = code


def throw(kind: Callable[..., BaseException], *args: Any) -> None:
    raise kind(*args)


def test_exceptions_come_back(executor: ProcessExecutor) -> None:
    """E1: exceptions come back as themselves, with the worker's traceback as a note."""
    error: Any = executor.submit(throw, TwoArgumentsError, "a.png", 3).exception(20)
    assert type(error) is TwoArgumentsError
    assert (str(error), error.code) == ("a.png: 3", 3)
    trace, place = error.__notes__
    assert trace.startswith("in the worker process ")
    assert "in throw\n    raise kind(*args)" in trace
    assert "worker.py" not in trace
    assert place.startswith("throw(…), called at test_process.py:")

    class LocalError(Exception):
        pass

    assert type(executor.submit(throw, LocalError).exception(20)) is LocalError
    group = executor.submit(throw, ExceptionGroup, "g", [LocalError(1), OSError(2, "x")])
    got: Any = group.exception(20)
    assert [type(inner) for inner in got.exceptions] == [LocalError, FileNotFoundError]


@pytest.mark.parametrize("kind", [LostError, HoldsLockError])
def test_exceptions_that_cant_come_back(kind: type[Exception], executor: ProcessExecutor) -> None:
    """E1: one that can't be pickled or unpickled has a stand-in that says so."""
    error = executor.submit(throw, kind).exception(20)
    assert type(error) is RuntimeError
    assert str(error).startswith(f"{kind.__name__}: ")
    assert f"stands for a {kind.__name__} that can't be pickled and unpickled" in str(error)
    assert "in throw" in error.__notes__[0]
    assert executor.submit(abs, -1).result(20) == 1


def test_a_call_can_be_awaited(executor: ProcessExecutor) -> None:
    """F2: a call in a process can be awaited."""

    async def main() -> list[int]:
        return [await call for call in [executor.submit(pow, i, 2) for i in range(3)]]

    assert asyncio.run(main()) == [0, 1, 4]


def await_there() -> int:
    from background import background

    async def main() -> int:
        return await background(abs)(-3)

    return asyncio.run(main())


def test_a_call_may_await_others(executor: ProcessExecutor) -> None:
    """F2: a call in a process can await a call that it makes in a thread there."""
    assert executor.submit(await_there).result(30) == 3
    assert executor.submit(await_there).result(30) == 3  # now the package is loaded there


variable = contextvars.ContextVar("variable", default=0)


def see_and_set() -> int:
    before = variable.get()
    variable.set(before + 1)
    return before


def test_context_variables_stay(executor: ProcessExecutor) -> None:
    """C3: context variables don't travel, nor do those that one call sets reach the next."""
    variable.set(7)
    assert [executor.submit(see_and_set).result(20) for _ in range(2)] == [0, 0]


def test_a_large_global_is_told_once(tmp_path: Path) -> None:
    """T3: a large global that every call drags along is named once, with its bytes."""
    _, err = run(
        """
        from background import ProcessExecutor, background, flush
        weights = bytes(2_000_000)
        @background(executor=ProcessExecutor())
        def draw(step):
            return len(weights) + step
        for step in range(3):
            assert draw(step).result() == 2_000_000 + step
        """,
        tmp_path,
    )
    assert err.startswith("draw(…), called at train.py:")
    assert "in <module>: weights, 2,000,0" in err
    assert "travels to the worker process with every call" in err
    assert err.count("\n") == 1


def test_functions_are_as_they_are_at_the_call(tmp_path: Path) -> None:
    """C4: what a function of __main__ refers to is that of the moment of the call."""
    lines, err = run(
        """
        import operator
        from background import ProcessExecutor
        submit = ProcessExecutor().submit
        number, table, module, inner = 1, {}, operator, lambda: number
        def look(x=0):
            def nested():
                return number
            return number, dict(table), module.add(1, 2), inner(), nested(), x
        def check(*expected):
            result = submit(look).result(20)
            assert result == expected, result
        check(1, {}, 3, 1, 1, 0)
        number = 2
        check(2, {}, 3, 2, 2, 0)
        table["a"] = 1
        check(2, {"a": 1}, 3, 2, 2, 0)
        table = ()
        check(2, {}, 3, 2, 2, 0)
        number = 3
        check(3, {}, 3, 3, 3, 0)
        class module:
            add = max
        check(3, {}, 2, 3, 3, 0)
        module.add = min
        check(3, {}, 1, 3, 3, 0)
        module = operator
        inner = lambda: number + 10
        check(3, {}, 3, 13, 3, 0)
        look.__defaults__ = (5,)
        check(3, {}, 3, 13, 3, 5)
        look.__defaults__ = ([5],)
        look.__defaults__[0].append(6)
        check(3, {}, 3, 13, 3, [5, 6])
        gathered = []
        append = gathered.append
        def adds():
            append(1)
            return append.__self__
        assert submit(adds).result(20) == [1]
        append(2)
        assert submit(adds).result(20) == [2, 1]
        def counter(n):
            return lambda: n
        assert [submit(counter(i)).result(20) for i in range(3)] == [0, 1, 2]
        one, two = counter(1), counter(2)
        def both():
            return one(), two()
        assert submit(both).result(20) == (1, 2)
        two = counter(3)
        assert submit(both).result(20) == (1, 3)
        one, two = two, one
        assert submit(both).result(20) == (3, 1)
        two = one
        assert submit(both).result(20) == (3, 3)
        two = third = counter(1)
        def three():
            return one(), two(), third()
        assert submit(three).result(20) == (3, 1, 1)
        third = one
        assert submit(three).result(20) == (3, 1, 3)
        def fact(n):
            return n * fact(n - 1) if n else 1
        assert submit(fact, 5).result(20) == 120
        tell("good")
        """,
        tmp_path,
    )
    assert (lines, err) == (["good"], "")


# -- Deaths ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_killed_in_a_call(number: signal.Signals, executor: ProcessExecutor) -> None:
    """E3: a call whose process is killed fails with WorkerDied; the others run, in order."""
    futures = [executor.submit(abs, -i) for i in range(5)]
    killed = executor.submit(die, number)
    futures += [executor.submit(abs, -i) for i in range(5)]
    error = killed.exception(20)
    assert isinstance(error, WorkerDied)
    assert isinstance(error, BrokenExecutor)
    assert error.exitcode == -number
    assert f"was killed by {number.name} while it ran die(…), called at test_pro" in str(error)
    assert [future.result(20) for future in futures] == [*range(5), *range(5)]


def test_killed_between_calls(executor: ProcessExecutor) -> None:
    """E3: a process that is killed while it is idle costs no call."""
    for _ in range(3):
        pid = executor.submit(os.getpid).result(20)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        assert executor.submit(os.getpid).result(20) != pid


@pytest.mark.parametrize("moment", ["launch", "start"])
def test_killed_while_starting(
    moment: str, executor: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E3: a process that dies before it has the call is replaced; if all do, that is said."""
    start, deaths = getattr(Process, moment), [2]

    def start_and_die(self: Process) -> Channel:
        channel: Channel = start(self)
        if deaths[0]:
            deaths[0] -= 1
            assert self.pid is not None
            os.kill(self.pid, signal.SIGKILL)
        return channel

    monkeypatch.setattr(Process, moment, start_and_die)
    assert executor.submit(abs, -1).result(20) == 1
    executor.submit(die).exception(20)
    deaths[0] = 3
    with pytest.raises(WorkerDied, match=r"before it had read abs\(…\), called at test_process"):
        executor.submit(abs, -1).result(20)
    assert executor.submit(abs, -1).result(20) == 1


def test_killed_while_an_argument_is_under_way(executor: ProcessExecutor) -> None:
    """E3: a process that is killed while it gets 64 MB costs no call: that had not started."""
    pid = executor.submit(os.getpid).result(20)
    channel = process_of(executor).channel
    assert channel is not None
    connection = channel.connection.dup()
    os.kill(pid, signal.SIGSTOP)
    future = executor.submit(len, bytes(64 << 20))
    sent = array.array("i", [0])
    while sent[0] < 50_000:  # until the socket is full
        fcntl.ioctl(connection, termios.TIOCOUTQ, sent)
    connection.close()
    os.kill(pid, signal.SIGKILL)
    assert future.result(20) == 64 << 20


def test_killed_while_a_result_is_under_way(
    executor: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E3: a process that is killed while it sends 64 MB fails the call."""
    pid = executor.submit(os.getpid).result(20)
    gate, reading, receive = threading.Event(), threading.Event(), Channel.receive

    def wait_and_receive(self: Channel) -> Any:
        reading.set()
        assert gate.wait(20)
        return receive(self)

    monkeypatch.setattr(Channel, "receive", wait_and_receive)
    future = executor.submit(bytes, 64 << 20)
    assert reading.wait(20)
    channel = process_of(executor).channel
    assert channel is not None
    unread = array.array("i", [0])
    while unread[0] < 50_000:
        fcntl.ioctl(channel.connection, termios.FIONREAD, unread)
    os.kill(pid, signal.SIGKILL)
    gate.set()
    with pytest.raises(WorkerDied, match="SIGKILL while it ran bytes"):
        future.result(20)
    assert executor.submit(abs, -1).result(20) == 1


def test_ten_thousand_calls_with_a_death_in_every_hundred() -> None:
    """E3: exactly the calls that were running when their process was killed fail, in order."""
    fatal = {hundred * 100 + random.randrange(100) for hundred in range(100)}
    order: list[int] = []
    with ProcessExecutor() as executor:
        futures: list[Future[Any]] = []
        for i in range(10_000):
            future = (
                executor.submit(signal.raise_signal, signal.SIGKILL)
                if i in fatal
                else executor.submit(abs, -i)
            )
            future.add_done_callback(lambda _, i=i: order.append(i))
            futures.append(future)
        for i, future in enumerate(futures):
            if i in fatal:
                assert type(future.exception(60)) is WorkerDied
            else:
                assert future.result(60) == i
    assert order == list(range(10_000))


@pytest.mark.parametrize("leave", [sys.exit, os._exit])
def test_a_call_that_exits(leave: Callable[[int], None], executor: ProcessExecutor) -> None:
    """E3: sys.exit is an outcome; os._exit ends the process and fails its call alone."""
    pid = executor.submit(os.getpid).result(20)
    error = executor.submit(leave, 3).exception(20)
    if leave is sys.exit:
        assert isinstance(error, SystemExit)
        assert error.code == 3
        assert executor.submit(os.getpid).result(20) == pid
    else:
        assert isinstance(error, WorkerDied)
        assert error.exitcode == 3
        assert "ended with exit code 3" in str(error)
        assert executor.submit(os.getpid).result(20) != pid


def take_memory(limit: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit += pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    bytes(limit)


def test_out_of_memory(executor: ProcessExecutor) -> None:
    """E3: a MemoryError in the worker is an outcome, of a large argument too."""
    pid = executor.submit(os.getpid).result(20)
    assert type(executor.submit(take_memory, 32 << 20).exception(20)) is MemoryError
    large = np.zeros(64 << 20, np.uint8)
    for given in (large, [large], bytes(64 << 20)):
        assert type(executor.submit(len, given).exception(60)) is MemoryError
    assert executor.submit(os.getpid).result(20) == pid


def test_a_call_that_hangs_is_ended() -> None:
    """Process: timeout ends a call that runs too long with its process; the next ones run."""
    with ProcessExecutor(timeout=2) as executor:
        pid = executor.submit(os.getpid).result(20)
        gate = executor.submit(signal.pause)
        after = executor.submit(os.getpid)
        with pytest.raises(TimeoutError, match=r"pause\(…\), called at .* longer than timeout=2 s"):
            gate.result(20)
        assert after.result(20) != pid
        wait_for_end(pid)
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError):
            ProcessExecutor(timeout=bad)
    with pytest.raises(TypeError):
        ProcessExecutor(timeout="1")  # type: ignore[arg-type]


def test_no_process_can_be_started(
    executor: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E3: a process that can't be started fails the call with the reason."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(WorkerDied, match=r"no worker process could be started for abs\(…\)"):
        executor.submit(abs, -1).result(20)
    monkeypatch.undo()
    assert executor.submit(abs, -1).result(20) == 1


# -- What calls do ---------------------------------------------------------------------------


def test_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process: what a call prints is there before its outcome; it has no standard input."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    process = script(
        """
        from background import ProcessExecutor, background
        @background(executor=ProcessExecutor())
        def talk(text):
            print(text)
            print(text.upper(), file=sys.stderr)
            return sys.stdin.read()
        tell(repr(talk("one").result()))
        tell(repr(talk("two").result()))
        """,
        tmp_path,
    )
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert out.split() == ["one", "''", "two", "''"]
    assert err.split() == ["ONE", "TWO"]


def forks() -> int:
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_and_return() -> int:
    return os.fork()


def fork_and_die() -> None:
    if os.fork():
        die()
    signal.alarm(20)
    signal.pause()


def starts() -> tuple[str, list[int]]:
    seen: list[int] = []
    thread = threading.Thread(target=seen.append, args=(1,))
    thread.start()
    thread.join()
    return subprocess.run(["echo", "hello"], capture_output=True, text=True).stdout, seen


def test_calls_that_start_processes_and_threads(executor: ProcessExecutor) -> None:
    """Process: a call may fork and start processes and threads; none of them holds us up."""
    assert executor.submit(forks).result(20) == 7
    assert executor.submit(starts).result(20) == ("hello\n", [1])
    assert executor.submit(fork_and_return).result(20) > 0
    assert executor.submit(abs, -1).result(20) == 1
    with pytest.raises(WorkerDied):  # though its child lives on
        executor.submit(fork_and_die).result(15)
    assert executor.submit(abs, -1).result(20) == 1


def close_everything() -> None:
    os.closerange(3, 1000)


def test_a_call_that_closes_our_pipes(executor: ProcessExecutor) -> None:
    """E3: a call that closes every file fails itself alone."""
    assert isinstance(executor.submit(close_everything).exception(20), WorkerDied)
    assert executor.submit(abs, -1).result(20) == 1


def test_calls_inside_calls(tmp_path: Path) -> None:
    """W1, F4: what calls call runs in their process, and is done when they are."""
    (tmp_path / "plots.py").write_text(MODULE)
    lines, err = run(
        """
        import plots
        from background import ProcessExecutor, ThreadExecutor, background, flush
        in_process = background(executor=ProcessExecutor())
        @in_process
        def leaf(path):
            with open(path, "a") as file:
                file.write(f"{os.getpid()}\\n")
            return os.getpid()
        threads = ThreadExecutor()
        @in_process
        def makes(path):
            assert leaf(path).result(10) == os.getpid() == plots.draw(1).result(10)[0]
            threads.submit(lambda: (time.sleep(0.1), leaf(path)))
            return os.getpid()
        @in_process
        def flushes():
            flush()
        os.chdir(os.path.dirname(__file__))
        pid = makes("seen").result(20)
        tell(open("seen").read().replace(str(pid), "same"))
        tell(str(flushes().exception(20)))
        """,
        tmp_path,
    )
    assert err == ""
    assert lines[:3] == ["same", "same", ""]
    assert lines[3].startswith("flush() inside flushes(…) would wait for that call itself")


def test_executors_travel() -> None:
    """Process: pickled and unpickled here, an executor is the same one."""
    import pickle

    for executor in (ThreadExecutor(2), ProcessExecutor(3, timeout=4)):
        assert pickle.loads(pickle.dumps(executor)) is executor


# -- The end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("work", ["sum(range(10**12))", "threading.Event().wait()", ""])
def test_no_worker_outlives_a_killed_program(work: str, tmp_path: Path) -> None:
    """Process: a SIGKILL of the program ends its workers, whatever they do."""
    process = script(
        f"""
        from background import ProcessExecutor, background, flush
        @background(executor=ProcessExecutor())
        def call():
            tell(str(os.getpid()))
            {work}
        call()
        flush()
        signal.pause()
        """,
        tmp_path,
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.kill()
    process.communicate(timeout=20)  # returns once nobody holds the program's output
    wait_for_end(worker)


def test_no_worker_outlives_its_program_because_of_a_child(tmp_path: Path) -> None:
    """W4: a forked child of the program keeps no worker of its parent alive."""
    process = script(
        """
        from background import ProcessExecutor, background, flush
        @background(executor=ProcessExecutor())
        def call():
            return os.getpid()
        pid = call().result()
        if not os.fork():
            signal.alarm(30)
            other = call().result(10)
            flush()
            tell(f"{pid} {os.getpid()} {other}")
            signal.pause()
        assert call().result() == pid
        signal.pause()
        """,
        tmp_path,
    )
    assert process.stdout is not None
    worker, child, other = map(int, process.stdout.readline().split())
    assert worker != other
    process.kill()
    wait_for_end(worker)
    os.kill(child, signal.SIGKILL)
    process.communicate(timeout=20)
    wait_for_end(other)


def test_forks_while_processes_start(tmp_path: Path) -> None:
    """W4: children that are forked while workers start and die hold none of their pipes."""
    lines, err = run(
        """
        import select
        from background import ProcessExecutor
        executor = ProcessExecutor()
        stop = threading.Event()
        def storm():
            while not stop.is_set():
                executor.submit(os._exit, 0).exception(20)
        thread = threading.Thread(target=storm)
        thread.start()
        children = []
        for _ in range(20):
            child = os.fork()
            if not child:
                signal.alarm(60)
                kinds = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                         if os.path.exists(f"/proc/self/fd/{fd}")]
                tell(str(sum("socket" in kind for kind in kinds)))
                os._exit(0)
            os.waitpid(child, 0)
            time.sleep(0.01)
        stop.set()
        thread.join()
        """,
        tmp_path,
    )
    assert (lines, err) == (["0"] * 20, "")


def in_a_group(body: str, tmp_path: Path) -> subprocess.Popen[str]:
    """Start a program in a process group of its own, as a terminal does."""
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(body))
    return subprocess.Popen(
        [sys.executable, str(path)],
        env=ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_ctrl_c_for_the_whole_group(tmp_path: Path) -> None:
    """W3: Ctrl-C in the terminal is for the program, which drops what waits and says how many."""
    process = in_a_group(
        """
        import os, threading
        from background import ProcessExecutor, background
        @background(executor=ProcessExecutor())
        def hang(i):
            print("hangs", flush=True)
            threading.Event().wait()
        for i in range(30):
            hang(i)
        """,
        tmp_path,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == "hangs\n"
        assert process.stderr.readline().startswith("the program's end waits for 30 background")
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert err.startswith("interrupted: dropped 29 background calls that had not started; hang(…)")
    assert "in the worker process" in err
    assert "Traceback" not in err + out
    assert process.returncode == 0


def test_ctrl_c_leaves_the_call_alone(tmp_path: Path) -> None:
    """W1: Ctrl-C in the terminal ends a flush; the call in its process goes on."""
    os.mkfifo(tmp_path / "fifo")
    process = in_a_group(
        f"""
        from background import ProcessExecutor, background, flush
        @background(executor=ProcessExecutor())
        def waits():
            print("waits", flush=True)
            with open({str(tmp_path / "fifo")!r}) as fifo:
                return fifo.readline()
        try:
            future = waits()
            flush()
        except KeyboardInterrupt:
            print("caught", flush=True)
        print(future.result())
        """,
        tmp_path,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "waits\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "caught\n"
        with open(os.open(tmp_path / "fifo", os.O_RDWR), "w") as fifo:  # waits for nobody
            fifo.write("goes on\n")
            fifo.flush()
            out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (out, err) == ("goes on\n\n", "")


def test_the_end_is_quiet(tmp_path: Path) -> None:
    """W3: calls are drained, exit hooks of the worker run, nothing is said and nothing left."""
    path = tmp_path / "train.py"
    path.write_text(
        textwrap.dedent(
            """
            import atexit, os, sys
            from background import ProcessExecutor, background
            @background(executor=ProcessExecutor(2))
            def call(i):
                if not hasattr(sys, "mine"):
                    sys.mine = atexit.register(print, "hook")
                print(i)
            dropped = ProcessExecutor()
            dropped.submit(abs, 1)
            del dropped
            unused = ProcessExecutor()
            call(1).result()
            call(2)
            """
        )
    )
    out = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(path)],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert out.stderr == ""
    assert [line for line in out.stdout.split() if line != "hook"] == ["1", "2"]
    assert out.stdout.count("hook") in (1, 2)
    assert out.returncode == 0


def test_dropped_and_shut_down_executors_end_their_processes() -> None:
    """F1: the processes of an executor end with it, and are waited for."""
    for drop in (False, True):
        executor = ProcessExecutor()
        pid = executor.submit(os.getpid).result(20)
        if drop:
            thread = executor._queue.workers[0].ended
            del executor
            thread.get()
        else:
            executor.shutdown()
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def test_an_idle_process_sleeps(executor: ProcessExecutor) -> None:
    """Process: neither the process nor the worker thread wakes up while there is nothing to do."""
    pid = executor.submit(os.getpid).result(20)
    executor.submit(abs, 1).result(20)

    def switches() -> list[str]:
        text = Path(f"/proc/{pid}/status").read_text()
        return [line for line in text.split("\n") if line.startswith("voluntary")]

    while "S (sleeping)" not in Path(f"/proc/{pid}/status").read_text():
        pass
    before = switches()
    threading.Event().wait(0.3)
    assert switches() == before


def test_a_long_wait_names_the_process(
    executor: ProcessExecutor, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2: a long wait says in which process the call runs that holds it up."""
    monkeypatch.setattr(_flush, "PATIENCE", 0.01)
    pid = executor.submit(os.getpid).result(20)
    executor.submit(signal.pause)
    with pytest.raises(FlushTimeout):
        flush(0.3)
    assert f"in the worker process {pid}" in log.warnings[0]
    logging.getLogger("background").setLevel(logging.CRITICAL + 1)
    os.kill(pid, signal.SIGKILL)
    flush(20)
    logging.getLogger("background").setLevel(logging.NOTSET)


def test_several_workers_overlap(tmp_path: Path) -> None:
    """C2: with two workers two calls run at the same time, in two processes."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ProcessExecutor(2) as executor:
        for _ in range(5):
            read = executor.submit(fifo.read_text)  # opening it waits for whoever writes
            executor.submit(fifo.write_text, "met").result(20)
            assert read.result(20) == "met"
