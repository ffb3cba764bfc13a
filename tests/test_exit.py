"""The end of a program beside other libraries: B1 and B2 of the contract."""

import signal
import sys
import threading
from pathlib import Path

import pytest
from test_ending import run, script

from background import _exit, configure


def test_calls_are_done_before_what_others_opened_is_closed(tmp_path: Path) -> None:
    """B1: an `atexit` hook registered after the import finds all calls done."""
    told, err = run(
        """
        from background import background
        gate = threading.Event()
        @background
        def call(i):
            gate.wait(30)
            tell(str(i))
        atexit.register(lambda: tell("closed"))
        for i in range(3):
            call(i)
        threading.Thread(target=lambda: (threading.main_thread().join(0.1), gate.set())).start()
        """,
        tmp_path,
    )
    assert told == ["0", "1", "2", "closed"], err


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_that_imports_the_package_itself_drains(method: str, tmp_path: Path) -> None:
    """B2: calls are done before the child ends though it alone imported the package."""
    told, err = run(
        f"""
        import multiprocessing
        def child():
            from background import background
            def call(i):
                time.sleep(0.02)
                tell(str(i))
            for i in range(3):
                background(call)(i)
        if __name__ == "__main__":
            process = multiprocessing.get_context("{method}").Process(target=child)
            process.start()
            process.join()
        """,
        tmp_path,
    )
    assert told == ["0", "1", "2"], err


def test_a_handler_that_exits_loses_no_call(tmp_path: Path) -> None:
    """W3: `sys.exit` in a signal handler while the end waits doesn't end the wait."""
    told, err = run(
        """
        from background import background
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        @background
        def call(i):
            if i == 0:
                threading.main_thread().join(0.1)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
            tell(str(i))
        for i in range(3):
            call(i)
        """,
        tmp_path,
        code=143,
    )
    assert told == ["0", "1", "2"], err
    assert "Traceback" not in err


def test_drain_on_a_signal(tmp_path: Path) -> None:
    """B3: `drain_on` makes SIGTERM an orderly end, after the handler that was there."""
    told, err = run(
        """
        from background import background, configure
        signal.signal(signal.SIGTERM, lambda *_: tell("handler"))
        configure(drain_on=signal.SIGTERM)
        gate = threading.Event()
        @background
        def call(i):
            gate.wait(30)
            tell(str(i))
        for i in range(3):
            call(i)
        threading.Thread(target=lambda: (threading.main_thread().join(0.1), gate.set())).start()
        os.kill(os.getpid(), signal.SIGTERM)
        tell("not reached")
        """,
        tmp_path,
        code=143,
    )
    assert told == ["handler", "0", "1", "2"], err


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """B3: a second signal ends the program though a call hangs."""
    run(
        """
        from background import background, configure
        configure(drain_on=[signal.SIGTERM])
        @background
        def call():
            time.sleep(1.1)  # two within a second count once
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait()
        call()
        os.kill(os.getpid(), signal.SIGTERM)
        """,
        tmp_path,
        code=-signal.SIGTERM,
    )


