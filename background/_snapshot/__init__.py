"""Copying what a call could see change: the function `snapshot`, and what it knows of types."""

# It registers what it copies.
import background._snapshot.containers as _containers  # noqa: F401  # pyright: ignore[reportUnusedImport]
from background._snapshot.libraries import (
    copy_array,
    copy_array_array,
    copy_pandas,
    copy_polars,
    copy_tensor,
    copy_void,
)
from background._snapshot.snapshot import Failed, atoms, copy_arguments, library, snapshot

__all__ = [
    "Failed",
    "atoms",
    "copy_arguments",
    "copy_array",
    "copy_array_array",
    "copy_pandas",
    "copy_polars",
    "copy_tensor",
    "copy_void",
    "library",
    "snapshot",
]
