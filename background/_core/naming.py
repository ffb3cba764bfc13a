"""The text that names a call: its function, and the place where it was made."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from itertools import islice
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from background._core.waiting import Waits

__all__ = ["Named", "describe", "innermost", "place", "where"]


class Named:
    """What stands in the place of a call's function once that is gone: it has the text."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def describe(call: Waits[Any]) -> str:
    """Return `plot(…), called at train.py:42 in main`."""
    function = call._function
    name = function.name if issubclass(type(function), Named) else function
    if name is None:
        return f"the call at {place(call)}"
    if isinstance(name, str):
        return name
    inner = innermost(name)
    title = type(inner).__qualname__
    with suppress(Exception):  # a callable may answer for its attributes by code of its own
        title = str(getattr(inner, "__qualname__", title))
    return f"{title.rpartition('<locals>.')[2]}(…), called at {place(call)}"


def where(frame: FrameType | None) -> str:
    """Return ` and stands at train.py:42 in draw`, or nothing."""
    if frame is None:
        return ""
    code = frame.f_code
    return f" and stands at {code.co_filename}:{frame.f_lineno} in {code.co_qualname}"


def innermost(function: Any) -> Any:
    """Return what a `functools.partial`, a class method or a static method is of."""
    # By the type: a decorated function claims to be what it wraps.
    while issubclass(type(function), partial | classmethod | staticmethod):
        is_partial = issubclass(type(function), partial)
        function = function.func if is_partial else function.__func__
    return function


def place(call: Waits[Any]) -> str:
    """Return where a call was made: `train.py:42 in main`."""
    code = call._code
    # One entry for every unit of two bytes; the offset counts bytes.
    line = next(islice(code.co_positions(), call._offset // 2, None))[0] or code.co_firstlineno
    return f"{os.path.basename(code.co_filename)}:{line} in {code.co_qualname.rpartition('.')[2]}"
