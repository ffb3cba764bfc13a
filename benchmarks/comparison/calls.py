"""What the ways call, and what program and judge tell one another through files of one folder.

Importable by worker processes, and free of any other import of this repository.
"""

import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="not seen")


def write(folder: str, text: str) -> None:
    """Append a line to the log in one piece."""
    file = os.open(f"{folder}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{text}\n".encode())
    os.close(file)


def lines(folder: str) -> list[str]:
    """Return the lines of the log."""
    try:
        with open(f"{folder}/log") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def until(condition: Callable[[], Any], seconds: float = 60) -> bool:
    """Wait for a condition that another thread or process brings about."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def gate_opens(folder: str) -> bool:
    return until(lambda: os.path.exists(f"{folder}/gate"))


def open_gate(folder: str) -> None:
    with open(f"{folder}/gate", "w"):
        pass


def note(folder: str, text: Any) -> Any:
    """Say that this call ran."""
    write(folder, f"ended {text}")
    return text


def hold(folder: str, text: Any) -> Any:
    """Wait for the gate."""
    write(folder, f"started {text} {os.getpid()}")
    gate_opens(folder)
    return note(folder, text)


def hold_first(folder: str, number: int) -> None:
    """Wait for the gate in the call 0, so that the others have to wait; they are short."""
    (note if number else hold)(folder, number)


def overlap(folder: str, number: int) -> None:
    """Tell whether a later call runs in the middle of an earlier one, which waits for it."""
    write(folder, f"started {number}")
    if number == 0:
        until(lambda: "started 1" in lines(folder), 1)
    note(folder, number)


def fail(folder: str) -> None:
    raise ValueError("the call has failed")


def die_first(folder: str, number: int) -> int:
    """Be killed in the call 0, once the gate is open; the others are short."""
    if number == 0:
        hold(folder, number)
        os.kill(os.getpid(), signal.SIGKILL)
    note(folder, number)
    return number


def see(folder: str) -> None:
    """Say what the context variable is."""
    write(folder, caller.get())


def show(folder: str, live: Any) -> None:
    """Say what the argument holds by the time that the gate opens."""
    gate_opens(folder)
    write(folder, f"shown {live.value if isinstance(live, Live) else live[0]}")


class Live:
    """A value that its owner changes in place right after the call.

    Who pickles it on another thread than the owner's is made to do so after that.
    """

    changed = threading.Event()

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        if threading.current_thread() is not threading.main_thread():
            self.changed.wait(5)
        return Live, (self.value,)


class Large:
    """An argument and a result whose end can be seen."""


def same(large: Large) -> Large:
    return large


class Odd(Exception):
    """An exception that can be pickled, and can't be unpickled."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


def fail_oddly(folder: str) -> None:
    raise Odd(3, "odd")


def add(a: int, b: int) -> int:
    return a + b


FUNCTIONS = [note, hold, hold_first, overlap, fail, die_first, see, show, same, fail_oddly, add]
