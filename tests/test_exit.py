"""The end of a program beside other libraries: B1 and B2 of the contract."""

import sys
from pathlib import Path

import pytest
from test_ending import run


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
    )
    assert told == ["0", "1", "2"], err
    assert "Traceback" not in err
