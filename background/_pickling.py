"""Calls and their outcomes as bytes: by plain pickle where that does, else by cloudpickle.

Plain pickle sends functions and classes by name. What has no name that another process could
find (all of `__main__`, closures, lambdas) goes by value, which takes cloudpickle.

This module imports nothing of the package: a worker loads it alone.
"""

from __future__ import annotations

import functools
import importlib
import io
import marshal
import operator
import pickle
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

__all__ = [
    "dragged",
    "dumps",
    "pack_call",
    "pack_error",
    "pack_result",
    "unpack_call",
    "unpack_error",
]

LARGE = 1 << 20  # bytes of a global that are worth a word
SEPARATE = 1 << 16  # bytes from which a buffer is kept apart instead of being copied twice

kind_of: Callable[[Any], Any] = type  # to type checkers it is anything


def pack_call(
    function: Callable[..., object],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    buffers: list[memoryview] | None = None,
) -> bytes:
    """Return a call as bytes; large arrays go into `buffers` uncopied, if that is given.

    Raises `pickle.PicklingError`, which names what can't be pickled and where it is.
    """
    what = refer(function)

    def names() -> list[tuple[str, Any]]:
        positional = [(f"args[{i}]", value) for i, value in enumerate(args)]
        by_name = [(f"kwargs[{name!r}]", value) for name, value in (kwargs or {}).items()]
        called: tuple[str, Any] = ("the function", what)
        if kind_of(what) is tuple:
            called = ("the object of the method", what[0])
        return [called, *positional, *by_name]

    plain = kind_of(function) is FunctionType or kind_of(function) is MethodType
    if what is not function or not (plain or _by_value(function)):
        return _packed((what, args, kwargs), buffers, False, names)
    packed = None if buffers is None else _remembered(function)
    if buffers is None or packed is None:
        return _packed((what, args, kwargs), buffers, True, names)
    data = _packed((None, args, kwargs), buffers, False, names)
    buffers.append(memoryview(packed))
    return data


def pack_result(result: object, buffers: list[memoryview] | None = None) -> bytes:
    """Return a result as bytes, as `pack_call` does a call."""
    return _packed(result, buffers, False, lambda: [("the result", result)])


def _packed(
    value: object,
    buffers: list[memoryview] | None,
    by_value: bool,
    names: Callable[[], list[tuple[str, Any]]],
) -> bytes:
    try:
        return dumps(value, buffers, by_value)
    except KeyboardInterrupt:  # the user's, who waits for the pickling
        raise
    except BaseException as error:  # the hooks of users may raise anything
        refusal = _refusal(error, names())
    raise refusal


