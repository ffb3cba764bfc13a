"""What can't be pickled, and where in a call or result it is."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import FunctionType, MethodType, ModuleType
from typing import Any, cast

from background._pickling.functions import dumps, thorough, variables
from background._pickling.names import goes_by_value, kind_of

__all__ = ["refusal_of"]


def refusal_of(error: BaseException, roots: list[tuple[str, Any]]) -> pickle.PicklingError:
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
    if thorough().__base__ is pickle.Pickler and (
        goes_by_value(value) or goes_by_value(type(value))
    ):
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
    elif isinstance(value, FunctionType) and goes_by_value(value):
        for name, item in variables(value):
            if not isinstance(item, ModuleType):
                yield f"{name}, which {path} refers to,", item
    with suppress(Exception):
        for name, item in list(vars(value).items()):
            yield f"{path}.{name}", item
