"""Process workers in programs that nobody here wrote: what they set, start and send."""

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

HEAD = """\
import os, signal, subprocess, sys, threading, time
from background import *
executor = ProcessExecutor()
call = background(executor=executor)
"""


def program(
    body: str, folder: Path, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, for 100 seconds at most."""
    file = folder / "train.py"
    file.write_text(HEAD + textwrap.dedent(body))
    command = [sys.executable, str(file), *arguments]
    options = {"capture_output": True, "cwd": folder, "timeout": 100, **options}
    return subprocess.run(command, text=True, check=False, **options)


def good(done: subprocess.CompletedProcess[str], *lines: str) -> None:
    assert (done.returncode, done.stdout.splitlines()) == (0, list(lines)), done.stderr


@pytest.mark.parametrize("before", ["", "before"])
def test_default_timeout_of_sockets(before: str, tmp_path: Path) -> None:
    """B4, E3: a call that takes longer than socket.setdefaulttimeout runs once."""
    setting = "import socket; socket.setdefaulttimeout(0.1)\n"
    body = f"""
        {setting if not before else ""}
        def work():
            print("runs", flush=True)
            time.sleep(0.6)
            return os.getpid()
        first = call(work)().result(30)
        {setting}
        assert call(work)().result(30) == first
        """
    good(program(textwrap.dedent(body), tmp_path), "runs", "runs")


STARTS = {
    "os.system": "os.system(f'{sleeper} >/dev/null 2>&1 & echo $! > pid')",
    "posix_spawn": "open('pid', 'w').write(str(os.posix_spawn('/bin/sleep', ['sleep', '90'], {})))",
    "Popen": "open('pid', 'w').write(str(subprocess.Popen(['sleep', '90'], close_fds=False).pid))",
    "fork": "pid = os.fork()\n    open('pid', 'w').write(str(pid)) if pid else time.sleep(90)",
}


@pytest.mark.parametrize("how", STARTS)
def test_a_killed_worker_leaves_a_program(how: str, tmp_path: Path) -> None:
    """E3: a call fails at once when its worker is killed, though a program it started lives on."""
    body = f"""
        sleeper = "sleep 90"
        def start():
            {STARTS[how].replace(chr(10), chr(10) + "        ")}
        call(start)().result(30)
        error = call(os.kill)(call(os.getpid)().result(30), signal.SIGKILL).exception(30)
        open("outcome", "w").write(type(error).__name__ + str(call(abs)(-1).result(30)))
        """
    nothing = {"capture_output": False, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        assert program(body, tmp_path, **nothing).returncode == 0  # a pipe would be inherited
        assert (tmp_path / "outcome").read_text() == "WorkerDied1"
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_closed_standard_streams(tmp_path: Path) -> None:
    """E3: where a daemon closed its standard streams, what a call prints goes nowhere."""
    body = """
        def say(i):
            print("something", i, flush=True)
            os.write(1, b"more")
            return i
        results = [repr(call(say)(i).exception(30)) for i in range(3)]
        open("results", "w").write(" ".join(results))
        """
    command = f"exec {sys.executable} train.py <&- >&- 2>&-"
    program("", tmp_path)
    (tmp_path / "train.py").write_text(HEAD + textwrap.dedent(body))
    subprocess.run(["sh", "-c", command], cwd=tmp_path, timeout=100, check=True)
    assert (tmp_path / "results").read_text() == "None None None"


def test_many_arguments(tmp_path: Path) -> None:
    """E4: 2,500 file names as arguments, a Path among them, and a long sys.path reach workers."""
    body = """
        from pathlib import Path
        sys.argv.append(Path("data"))
        sys.path += [f"/no/such/folder/{'x' * 120}/{i}" for i in range(2_500)]
        assert call(lambda: (sys.argv, sys.path))().result(60) == (
            [str(each) for each in sys.argv], sys.path)
        """
    good(program(body, tmp_path, *["x" * 120 + f"{i}.npz" for i in range(2_500)]))


def test_signals_to_the_whole_group(tmp_path: Path) -> None:
    """B3: what a scheduler sends to all processes ends no call, and not what calls end."""
    body = """
        import multiprocessing, pathlib
        for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(each, lambda *_: None)
        def signalled():
            for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
                os.kill(os.getpid(), each)
            return "survives"
        def ends_others():
            child = subprocess.Popen(["sleep", "90"])
            child.terminate()
            pool = multiprocessing.get_context("fork").Pool(1)
            results = pool.map(abs, [-1])
            pool.terminate()
            pool.join()
            process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=[90])
            process.start()
            process.terminate()
            process.join(30)
            return child.wait(30), results, process.exitcode
        print(call(signalled)().result(30))
        print(call(ends_others)().result(60))
        """
    good(program(body, tmp_path), "survives", "(-15, [1], -15)")


def test_no_worker_outlives_a_program_ended_by_sigterm(tmp_path: Path) -> None:
    """B3: the program's end by SIGTERM, sent to all its processes, ends its workers."""
    body = """
        def hang():
            print(os.getpid(), flush=True)
            threading.Event().wait()
        future = call(hang)()
        threading.Event().wait()
        """
    (tmp_path / "train.py").write_text(HEAD + textwrap.dedent(body))
    command = [sys.executable, "train.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        watched = os.pidfd_open(pid)
        for each in (pid, process.pid):
            os.kill(each, signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
    assert select.select([watched], [], [], 30)[0]
    os.close(watched)


SHARED = """
from multiprocessing.shared_memory import SharedMemory
def use(name):
    block = SharedMemory(name)
    value = bytes(block.buf[:3])
    block.close()
    return value
def create():
    block = SharedMemory(create=True, size=10)
    block.buf[:3] = b"new"
    name = block.name
    block.close()
    return name
"""


def test_shared_memory_outlives_workers(tmp_path: Path) -> None:
    """E3: a program's shared memory is there after its workers ended, timed out or were killed."""
    body = f"""
        {SHARED.replace(chr(10), chr(10) + "        ")}
        block = SharedMemory(create=True, size=10)
        block.buf[:3] = b"abc"
        for options in ({{}}, {{"timeout": 5}}):
            with ProcessExecutor(**options) as executor:
                assert executor.submit(use, block.name).result(30) == b"abc"
                if options:
                    executor.submit(time.sleep, 60).exception(30)
                else:
                    executor.submit(os.kill, executor.submit(os.getpid).result(), 9).exception(30)
                name = executor.submit(create).result(30)
            assert use(block.name) == b"abc"
            made = SharedMemory(name)
            assert bytes(made.buf[:3]) == b"new"
            made.close()
            made.unlink()
        block.close()
        block.unlink()
        """
    done = program(body, tmp_path)
    good(done)
    assert done.stderr.count("leaked") == 0, done.stderr


def test_managers(tmp_path: Path) -> None:
    """D1: a Manager's queue, lock and event can be used in a call, also on a worker of before."""
    body = """
        import multiprocessing
        def use(queue, lock, event):
            with lock:
                queue.put(os.getpid())
            event.set()
        if __name__ == "__main__":
            call(abs)(-1).result(30)
            multiprocessing.current_process().authkey = b"secret"
            with multiprocessing.Manager() as manager:
                queue, lock, event = manager.Queue(), manager.Lock(), manager.Event()
                call(use)(queue, lock, event).result(60)
                print(event.is_set(), queue.get(timeout=30) != os.getpid())
        """
    good(program(body, tmp_path), "True True")


@pytest.mark.parametrize("late", ["", "late"])
def test_faulthandler(late: str, tmp_path: Path) -> None:
    """E3: with faulthandler enabled, a fault in a call leaves its stack on standard error."""
    body = f"""
        import faulthandler
        if "{late}":
            call(abs)(-1).result(30)
        faulthandler.enable()
        def dereference():
            faulthandler._sigsegv()
        print(type(call(dereference)().exception(30)).__name__)
        """
    done = program(body, tmp_path)
    good(done, "WorkerDied")
    assert "Segmentation fault" in done.stderr
    assert "in dereference" in done.stderr


def test_changes_of_the_program_reach_the_worker(tmp_path: Path) -> None:
    """E4: variables, sys.path, the directory and reloaded modules are as they are at the call."""
    body = """
        import importlib
        sys.dont_write_bytecode = True
        get = call(os.environ.get)
        os.environ["NEW"], os.environ["OLD"] = "1", "1"
        assert [get("NEW").result(30), get("OLD").result(30)] == ["1", "1"]
        os.environ["NEW"] = "2"
        del os.environ["OLD"]
        assert [get("NEW").result(30), get("OLD").result(30)] == ["2", None]
        os.mkdir("late")
        open("late/plugin_of_late.py", "w").write("def value(): return 1")
        sys.path.append(os.path.abspath("late"))
        import plugin_of_late
        assert call(plugin_of_late.value)().result(30) == 1
        open("late/plugin_of_late.py", "w").write("def value(): return 'two'")
        importlib.reload(plugin_of_late)
        assert call(plugin_of_late.value)().result(30) == "two"
        os.chdir("late")
        assert call(os.getcwd)().result(30) == os.getcwd()
        """
    good(program(body, tmp_path))


LEAVES = """
        def leave(seconds):
            import atexit
            def late():
                time.sleep(seconds)
                print("thread", flush=True)
            threading.Thread(target=late).start()
            atexit.register(lambda: print("hook", flush=True))
        call(leave)({seconds})
        flush()
"""


@pytest.mark.parametrize("end", ["executor.shutdown()", "pass"])
def test_what_a_call_leaves_is_finished(end: str, tmp_path: Path) -> None:
    """W3: a worker's threads and exit hooks are waited for, and that is said after a second."""
    done = program(LEAVES.format(seconds=2.5) + f"        {end}\n", tmp_path)
    good(done, "thread", "hook")
    assert done.stderr.count("is waited for until what its calls have left there") == 1, done.stderr


def test_what_a_call_leaves_is_cut_off(tmp_path: Path) -> None:
    """W3: exit_timeout ends a worker whose threads go on."""
    done = program(
        "configure(exit_timeout=0.5)\n" + textwrap.dedent(LEAVES.format(seconds=80)), tmp_path
    )
    good(done)


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="starts no thread once the program's end has begun"
)
def test_a_thread_that_a_call_starts_is_no_daemon(tmp_path: Path) -> None:
    """W3: a plain thread that a call on a thread starts is waited for at the end."""
    body = """
        def leave():
            def late():
                threading.main_thread().join()
                print("late", threading.current_thread().daemon, flush=True)
            threading.Thread(target=late).start()
        background(executor=ThreadExecutor())(leave)()
        """
    good(program(body, tmp_path), "late False")


def test_a_program_that_is_no_interpreter(tmp_path: Path) -> None:
    """E3: frozen or embedded, a program is never started again for its calls: those fail."""
    pytest.importorskip("distributed")
    copy = tmp_path / "app"
    copy.write_text("#!/bin/sh\necho started >> copies\n")
    copy.chmod(0o700)
    body = f"""
        for sys.executable in ("{copy}", "", None):
            for made in (ProcessExecutor, DaskExecutor):
                error = background(executor=made())(abs)(-1).exception(60)
                assert "is none (the program is frozen, or embeds Python)" in str(error), error
        print(os.path.exists("copies"))
        """
    good(program(body, tmp_path), "False")
