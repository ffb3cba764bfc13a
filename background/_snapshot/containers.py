"""How lists, dicts, sets and what else the language and its library have are copied.

Methods of the base class are called by its name, because a subclass may do more in its own.
The first step of each function takes all items at once, so that other threads may go on.
"""

# Here values are of any type, and what they hold is unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import partial
from operator import is_
from types import SimpleNamespace
from typing import Any

from background._snapshot.snapshot import (
    Memo,
    atoms,
    copy_attributes,
    copy_object,
    copy_part,
    pass_on,
    registry,
    remember,
)

__all__: list[str] = []


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


_built_in: dict[type, Callable[[Any, Memo], Any]] = {
    list: copy_list,
    dict: copy_dict,
    tuple: copy_tuple,
    set: copy_set,
    frozenset: partial(copy_tuple, base=frozenset),
    deque: copy_deque,
    bytearray: copy_bytearray,
    SimpleNamespace: copy_object,
    OrderedDict: partial(copy_dict, base=OrderedDict),
    defaultdict: partial(copy_dict, base=defaultdict),
    enum.Enum: pass_on,  # also one whose members are dataclass instances
    BaseException: pass_on,
}
for _kind, _function in _built_in.items():
    registry.register(_kind, _function)
