"""How objects of any class are copied: as `copy.deepcopy` does, with the same hooks.

What a class can't or must not have copied is passed as it is; if it may change, that is told
once for its type.
"""

# Here values are of any type, and what they hold is unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import copyreg
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from background._core.telling import WARNING, report
from background._snapshot.snapshot import (
    LEVELS,
    Memo,
    by_name,
    choosers,
    copiers,
    copy_attributes,
    copy_part,
    default,
    fill_now_or_later,
    finish,
    pass_on,
    registry,
    remember,
    set_attributes,
)

__all__ = [
    "built_in",
    "copy_by_hook",
    "copy_by_reduce",
    "copy_exception",
    "copy_object",
    "find_out",
    "pass_and_tell",
    "pass_owner",
    "shared_packages",
    "told",
    "try_plain",
]

# What a class says about its copies, besides `__deepcopy__`.
HOOKS = {"__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"}
NEW = {"__getnewargs__", "__getnewargs_ex__"}
# What `dataclass(slots=True, frozen=True)` adds does no more than `copy_attributes`, and fails
# where a field is not set.
GENERATED = {"_dataclass_getstate", "_dataclass_setstate"}

built_in: dict[type, Callable[[Any, Memo], Any]] = {}  # `containers` fills it
shared_packages: set[str] = set()  # `libraries` fills it
ONLY_ONE = "its class makes only one"
told: set[str] = set()  # the types that were named


def choose(kind: type) -> Callable[[Any, Memo], Any]:
    """Return how instances of a type are copied: the nearest of what is known of its bases."""
    function: Callable[[Any, Memo], Any] = registry.dispatch(kind)
    if function is not default and function not in built_in.values():
        return function
    bases = kind.__mro__[:-1]
    for i, base in enumerate(bases):
        if found := known(base):
            return found
        if vars(base).get("__deepcopy__"):
            # A library's own gives way to what we know of its types: of `torch.nn.Parameter`.
            later = (known(each) for each in bases[i:] if package(each) == package(base))
            return next(filter(None, later), copy_by_hook)
    base = next((base for base in bases if base in built_in), object)
    if base is BaseException:
        return copy_exception
    if hasattr(kind, "n_sequence_fields"):  # a named tuple made by C code
        return built_in[tuple]
    above = kind.__mro__[: kind.__mro__.index(base)]
    hooks = HOOKS if base in built_in else HOOKS | NEW
    if kind in copyreg.dispatch_table or any(has_hook(each, hooks) for each in above):
        return copy_by_reduce
    if hasattr(kind, "__del__"):
        return pass_owner
    data = hasattr(kind, "__dataclass_fields__")
    return built_in.get(base, copy_object if data else try_plain)


def known(base: type) -> Callable[[Any, Memo], Any] | None:
    name = package(base)
    function = by_name.get((name, base.__qualname__))
    return function or (pass_on if name in shared_packages else None)


def package(base: type) -> str:
    return str(base.__module__).partition(".")[0]


def has_hook(base: type, hooks: set[str]) -> bool:
    names = vars(base)
    return any(getattr(names[name], "__name__", "") not in GENERATED for name in hooks & set(names))


choosers.append(choose)


def pass_and_tell(value: Any, memo: Memo, why: object = "it can't be copied") -> Any:
    """Pass a value as it is, and tell that once for its type."""
    kind: Any = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name not in told:
        told.add(name)
        report(
            WARNING,
            "snapshot passes objects of %s as they are, so a call may see them change: %s; "
            "snapshot.register says how to copy them, or that they can be shared",
            name,
            describe(why) if isinstance(why, Exception) else why,
        )
    return value


def describe(error: Exception) -> str:
    text = type(error).__name__
    with suppress(Exception):  # one that can't be shown
        text += f": {error}"
    return f"it can't be copied ({text})"


def pass_owner(value: Any, memo: Memo) -> Any:
    """Pass what deletes or closes something when it dies, which a copy would do first."""
    return pass_and_tell(value, memo, "they have a __del__ and no __deepcopy__")


def try_plain(value: Any, memo: Memo) -> Any:
    """Copy the first object of a class that says nothing about its copies."""
    return find_out(value)(value, memo)


