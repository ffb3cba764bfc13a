"""What the tests of durable calls call: importable by a worker, and quick to import."""

import ctypes
import os
import signal
import threading
import time
from concurrent.futures import Executor
from pathlib import Path


def write(path: str, text: str) -> None:
    """Append a line in one piece."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{text}\n".encode())
    os.close(file)


def lines(path: str | Path) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


def until(path: str) -> None:
    """Wait for a file."""
    end = time.monotonic() + 60
    while not os.path.exists(path):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.005)


def held(path: str, text: str = "held") -> str:
    """Say that the call runs, then wait for the gate."""
    write(f"{path}.log", f"{text} {os.getpid()}")
    Path(f"{path}.started").touch()
    until(f"{path}.gate")
    return text


def who() -> tuple[int, int]:
    return os.getpid(), os.getppid()


def write_pid(path: str) -> int:
    write(path, "next")
    return os.getpid()


def alone_for_a_second(path: str, gate: str) -> str:
    """Tell whether the next call begins while this one runs, a second after the gate opened."""
    write(path, "first")
    until(gate)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        if len(lines(path)) > 1:
            return "not alone"
        time.sleep(0.01)
    return "alone"


def die(path: str) -> None:
    write(path, "died")
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(path: str) -> str:
    write(path, "ran")
    if len(lines(path)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def leave(code: int) -> None:
    os._exit(code)


def fail(text: str) -> None:
    raise ValueError(text)


def hold_the_gil(path: str, pipe: bytes) -> None:
    """Hold the interpreter's lock until somebody opens the named pipe for writing."""
    write(path, "ran")
    ctypes.PyDLL(None).open(pipe, os.O_RDONLY)


def leave_a_child(path: str) -> str:
    """Fork a child that lives on, then be killed; the second time, end the child."""
    if not os.path.exists(path):
        child = os.fork()
        if not child:
            time.sleep(120)
            os._exit(0)
        write(path, str(child))
        os.kill(os.getpid(), signal.SIGKILL)
    child = int(lines(path)[0])
    os.kill(child, 0)  # it lives
    os.kill(child, signal.SIGKILL)
    return "second"


def fork_and_return(path: str) -> int:
    """Come back from the call twice: in the worker, and in a child of it."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    write(path, "returned")
    return os.getpid()


def lose_the_lock(path: str, lock: str) -> str:
    """Open and close the file of the locks, as a copy of the folder would, then wait."""
    first = not os.path.exists(f"{path}.log")
    write(f"{path}.log", "ran")
    if first:
        os.close(os.open(lock, os.O_RDONLY))
    name = "first" if first else "second"
    Path(f"{path}.{name}").touch()
    until(f"{path}.{name}.gate")
    return name


def wait_for_another(executor_of: str, number: int) -> int:
    """Make a durable call in a durable call, and wait for it."""
    from background import SQLiteExecutor

    executor: Executor = SQLiteExecutor(executor_of, start_worker=False)
    if number == 0:
        return 0
    return 1 + executor.submit(wait_for_another, executor_of, number - 1).result(30)


def storm(path: str, text: str) -> None:
    write(path, f"+ {text}")
    time.sleep(0.001)
    write(path, f"- {text}")


def where() -> str:
    return os.getcwd()


def size(data: bytes) -> int:
    return len(data)


def unpicklable() -> object:
    return threading.Lock()
