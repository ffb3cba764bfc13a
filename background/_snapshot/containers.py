"""How lists, dicts, sets and what else the language and its library have are copied.

Methods of the base class are called by its name, because a subclass may do more in its own.
The first step of each function takes all items at once, so that other threads may go on.
"""

# Here values are of any type, and what they hold is unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import gc
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import partial
from operator import is_
from types import MappingProxyType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from background._snapshot.objects import built_in, copy_exception, copy_object, pass_and_tell
from background._snapshot.snapshot import (
    Memo,
    atoms,
    copy_attributes,
    copy_part,
    finish,
    pass_on,
    registry,
    remember,
)

__all__ = ["owner_of"]


def copy_list(value: Any, memo: Memo) -> Any:
    items = list.copy(value)
    copy = items if type(value) is list else list.__new__(type(value))
    remember(value, copy, memo)
    if not atoms.issuperset(map(type, items)):
        for i, item in enumerate(items):
            if type(item) not in atoms:
                items[i] = copy_part(item, memo)
    if copy is not items:
        list.extend(copy, items)
        copy_attributes(value, copy, memo)
    return copy


def copy_dict(value: Any, memo: Memo, base: Any = dict) -> Any:
    kind: Any = type(value)
    items = value.copy() if kind is dict else dict(base.items(value))
    copy: Any = items if kind is dict else base.__new__(kind)
    remember(value, copy, memo)
    if not atoms.issuperset(map(type, items.values())):
        for key, item in items.items():
            if type(item) not in atoms:
                items[key] = copy_part(item, memo)
    if not atoms.issuperset(map(type, items)):
        pairs = [(copy_part(key, memo), item) for key, item in items.items()]
        finish(memo)  # their hashes may need what they hold
        items.clear()
        items.update(pairs)
    if copy is not items:
        if base is defaultdict:
            copy.default_factory = value.default_factory
        for key, item in items.items():
            base.__setitem__(copy, key, item)
        copy_attributes(value, copy, memo)
    return copy


def copy_set(value: Any, memo: Memo) -> Any:
    kind: Any = type(value)
    items = set.copy(value)
    copy: Any = items if kind is set else set.__new__(kind)
    remember(value, copy, memo)
    if not atoms.issuperset(map(type, items)):
        parts = [copy_part(item, memo) for item in items]
        finish(memo)  # their hashes may need what they hold
        items.clear()
        items.update(parts)
    if copy is not items:
        set.update(copy, items)
        copy_attributes(value, copy, memo)
    return copy


def copy_deque(value: Any, memo: Memo) -> Any:
    kind: Any = type(value)
    if kind is deque:
        copy: Any = value.copy()
    else:
        copy = deque.__new__(kind)
        deque.__init__(copy, deque.__iter__(value), value.maxlen)
    remember(value, copy, memo)
    if not atoms.issuperset(map(type, deque.__iter__(copy))):
        items = [copy_part(item, memo) for item in deque.__iter__(copy)]
        deque.clear(copy)
        deque.extend(copy, items)
    if kind is not deque:
        copy_attributes(value, copy, memo)
    return copy


def copy_bytearray(value: Any, memo: Memo) -> Any:
    copy = bytearray.__new__(type(value))
    bytearray.__init__(copy, memoryview(value))
    if type(value) is not bytearray:
        copy_attributes(value, copy, memo)
    return copy


def copy_tuple(value: Any, memo: Memo, base: Any = tuple) -> Any:
    if type(value) is base and atoms.issuperset(map(type, value)):
        return value
    before = list(base.__iter__(value))
    items = [copy_part(item, memo) for item in before]
    if base is frozenset:
        finish(memo)
    if id(value) in memo:  # a part led back here
        return memo[id(value)]
    kind: Any = type(value)
    state = None if kind is base else object.__getstate__(value)
    if not state and all(map(is_, items, before)):
        return value
    # The library's own named tuples, and torch's, can be made in no other way.
    copy = kind(items) if hasattr(kind, "n_sequence_fields") else base.__new__(kind, items)
    if state:
        copy_attributes(value, copy, memo)
    return copy


KINDS: tuple[Any, ...] = (dict, OrderedDict)
VIEWS: dict[type, Callable[[Any], Any]] = {
    type(make(kind())): make for kind in KINDS for make in (kind.keys, kind.values, kind.items)
}


def owner_of(value: Any) -> Any:
    """Return the dict that a view or a `MappingProxyType` shows, or None."""
    if type(value) not in VIEWS and type(value) is not MappingProxyType:
        return None
    (owner,) = gc.get_referents(value)
    # The names of a class are no data.
    return None if isinstance(owner, dict) and {"__module__", "__doc__"} <= owner.keys() else owner


def copy_view(value: Any, memo: Memo) -> Any:
    """Copy what shows a dict: it shows a copy of that dict."""
    owner = owner_of(value)
    copy = copy_part(owner, memo)
    return value if copy is owner else VIEWS.get(type(value), MappingProxyType)(copy)


def copy_memoryview(value: Any, memo: Memo) -> Any:
    if not value.nbytes or type(value.obj) is bytes:
        return value
    copy = memoryview(bytearray(value.tobytes()))
    try:
        if value.ndim != 1 or value.format != "B":
            copy = copy.cast(value.format, value.shape)
    except (TypeError, ValueError) as error:  # a format that only its owner knows
        return pass_and_tell(value, memo, error)
    return copy.toreadonly() if value.readonly else copy


def copy_method(value: Any, memo: Memo) -> Any:
    owner = copy_part(value.__self__, memo)
    return value if owner is value.__self__ else MethodType(value.__func__, owner)


built_in.update(
    {
        list: copy_list,
        dict: copy_dict,
        tuple: copy_tuple,
        set: copy_set,
        frozenset: partial(copy_tuple, base=frozenset),
        deque: copy_deque,
        bytearray: copy_bytearray,
        memoryview: copy_memoryview,
        SimpleNamespace: copy_object,
        OrderedDict: partial(copy_dict, base=OrderedDict),
        defaultdict: partial(copy_dict, base=defaultdict),
        Counter: copy_dict,
        MappingProxyType: copy_view,
        MethodType: copy_method,
        BaseException: copy_exception,
        type: pass_on,
        ModuleType: pass_on,
        **dict.fromkeys(VIEWS, copy_view),
    }
)
for _kind, _function in built_in.items():  # so that of what a user registers the nearest counts
    registry.register(_kind, _function)
