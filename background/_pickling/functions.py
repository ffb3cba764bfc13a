"""Values as bytes: functions and classes by value where plain pickle would not do."""

from __future__ import annotations

import functools
import importlib
import io
import marshal
import operator
import pickle
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from background._pickling.modules import local_marks, local_modules
from background._pickling.names import goes_by_value, kind_of

__all__ = ["LARGE", "dragged", "dumps", "remembered", "thorough", "variables"]

LARGE = 1 << 20  # bytes of a global that are worth a word
SEPARATE = 1 << 16  # bytes from which a buffer is kept apart instead of being copied twice


def dumps(value: object, buffers: list[memoryview] | None = None, by_value: bool = False) -> bytes:
    """Return the pickle of a value; `by_value` skips a try by plain pickle that would fail."""
    take = None if buffers is None else functools.partial(_take, buffers)
    with suppress(Exception):
        if not by_value:
            data = pickle.dumps(value, 5, buffer_callback=take)
            for mark in local_marks():
                if mark in data:
                    break
            else:
                return data
    if buffers is not None:
        buffers.clear()
    file = io.BytesIO()
    pickler = thorough()
    local_modules()  # tells cloudpickle, which may have been imported just now
    pickler(file, 5, buffer_callback=take).dump(value)
    return file.getvalue()


def _take(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    view = buffer.raw()
    if view.nbytes < SEPARATE:
        return True  # into the pickle itself
    buffers.append(view)
    return False


@functools.cache
def thorough() -> Any:
    """Return the pickler that sends by value what can't be found by name, or else refuses it."""
    base: Any = pickle.Pickler
    with suppress(ImportError):
        base = importlib.import_module("cloudpickle").CloudPickler
    by_value: Callable[[Any, Any], Any] = getattr(base, "reducer_override", _by_name)

    class Pickler(base):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if type(value) is CodeType:  # cloudpickle drops the name of the file
                return marshal.loads, (marshal.dumps(value),)
            if hasattr(kind_of(value), "_reduce_by_value") and goes_by_value(value):
                return value._reduce_by_value()  # a decorated function
            reduced = by_value(self, value)
            if isinstance(value, type) and reduced is not NotImplemented and len(reduced) == 6:
                if value not in _made:
                    _native.add(value)
                return *reduced[:2], (reduced[5], reduced[2]), None, None, _complete
            return reduced

    return Pickler


def _by_name(pickler: object, value: Any) -> Any:
    if goes_by_value(value):
        raise pickle.PicklingError(f"{value!r} can't be sent by name")
    return NotImplemented


# A class that goes by value is found again where it comes back to, and cloudpickle then gives
# it the methods that came with it: a program's own class would get copies, which refer to
# copies of the program's variables. So classes that were not made here by unpickling stay.
_native: weakref.WeakSet[type] = weakref.WeakSet()
_made: weakref.WeakSet[type] = weakref.WeakSet()


def _complete(made: type, state: tuple[Callable[[type, Any], object], Any]) -> type:
    if made not in _native:
        _made.add(made)
        state[0](made, state[1])
    return made


_functions: weakref.WeakKeyDictionary[FunctionType, tuple[list[Any], int, bytes]] = (
    weakref.WeakKeyDictionary()
)


def remembered(function: Any) -> bytes | None:
    """Return the pickle of a function sent by value, or None if what it holds may change.

    It takes cloudpickle up to 100 µs, at every call, to find that nothing has changed.
    """
    leaves: list[Any] = []
    if type(function) is not FunctionType or not _gather(function, leaves, []):
        return None
    loaded = len(sys.modules)  # cloudpickle looks at which submodules there are
    before, then, packed = _functions.get(function, ([], 0, b""))
    same = len(before) == len(leaves) and all(map(operator.is_, before, leaves))
    if not same or then != loaded:
        try:
            packed = dumps(function, None, True)
        except Exception:
            return None  # tried again with the call's arguments, which says what is wrong
        _functions[function] = leaves, loaded, packed
    return packed


def _gather(function: Any, leaves: list[Any], seen: list[Any]) -> bool:
    """Gather what the pickle of a function depends on; return False if some may change in place."""
    if function.__dict__ or function.__kwdefaults__:
        return False
    seen.append(function)
    leaves.append(function.__code__)
    defaults = [("", value) for value in function.__defaults__ or ()]
    for name, value in (*variables(function), *defaults):
        kind = kind_of(value)
        leaves.append(name)
        if kind is FunctionType and goes_by_value(value):
            if value not in seen and not _gather(value, leaves, seen):
                return False
            leaves.append(seen.index(value))
            continue
        if kind is ModuleType or kind is BuiltinFunctionType:
            module = value if kind is ModuleType else value.__self__  # a list, of list.append
            if type(module) is not ModuleType or sys.modules.get(module.__name__) is not module:
                return False
            if module.__name__ in local_modules():
                return False
        elif isinstance(value, type):
            if goes_by_value(value):
                return False
        elif kind is not FunctionType and kind not in _CONSTANT:
            return False
        leaves.append(value)
    return True


_CONSTANT = {type(None), bool, int, float, complex, str, bytes}


def dragged(function: Any) -> list[tuple[str, int]]:
    """Return the large variables that a function sent by value takes along, and their bytes."""
    large: list[tuple[str, int]] = []
    if type(function) is not FunctionType or not goes_by_value(function):
        return large
    for name, value in variables(function):
        with suppress(Exception):
            buffers: list[memoryview] = []
            size = len(dumps(value, buffers)) + sum(view.nbytes for view in buffers)
            if size >= LARGE:
                large.append((name, size))
    return large


def variables(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables outside a function that it, or a function inside it, may refer to."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it has no value yet
            yield name, cell.cell_contents
    codes = [code]
    for code in codes:
        codes += [const for const in code.co_consts if type(const) is CodeType]
        for name in code.co_names:
            if name in function.__globals__:
                yield name, function.__globals__[name]
