"""`@background`: the only place that knows wrapt."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

import wrapt

from background._call import Executor, Future, put
from background._runtime import check_executor, settings
from background._snapshot import copy_arguments

__all__ = ["background"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_getframe = sys._getframe

if TYPE_CHECKING:  # what we use of wrapt; not every version of it has types

    class _Wrapper:
        __wrapped__: Any
        __qualname__: str
        __bound_function_wrapper__: Any
        _self_parent: Any
        _self_executor: Executor | None

        def __init__(self, wrapped: Any, wrapper: Any) -> None: ...

    _BoundWrapper = _Wrapper
else:
    _Wrapper, _BoundWrapper = wrapt.FunctionWrapper, wrapt.BoundFunctionWrapper


class BoundBackgroundFunction(_BoundWrapper):
    """A decorated method, bound to its instance or class."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Future[Any]:
        executor = self._self_parent._self_executor or settings.executor
        return put(executor, self.__wrapped__, args, kwargs or None, _getframe(1))


class BoundSnapshotFunction(BoundBackgroundFunction):
    """A decorated method with `snapshot=True`; the instance itself is passed as it is."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Future[Any]:
        executor = self._self_parent._self_executor or settings.executor
        return put_copied(executor, self.__wrapped__, args, kwargs or None, _getframe(1))


class BackgroundFunction(_Wrapper):
    """A decorated function; each is the one instance of a subclass with a `__call__` of its own."""

    __bound_function_wrapper__ = BoundBackgroundFunction

    def __reduce__(self) -> str:
        # By name, as functions are: the name finds the decorated function.
        return str(self.__qualname__)

    def __reduce_ex__(self, protocol: object) -> str:
        return self.__reduce__()

    def _reduce_by_value(self) -> Any:
        # For another process, which can't find the name.
        copies = self.__bound_function_wrapper__ is BoundSnapshotFunction
        return wrap, (self.__wrapped__, self._self_executor, copies)


def put_copied(
    executor: Executor,
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    frame: FrameType,
) -> Future[Any]:
    """Make a call that works on the values as they are now (C4)."""
    if not executor._packs:  # it pickles them now
        function, args, kwargs = copy_arguments(function, args, kwargs)
    return put(executor, function, args, kwargs, frame)


def wrap(function: Any, executor: Executor | None, snapshot: bool) -> BackgroundFunction:
    """Wrap a function so that a call costs as little as it can.

    A `__call__` that knows the function and its executor as free variables: to read an
    attribute of a wrapt proxy takes 150 ns, and `wrapt.decorator` another 700 a call.
    """
    enter = put_copied if snapshot else put

    def call(self: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return enter(executor or settings.executor, function, args, kwargs or None, _getframe(1))

    members: dict[str, Any] = {"__call__": call}
    if snapshot:
        members["__bound_function_wrapper__"] = BoundSnapshotFunction
    kind = type("BackgroundFunction", (BackgroundFunction,), members)
    wrapper: BackgroundFunction = kind(function, _unused)
    wrapper._self_executor = executor
    return wrapper


def _unused(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Stand where wrapt wants a wrapper function; `__call__` never asks for it."""
    return wrapped(*args, **kwargs)


@overload
def background(
    function: classmethod[T, P, R], /, *, executor: Executor | None = None, snapshot: bool = False
) -> classmethod[T, P, Future[R]]: ...
@overload
def background(
    function: staticmethod[P, R], /, *, executor: Executor | None = None, snapshot: bool = False
) -> staticmethod[P, Future[R]]: ...
@overload
def background(
    function: Callable[P, R], /, *, executor: Executor | None = None, snapshot: bool = False
) -> Callable[P, Future[R]]: ...
@overload
def background(*, executor: Executor | None = None, snapshot: bool = False) -> Decorator: ...
def background(
    function: Any = None, /, *, executor: Executor | None = None, snapshot: bool = False
) -> Any:
    """Make the calls of a function run in the background and return futures at once.

    Args:
        function: a function, lambda, method, class or static method (either order),
            `functools.partial`, callable instance or builtin.
        executor: what runs the calls; by default that of `configure`, one worker thread.
        snapshot: whether a call works on its arguments as they are when it is made: they are
            copied by `background.snapshot`, together, so that what they share is shared by the
            copies. A method's instance is passed as it is. If a copy fails, the call fails. An
            executor that pickles does so at the call and needs no copies.

    Returns:
        The function with its name, signature and documentation, whose calls return a
        `Future`. With options alone, a decorator: `in_threads = background(executor=…)`.

    Raises:
        TypeError: the function is a class, a property, a generator function, `async def` or
            can't be called, or an option is not what it should be; the message says what to
            write instead.

    >>> @background
    ... def add(a, b):
    ...     return a + b
    >>> add(1, 2).result()
    3
    """
    if executor is not None:
        executor = check_executor(executor)
    if not isinstance(snapshot, bool):
        raise TypeError(f"snapshot must be True or False, not {snapshot!r}")

    def decorate(function: Any) -> Any:
        check_function(function)
        return wrap(function, executor, snapshot)

    return decorate if function is None else decorate(function)


class Decorator(Protocol):
    """What `background(executor=…)` returns."""

    @overload
    def __call__(self, function: classmethod[T, P, R], /) -> classmethod[T, P, Future[R]]: ...
    @overload
    def __call__(self, function: staticmethod[P, R], /) -> staticmethod[P, Future[R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, Future[R]]: ...


def check_function(function: Any) -> None:
    """Raise a `TypeError` that says what to write instead of decorating this."""
    what: str | None = None
    inner: Any = function
    if type(function) in (classmethod, staticmethod):
        inner = function.__func__
    while type(inner) is functools.partial:
        inner = inner.func
    inners: list[Any] = [inner, inspect.getattr_static(inner, "__call__", None)]
    if isinstance(function, type):
        what = "a class: decorate its methods, or a function that makes an instance"
    elif isinstance(inner, property):
        what = "a property: decorate a method, or the function that the property calls"
    elif isinstance(inner, BackgroundFunction | BoundBackgroundFunction):
        what = "decorated already: one @background is enough"
    elif not callable(inner):
        what = "not callable: write @background over a function"
    elif any(map(inspect.isgeneratorfunction, inners)) or any(
        map(inspect.isasyncgenfunction, inners)
    ):
        what = "a generator function, which runs while it is iterated: return a list instead"
    elif any(map(inspect.iscoroutinefunction, inners)):
        what = "an async function: await it, or decorate a function that calls asyncio.run"
    if what is not None:
        name = getattr(inner, "__qualname__", None) or repr(inner)
        raise TypeError(f"@background can't decorate {name}, which is {what}")
