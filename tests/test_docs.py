"""The documentation is true."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import background
from background import flush

BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text("utf-8"), re.S
)
MODULES = [
    info.name
    for info in pkgutil.walk_packages(background.__path__, "background.")
    if info.name != "background.__main__"
]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_readme(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example of the README runs and does what it says."""
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "train.py", "exec"), {"__name__": "__main__"})
    if "step-" in block:
        assert (tmp_path / "step-2.txt").read_text() == "[1.5, 1.5]"
    flush()


@pytest.mark.parametrize("name", ["background", *MODULES])
def test_the_docstrings(name: str) -> None:
    """Each example of a docstring runs and does what it says."""
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module, globs={**vars(background), **vars(module)}).failed == 0


@pytest.mark.skipif(sys.flags.optimize > 1, reason="there are no docstrings")
def test_the_face_is_documented() -> None:
    """Each public name has a docstring."""
    assert all(getattr(background, name).__doc__ for name in background.__all__)


def test_help_knows_every_name() -> None:
    """`help(background)` and completion show all public names, those too that load late."""
    code = "import background; print(set(background.__all__) - set(dir(background)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"
