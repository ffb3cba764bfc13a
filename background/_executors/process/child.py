"""One worker process, from its start to its end, and what it is told of the program."""

from __future__ import annotations

import marshal
import math
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from contextlib import suppress
from time import monotonic
from types import ModuleType
from typing import Any, cast

from background._core.failures import own_files
from background._core.ledger import this_thread
from background._core.naming import describe
from background._core.telling import WARNING, report
from background._errors import WorkerDied
from background._executors.process.channel import CALL, RAISED, STATE, Channel, Message
from background._pickling import unpack_error
from background._pickling.modules import local_modules
from background._platform import interpreter, not_standard

__all__ = ["Process"]

own_files.add(__file__)

PATIENCE = 1.0  # seconds after which it is said that an idle worker process doesn't end
ATTEMPTS = 3  # how many processes may die before they have taken a call in
# What to import from, and the arguments, come by the connection: a command line has a limit.
# The end has the package's own imports left out: they would take four times as long as the
# rest. What the calls import is up to them.
PROGRAM = """\
import marshal, os, sys
def read(size):
    data = b""
    while len(data) < size:
        data += os.read({connection}, size - len(data)) or sys.exit(1)
    return data
os.set_blocking({connection}, True)
sys.path[:], sys.argv[:], folders = marshal.loads(read(int.from_bytes(read(8), "little")))
sys.modules["background"] = type(sys)("background")
sys.modules["background"].__path__ = folders
from background._executors.process.worker import main
# Whoever imports the package here gets it whole, from its beginning.
for name in ("background", "background._executors", "background._executors.process"):
    del sys.modules[name]
del name, read, folders, marshal, os
main({connection}, {life}, {tracker})
"""