def test_drain_on_is_checked_and_restored() -> None:
    """B3: what is no signal is an error; the block's end restores the handler."""
    before = signal.getsignal(signal.SIGTERM)
    with configure(drain_on=signal.SIGTERM):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    for wrong in ("TERM", 9999, True, 1.5):
        with pytest.raises((TypeError, ValueError), match="drain_on must be"):
            configure(drain_on=wrong)  # type: ignore[arg-type]
    raised: list[Exception] = []

    def elsewhere() -> None:
        try:
            configure(drain_on=signal.SIGTERM)
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("how", ["Process", "ProcessPoolExecutor", "closed Pool"])
def test_children_of_multiprocessing_lose_nothing(how: str, method: str, tmp_path: Path) -> None:
    """B2: the calls of a child are done before it ends, and its failures told."""
    (tmp_path / "trial.py").write_text(
        "import os, time\n"
        "from background import background\n"
        "@background\n"
        "def log(number, step):\n"
        "    time.sleep(0.02)\n"
        "    os.write(1, f'{number}-{step}\\n'.encode())\n"
        "@background\n"
        "def boom():\n"
        "    raise ValueError('boom')\n"
        "def run(number):\n"
        "    global kept\n"
        "    kept = boom()\n"
        "    for step in range(3):\n"
        "        log(number, step)\n"
    )
    told, err = run(
        f"""
        import multiprocessing, trial
        from concurrent.futures import ProcessPoolExecutor
        if __name__ == "__main__":
            context = multiprocessing.get_context("{method}")
            if "{how}" == "Process":
                child = context.Process(target=trial.run, args=(0,))
                child.start()
                child.join()
                assert child.exitcode == 0
            elif "{how}" == "ProcessPoolExecutor":
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    pool.submit(trial.run, 0).result()
            else:
                pool = context.Pool(1)
                pool.apply(trial.run, (0,))
                pool.close()
                pool.join()
        """,
        tmp_path,
    )
    assert told == ["0-0", "0-1", "0-2"], err
    assert err.count("never retrieved") == 1, err


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_queue_of_multiprocessing_is_open_for_calls(method: str, tmp_path: Path) -> None:
    """B2: what calls of a child put into a queue of `multiprocessing` arrives."""
    told, err = run(
        f"""
        import multiprocessing
        from background import background
        def child(queue):
            gate = threading.Event()
            @background
            def send(i):
                gate.wait(30)
                queue.put(i)
            for i in range(3):
                send(i)
            threading.Timer(0.2, gate.set).start()
        if __name__ == "__main__":
            context = multiprocessing.get_context("{method}")
            queue = context.Queue()
            process = context.Process(target=child, args=(queue,))
            process.start()
            for _ in range(3):
                tell(str(queue.get(timeout=30)))
            process.join()
        """,
        tmp_path,
    )
    assert told == ["0", "1", "2"], err


POOLS = {
    "threads": "pool = ThreadPoolExecutor(2)",
    "threads of the program": """
pool = ThreadPoolExecutor(2)
both = threading.Barrier(3)
for _ in range(2):
    pool.submit(both.wait)
both.wait()
""",
    "processes": "pool = ProcessPoolExecutor(1)",
    "loky": "from loky import ProcessPoolExecutor as Loky; pool = Loky(1)",
}


@pytest.mark.parametrize("end", ["exit_timeout", "Ctrl-C"])
@pytest.mark.parametrize("pool", POOLS)
def test_given_up_means_given_up(pool: str, end: str, tmp_path: Path) -> None:
    """W3: the program ends, with its status, though a call hangs in a pool of somebody else."""
    if pool == "loky":
        pytest.importorskip("loky")
    (tmp_path / "hangs.py").write_text(
        "import os, threading\n"
        "def hang():\n"
        "    os.write(1, b'runs\\n')\n"
        "    threading.Event().wait()\n"
    )
    (tmp_path / "pools.py").write_text(
        "import threading\n"
        "from concurrent.futures import ThreadPoolExecutor, ProcessPoolExecutor\n" + POOLS[pool]
    )
    body = """
        from background import background, configure
        if __name__ == "__main__":
            import hangs, pools
            atexit.register(lambda: tell("hooks"))
            background(executor=pools.pool)(hangs.hang)()
            END
            sys.exit(7)
        """
    if end == "exit_timeout":
        told, err = run(body.replace("END", "configure(exit_timeout=1)"), tmp_path, code=7)
    else:
        with script(body.replace("END", "pass"), tmp_path) as process:
            try:
                assert process.stdout is not None
                assert process.stderr is not None
                assert process.stdout.readline() == "runs\n"
                first = process.stderr.readline()
                assert "waits for 1 background call;" in first
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 7, err
        told = ["runs", *out.split("\n")[:-1]]
    assert told == ["runs", "hooks"], err
    assert err.count("hang(") == 1, err
    assert "is given up" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("mode", ["body", "flush", "drain"])
