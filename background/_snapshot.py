"""Copying what a call could see change (C4)."""

# Here values are of any type, and what they hold is unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import enum
import sys
import traceback
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial, singledispatch
from operator import is_
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodType,
    ModuleType,
    NoneType,
    SimpleNamespace,
)
from typing import Any, TypeVar, overload

__all__ = ["atoms", "copy_arguments", "snapshot"]

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., object])
# From the id of a value to its copy; by its own id, the values themselves, so that no id is
# used again during the copy. `copy.deepcopy` keeps the same books.
Memo = dict[int, Any]

# Types whose exact instances are passed as they are. A container of nothing else is copied in
# one step: `atoms.issuperset(map(type, values))` runs at the speed of C.
atoms: set[type] = {NoneType, bool, int, float, complex, str, bytes, range, type(...)}
atoms |= {FunctionType, BuiltinFunctionType, MethodType, ModuleType, type}


class Snapshot:
    """Copy what a call could see change, and pass on what can't change or isn't known.

    Copied are lists, dicts, sets, deques, bytearrays, `array.array`, dataclass instances,
    `SimpleNamespace`, NumPy arrays, torch tensors (detached, on their device), pandas and
    polars frames, and what these hold; subclasses stay what they are. A part that is reached
    twice is copied once, and cycles stay cycles. Of an array only what it shows is copied, so
    two views of one array become two arrays. A tuple in which nothing has to be copied is
    passed on. So are all other objects: functions, modules, locks, open files, figures, models,
    and Python objects inside of pandas and polars frames.

    Args:
        value: what to copy.
        memo: in a registered function, the memo that it was given; else left out.

    Returns:
        The copy, of the type of the value.

    >>> weights = {"w": [1.0, 2.0]}
    >>> before = snapshot(weights)
    >>> weights["w"][0] = 9.0
    >>> before
    {'w': [1.0, 2.0]}
    """

    def __call__(self, value: T, memo: dict[int, object] | None = None) -> T:
        if type(value) in atoms:
            return value
        if memo is None:
            memo = {}
        memo.setdefault(id(memo), [])  # `copy.deepcopy` may give one that is still empty
        copy: T = copy_part(value, memo)
        return copy

    @overload
    def register(self, kind: type, /) -> Callable[[Function], Function]: ...
    @overload
    def register(
        self, kind: type[T], function: Callable[[T, dict[int, object]], object], /
    ) -> None: ...
    def register(self, kind: Any, function: Any = None, /) -> Any:
        """Say how to copy instances of a type and of its subclasses.

        Args:
            kind: the type. A nearer one goes before it, as in `functools.singledispatch`.
            function: what returns the copy. It gets the value and, as `__deepcopy__` does, a
                memo: parts are copied by `snapshot(part, memo)`; where they may lead back to the
                value, enter the copy first, by `memo[id(value)] = copy`. `copy.deepcopy` is such
                a function. Without it, `register(kind)` is a decorator.

        Raises:
            TypeError: `kind` is not a type, or the function can't be called.

        >>> class Curve:
        ...     def __init__(self, points):
        ...         self.points = points
        >>> @snapshot.register(Curve)
        ... def copy_curve(curve, memo):
        ...     return Curve(snapshot(curve.points, memo))
        >>> curve = Curve([1, 2])
        >>> snapshot(curve).points is curve.points
        False
        """
        if not isinstance(kind, type):
            raise TypeError(f"snapshot.register needs a type, not {kind!r}")
        if function is None:
            return partial(self._register, kind)
        self._register(kind, function)
        return None

    def _register(self, kind: type, function: Any) -> Any:
        if not callable(function):
            raise TypeError(f"snapshot.register needs a function that copies, not {function!r}")
        registry.register(kind, function)
        copiers.clear()
        atoms.discard(kind)
        return function

    def __repr__(self) -> str:
        return "background.snapshot"


snapshot = Snapshot()


