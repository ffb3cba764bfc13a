"""The search for arguments that change between a call and its start (`configure(debug=True)`)."""

# Here values are of any type, and what they hold is unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import functools
import pickle
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest
from types import MethodType
from typing import Any

from background._core.call import Call
from background._core.naming import describe
from background._core.telling import WARNING, report
from background._snapshot import (
    atoms,
    copier_of,
    copy_array,
    copy_array_array,
    copy_by_hook,
    copy_by_reduce,
    copy_exception,
    copy_object,
    copy_pandas,
    copy_polars,
    copy_tensor,
    copy_void,
    find_out,
    owner_of,
    pass_and_tell,
    pass_owner,
    snapshot,
    try_plain,
)

__all__ = ["watch"]

LONGEST = 1000  # characters of a path: what is deeper is not looked at
WHOLE = dict, list, tuple, deque, MethodType, functools.partial  # what they hold is all
TELLING = pass_and_tell, pass_owner  # what can't be looked at is named, as `snapshot` does
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
    left = [(path, value)]
    while left:
        path, value = left.pop()
        if type(value) in atoms:
            continue
        if id(value) in seen:
            yield path, id(value)
            continue
        seen[id(value)] = value  # also so that no id is used again
        items = inside(value)
        yield path, (content(value), [(outline(key), outline(item)) for _, key, item in items])
        if len(path) < LONGEST:
            left += [
                (path + step.format(key), item)
                for step, key, item in reversed(items)
                if type(item) not in atoms
            ]


def inside(value: Any) -> list[tuple[str, Any, Any]]:
    """Return what a value holds: how the path to it is written, its key, itself."""
    kind = type(value)
    copier = copier_of(kind)
    if isinstance(value, dict):
        items: list[Any] = [("[{!r}]", *item) for item in dict(value).items()]
    elif isinstance(value, list | tuple | deque):
        items = [("[{!r}]", *item) for item in enumerate(list(value))]
    elif isinstance(value, set | frozenset):
        return [("{{…}}", None, item) for item in list(value) if type(item) not in atoms]
    elif copier is copy_array and value.dtype.kind in "OV" and value.dtype.hasobject:
        items = [("[{!r}]", *item) for item in enumerate(value.ravel().tolist())]
    elif (owner := owner_of(value)) is not None:
        return [("", None, owner)]
    elif isinstance(value, MethodType):
        return [(".{}", "__self__", value.__self__)]
    elif isinstance(value, functools.partial):
        items = [(".{}", "args", value.args), (".{}", "keywords", value.keywords)]
    else:
        items = []
        if copier is try_plain:
            copier = find_out(value)
        if copier is copy_exception:
            items.append((".{}", "args", value.args))
        elif (
            copier is copy_tensor
            and (value.is_leaf or value.retains_grad)
            and value.grad is not None
        ):
            items.append((".{}", "grad", value.grad))
        elif copier not in (copy_object, copy_by_hook, copy_array, copy_tensor):
            return []
    state: Any = object.__getstate__(value)
    attributes, slots = state if type(state) is tuple else (state, None)
    for name, item in [*(attributes or {}).items(), *(slots or {}).items()]:
        # What is computed when it is first asked for is no change.
        if type(getattr(kind, name, None)) is not functools.cached_property:
            items.append((".{}", name, item))
    return items


def outline(value: Any) -> object:
    return value if type(value) in atoms else type(value)


def content(value: Any) -> object:
    """Return what differs after a change of an object, besides what it holds."""
    kind = type(value)
    copier = copier_of(kind)
    with suppress(Exception):  # a tensor or frame of a kind that has none of this
        if isinstance(value, set | frozenset):
            return {item if type(item) in atoms else id(item) for item in value}
        if isinstance(value, WHOLE) or owner_of(value) is not None:
            return kind
        if isinstance(value, bytearray | memoryview) or copier in (copy_array_array, copy_void):
            return zlib.crc32(memoryview(value).tobytes())
        if copier is copy_array:
            if value.dtype.hasobject:
                text = value.tolist() if value.dtype.kind == "T" else None
                return value.dtype, value.shape, text
            return value.dtype, value.shape, zlib.crc32(value.tobytes())
        if copier is copy_tensor:
            raw = value.detach().cpu().contiguous().flatten().view(sys.modules["torch"].uint8)
            return value.dtype, value.shape, zlib.crc32(raw.numpy())
        if copier in (copy_pandas, copy_polars):
            return Frame(value)
        if copier is copy_by_reduce:
            return packed(value)
        if getattr(copier, "func", copier) in TELLING:
            copier(value, {})
    return id(value)


def packed(value: Any) -> object:
    """Return what differs after a change of an object that says itself how it is copied."""
    try:
        return zlib.crc32(pickle.dumps(value))
    except Exception:  # it holds what can't be pickled, or its class is not known by name
        pass
    try:
        made: Any = value.__reduce_ex__(4)
    except Exception as error:
        pass_and_tell(value, {}, error)
        return id(value)
    seen: dict[int, object] = {}
    return None if isinstance(made, str) else list(parts("", made[:3], seen))


class Frame:
    """A copy of a frame, equal to that of an equal one."""

    def __init__(self, value: Any) -> None:
        self.copy = snapshot(value)

    def __eq__(self, other: object) -> bool:
        return type(other) is Frame and bool(self.copy.equals(other.copy))