def test_sigterm_that_exits(mode: str, tmp_path: Path) -> None:
    """W3: `sys.exit(143)` in a handler of SIGTERM loses no call and is the exit status."""
    step = {"body": "threading.Event().wait(60)", "flush": "flush()", "drain": ""}[mode]
    body = f"""
        from background import background, flush
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        gate = threading.Event()
        @background
        def call(i):
            if i == 0:
                time.sleep(0.2)  # the program is where it is to get the signal, as a rule
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
            tell(str(i))
        for i in range(4):
            call(i)
        {step}
        """
    told, err = run(body, tmp_path, code=143)
    assert told == ["0", "1", "2", "3"], err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "stream",
    [
        "sys.stderr.close()",
        "import io; sys.stderr = io.StringIO(); sys.stderr.close()",
        "os.close(2)",
        "sys.stderr = None",
        "read, end = os.pipe(); os.dup2(end, 2); os.close(read)",
        "import logging; logging.getLogger().addHandler(type('H', (logging.Handler,), "
        "{'emit': lambda *_: 1 / 0})())",
    ],
)
def test_the_end_needs_no_standard_error(stream: str, tmp_path: Path) -> None:
    """W3: a message of the end that can't be told loses no call."""
    with script(
        f"""
        from background import background
        {stream}
        @background
        def call(i):
            if i == 0:
                threading.main_thread().join(1.5)  # a warning is due meanwhile
            tell(str(i))
        @background
        def boom():
            raise ValueError("boom")
        boom()
        for i in range(4):
            call(i)
        """,
        tmp_path,
    ) as process:
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert out.split() == ["0", "1", "2", "3"], err


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="has no timers")
def test_an_error_that_comes_back_each_time(tmp_path: Path) -> None:
    """W3: a timer whose handler raises again and again neither ends the drain nor fills the log."""
    told, err = run(
        """
        from background import background
        def tick(*_):
            raise RuntimeError("tick")
        signal.signal(signal.SIGALRM, tick)
        ready = threading.Event()
        @background
        def call(i):
            if i == 0:
                ready.wait(30)
                threading.main_thread().join(1)
            if i == 3:
                signal.setitimer(signal.ITIMER_REAL, 0)
                threading.main_thread().join(0.1)
            tell(str(i))
        for i in range(4):
            call(i)
        ready.set()
        from background._exit import end
        drain = end.drain
        def with_timer(**options):
            end.drain = drain
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            drain(**options)
        end.drain = with_timer
        """,
        tmp_path,
    )
    assert told == ["0", "1", "2", "3"], err
    assert 1 <= err.count("which goes on") <= 4, err


def test_a_wait_that_fails_by_itself_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """W3: a wait that fails at once each time is given up, and doesn't spin."""
    tries = 0

    class Broken:
        def __init__(self, *_: object, **__: object) -> None:
            nonlocal tries
            tries += 1
            raise ValueError("broken")

    monkeypatch.setattr(_exit, "Drain", Broken)
    monkeypatch.setattr(_exit, "PAUSE", 0.0001)
    monkeypatch.setattr(_exit, "monotonic", lambda: 0.0)
    end = _exit.ProgramEnd()
    end.drain()
    assert end.given_up
    assert tries <= _exit.TRIES + 1


def test_exit_timeout_counts_once(tmp_path: Path) -> None:
    """W3: what calls make while the end waits gets no time of its own, and is announced once."""
    _, err = run(
        """
        from background import background, configure
        configure(exit_timeout=2)
        @background
        def again():
            time.sleep(0.05)
            again()
        again()
        begun = time.monotonic()
        @atexit.register
        def late():
            again()
            tell("late")
        """,
        tmp_path,
        limit=30,
    )
    assert err.count("the program's end waits for") == 1, err
    assert err.count("exit_timeout=2 s has passed") == 1, err


def test_the_wait_is_announced_once(tmp_path: Path) -> None:
    """W3: that the end waits is said once, though it waits for calls of hooks once more."""
    told, err = run(
        """
        from background import background
        @background
        def call(text):
            threading.Event().wait(1.5)
            tell(text)
        atexit.register(call, "hook")
        call("first")
        """,
        tmp_path,
    )
    assert told == ["first", "hook"], err
    assert err.count("the program's end waits for") == 1, err


def test_ctrl_c_while_a_process_ends(tmp_path: Path) -> None:
    """P3: Ctrl-C ends the wait for what a worker process still does, and keeps the status."""
    (tmp_path / "leaves.py").write_text(
        "import threading\n"
        "def thread():\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
    )
    with script(
        """
        from background import background, ProcessExecutor
        if __name__ == "__main__":
            import leaves
            background(executor=ProcessExecutor())(leaves.thread)().result()
            sys.exit(5)
        """,
        tmp_path,
    ) as process:
        try:
            assert process.stderr is not None
            assert "is waited for" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 5, err
    assert "Traceback" not in err


def test_a_thread_that_a_call_starts_is_waited_for(tmp_path: Path) -> None:
    """W3: a plain thread that a call starts is no daemon, as in an inline call."""
    told, err = run(
        """
        from background import background
        def late():
            threading.main_thread().join(0.3)
            tell("thread")
        # Python 3.12 starts no threads once the end has begun.
        background(lambda: threading.Thread(target=late).start())().result()
        """,
        tmp_path,
    )
    assert told == ["thread"], err