class Process:
    """A worker process, started when it is first needed and again after each death."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.pid: int | None = None
        self.exitcode: int | None = None
        self.running = False
        self.told: dict[str, Any] = {}  # what it knows of the program
        self.tracker: int | None = None
        self.specs: dict[str, Any] = {}
        self.channel: Channel | None = None

    def run(self, data: bytes, copies: tuple[bytearray, ...]) -> Any:
        """Have a call run and return its result, or raise what it raised."""
        self.running = True
        try:
            kind, answer, buffers = self.exchange(data, copies)
            where = f"in the worker process {self.pid}"
        finally:
            self.running = False
        if kind == RAISED:
            raise unpack_error(answer, where)
        try:
            return pickle.loads(answer, buffers=buffers)
        except BaseException as error:
            with suppress(Exception):  # it takes no notes
                BaseException.add_note(error, "while the result was unpickled")
            raise

    def exchange(self, data: bytes, copies: tuple[bytearray, ...]) -> Message:
        ended = ""
        for _ in range(ATTEMPTS):
            sent = False
            try:
                channel = self.fresh_channel()
                channel.send(CALL, data, copies)
                sent = True
                if self.answers_in_time(channel):
                    return channel.receive()
            except (EOFError, OSError) as error:
                ended = self.end(kill=True)
                # It died with the call, or a part of it, unread (the system says so by
                # ECONNRESET): so that had not started, and may go to a new process. After any
                # other error the call may have run, and is never run again.
                if sent and not isinstance(error, ConnectionResetError):
                    raise WorkerDied(
                        f"the worker process {self.pid} {ended} while it ran {running_call()}; "
                        "only this call fails, and the next one gets a new process",
                        self.exitcode,
                    ) from None
            else:
                self.end(kill=True)
                raise TimeoutError(
                    f"{running_call()} ran longer than timeout={self.timeout} s; "
                    "its process was ended, and the next call gets a new one"
                )
        raise WorkerDied(
            f"the worker process {ended} before it had read {running_call()}, {ATTEMPTS} times "
            "in a row; look for what it said on standard error",
            self.exitcode,
        )

    def fresh_channel(self) -> Channel:
        """Return the channel to a process that knows what has changed in the program."""
        if self.channel is not None and self.is_stale():
            self.end()
        channel = self.channel or self.start()
        changed: dict[str, Any] = {}
        now = state()
        for name, value in now.items():
            before = self.told.get(name)
            if value != before:
                # Of the environment only what differs: a call may have changed the rest there.
                changed[name] = difference(before or {}, value) if name == "environ" else value
        if changed:
            self.told.update(now)
            channel.send(STATE, pickle.dumps(changed))
        return channel

    def is_stale(self) -> bool:
        """Tell whether the process has older modules than the program, or another tracker."""
        before, now = self.specs, own_specs()
        # A module that the program did not have before is none that the process can have older.
        return tracker_descriptor() != self.tracker or any(
            before.setdefault(name, spec) is not spec for name, spec in now.items()
        )

    def answers_in_time(self, channel: Channel) -> bool:
        if self.timeout is None or self.timeout > 1e6:  # more than poll can take
            return True
        poll = select.poll()
        poll.register(channel.connection, select.POLLIN)
        return bool(poll.poll(math.ceil(self.timeout * 1000)))

    def start(self) -> Channel:
        """Start the process; return once it can take calls, so that `timeout` is for those."""
        channel = self.launch()
        try:
            channel.receive()
        except EOFError:
            raise ConnectionResetError from None  # for `exchange`: no call had started
        return channel

    def launch(self) -> Channel:
        with _forking:
            # A pipe which the process watches: it ends when this closes.
            watched, life = map(not_standard, os.pipe())
            ours, theirs = (
                socket.socket(fileno=not_standard(each.detach())) for each in socket.socketpair()
            )
            self.told, self.specs, self.tracker = state(), own_specs(), tracker_descriptor()
            for name in ("authkey", "faulthandler"):  # not inherited: told with the first call
                self.told.pop(name, None)
            try:
                flags: list[str] = cast(Any, subprocess)._args_from_interpreter_flags()
                program = PROGRAM.format(
                    connection=theirs.fileno(), life=watched, tracker=self.tracker
                )
                popen = subprocess.Popen(
                    [interpreter(), *flags, "-c", program],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), watched, *filter(None, [self.tracker])],
                    start_new_session=True,  # Ctrl-C in the terminal is for the program alone
                )
            except BaseException as error:
                ours.close()
                os.close(life)
                raise WorkerDied(
                    f"no worker process could be started for {running_call()}: {error}"
                ) from error
            finally:
                theirs.close()
                os.close(watched)
            self.pid = popen.pid
            popen.returncode = 0  # it is waited for below; Popen would warn of one that runs
            self.channel = channel = Channel(ours)
            _open[channel] = life
        argv = [each if type(each) is str else str(each) for each in sys.argv]
        setup = (self.told["path"], argv, list(sys.modules["background"].__path__))
        data = marshal.dumps(setup)
        channel.write(len(data).to_bytes(8, "little"), data)
        return channel

    def end(self, kill: bool = False, deadline: float | None = None) -> str:
        """End the process; return how it ended, in words.

        One that isn't killed ends as every program does: after its threads and its exit hooks.
        At the deadline it is killed.
        """
        channel, self.channel = self.channel, None
        if channel is None or self.pid is None or channel not in _open:  # or it is the parent's
            return "has not started"
        if not kill:
            kill = not self.ends_itself(channel.connection, deadline)
        if kill:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        with _forking:
            channel.connection.close()
            os.close(_open.pop(channel))
        try:
            self.exitcode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # the program waits for any child
            self.exitcode = None
            return "ended"
        if self.exitcode >= 0:
            return f"ended with exit code {self.exitcode}"
        name = f"signal {-self.exitcode}"
        with suppress(ValueError):
            name = signal.Signals(-self.exitcode).name
        return f"was killed by {name}"

    def ends_itself(self, connection: socket.socket, deadline: float | None) -> bool:
        """Ask the process to end; return False if it hasn't at the deadline."""
        said = False
        patience = PATIENCE
        with suppress(OSError):  # it has ended already
            connection.shutdown(socket.SHUT_WR)
            while True:
                left = math.inf if deadline is None else max(deadline - monotonic(), 0)
                connection.settimeout(min(left, patience) or 0.001)
                try:
                    if not connection.recv(1 << 16):  # once the process has ended
                        return True
                except TimeoutError:
                    if left <= patience:
                        return False
                    if not said:
                        said, patience = True, 10.0
                        report(
                            WARNING,
                            "the worker process %s has no calls any more, and is waited for until "
                            "what its calls have left there has ended: threads, exit hooks",
                            self.pid,
                        )
        return True


