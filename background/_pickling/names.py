"""Functions by name: referred to, found again, and which can't be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any

from background._pickling.modules import local_modules

__all__ = ["find", "goes_by_value", "kind_of", "look_up", "refer"]

kind_of: Callable[[Any], Any] = type  # to type checkers it is anything


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
    if type(inner) is not FunctionType or inner.__module__ in local_modules():
        return function
    found: Any = sys.modules.get(inner.__module__)
    with suppress(Exception):
        found = look_up(found, inner.__qualname__)
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
    found = look_up(sys.modules[module], name)
    for _ in range(depth):
        found = found.__wrapped__
    return found if owner is None else MethodType(found, owner)


def look_up(found: Any, name: str) -> Any:
    # Not getattr: that would bind a class method to its class.
    for part in name.split("."):
        found = found.__dict__[part]
    return found


def goes_by_value(value: Any) -> bool:
    """Tell whether this is a function or class that can't be sent by name."""
    if type(value) is MethodType:
        value = value.__func__
    if type(value) is FunctionType:
        return refer(value) is value
    if not isinstance(value, type) and not hasattr(kind_of(value), "_reduce_by_value"):
        return False
    found: Any = None
    with suppress(Exception):
        found = look_up(sys.modules[value.__module__], value.__qualname__)
    return found is not value or value.__module__ in local_modules()
