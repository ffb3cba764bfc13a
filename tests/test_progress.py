"""The promise W2: what a person sees of a wait."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Held
from test_ending import HEAD

import background as package
from background import FlushTimeout, _progress, background, flush

PROGRAM = """
from background import background, flush, configure
gate, started = threading.Event(), threading.Event()
@background
def plot(i):
    started.set()
    if i == 0: gate.wait(30)
for i in range(5): plot(i)
"""


def in_terminal(
    body: str, tmp_path: Path, until: str, then: Callable[[subprocess.Popen[bytes]], object]
) -> tuple[str, int]:
    """Run a program whose standard error is a terminal; act once it shows what it should."""
    path = tmp_path / "train.py"
    path.write_text(HEAD + PROGRAM + body)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 200))
    env = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, str(path)], env=env, stdin=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    killer = threading.Timer(45, process.kill)
    killer.start()
    seen = b""
    acted = False
    try:
        while True:
            try:
                read = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not read:
                break
            seen += read
            if not acted and re.search(until, seen.decode(errors="replace")):
                acted = True
                then(process)
        return seen.decode(), process.wait()
    finally:
        killer.cancel()
        process.kill()
        process.wait()
        os.close(ours)
        assert process.stdin is not None
        process.stdin.close()


def release(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


GATE = "threading.Thread(target=lambda: (sys.stdin.readline(), gate.set()), daemon=True).start()\n"
BAR = r"0/5 \[.*plot\(…\), called at train\.py"


@pytest.mark.parametrize("wait", ["flush()\n", ""])
def test_a_bar_in_a_terminal(wait: str, tmp_path: Path) -> None:
    """W2: flush and the end of the program show how many are done, how fast, and what runs."""
    seen, code = in_terminal(GATE + wait, tmp_path, BAR, release)
    assert code == 0
    assert re.search(BAR, seen)
    assert "calls/s" in seen or "s/ calls" in seen or "? calls/s" in seen
    assert ("flush()" in seen) == bool(wait)
    assert not seen.rpartition("\r")[2].strip()  # the bar is wiped away


def test_ctrl_c_wipes_the_bar(tmp_path: Path) -> None:
    """W2: Ctrl-C leaves a terminal without a bar."""
    body = "try: flush()\nexcept KeyboardInterrupt: sys.stderr.write('stopped\\n')\ngate.set()\n"
    seen, code = in_terminal(body, tmp_path, BAR, lambda p: p.send_signal(signal.SIGINT))
    assert code == 0
    assert re.search(r"\r *\rstopped\r\n$", seen)


def test_a_timeout_wipes_the_bar(tmp_path: Path) -> None:
    """W2: a timeout leaves a terminal without a bar."""
    body = "try: flush(4)\nexcept TimeoutError: sys.stderr.write('stopped\\n')\ngate.set()\n"
    seen, code = in_terminal(body, tmp_path, BAR, lambda p: None)
    assert code == 0
    assert re.search(r"\r *\rstopped\r\n$", seen)


def test_nothing_without_a_person(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """W2: nothing is shown, and nothing polled, where nobody watches or nobody wants it."""
    nobody = io.StringIO()
    monkeypatch.setattr(sys, "stderr", nobody)
    monkeypatch.setattr(_progress, "DELAY", 0.0)
    with pytest.raises(FlushTimeout):
        flush(0.01)
    drain = package._core.ledger.Drain(0)
    assert _progress.Progress(drain, "flush()", None).due == float("inf")
    assert _progress.Progress(drain, "flush()", False).due == float("inf")
    assert _progress.Progress(drain, "flush()", True).due < float("inf")
    assert nobody.getvalue() == ""


def test_a_notebook_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """W2: a notebook's kernel has a person, a shell of IPython without a terminal has none."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not _progress.is_watched()
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert _progress.is_watched()
    ipython.get_ipython = lambda: None  # type: ignore[attr-defined]
    assert not _progress.is_watched()


def shown(held: Held, monkeypatch: pytest.MonkeyPatch, what: str, capfd: object) -> str:
    """Return what flush shows on standard error until `what` appears there."""
    monkeypatch.setattr(_progress, "DELAY", 0.0)
    monkeypatch.setattr(_progress, "PAUSE", 0.0)
    monkeypatch.setattr(_progress, "REFRESH", 0.01)
    background(executor=held.executor)(abs)(-1)
    seen: list[str] = []
    draw = _progress.Progress.draw

    def drawn(self: _progress.Progress) -> None:
        draw(self)
        seen.append(capfd.readouterr().err)  # type: ignore[attr-defined]
        if what in "".join(seen):
            held.gate.set()

    monkeypatch.setattr(_progress.Progress, "draw", drawn)
    flush(30, progress=True)
    return "".join(seen)


def test_lines_without_tqdm(
    held: Held, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """W2: without tqdm a line says how many are done, how fast, and what runs."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    seen = shown(held, monkeypatch, "calls are done", capfd)
    assert seen.startswith("flush(): 0 of 2 calls are done, 0.0 a second; now Held._hold(…), call")


def test_true_shows_it_to_nobody_too(
    held: Held, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """W2: progress=True shows a bar though standard error is no terminal."""
    assert "0/2 [" in shown(held, monkeypatch, "0/2 [", capfd)


def test_a_broken_bar_breaks_nothing(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """W2: an error of the bar, a terminal that is gone say, ends the bar, not the wait."""
    monkeypatch.setattr(_progress, "DELAY", 0.0)

    def broken(_: _progress.Progress) -> None:
        held.gate.set()
        raise OSError

    monkeypatch.setattr(_progress.Progress, "draw", broken)
    flush(30, progress=True)
    assert held.first.done()


def test_children_count() -> None:
    """W2: calls that calls make are added to the number of all."""
    drain = package._core.ledger.Drain(0)
    shown = _progress.Progress(drain, "flush()", True)
    shown.draw = lambda: None  # type: ignore[method-assign]
    counts = []
    for left in (5, 3, 7, 0):
        drain.left = lambda left=left: [None] * left  # type: ignore[misc, assignment]
        shown.show()
        counts.append((shown.total - shown.left, shown.total))
    assert counts == [(0, 5), (2, 5), (2, 9), (9, 9)]


def test_only_true_and_false() -> None:
    """D3: another value of progress is a TypeError that says which there are."""
    with pytest.raises(TypeError, match="True, False or None"):
        flush(progress="yes")  # type: ignore[arg-type]
