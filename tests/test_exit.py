"""The end of a program beside other libraries: B1 and B2 of the contract."""

import signal
import sys
import threading
from pathlib import Path

import pytest
from test_ending import run

from background import configure


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
