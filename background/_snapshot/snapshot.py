"""Copying what a call could see change (C4)."""

# Here values are of any type, and what they hold is unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial, singledispatch
from types import BuiltinFunctionType, FunctionType, ModuleType, NoneType
from typing import Any, TypeVar, overload

__all__ = ["atoms", "copy_arguments", "snapshot"]

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., object])
# From the id of a value to its copy; by its own id, the values themselves, so that no id is
# used again during the copy; by name, what `copy_object` notes. `copy.deepcopy` keeps the same
# books, so a `__deepcopy__` can work on them.
Memo = dict[Any, Any]

# Types whose exact instances are passed as they are. A container of nothing else is copied in
# one step: `atoms.issuperset(map(type, values))` runs at the speed of C.
atoms: set[type] = {NoneType, bool, int, float, complex, str, bytes, range, type(...)}
atoms |= {FunctionType, BuiltinFunctionType, ModuleType, type}


class Snapshot:
    """Copy what a call could see change, and pass on what can't change or is to be shared.

    A copy is what `copy.deepcopy` makes: lists, dicts, sets, dataclasses and objects of any
    class are copied with what they hold, by the hooks of their class where it has some
    (`__deepcopy__`, `__reduce_ex__`, `__getstate__`, `__setstate__`, `copyreg`). A part that is
    reached twice is copied once, and cycles stay cycles. Arrays, torch tensors (detached, on
    their device) and frames of pandas and polars are copied by their libraries, Python objects
    inside of frames are not. Of an array only what it shows is copied, so two views of one
    array become two arrays. A tuple in which nothing has to be copied is passed on.

    Shared are functions, classes, modules, locks, threads, files, sockets, loggers, executors,
    futures, figures, torch modules and optimizers and their like. What can't be copied, and
    what has a `__del__` but does not say how it is copied, is passed as it is, and a warning
    says so once for its type.

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
        finish(memo)
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


LEVELS = 40  # objects in objects that are filled by recursion: some 200 frames


def fill_now_or_later(memo: Memo, function: Callable[..., None], *args: Any) -> None:
    """Copy what an object holds.

    A long chain of objects would take more frames than Python allows: beyond some levels an
    object is filled later, when the ones above are whole.
    """
    level = memo.get("level", 0)
    if level >= LEVELS:
        memo["later"].append((function, args))
        return
    if not level:
        memo["later"] = []
    memo["level"] = level + 1
    try:
        function(*args, memo)
        if not level:
            finish(memo)
    finally:
        memo["level"] = level


def finish(memo: Memo) -> None:
    """Fill the objects that were left empty, before somebody else looks at them."""
    later = memo.get("later")
    if not later:
        return
    level, memo["level"] = memo["level"], LEVELS  # what they hold is filled by this loop, too
    try:
        while later:
            function, args = later.pop()
            function(*args, memo)
    finally:
        memo["level"] = level


def copy_attributes(value: Any, copy: Any, memo: Memo) -> None:
    """Copy `__dict__` and slots, past what the class does to forbid or to compute them."""
    state: Any = object.__getstate__(value)
    attributes, slots = state if type(state) is tuple else (state, None)
    if attributes is value:  # a dict whose items are its attributes, by `self.__dict__ = self`
        copy.__dict__ = copy
    elif attributes:
        copies = vars(copy)
        copies.update(attributes)
        for name, item in copies.items():
            if type(item) not in atoms:
                copies[name] = copy_part(item, memo)
    for name, item in (slots or {}).items():
        object.__setattr__(copy, name, copy_part(item, memo))


def set_attributes(copy: Any, state: Any) -> None:
    attributes, slots = state if type(state) is tuple else (state, None)
    if attributes:
        vars(copy).update(attributes)
    for name, item in (slots or {}).items():
        object.__setattr__(copy, name, item)


def pass_on(value: Any, memo: Memo) -> Any:
    return value


# Their types are known by name: whoever passes an array has loaded NumPy, nobody else need.
by_name: dict[tuple[str, str], Callable[[Any, Memo], Any]] = {}  # `libraries` fills it


@singledispatch
def registry(value: Any, memo: Memo) -> Any:
    """Stand for what no type is registered for."""


def copier_of(kind: type) -> Callable[[Any, Memo], Any]:
    return copiers.get(kind) or find_copier(kind)


def find_copier(kind: type) -> Callable[[Any, Memo], Any]:
    """Return how instances of a type are copied."""
    (choose,) = choosers
    function: Callable[[Any, Memo], Any] = choose(kind)
    if len(copiers) >= 1000:  # of types that are made and dropped all the time
        copiers.clear()
    copiers[kind] = function
    return function


default = registry.dispatch(object)
copiers: dict[type, Callable[[Any, Memo], Any]] = {}  # those found so far
# What finds them, in `objects`: it knows the functions that copy, and all those call `copy_part`.
choosers: list[Callable[[type], Callable[[Any, Memo], Any]]] = []