def find_out(value: Any) -> Callable[[Any, Memo], Any]:
    """Return how the first object of such a class is copied, and note it."""
    function: Callable[[Any, Memo], Any] = copy_object
    try:
        object.__reduce_ex__(value, 4)  # fails for what C code keeps out of sight
    except (RecursionError, MemoryError):
        raise
    except Exception as error:
        function = partial(pass_and_tell, why=describe(error))
    copiers[type(value)] = function
    return function


def copy_object(value: Any, memo: Memo) -> Any:
    """Copy `__dict__` and slots."""
    kind: Any = type(value)
    try:
        copy = kind.__new__(kind)
    except (RecursionError, MemoryError):
        raise
    except Exception as error:
        return pass_and_tell(value, memo, error)
    if copy is value:
        return pass_and_tell(value, memo, ONLY_ONE)
    remember(value, copy, memo)
    fill_now_or_later(memo, copy_attributes, value, copy)
    return copy


def copy_by_hook(value: Any, memo: Memo) -> Any:
    """Let a class copy its instance by its own `__deepcopy__`."""
    try:
        copy = value.__deepcopy__(memo)
    except (RecursionError, MemoryError):
        raise
    except Exception as error:
        return take_back(value, memo, error)
    finish(memo)
    return copy


def take_back(value: Any, memo: Memo, error: Exception) -> Any:
    memo.pop(id(value), None)
    return pass_and_tell(value, memo, error)


def copy_by_reduce(value: Any, memo: Memo) -> Any:
    """Copy what says by the hooks of pickle how it is made, as `copy.deepcopy` does."""
    reducer: Any = copyreg.dispatch_table.get(type(value))
    try:
        reduced: Any = reducer(value) if reducer else value.__reduce_ex__(4)
        if isinstance(reduced, str):  # the name of a global: there is only one
            return value
        made: tuple[Any, ...] = (*reduced, None, None, None, None)
        function, args, state, items, pairs, setter = made[:6]
    except (RecursionError, MemoryError):
        raise
    except Exception as error:
        return pass_and_tell(value, memo, error)
    copies = [copy_part(item, memo) for item in args]
    finish(memo)
    if id(value) in memo:  # a part led back here
        return memo[id(value)]
    try:
        copy = function(*copies)
    except (RecursionError, MemoryError):
        raise
    except Exception as error:
        return pass_and_tell(value, memo, error)
    if copy is value:  # its class makes only one, or it is a global of some kind
        by_class = getattr(function, "__name__", "") == "__newobj__"
        return pass_and_tell(value, memo, ONLY_ONE) if by_class else value
    remember(value, copy, memo)
    fill_now_or_later(memo, fill, value, copy, state, items, pairs, setter)
    return memo.get(id(value), value)


def fill(
    value: Any, copy: Any, state: Any, items: Any, pairs: Any, setter: Any, memo: Memo
) -> None:
    """Give a new object what its class wants it to have."""
    state = copy_part(state, memo)
    items = [copy_part(item, memo) for item in items or ()]
    pairs = [(copy_part(key, memo), copy_part(item, memo)) for key, item in pairs or ()]
    if pairs or memo["level"] < LEVELS:  # not in the midst of a chain, where it has no end
        finish(memo)
    try:
        if state is None:
            pass
        elif setter is not None:
            setter(copy, state)
        elif hasattr(copy, "__setstate__"):
            copy.__setstate__(state)
        else:
            set_attributes(copy, state)
        for item in items:
            copy.append(item)
        for key, item in pairs:
            copy[key] = item
    except (RecursionError, MemoryError):
        raise
    except Exception as error:
        take_back(value, memo, error)


def copy_exception(value: Any, memo: Memo) -> Any:
    """Copy an exception, which goes on to tell where it was raised and why."""
    copy = copy_by_reduce(value, memo)
    if copy is not value:
        copy.__traceback__ = value.__traceback__
        copy.__cause__, copy.__context__ = value.__cause__, value.__context__
        copy.__suppress_context__ = value.__suppress_context__
    return copy
