"""The chapter Decorating of the contract."""

import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from background import InlineExecutor, ThreadExecutor, background, flush


@background
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


class Shape:
    """Methods of every kind, decorated."""

    @background
    def method(self, x: int) -> tuple[object, int]:
        return self, x

    @background
    @classmethod
    def outer_class(cls, x: int) -> tuple[object, int]:
        return cls, x

    @classmethod
    @background
    def inner_class(cls, x: int) -> tuple[object, int]:
        return cls, x

    @background
    @staticmethod
    def outer_static(x: int) -> int:
        return x

    @staticmethod
    @background
    def inner_static(x: int) -> int:
        return x

    def __call__(self, x: int) -> int:
        return x + 1


def test_functions_of_every_kind() -> None:
    """D1: functions, lambdas, partials, callable instances and builtins can be decorated."""
    assert add(1, b=2).result() == 3
    assert background(lambda x: -x)(1).result() == -1
    assert background(functools.partial(pow, 2))(5).result() == 32
    assert background(Shape())(1).result() == 2
    assert background(len)("four").result() == 4
    assert background([3, 1].index)(1).result() == 1


def test_methods_of_every_kind() -> None:
    """D1: methods, class and static methods get what they would get, in either order."""
    shape = Shape()
    assert shape.method(1).result() == (shape, 1)
    assert Shape.method(shape, 2).result() == (shape, 2)
    for owner in (shape, Shape):
        assert owner.outer_class(3).result() == (Shape, 3)
        assert owner.inner_class(4).result() == (Shape, 4)
        assert owner.outer_static(5).result() == 5
        assert owner.inner_static(6).result() == 6


def test_methods_use_their_executor() -> None:
    """D1: the options of a decorated method hold for its instances."""

    class Inline:
        @background(executor=InlineExecutor())
        def method(self) -> None: ...

    assert Inline().method().done()


def test_it_looks_like_the_function() -> None:
    """D1: name, docstring, signature and module stay."""
    assert add.__name__ == "add"
    assert add.__qualname__ == "add"
    assert add.__module__ == __name__
    assert inspect.getdoc(add) == "Add two numbers."
    assert str(inspect.signature(add)) == "(a: int, b: int = 1) -> int"
    assert Shape.method.__qualname__ == "Shape.method"


def test_it_is_pickled_by_name() -> None:
    """D1: a decorated function is pickled as its name, like any function."""
    assert pickle.loads(pickle.dumps(add)) is add


def generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("thing", "advice"),
    [
        (Shape, "a class"),
        (property(lambda _: 1), "a property"),
        (generator, "a generator"),
        (functools.partial(generator), "a generator"),
        (7, "not callable"),
        (add, "decorated already"),
        (staticmethod(generator), "a generator"),
    ],
)
def test_what_cant_be_decorated(thing: Any, advice: str) -> None:
    """D3: what can't run in the background is a TypeError at decoration that gives advice."""
    with pytest.raises(TypeError, match=advice):
        background(thing)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: background(executor=ThreadExecutor),  # type: ignore[call-overload]
        lambda: background(executor="thread"),  # type: ignore[call-overload]
        lambda: background(add, add),  # type: ignore[call-overload]
        lambda: background(workers=3),  # type: ignore[call-overload]
    ],
)
def test_wrong_options(bad: Callable[[], object]) -> None:
    """D3: wrong and unknown options are a TypeError."""
    with pytest.raises(TypeError):
        bad()


def test_a_class_in_place_of_an_executor_gets_the_brackets_told() -> None:
    """D3: the message says what to write."""
    with pytest.raises(TypeError, match=r"write ThreadExecutor\(\)"):
        background(executor=ThreadExecutor)  # type: ignore[call-overload]


def test_brackets_and_reuse() -> None:
    """D1: the decorator works with and without brackets, and a set of options by its name."""
    inline = background(executor=InlineExecutor())
    assert inline(add.__wrapped__)(1).done()  # type: ignore[attr-defined]
    assert background()(abs)(-1).result() == 1
    flush()
