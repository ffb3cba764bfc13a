"""The rung Durable: what goes wrong in a call or around it is told, and ends no worker."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from test_durable import command, end, environment, executor, file, quiet, say

from background import SQLiteExecutor

__all__ = ["executor", "file", "quiet"]

NAME = os.fsdecode(b"caf\xe9")  # as `os.listdir` gives a name that is not UTF-8


# -- What a call returns, raises and prints ------------------------------------------------


class Hostile(BaseException):
    """Raises what no formatting expects."""

    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__

    @property
    def __notes__(self) -> list[str]:
        raise KeyboardInterrupt


class Text(str):
    """A text that can't be pickled."""

    def __reduce__(self) -> NoReturn:
        raise SystemExit(4)


class WithText(Exception):
    def __str__(self) -> str:
        return Text("the text")

    def __reduce__(self) -> NoReturn:
        raise SystemExit(5)


class Unwilling:
    def __reduce__(self) -> NoReturn:
        raise SystemExit(6)


def fail(kind: Any, *args: object) -> NoReturn:
    raise kind(*args)


def fail_with_note() -> NoReturn:
    error = ValueError("noted")
    error.add_note(NAME)
    raise error


def unwilling() -> Unwilling:
    return Unwilling()


def show(text: str) -> str:
    print(text)
    print(text, file=sys.stderr)
    return text


def close_streams() -> None:
    os.close(1)
    os.close(2)
    sys.stdout.close()
    sys.stderr.close()


def pid() -> int:
    return os.getpid()


def test_no_outcome_ends_a_worker(executor: SQLiteExecutor) -> None:
    """D1: whatever a call raises, returns or prints is its own; the next runs beside it."""
    before = executor.submit(pid)
    unreadable = executor.submit(fail, ValueError, f"not an image: {NAME}")
    assert unreadable.exception(60).args == (f"not an image: {NAME}",)
    assert "noted" in str(executor.submit(fail_with_note).exception(60))
    assert "Hostile" in repr(executor.submit(fail, Hostile).exception(60).__class__)
    assert "the text" in str(executor.submit(fail, WithText).exception(60))
    assert isinstance(executor.submit(fail, SystemExit, 7).exception(60), SystemExit)
    assert "the result" in str(executor.submit(unwilling).exception(60))
    assert executor.submit(show, NAME).result(60) == NAME
    executor.submit(close_streams).exception(60)
    assert executor.submit(pid).result(60) == before.result(60)
    assert {call.attempts for call in executor.calls()} == {1}
    assert any(r"not an image: caf\udce9" in str(call.error) for call in executor.calls())


def test_a_script_whose_name_is_not_utf_8(file: Path, tmp_path: Path) -> None:
    """D1: a script, a folder and a file of calls may have names that are not UTF-8."""
    folder = tmp_path / NAME
    folder.mkdir()
    script = folder / f"{NAME}.py"
    script.write_text(
        "import sys\n"
        "from background import SQLiteExecutor, flush\n"
        "def double(text):\n    return 2 * text\n"
        "with SQLiteExecutor(sys.argv[1], idle_timeout=0.5) as executor:\n"
        "    assert executor.submit(double, sys.argv[1]).result(60) == 2 * sys.argv[1]\n"
        "    executor.submit(open, sys.argv[1] + '/none').exception(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder / "calls.db")],
        env=environment(),
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    end(process)
    assert r"caf\udce9" in say("status", folder / "calls.db")


# -- Folders -------------------------------------------------------------------------------


def test_a_working_directory_that_is_gone(
    executor: SQLiteExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D2: where the working directory is gone calls run; relative paths fail, as in the program."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert executor.submit(abs, -3).result(60) == 3
    assert isinstance(executor.submit(open, "here", "w").exception(60), FileNotFoundError)
    assert len(executor.calls()) == 1


def test_a_folder_that_cannot_be_entered(quiet: SQLiteExecutor, monkeypatch: Any, log: Any) -> None:
    """D2: a folder that can't be entered is an error of new calls alone; the others wait."""
    future = quiet.submit(abs, -3)
    real = os.stat

    def stat(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if str(path).startswith(quiet._path):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        refused = quiet.submit(abs, -4)
        assert "Permission denied" in str(refused.exception(60))
        with pytest.raises(TimeoutError):
            future.result(0.2)
        assert not log.errors
    say("worker", "--drain", quiet._path)
    assert future.result(60) == 3


# -- Telling -------------------------------------------------------------------------------


def test_a_worker_makes_no_file(file: Path) -> None:
    """D3: the worker of a file that isn't there says so, and makes one only if it is told to."""
    _, err = end(command("worker", "--drain", file), 2)
    assert err == f"python -m background worker: there is no file {file}\n"
    assert not file.exists()
    say("worker", "--drain", "--create", file)
    assert file.exists()


def test_the_log_of_the_workers(executor: SQLiteExecutor, file: Path) -> None:
    """D3: the log has a line for the start of the workers and for each call that failed."""
    executor.submit(fail, ValueError, "this one").exception(60)
    assert executor.submit(abs, -1).result(60) == 1  # the line follows the outcome
    log = Path(f"{file}.log").read_text()
    assert f"runs the calls in {file}\n" in log
    assert "call 1, fail(…), called at test_durable_faults.py" in log
    assert "failed: ValueError: this one\n" in log
