"""Beside libraries that replace threads, clocks and sockets: B4 of the contract."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from background import FlushTimeout, ThreadExecutor, flush, stats


def program(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, for a minute at most."""
    file = folder / "train.py"
    file.write_text(textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=60, cwd=folder
    )


PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); "
    "import eventlet; eventlet.monkey_patch()",
}


@pytest.mark.parametrize("library", PATCHES)
@pytest.mark.parametrize("kind", ["ThreadExecutor", "ProcessExecutor"])
def test_greenlets_that_were_there_first(library: str, kind: str, tmp_path: Path) -> None:
    """B4: under a patch that was made first, calls run and waits let other greenlets go on."""
    pytest.importorskip(library)
    done = program(
        f"""
        {PATCHES[library]}
        import threading, time
        from background import {kind}, background, flush
        def draw(step):
            time.sleep(0.02)
            return step
        ticks = []
        def tick():
            while True:
                ticks.append(1)
                time.sleep(0.002)
        threading.Thread(target=tick, daemon=True).start()
        call = background(executor={kind}())(draw)
        assert [call(i).result(20) for i in range(3)] == [0, 1, 2]
        ticks.clear()
        futures = [call(i) for i in range(10)]
        flush(20)
        assert [future.result() for future in futures] == list(range(10))
        assert len(ticks) > 5, ticks
        background(lambda: print("last", flush=True))()
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "last\n"), done.stderr


@pytest.mark.parametrize("library", PATCHES)
def test_greenlets_that_come_after_the_import(library: str, tmp_path: Path) -> None:
    """B4: a patch after the import, where a wait would block all greenlets, is an error at once."""
    pytest.importorskip(library)
    done = program(
        f"""
        from background import background, flush
        {PATCHES[library]}
        try:
            background(abs)(-1)
        except RuntimeError as error:
            print(error)
        flush(10)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{library} has replaced threads after `import background`")
    assert done.stdout.count("\n") == 1


def test_a_clock_that_stands_still() -> None:
    """B4: waits end after their timeouts though a test has frozen the clock."""
    freezegun = pytest.importorskip("freezegun")
    gate = threading.Event()
    with ThreadExecutor() as executor:
        with freezegun.freeze_time("2026-01-01"):
            first = executor.submit(gate.wait, 30)
            with pytest.raises(TimeoutError):
                first.result(timeout=0.01)
            with pytest.raises(FlushTimeout):
                flush(0.01)
        gate.set()
        assert first.result(20)


def test_no_time_is_negative() -> None:
    """B4: calls that done callbacks make count as waiting for no less than no time."""
    before = stats()
    with ThreadExecutor() as executor:
        for _ in range(100):
            future = executor.submit(abs, -1)
            future.add_done_callback(lambda _: executor.submit(abs, -1))
        flush()
    after = stats()
    assert after.seconds_waiting >= before.seconds_waiting
    assert after.seconds_running >= before.seconds_running


def test_settings_of_the_interpreter(tmp_path: Path) -> None:
    """B4: what a program sets for itself changes no call."""
    done = program(
        """
        import decimal, gc, locale, os, socket, sys, threading, warnings
        warnings.simplefilter("error")
        gc.disable()
        gc.freeze()
        socket.setdefaulttimeout(0.05)
        decimal.getcontext().prec = 1
        os.environ.clear()
        sys.setswitchinterval(1e-6)
        threading.stack_size(1 << 18)
        sys.settrace(lambda *_: None)
        threading.settrace(lambda *_: None)
        sys.setprofile(lambda *_: None)
        def fail(*_): raise RuntimeError("a hook")
        sys.unraisablehook = threading.excepthook = sys.excepthook = fail
        import time
        from background import ProcessExecutor, background, flush
        def work(x):
            time.sleep(0.2)  # longer than the socket's default time-out
            return x * 2
        for options in ({}, {"executor": ProcessExecutor()}):
            futures = [background(**options)(work)(i) for i in range(3)]
            flush(30)
            assert [future.result() for future in futures] == [0, 2, 4]
        background(lambda: print("last", flush=True))()
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "last\n"), done.stderr
