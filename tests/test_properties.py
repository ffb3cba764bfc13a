"""For every function and every argument, the outcome of a call is the function's own."""

import functools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import pytest
from conftest import EXECUTORS
from hypothesis import given
from hypothesis import strategies as st

from background import background, flush

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=5,
)
errors = st.sampled_from(
    [
        ValueError,
        KeyError,
        OSError,
        StopIteration,
        MemoryError,
        SystemExit,
        KeyboardInterrupt,
        GeneratorExit,
        RecursionError,
        TimeoutError,
        ExceptionGroup,
        UnicodeDecodeError,
    ]
)
arguments = st.tuples(st.lists(values), st.dictionaries(st.text(), values))


def outcome(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[str, Any]:
    """Return what the function returns or raises, as a value that can be compared."""
    try:
        return "returned", repr(function(*args, **kwargs))
    except BaseException as error:
        return type(error).__name__, repr(error.args)


def kinds(function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Return the function as a callable of every kind."""

    class Owner:
        method = function
        class_method = classmethod(function)
        static_method = staticmethod(function)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    return {
        "function": function,
        "lambda": lambda *args, **kwargs: function(*args, **kwargs),
        "partial": functools.partial(function, "first", extra=1),
        "method": Owner().method,
        "class method": Owner.class_method,
        "static method": Owner.static_method,
        "instance": Owner(),
    }


@pytest.mark.parametrize("name", EXECUTORS)
@given(error=st.none() | errors, given=arguments, kind=st.sampled_from(sorted(kinds(print))))
def test_the_outcome_is_the_functions_own(name: str, error: Any, given: Any, kind: str) -> None:
    """I1: background(f)(*a).result() is f(*a), on every executor, for every kind of callable."""
    args, kwargs = given

    def function(*args: Any, **kwargs: Any) -> Any:
        if error is ExceptionGroup:
            raise ExceptionGroup("group", [ValueError(repr(args))])
        if error is UnicodeDecodeError:
            raise UnicodeDecodeError("utf-8", b"", 0, 1, "reason")
        if error is not None:
            raise error(repr(args))
        return [type(a).__name__ if hasattr(a, "method") else a for a in args], kwargs

    function.__repr__ = None  # type: ignore[attr-defined]
    callable_ = kinds(function)[kind]
    call = background(executor=executors[name])(callable_)
    expected = outcome(callable_, args, kwargs)
    got = outcome(lambda *a, **k: call(*a, **k).result(20), args, kwargs)
    if kind == "method" or kind == "class method":
        assert got[0] == expected[0]
    else:
        assert got == expected


executors: dict[str, Executor] = {name: make() for name, make in EXECUTORS.items()}


@given(st.lists(st.integers(0, 5), max_size=60))
def test_the_order_is_the_order_of_the_calls(steps: list[int]) -> None:
    """C2: one worker runs calls of several functions in the order in which they were made."""
    seen: list[int] = []
    functions = [background(functools.partial(seen.append, i)) for i in range(6)]
    for step in steps:
        functions[step]()
    flush(20)
    assert seen == steps