def test_threads_that_make_calls_during_the_end(tmp_path: Path) -> None:
    """E4: calls that threads make while the program ends are all done."""
    told, err = run(
        """
        from background import background
        @background
        def call(i):
            tell(str(i))
        def go():
            threading.main_thread().join()  # until the interpreter's shutdown waits for us
            for i in range(3):
                call(i)
        threading.Thread(target=go).start()
        """,
        tmp_path,
    )
    assert told == ["0", "1", "2"], err


# Of the table in docs/contract.md: what is opened after the import, what a call does with it,
# and what is told at the very end of how much has arrived.
OTHERS = {
    "concurrent.futures.thread": (
        "from concurrent.futures import ThreadPoolExecutor; pool = ThreadPoolExecutor(1)",
        "assert pool.submit(abs, -1).result() == 1",
    ),
    "tempfile": (
        "import tempfile; folder = tempfile.TemporaryDirectory()",
        "open(folder.name + '/a', 'w').close()",
    ),
    "multiprocessing": (
        "import multiprocessing; manager = multiprocessing.get_context('fork').Manager(); "
        "found = manager.list()",
        "found.append(i)",
    ),
    "logging": (
        "import logging.handlers; logging.getLogger('mine').addHandler("
        "logging.handlers.MemoryHandler(1000, target=logging.FileHandler('mine.log')))",
        "logging.getLogger('mine').error('line')",
    ),
    "tqdm": (
        "from tqdm import tqdm; bar = tqdm(total=3, file=open('bar', 'w')); "
        "atexit.register(bar.close)",
        "assert not bar.disable; bar.update()",
    ),
    "matplotlib": (
        "import matplotlib; matplotlib.use('agg'); import matplotlib.pyplot as plt; "
        "figure = plt.figure(); atexit.register(plt.close, 'all')",
        "assert plt.get_fignums(); figure.savefig(f'{i}.png')",
    ),
    "tensorboardX": (
        "from tensorboardX import SummaryWriter; writer = SummaryWriter('runs')",
        "writer.add_scalar('loss', 1.0, i)",
    ),
    "distributed": (
        "from distributed import Client; client = Client(processes=False, dashboard_address=None)",
        "assert client.submit(abs, -1).result(timeout=20) == 1",
    ),
}


STARTS_THREADS = ("concurrent.futures.thread", "tensorboardX", "distributed")


@pytest.mark.parametrize("library", OTHERS)
def test_others_are_open_for_the_last_calls(library: str, tmp_path: Path) -> None:
    """B1: a row of the table: the library, opened after the import, serves the last calls."""
    pytest.importorskip(library)
    if library in STARTS_THREADS and sys.version_info[:2] == (3, 12):
        pytest.skip("Python 3.12 starts no thread once the program's end has begun")
    opened, used = OTHERS[library]
    told, err = run(
        f"""
        import os
        os.chdir({str(tmp_path)!r})
        from background import background
        {opened}
        @background
        def call(i):
            if i == 0:
                threading.main_thread().join(0.2)
            {used}
            tell(str(i))
        for i in range(3):
            call(i)
        """,
        tmp_path,
    )
    assert told == ["0", "1", "2"], err
    assert "Traceback" not in err
    if library == "logging":
        assert (tmp_path / "mine.log").read_text().split() == ["line"] * 3
    if library == "tensorboardX":
        (events,) = (tmp_path / "runs").iterdir()
        assert events.read_bytes().count(b"loss") == 3


def test_who_ends_when(tmp_path: Path) -> None:
    """B1: the order of the table: first drain, threads, hooks backwards, second drain, modules."""
    told, err = run(
        """
        atexit.register(tell, "hook from before the import")
        from background import background
        @background
        def call(text):
            tell(text)
        def thread():
            threading.main_thread().join()
            tell("thread")
        def hook():
            tell("hook from after the import")
            background(tell)("call of a hook")
        class Module:
            def __del__(self, tell=os.write):
                tell(1, b"module")
                tell(1, b"\\n")
        kept = Module()
        atexit.register(hook)
        threading.Thread(target=thread).start()
        call("call")
        """,
        tmp_path,
    )
    assert told == [
        "call",
        "thread",
        "hook from after the import",
        "call of a hook",
        "hook from before the import",
        "module",
    ], err