def running_call() -> str:
    call = this_thread().call
    return "a call" if call is None else describe(call)


# -- What a process is told of the program -------------------------------------------------


def state() -> dict[str, Any]:
    """Return what a worker process follows, as it is now in the program."""
    found: dict[str, Any] = {
        "environ": dict(getattr(os.environ, "_data", os.environ)),
        "path": [each if type(each) is str else str(each) for each in sys.path],
    }
    with suppress(OSError):  # the directory is gone
        found["cwd"] = os.getcwdb()
    # Only what the program uses itself: to import these takes longer than a small call.
    with suppress(Exception):  # it is being imported just now
        if process := sys.modules.get("multiprocessing.process"):
            found["authkey"] = bytes(cast(Any, process).current_process().authkey)
    with suppress(Exception):
        if handler := sys.modules.get("faulthandler"):
            found["faulthandler"] = cast(Any, handler).is_enabled()
    return found


def difference(before: dict[Any, Any], now: dict[Any, Any]) -> dict[str, str | None]:
    """Return the variables that are new or have changed; None for those that are gone."""
    changed = {name: value for name, value in now.items() if before.get(name) != value}
    gone = dict.fromkeys(before.keys() - now.keys())
    return {
        os.fsdecode(name): None if value is None else os.fsdecode(value)
        for name, value in {**changed, **gone}.items()
    }


def tracker_descriptor() -> int | None:
    """Return the pipe to the process by which `multiprocessing` cleans up, or None."""
    module: Any = sys.modules.get("multiprocessing.resource_tracker")
    with suppress(Exception):
        descriptor: int | None = module._resource_tracker._fd
        if descriptor is None and "multiprocessing.shared_memory" in sys.modules:
            descriptor = module.getfd()
        return descriptor
    return None


_installed = tuple(
    os.path.join(sysconfig.get_path(name), "")
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_own: tuple[int, list[str]] = (0, [])


def own_specs() -> dict[str, Any]:
    """Return the specs of the program's own modules: each `importlib.reload` makes a new one."""
    global _own
    if _own[0] != len(sys.modules):
        local = local_modules()
        names = [
            name
            for name, module in list(sys.modules.items())
            if name not in local  # those go by value
            and type(module) is ModuleType  # a lazy one would be loaded by a look
            and isinstance(file := vars(module).get("__file__"), str)
            and not file.startswith(_installed)
        ]
        _own = len(sys.modules), names
    return {name: getattr(sys.modules.get(name), "__spec__", None) for name in _own[1]}


# -- Fork ----------------------------------------------------------------------------------

_open: dict[Channel, int] = {}  # what the program has of its processes: a socket and a pipe each
# Held while that changes: a child forked at that moment would inherit a pipe of which nobody
# knows, and keep the process alive when its program is gone.
_forking = threading.RLock()  # the thread that holds it may fork, in a signal handler


def forget_processes() -> None:
    """Close what a forked child has of its parent's processes."""
    while _open:
        channel, life = _open.popitem()
        os.close(channel.connection.detach())
        os.close(life)
    _forking.release()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=forget_processes
)
