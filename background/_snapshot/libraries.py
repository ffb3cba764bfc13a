"""How what NumPy, PyTorch, pandas, polars and other libraries have is copied."""

# Here values are of any type, and what they hold is unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from background._snapshot.snapshot import (
    Memo,
    atoms,
    by_name,
    copy_attributes,
    copy_part,
    remember,
)

__all__ = [
    "copy_array",
    "copy_array_array",
    "copy_pandas",
    "copy_polars",
    "copy_tensor",
    "copy_void",
]


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


def pass_for_ever(value: Any, memo: Memo) -> Any:
    atoms.add(type(value))
    return value


by_name.update(
    {
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
)
