"""The demo does what the README says, and says in one sentence why it can't."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import background

WAYS = ["waiting-inline", "waiting-background"]
WAYS += ["computing-inline", "computing-thread", "computing-process"]
ROOT = Path(background.__file__).parent.parent
WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None
from background.__main__ import main
sys.exit(main(["demo"]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "background", "demo", *arguments)


@pytest.fixture
def extra() -> None:
    """Skip where the demo's packages are not installed."""
    for name in ("numpy", "sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(name)


@pytest.mark.usefixtures("extra")
def test_a_short_demo(tmp_path: Path) -> None:
    """All runs leave all their pictures, beside a table and the timelines, and nothing else."""
    folder = tmp_path / "new" / "pictures"
    mine = tmp_path / "new" / "pictures" / "background" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("not the demo's")
    (folder / "waiting-inline-0009.png").write_text("of an earlier demo")
    done = demo("--folder", str(folder), "--steps", "40", "--latency", "0.02")
    assert done.returncode == 0, done.stderr
    for way in WAYS:
        assert re.search(rf"^{way.replace('-', ', ')} +4 ", done.stdout, re.M), done.stdout
    assert str(folder) in done.stdout
    names = [f"{way}-{number:04}.png" for way in WAYS for number in range(1, 5)]
    assert sorted(p.name for p in folder.glob("*.png")) == sorted([*names, "timelines.png"])
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in folder.glob("*.png"))
    assert mine.read_text() == "not the demo's"


@pytest.mark.usefixtures("extra")
def test_a_folder_that_cant_be_written(tmp_path: Path) -> None:
    """A folder that can't be written is one sentence and a non-zero exit code."""
    (tmp_path / "file").write_text("")
    done = demo("--folder", str(tmp_path / "file"), "--steps", "4")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"the folder {tmp_path / 'file'} can't be written" in done.stderr


def test_a_missing_extra() -> None:
    """A missing package is one sentence with the command that installs it."""
    done = run("-c", WITHOUT_NUMPY)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "needs numpy" in done.stderr
    assert "pip install 'background-futures[demo]'" in done.stderr


@pytest.mark.parametrize(
    "option",
    [("--steps", "0"), ("--steps", "1.5"), ("--latency", "-1"), ("--latency", "nan")],
)
def test_bad_numbers(option: tuple[str, str]) -> None:
    """A number that makes no sense is one sentence that names the option and the value."""
    done = demo(*option)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert option[0] in done.stderr
    assert repr(option[1]) in done.stderr


def test_help() -> None:
    """The help names each command, and each option of the demo."""
    assert "demo" in run("-m", "background", "--help").stdout
    assert {"--folder", "--steps", "--latency"} <= set(demo("--help").stdout.split())
