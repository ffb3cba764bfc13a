"""Uses that type-check."""

import copy
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar, assert_type, overload

from background import (
    DaskExecutor,
    Future,
    InlineExecutor,
    ThreadExecutor,
    background,
    configure,
    flush,
    snapshot,
    stats,
)

T = TypeVar("T")


@background
def plot(step: int, *, title: str = "") -> str:
    return title * step


@background()
def bracketed(x: int) -> int:
    return x


in_threads = background(executor=ThreadExecutor(max_workers=2))


@in_threads
def reused(x: float) -> float:
    return x


@background(snapshot=True)
def copied(x: list[int]) -> int:
    return len(x)


class Curve:
    points: list[int]


@snapshot.register(Curve)
def copy_curve(curve: Curve, memo: dict[int, object]) -> Curve:
    made = Curve()
    made.points = snapshot(curve.points, memo)
    return made


@background
async def fetch(step: int, *, title: str = "") -> str:
    return title * step


class Shape:
    @background
    async def async_method(self, x: int) -> str:
        return str(x)

    @background
    @classmethod
    async def async_class(cls, x: int) -> str:
        return str(x)

    @background
    @staticmethod
    async def async_static(x: int) -> str:
        return str(x)

    @classmethod
    @background(max_pending=3)
    async def inner_async(cls, x: int) -> str:
        return str(x)

    @background
    def method(self, x: int) -> str:
        return str(x)

    @classmethod
    @background
    def inner_class(cls, x: int) -> str:
        return str(x)

    @background
    @classmethod
    def outer_class(cls, x: int) -> str:
        return str(x)

    @staticmethod
    @background
    def inner_static(x: int) -> str:
        return str(x)

    @background
    @staticmethod
    def outer_static(x: int) -> str:
        return str(x)


def same(value: T) -> T:
    return value


class Box(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value

    @background
    def get(self) -> T:
        return self.value


@background
def first(values: list[T]) -> T:
    return values[0]


@overload
def size(value: int) -> Future[int]: ...
@overload
def size(value: str) -> Future[str]: ...
@background
def size(value: int | str) -> Any:
    return value


assert_type(background(executor=DaskExecutor())(len)([1]), Future[int])
assert_type(DaskExecutor(None).submit(len, [1]), Future[int])
assert_type(plot(1, title="a"), Future[str])
assert_type(plot(1).result(), str)
assert_type(bracketed(1), Future[int])
assert_type(reused(1.0), Future[float])
assert_type(copied([1]), Future[int])
assert_type(background(len, snapshot=True)([1]), Future[int])
assert_type(snapshot({"a": [1]}), dict[str, list[int]])
assert_type(copy_curve(Curve(), {}), Curve)
snapshot.register(Curve, copy.deepcopy)
assert_type(Shape().method(1), Future[str])
assert_type(Shape.inner_class(1), Future[str])
assert_type(Shape.outer_class(1), Future[str])
assert_type(Shape.inner_static(1), Future[str])
assert_type(Shape.outer_static(1), Future[str])
assert_type(fetch(1, title="a"), Future[str])
assert_type(fetch(1).result(), str)
assert_type(Shape().async_method(1), Future[str])
assert_type(Shape.async_class(1), Future[str])
assert_type(Shape.async_static(1), Future[str])
assert_type(Shape.inner_async(1), Future[str])
assert_type(background(functools.partial(pow, 2.0))(3.0).exception(), BaseException | None)
assert_type(ThreadExecutor().submit(len, "four"), Future[int])
assert_type(Box(1).get(), Future[int])
assert_type(size(1), Future[int])
assert_type(size("a"), Future[str])
generic = background(same)  # mypy takes what it returns for a coroutine, pyright does not
assert_type(generic(1), Future[int])  # type: ignore[assert-type, arg-type]
callback: Callable[[int], Future[int]] = bracketed
flush()
flush(1.5, check=True, progress=False)
with configure(executor=InlineExecutor(), exit_timeout=3, debug=True):
    assert_type(stats().submitted, int)


async def wait() -> None:
    assert_type(await plot(1), str)
    assert_type(await fetch(1), str)


@background(max_pending=1, overflow="drop_oldest")
def live(step: int) -> int:
    return step


assert_type(live(1), Future[int])
assert_type(background(len, max_pending=3)("four"), Future[int])
assert_type(background(len, executor=ThreadPoolExecutor())("four"), Future[int])