def unpack_call(
    data: bytes | bytearray, buffers: Iterable[Any] = ()
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return function, arguments and keyword arguments of a call."""
    rest = iter(buffers)
    what, args, kwargs = pickle.loads(data, buffers=rest)
    if what is None:
        what = pickle.loads(next(rest))
    return find(what), args, kwargs or {}


def dumps(value: object, buffers: list[memoryview] | None = None, by_value: bool = False) -> bytes:
    """Return the pickle of a value; `by_value` skips a try by plain pickle that would fail."""
    take = None if buffers is None else functools.partial(_take, buffers)
    with suppress(Exception):
        if not by_value:
            data = pickle.dumps(value, 5, buffer_callback=take)
            if b"__main__" not in data:
                return data
    if buffers is not None:
        buffers.clear()
    file = io.BytesIO()
    _thorough()(file, 5, buffer_callback=take).dump(value)
    return file.getvalue()


def _take(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    view = buffer.raw()
    if view.nbytes < SEPARATE:
        return True  # into the pickle itself
    buffers.append(view)
    return False


@functools.cache
def _thorough() -> Any:
    """Return the pickler that sends by value what can't be found by name, or else refuses it."""
    base: Any = pickle.Pickler
    with suppress(ImportError):
        base = importlib.import_module("cloudpickle").CloudPickler
    by_value: Callable[[Any, Any], Any] = getattr(base, "reducer_override", _by_name)

    class Pickler(base):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if type(value) is CodeType:  # cloudpickle drops the name of the file
                return marshal.loads, (marshal.dumps(value),)
            if hasattr(kind_of(value), "_reduce_by_value") and _by_value(value):
                return value._reduce_by_value()  # a decorated function
            reduced = by_value(self, value)
            if isinstance(value, type) and reduced is not NotImplemented and len(reduced) == 6:
                if value not in _made:
                    _native.add(value)
                return *reduced[:2], (reduced[5], reduced[2]), None, None, _complete
            return reduced

    return Pickler


def _by_name(pickler: object, value: Any) -> Any:
    if _by_value(value):
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


# -- Functions by name --------------------------------------------------------------------


def refer(function: Any) -> Any:
    """Return (owner, module, qualified name, depth) for a function that another process finds.

    The name of a decorated function finds the decorator's wrapper: `depth` says how many
    `__wrapped__` below it the function is. `owner` is what a method is bound to, else None.
    Return anything else as it is.
    """
    owner = None
    inner = function
    if type(function) is MethodType:
        owner, inner = function.__self__, function.__func__
    if type(inner) is not FunctionType or inner.__module__ == "__main__":
        return function
    found: Any = sys.modules.get(inner.__module__)
    with suppress(Exception):
        found = _look_up(found, inner.__qualname__)
        for depth in range(10):
            if found is inner:
                return owner, inner.__module__, inner.__qualname__, depth
            found = found.__wrapped__
    return function


def find(what: Any) -> Any:
    """Return the function that `refer` referred to."""
    if kind_of(what) is not tuple:
        return what
    owner, module, name, depth = what
    __import__(module)
    found = _look_up(sys.modules[module], name)
    for _ in range(depth):
        found = found.__wrapped__
    return found if owner is None else MethodType(found, owner)


def _look_up(found: Any, name: str) -> Any:
    # Not getattr: that would bind a class method to its class.
    for part in name.split("."):
        found = found.__dict__[part]
    return found


def _by_value(value: Any) -> bool:
    """Tell whether this is a function or class that can't be sent by name."""
    if type(value) is MethodType:
        value = value.__func__
    if type(value) is FunctionType:
        return refer(value) is value
    if not isinstance(value, type) and not hasattr(kind_of(value), "_reduce_by_value"):
        return False
    found: Any = None
    with suppress(Exception):
        found = _look_up(sys.modules[value.__module__], value.__qualname__)
    return found is not value or value.__module__ == "__main__"


_functions: weakref.WeakKeyDictionary[FunctionType, tuple[list[Any], int, bytes]] = (
    weakref.WeakKeyDictionary()
)


def _remembered(function: Any) -> bytes | None:
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
    for name, value in (*_variables(function), *defaults):
        kind = kind_of(value)
        leaves.append(name)
        if kind is FunctionType and _by_value(value):
            if value not in seen and not _gather(value, leaves, seen):
                return False
            leaves.append(seen.index(value))
            continue
        if kind is ModuleType or kind is BuiltinFunctionType:
            module = value if kind is ModuleType else value.__self__  # a list, of list.append
            if type(module) is not ModuleType or sys.modules.get(module.__name__) is not module:
                return False
        elif isinstance(value, type):
            if _by_value(value):
                return False
        elif kind is not FunctionType and kind not in _CONSTANT:
            return False
        leaves.append(value)
    return True


_CONSTANT = {type(None), bool, int, float, complex, str, bytes}


def dragged(function: Any) -> list[tuple[str, int]]:
    """Return the large variables that a function sent by value takes along, and their bytes."""
    large: list[tuple[str, int]] = []
    if type(function) is not FunctionType or not _by_value(function):
        return large
    for name, value in _variables(function):
        with suppress(Exception):
            buffers: list[memoryview] = []
            size = len(dumps(value, buffers)) + sum(view.nbytes for view in buffers)
            if size >= LARGE:
                large.append((name, size))
    return large


def _variables(function: Any) -> Iterator[tuple[str, Any]]:
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


# -- What can't be pickled ----------------------------------------------------------------


def _refusal(error: BaseException, roots: list[tuple[str, Any]]) -> pickle.PicklingError:
    """Return an error that names what can't be pickled and where it is."""
    path, value, why = "the call", roots[0][1], error
    seen = {}  # the values themselves, so that no other one gets the id of one that is gone
    names: Iterable[tuple[str, Any]] = roots
    for _ in range(20):
        for name, child in names:
            if id(child) not in seen:
                seen[id(child)] = child
                if (reason := _reason(child)) is not None:
                    path, value, why = name, child, reason
                    break
        else:
            break
        if isinstance(why, RecursionError) or "recursion" in str(why):
            return pickle.PicklingError(f"{path} is nested too deeply to be pickled")
        names = _children(path, value)
    what = type(value).__qualname__
    if type(value).__module__ not in ("builtins", "__main__"):
        what = f"{type(value).__module__}.{what}"
    if isinstance(value, type) or type(value) in (FunctionType, MethodType):
        what = f"{what} {value.__qualname__}"
    message = f"{path} is a {what}, which can't be pickled"
    if _thorough().__base__ is pickle.Pickler and (_by_value(value) or _by_value(type(value))):
        message += " by name alone; pip install 'background-futures[process]' for cloudpickle"
    else:
        message += f" ({type(why).__name__}: {why}); pass what another process can make it from"
    return pickle.PicklingError(message)


def _reason(value: object) -> BaseException | None:
    try:
        dumps(value, [])
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error.with_traceback(None)
    return None


def _children(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a value holds, and how to get at it."""
    if issubclass(kind_of(value), dict):
        for key, item in list(value.items()):
            yield f"a key of {path}", key
            yield f"{path}[{key!r}]", item
    elif isinstance(value, list | tuple):
        for i, item in enumerate(cast("list[Any]", value)):
            yield f"{path}[{i}]", item
    elif isinstance(value, set | frozenset):
        for item in list(cast("set[Any]", value)):
            yield f"an element of {path}", item
    elif isinstance(value, functools.partial):
        yield f"{path}.func", value.func
        yield from _children(f"{path}.args", value.args)
        yield from _children(f"{path}.keywords", value.keywords)
    elif isinstance(value, MethodType):
        yield f"{path}.__self__", value.__self__
        yield path, value.__func__
    elif isinstance(value, FunctionType) and _by_value(value):
        for name, item in _variables(value):
            if not isinstance(item, ModuleType):
                yield f"{name}, which {path} refers to,", item
    with suppress(Exception):
        for name, item in list(vars(value).items()):
            yield f"{path}.{name}", item


# -- Exceptions ---------------------------------------------------------------------------


def pack_error(error: BaseException) -> bytes:
    """Return an exception as bytes, whatever it is."""
    trace = "the traceback can't be shown"
    with suppress(Exception):  # an exception may answer by force for its notes and causes
        trace = "".join(traceback.format_exception(error)).rstrip()
    message = "its message failed"
    with suppress(Exception):
        message = str(error)
    return pickle.dumps((_round_trip(error), type(error).__qualname__, message, trace), 5)


def unpack_error(data: bytes | bytearray, where: str) -> BaseException:
    """Return the exception, or a `RuntimeError` that says so in its place.

    The traceback, which can't be pickled, is a note: `where`, and then the lines.
    """
    packed, name, message, trace = pickle.loads(data)
    error: BaseException | None = None
    if packed is not None:
        error = _loaded(packed)
    if error is None:
        error = RuntimeError(
            f"{name}: {message} (this stands for a {name} that can't be pickled and unpickled)"
        )
    with suppress(Exception):  # it takes no notes
        BaseException.add_note(error, f"{where}:\n{trace}")
    return error


def _round_trip(error: BaseException) -> bytes | None:
    """Return the pickle of an exception if that can be unpickled."""
    for value in (error, _Bare(error)):
        with suppress(BaseException):  # the hooks of users may raise anything
            packed = dumps(value)
            if type(_loaded(packed)) is type(error):
                return packed
    return None


def _loaded(packed: bytes) -> BaseException | None:
    with suppress(BaseException):  # its constructor may raise anything
        error = pickle.loads(packed)
        if isinstance(error, BaseException):
            return error
    return None


class _Bare:
    """Is unpickled as an exception that is made without its constructor.

    That may want other arguments than those that the exception keeps as its own.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        error = self.error
        return _bare, (type(error), error.args, vars(error))


def _bare(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error
