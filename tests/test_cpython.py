"""The standard library's own word for what futures and executors do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import background


def test_cpythons_own_tests(tmp_path: Path) -> None:
    """F1: CPython's tests of pools, wait, as_completed, shutdown and futures pass on ours."""
    program = Path(__file__).with_name("cpython_suite.py")
    path = str(Path(background.__file__).parent.parent)
    out = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if out.returncode == 5:
        pytest.skip("this Python ships without its tests")
    assert out.returncode == 0, out.stderr[-5000:]
