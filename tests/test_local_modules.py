"""What no other process can import goes by value: D1 of the contract."""

import contextlib
import importlib
import importlib.util
import os
import pickle
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest
from conftest import EXECUTORS

from background import ProcessExecutor, background
from background._pickling import pack_call, unpack_call
from background._pickling.modules import local_modules

SOURCE = """
import dataclasses, enum
FACTOR = 2
class Color(enum.Enum):
    RED = 1
@dataclasses.dataclass
class Point:
    x: int
    def double(self):
        return self.x * FACTOR
class WrongError(Exception):
    pass
def double(value):
    return value * FACTOR
def move(point, color=Color.RED):
    assert color is Color.RED
    return Point(point.double())
def fail(point):
    raise WrongError(point.x)
"""


@pytest.fixture
def name() -> Iterator[str]:
    yield "plugin_of_test"
    for each in [each for each in sys.modules if each.startswith("plugin_of_test")]:
        del sys.modules[each]


def by_location(name: str, folder: Path) -> Any:
    file = folder / "file_of_any_name.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_hand(name: str, folder: Path) -> Any:
    sys.modules[name] = module = ModuleType(name)
    exec(SOURCE, vars(module))
    return module


def by_runpy(name: str, folder: Path) -> Any:
    file = folder / "file_of_any_name.py"
    file.write_text(SOURCE)
    module = ModuleType(name)
    vars(module).update(runpy.run_path(str(file)))
    return module


def below_another(name: str, folder: Path) -> Any:
    sys.modules[name] = package = ModuleType(name)
    package.__path__ = [str(folder)]
    (folder / "inner.py").write_text(SOURCE)
    return importlib.import_module(name + ".inner")


WAYS = {"spec": by_location, "ModuleType": by_hand, "runpy": by_runpy, "package": below_another}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["process", "sqlite"])
def test_modules_made_at_run_time(way: str, kind: str, name: str, tmp_path: Path) -> None:
    """D1: functions, classes, instances and errors of a module made at run time travel."""
    module = WAYS[way](name, tmp_path)
    with EXECUTORS[kind]() as executor:
        call = background(executor=executor)
        assert call(module.double)(21).result(30) == 42
        moved = call(module.move)(module.Point(3), color=module.Color.RED).result(30)
        assert type(moved) is module.Point
        assert moved.x == 6
        with pytest.raises(module.WrongError):
            call(module.fail)(module.Point(3)).result(30)
        assert call(sorted)([module.Point(1)], key=module.Point.double).result(30)[0].x == 1

        def refers() -> int:
            return int(module.double(1))

        assert call(refers)().result(30) == 2


def test_two_files_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D1: a module is not taken for another one of its name that can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "plugin_of_test.py").write_text("def double(value):\n    return 'the other'\n")
    (tmp_path / "run").mkdir()
    module = by_location("plugin_of_test", tmp_path / "run")
    try:
        with ProcessExecutor() as executor:
            assert executor.submit(module.double, 2).result(30) == 4
    finally:
        del sys.modules["plugin_of_test"]


def test_what_is_registered_with_cloudpickle(tmp_path: Path) -> None:
    """D1: cloudpickle.register_pickle_by_value holds for functions sent directly and nested."""
    import textwrap as module

    assert b"co_code" not in pack_call(module.dedent, (), None)
    cloudpickle.register_pickle_by_value(module)
    try:
        for data in (
            pack_call(module.dedent, (" a",), None),
            pack_call(map, (module.dedent, [" a"]), None),
        ):
            assert b"_make_function" in data
            assert unpack_call(data)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert b"_make_function" not in pack_call(module.dedent, (), None)


def test_other_modules_go_by_name() -> None:
    """D1: modules that another process can import, and those of libraries, go by name."""
    import xml.parsers.expat
    import xml.sax.expatreader

    import matplotlib.pyplot
    import pandas as pd

    with contextlib.suppress(ImportError):  # the largest of them, where it is there
        importlib.import_module("scipy.stats")
    assert all([matplotlib.pyplot, xml.sax.expatreader])
    assert local_modules() - {name for name in local_modules() if "test" in name} <= {
        "__main__",
        "__mp_main__",
    }
    for value in (xml.parsers.expat.ExpatError, pd.DataFrame, os.path.join, Path):
        assert b"_make" not in pickle.dumps(value)
        assert b"_make" not in pack_call(value, (), None)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("kind", ["process", "sqlite"])
def test_in_children_of_multiprocessing(method: str, kind: str, tmp_path: Path) -> None:
    """D1, B2: a script's functions and classes travel from its spawned children, too."""
    file = tmp_path / "train.py"
    file.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, tempfile
            from background import ProcessExecutor, SQLiteExecutor, background
            if "{kind}" == "process":
                make = ProcessExecutor
            else:
                def make():
                    return SQLiteExecutor(tempfile.mkdtemp() + "/calls.db", idle_timeout=1)
            class Point:
                def __init__(self, x):
                    self.x = x
            class WrongError(Exception):
                pass
            def draw(point):
                return Point(point.x + 1)
            def fail(point):
                raise WrongError(point.x)
            def first(function, points):
                return function(points[0]).x
            def child():
                call = background(executor=make())
                result = call(draw)(Point(1)).result(40)
                assert type(result) is Point
                error = call(fail)(Point(5)).exception(40)
                assert type(error) is WrongError
                print(result.x, error, call(first)(draw, [Point(2)]).result(40), flush=True)
            if __name__ == "__main__":
                process = multiprocessing.get_context("{method}").Process(target=child)
                process.start()
                process.join()
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "2 5 3\n", done.stderr
