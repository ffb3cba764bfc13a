"""`@background`: the only place that knows wrapt."""

from __future__ import annotations

import concurrent.futures
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from pkgutil import resolve_name
from types import FrameType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar, cast, overload

import wrapt

from background._backlog import Backlog, Overflow, check_bound, put_bounded
from background._core.executor import Executor, put
from background._core.future import Future
from background._core.naming import innermost
from background._executors.inline import InlineExecutor
from background._settings import check_executor, settings
from background._snapshot import copy_arguments

__all__ = ["background"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Put = Callable[
    [Executor, Any, tuple[Any, ...], dict[str, Any] | None, FrameType, Backlog | None],
    Future[Any],
]
_getframe = sys._getframe
GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR

if TYPE_CHECKING:  # what we use of wrapt; not every version of it has types

    class _Wrapper:
        __wrapped__: Any
        __qualname__: str
        _self_parent: _Wrapper
        _self_put: Put
        _self_backlog: Backlog | None
        _self_options: tuple[Executor | None, bool, int | None, Overflow]

        def __init__(self, wrapped: Any, wrapper: Any) -> None: ...

    _BoundWrapper = _Wrapper
else:
    _Wrapper, _BoundWrapper = wrapt.FunctionWrapper, wrapt.BoundFunctionWrapper


class BoundBackgroundFunction(_BoundWrapper):
    """A decorated method, bound to its instance or class."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Future[Any]:
        parent = self._self_parent
        executor = parent._self_options[0] or settings.executor
        try:
            frame = _getframe(1)
        except ValueError:  # called by C, on a thread without Python code
            frame = _getframe(0)
        return parent._self_put(
            executor, self.__wrapped__, args, kwargs or None, frame, parent._self_backlog
        )

    def __copy__(self) -> Self:
        return self  # as a function is

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> Any:
        # By the instance, or the class, that it is a method of.
        wrapped = self.__wrapped__
        if isinstance(wrapped, MethodType):
            return getattr, (wrapped.__self__, wrapped.__name__)
        return resolve_name, (f"{wrapped.__module__}:{wrapped.__qualname__}",)

    def __reduce_ex__(self, protocol: object) -> Any:
        return self.__reduce__()


class BackgroundFunction(_Wrapper):
    """A decorated function; each has a `__call__` of its own, made by `wrap`."""

    __slots__ = ("__call__",)
    __bound_function_wrapper__ = BoundBackgroundFunction

    def __copy__(self) -> Self:
        return self  # as a function is

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> str:
        # By name, as functions are: the name finds the decorated function.
        return str(self.__qualname__)

    def __reduce_ex__(self, protocol: object) -> str:
        return self.__reduce__()

    def _reduce_by_value(self) -> Any:
        # For another process, which can't find the name.
        return wrap, (self.__wrapped__, *self._self_options)


# Not `wrapper.__call__ = …`, which wrapt would pass on to the function.
_set_call: Callable[[BackgroundFunction, Any], None] = vars(BackgroundFunction)["__call__"].__set__


def put_copied(
    put: Put,
    executor: Executor,
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    frame: FrameType,
    backlog: Backlog | None,
) -> Future[Any]:
    """Make a call that works on the values as they are now (C4)."""
    if not executor._packs:  # it pickles them now
        function, args, kwargs = copy_arguments(function, args, kwargs)
    return put(executor, function, args, kwargs, frame, backlog)


def wrap(
    function: Any,
    executor: Executor | None,
    snapshot: bool,
    max_pending: int | None,
    overflow: Overflow,
) -> BackgroundFunction:
    """Wrap a function so that a call costs as little as it can.

    A `__call__` that knows the function and its executor as free variables: to read an
    attribute of a wrapt proxy takes 150 ns, and `wrapt.decorator` another 700 a call. It is in
    a slot of that name, which Python finds as it finds a method: a class for each function
    would be a cycle, and keep what it wraps until the collector comes.
    """
    backlog = None if max_pending is None else Backlog(max_pending, overflow)
    enter: Put = cast(Put, put if backlog is None else put_bounded)
    if snapshot:
        enter = functools.partial(put_copied, enter)
    if is_async(function):
        enter = on_event_loop(enter)

    def call(*args: Any, **kwargs: Any) -> Future[Any]:
        try:
            frame = _getframe(1)
        except ValueError:  # called by C, on a thread without Python code
            frame = _getframe(0)
        return enter(executor or settings.executor, function, args, kwargs or None, frame, backlog)

    wrapper = BackgroundFunction(function, _unused)
    _set_call(wrapper, call)
    wrapper._self_put = enter
    wrapper._self_backlog = backlog
    wrapper._self_options = executor, snapshot, max_pending, overflow
    return wrapper


def _unused(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Stand where wrapt wants a wrapper function; `__call__` never asks for it."""
    return wrapped(*args, **kwargs)


@overload
def background(
    function: classmethod[T, P, Coroutine[Any, Any, R]],
    /,
    *,
    executor: concurrent.futures.Executor | None = None,
    snapshot: bool = False,
    max_pending: int | None = None,
    overflow: Overflow = "block",
) -> classmethod[T, P, Future[R]]: ...
@overload
def background(
    function: classmethod[T, P, R],
    /,
    *,
    executor: concurrent.futures.Executor | None = None,
    snapshot: bool = False,
    max_pending: int | None = None,
    overflow: Overflow = "block",
) -> classmethod[T, P, Future[R]]: ...
@overload
def background(
    function: staticmethod[P, Coroutine[Any, Any, R]],
    /,
    *,
    executor: concurrent.futures.Executor | None = None,
    snapshot: bool = False,
    max_pending: int | None = None,
    overflow: Overflow = "block",
) -> staticmethod[P, Future[R]]: ...
@overload
def background(
    function: staticmethod[P, R],
    /,
    *,
    executor: concurrent.futures.Executor | None = None,
    snapshot: bool = False,
    max_pending: int | None = None,
    overflow: Overflow = "block",
) -> staticmethod[P, Future[R]]: ...
@overload
def background(
    function: Callable[P, Coroutine[Any, Any, R]],
    /,
    *,
    executor: concurrent.futures.Executor | None = None,
    snapshot: bool = False,
    max_pending: int | None = None,
    overflow: Overflow = "block",
) -> Callable[P, Future[R]]: ...
@overload
def background(
    function: Callable[P, R],
    /,
    *,
    executor: concurrent.futures.Executor | None = None,
    snapshot: bool = False,
    max_pending: int | None = None,
    overflow: Overflow = "block",
) -> Callable[P, Future[R]]: ...
@overload
def background(
    *,
    executor: concurrent.futures.Executor | None = None,
    snapshot: bool = False,
    max_pending: int | None = None,
    overflow: Overflow = "block",
) -> Decorator: ...
def background(
    function: Any = None,
    /,
    *,
    executor: concurrent.futures.Executor | None = None,
    snapshot: bool = False,
    max_pending: int | None = None,
    overflow: Overflow = "block",
) -> Any:
    """Make the calls of a function run in the background and return futures at once.

    Args:
        function: a function, lambda, method, class or static method (either order),
            `functools.partial`, callable instance or builtin; or an `async def` function,
            whose calls overlap on one event loop in a thread of its own.
        executor: what runs the calls, any `concurrent.futures.Executor`; by default that of
            `configure`, one worker thread. An `async def` function runs on the event loop,
            or with `InlineExecutor` in the caller.
        snapshot: whether a call works on its arguments as they are when it is made: they are
            copied by `background.snapshot`, together, so that what they share is shared by the
            copies. A method's instance is passed as it is. If a copy fails, the call fails. An
            executor that pickles does so at the call and needs no copies.
        max_pending: how many calls of this function may wait to start; None for any number.
            All instances share the bound of a method.
        overflow: what a call does when so many wait already. `"block"` waits for a place, in
            the order in which the callers came; a call made on a worker's own thread would
            wait for itself and goes over the bound instead. `"drop_oldest"` cancels the call
            that has waited longest, `"drop_newest"` is cancelled itself, `"raise"` raises
            `BacklogFull`. With `max_pending=1, overflow="drop_oldest"` what is drawn is always
            the latest state.

    Returns:
        The function with its name, signature and documentation, whose calls return a
        `Future`. With options alone, a decorator: `in_threads = background(executor=…)`.

    Raises:
        TypeError: the function is a class, a property, a generator function or can't be
            called, or an option is not what it should be; the message says what to
            write instead.
        ValueError: `max_pending` is not greater than 0, or `overflow` none of the four.

    >>> @background
    ... def add(a, b):
    ...     return a + b
    >>> add(1, 2).result()
    3
    """
    runs = None if executor is None else check_executor(executor)
    if not isinstance(snapshot, bool):
        raise TypeError(f"snapshot must be True or False, not {snapshot!r}")
    check_bound(max_pending, overflow)

    def decorate(function: Any) -> Any:
        check_function(function)
        if is_async(function) and not isinstance(runs, InlineExecutor | None):
            raise TypeError(
                f"@background can't run {innermost(function).__qualname__} on {runs!r}: async "
                "functions have an event loop of their own; leave out executor=…"
            )
        return wrap(function, runs, snapshot, max_pending, overflow)

    return decorate if function is None else decorate(function)


def on_event_loop(put: Put) -> Put:
    """Return a way to make calls of coroutine functions."""
    from background._executors.eventloop import ToEnd, event_loop

    def enter(executor: Executor, function: Any, *rest: Any) -> Future[Any]:
        where = executor if isinstance(executor, InlineExecutor) else event_loop
        return put(where, ToEnd(function), *rest)

    return enter


class Decorator(Protocol):
    """What `background(executor=…)` returns."""

    @overload
    def __call__(
        self, function: classmethod[T, P, Coroutine[Any, Any, R]], /
    ) -> classmethod[T, P, Future[R]]: ...
    @overload
    def __call__(self, function: classmethod[T, P, R], /) -> classmethod[T, P, Future[R]]: ...
    @overload
    def __call__(
        self, function: staticmethod[P, Coroutine[Any, Any, R]], /
    ) -> staticmethod[P, Future[R]]: ...
    @overload
    def __call__(self, function: staticmethod[P, R], /) -> staticmethod[P, Future[R]]: ...
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Callable[P, Future[R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, Future[R]]: ...


def is_async(function: Any) -> bool:
    """Tell whether calling it makes a coroutine."""
    inner = innermost(function)
    if type(inner) is FunctionType:
        return inspect.iscoroutinefunction(inner)
    return any(
        map(inspect.iscoroutinefunction, [inner, inspect.getattr_static(inner, "__call__", None)])
    )


def check_function(function: Any) -> None:
    """Raise a `TypeError` that says what to write instead of decorating this."""
    what: str | None = None
    inner = innermost(function)
    if type(inner) is FunctionType and not inner.__code__.co_flags & GENERATOR:
        return  # the usual one, in a microsecond
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
    if what is not None:
        name = getattr(inner, "__qualname__", None) or repr(inner)
        raise TypeError(f"@background can't decorate {name}, which is {what}")