def copy_arguments(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> tuple[Any, tuple[Any, ...], dict[str, Any] | None]:
    """Return function and arguments of a call on copies.

    If a copy fails, the call is made all the same and fails with that error in its turn: the
    program that makes it goes on, and the error reaches its user as every other one.
    """
    if atoms.issuperset(map(type, args)) and kwargs is None:
        return function, args, None
    memo: Memo = {}
    memo[id(memo)] = []
    named = {} if kwargs is None else kwargs
    where = ""
    try:
        copies: list[Any] = []
        for i, value in enumerate(args):
            where = f"args[{i}]"
            copies.append(copy_part(value, memo))
        for name, value in named.items():  # this dict is ours
            where = f"kwargs[{name!r}]"
            named[name] = copy_part(value, memo)
    except Exception as error:
        # As text: the traceback would keep the frames that made the call, and all they hold.
        trace = "".join(traceback.format_exception(error, limit=-3))
        error.__traceback__ = error.__cause__ = error.__context__ = None
        with suppress(Exception):  # an exception that takes no notes is still the outcome
            BaseException.add_note(
                error,
                f"snapshot=True could not copy {where}, so the call did not run; "
                f"snapshot.register says how to copy a type\n{trace}",
            )
        return Failed(function, error), (), None
    return function, tuple(copies), kwargs


class Failed(partial[Any]):
    """Stands for a function whose arguments could not be copied, and raises why."""

    def __new__(cls, function: Any, error: Exception) -> Failed:
        self = super().__new__(cls, function)
        self.errors = [error]
        return self

    errors: list[Exception]

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        raise self.errors.pop()  # its traceback keeps this frame, which must not keep it


def copy_part(value: Any, memo: Memo) -> Any:
    """Copy a value or a part of one."""
    kind: Any = type(value)
    if kind in atoms:
        return value
    key = id(value)
    copy = memo.get(key, memo)  # the memo itself stands for nothing
    if copy is memo:
        copy = (copiers.get(kind) or find_copier(kind))(value, memo)
        if copy is not value and key not in memo:
            memo[key] = copy  # as `remember` does, whose call would cost more than it does
            memo[id(memo)].append(value)
    return copy


def remember(value: Any, copy: Any, memo: Memo) -> None:
    """Note a copy: at the latest when it is whole, before its parts if they may lead to it."""
    memo[id(value)] = copy
    memo[id(memo)].append(value)


# -- What the language and its library have ------------------------------------------------
# Methods of the base class are called by its name, because a subclass may do more in its own.
# The first step of each takes all items at once, so that other threads may go on.


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


def copy_object(value: Any, memo: Memo) -> Any:
    kind: Any = type(value)
    copy = kind.__new__(kind)
    remember(value, copy, memo)
    copy_attributes(value, copy, memo)
    return copy


def copy_attributes(value: Any, copy: Any, memo: Memo) -> None:
    """Copy `__dict__` and slots, past what the class does to forbid or to compute them."""
    state: Any = object.__getstate__(value)
    attributes, slots = state if type(state) is tuple else (state, None)
    if attributes:
        copies = vars(copy)
        copies.update(attributes)
        for name, item in copies.items():
            if type(item) not in atoms:
                copies[name] = copy_part(item, memo)
    for name, item in (slots or {}).items():
        object.__setattr__(copy, name, copy_part(item, memo))


def pass_on(value: Any, memo: Memo) -> Any:
    return value


def pass_for_ever(value: Any, memo: Memo) -> Any:
    atoms.add(type(value))
    return value


# -- What libraries have -------------------------------------------------------------------
# Their types are known by name: whoever passes an array has loaded NumPy, nobody else need.


def copy_array(value: Any, memo: Memo) -> Any:
    copy = value.copy("K")
    if value.dtype.hasobject:
        remember(value, copy, memo)
        ndarray = sys.modules["numpy"].ndarray
        copy_elements(copy.view(ndarray), memo)
    return copy


def copy_elements(array: Any, memo: Memo) -> None:
    """Replace the objects in an array by their copies, in place."""
    if array.dtype.names is not None:
        for name in array.dtype.names:
            if array.dtype[name].hasobject:
                copy_elements(array[name], memo)
    else:
        # It takes and leaves any object, whatever the shape: an index would unpack sequences.
        each = sys.modules["numpy"].frompyfunc(partial(copy_part, memo=memo), 1, 1)
        each(array, out=array)


def copy_void(value: Any, memo: Memo) -> Any:
    """Copy a row of a structured array, which is a view of it."""
    return copy_array(sys.modules["numpy"].array(value), memo)[()]


def copy_tensor(value: Any, memo: Memo) -> Any:
    return value.detach().clone()


def copy_pandas(value: Any, memo: Memo) -> Any:
    copy = value.copy(deep=True)
    if hasattr(value, "index"):  # not an index itself; it may show a NumPy array's memory
        copy.index = value.index.copy(deep=True)
    return copy


def copy_polars(value: Any, memo: Memo) -> Any:
    # `clone` shares memory, which may be that of a NumPy array; to join two parts copies them.
    if not hasattr(value, "rechunk"):  # a LazyFrame
        return value.clone()
    half = len(value) // 2
    parts = [value[:half], value[half:]] if half else [value, value]  # empty ones are left out
    return sys.modules["polars"].concat(parts, rechunk=True)[: len(value)]


def copy_array_array(value: Any, memo: Memo) -> Any:
    if not hasattr(value, "__dict__"):  # not a subclass
        return value[:]
    kind: Any = type(value)
    copy = kind.__new__(kind, value.typecode, value)
    copy_attributes(value, copy, memo)
    return copy


by_name: dict[tuple[str, str], Callable[[Any, Memo], Any]] = {
    ("array", "array"): copy_array_array,
    ("numpy", "ndarray"): copy_array,
    ("numpy", "void"): copy_void,
    ("torch", "Tensor"): copy_tensor,
    ("pandas", "DataFrame"): copy_pandas,
    ("pandas", "Series"): copy_pandas,
    ("pandas", "Index"): copy_pandas,
    ("polars", "DataFrame"): copy_polars,
    ("polars", "Series"): copy_polars,
    ("polars", "LazyFrame"): copy_polars,
    # Of which there may be many, and nothing changes.
    ("numpy", "generic"): pass_for_ever,
    ("datetime", "date"): pass_for_ever,
    ("datetime", "timedelta"): pass_for_ever,
    ("decimal", "Decimal"): pass_for_ever,
    ("fractions", "Fraction"): pass_for_ever,
    ("pathlib", "PurePath"): pass_for_ever,
    ("uuid", "UUID"): pass_for_ever,
}


def library(kind: type) -> Callable[[Any, Memo], Any] | None:
    """Return how a library's type, or a subclass of it, is copied, or None."""
    for base in kind.__mro__:
        package = str(base.__module__).partition(".")[0]
        if function := by_name.get((package, base.__qualname__)):
            return function
    return None


@singledispatch
def registry(value: Any, memo: Memo) -> Any:
    """Stand for what no type is registered for."""


def find_copier(kind: type) -> Callable[[Any, Memo], Any]:
    """Return how instances of a type are copied."""
    function: Callable[[Any, Memo], Any] = registry.dispatch(kind)
    if function is default:
        data = hasattr(kind, "__dataclass_fields__")
        function = library(kind) or (copy_object if data else pass_on)
    if len(copiers) >= 1000:  # of types that are made and dropped all the time
        copiers.clear()
    copiers[kind] = function
    return function


default = registry.dispatch(object)
copiers: dict[type, Callable[[Any, Memo], Any]] = {}  # those found so far
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
