"""The search for arguments that change between a call and its start (`configure(debug=True)`)."""

# Here values are of any type, and what they hold is unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import functools
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

from background._core.call import Call
from background._core.naming import describe
from background._core.telling import WARNING, report
from background._snapshot import (
    atoms,
    copy_array,
    copy_array_array,
    copy_pandas,
    copy_polars,
    copy_tensor,
    copy_void,
    library,
    snapshot,
)

__all__ = ["watch"]

told: set[tuple[str, str]] = set()  # the functions and arguments that were named


def watch(call: Call[Any], args: tuple[Any, ...]) -> None:
    """Have a call look at its arguments once more when it starts."""
    call._function = Watched(call, args)


class Watched(functools.partial[Any]):
    """Stands for a function: looks whether its arguments have changed, then calls it."""

    function: Any  # not `func`: of a partial function that is the one inside
    name: str
    before: dict[str, list[tuple[str, object]]]

    def __new__(cls, call: Call[Any], args: tuple[Any, ...]) -> Watched:
        self = super().__new__(cls, call._function)
        self.function = call._function
        self.name = describe(call)
        self.before = look(args, call._kwargs or {})
        return self

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        with suppress(Exception):  # whatever an argument is, it must not fail the call
            self.compare(look(args, kwargs))
        return self.function(*args, **kwargs)

    def compare(self, now: dict[str, list[tuple[str, object]]]) -> None:
        for argument in self.before.keys() & now.keys():
            for old, new in zip_longest(self.before[argument], now[argument]):
                if old != new:
                    self.tell(argument, (old or new)[0])
                    break

    def tell(self, argument: str, path: str) -> None:
        code = getattr(self.function, "__code__", None)  # two lambdas are two functions
        function = f"{code.co_filename}:{code.co_firstlineno}" if code else self.name
        if (function, argument) not in told:
            told.add((function, argument))
            report(
                WARNING,
                "%s: %s changed between the call and its start, and the call sees it changed; "
                "write @background(snapshot=True), or pass snapshot(…) of it",
                self.name,
                path,
            )

    def __reduce__(self) -> Any:
        # In another process nothing is the same object: there is nothing to compare.
        return functools.partial, (self.function,)


def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, list[tuple[str, object]]]:
    """Return the parts of each argument: their paths, and what differs after a change."""
    named = {f"args[{i}]": value for i, value in enumerate(args)}
    named |= {f"kwargs[{name!r}]": value for name, value in kwargs.items()}
    seen: dict[int, object] = {}
    found: dict[str, list[tuple[str, object]]] = {}
    for path, value in named.items():
        with suppress(Exception):  # this one is not looked at
            found[path] = list(parts(path, value, seen))
    return found


def parts(path: str, value: Any, seen: dict[int, object]) -> Iterator[tuple[str, object]]:
    kind = type(value)
    if kind in atoms:
        return
    if id(value) in seen:
        yield path, id(value)
        return
    seen[id(value)] = value  # also so that no id is used again
    step = "[{!r}]"
    if isinstance(value, dict):
        items = list(dict(value).items())
    elif isinstance(value, list | tuple | deque):
        items = list(enumerate(list(value)))
    elif library(kind) is copy_array and value.dtype.hasobject:
        items = list(enumerate(value.ravel().tolist()))
    elif isinstance(value, SimpleNamespace) or hasattr(kind, "__dataclass_fields__"):
        state: Any = object.__getstate__(value)
        attributes, slots = state if type(state) is tuple else (state, None)
        items = [*(attributes or {}).items(), *(slots or {}).items()]
        step = ".{}"
    else:
        yield path, content(value)
        return
    yield path, [(outline(key), outline(item)) for key, item in items]
    for key, item in items:
        if type(item) not in atoms:
            yield from parts(path + step.format(key), item, seen)


def outline(value: Any) -> object:
    return value if type(value) in atoms else type(value)


def content(value: Any) -> object:
    """Return what differs after a change of an object that is looked at as a whole."""
    copier = library(type(value))
    with suppress(Exception):  # a tensor or frame of a kind that has none of this
        if isinstance(value, set | frozenset):
            return {item if type(item) in atoms else id(item) for item in value}
        if isinstance(value, bytearray) or copier in (copy_array_array, copy_void):
            return zlib.crc32(memoryview(value))
        if copier is copy_array:
            return value.dtype, value.shape, zlib.crc32(value.tobytes())
        if copier is copy_tensor:
            raw = value.detach().cpu().contiguous().flatten().view(sys.modules["torch"].uint8)
            return value.dtype, value.shape, zlib.crc32(raw.numpy())
        if copier in (copy_pandas, copy_polars):
            return Frame(value)
    return id(value)


class Frame:
    """A copy of a frame, equal to that of an equal one."""

    def __init__(self, value: Any) -> None:
        self.copy = snapshot(value)

    def __eq__(self, other: object) -> bool:
        return type(other) is Frame and bool(self.copy.equals(other.copy))
