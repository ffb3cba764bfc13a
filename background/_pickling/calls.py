"""Calls and their results as bytes, and calls back from them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from types import FunctionType, MethodType
from typing import Any

from background._pickling.functions import dumps, remembered
from background._pickling.names import find, goes_by_value, kind_of, refer
from background._pickling.refusals import refusal_of

__all__ = ["pack_call", "pack_result", "unpack_call"]


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
    if what is not function or not (plain or goes_by_value(function)):
        return _packed((what, args, kwargs), buffers, False, names)
    packed = None if buffers is None else remembered(function)
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
        refusal = refusal_of(error, names())
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
