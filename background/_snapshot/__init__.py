"""Copying what a call could see change: the function `snapshot`, and what it knows of types."""

from background._snapshot.containers import owner_of
from background._snapshot.libraries import (
    copy_array,
    copy_array_array,
    copy_pandas,
    copy_polars,
    copy_tensor,
    copy_void,
)
from background._snapshot.objects import (
    copy_by_hook,
    copy_by_reduce,
    copy_exception,
    copy_object,
    find_out,
    pass_and_tell,
    pass_owner,
    try_plain,
)
from background._snapshot.snapshot import (
    Failed,
    atoms,
    copier_of,
    copy_arguments,
    snapshot,
)

__all__ = [
    "Failed",
    "atoms",
    "copier_of",
    "copy_arguments",
    "copy_array",
    "copy_array_array",
    "copy_by_hook",
    "copy_by_reduce",
    "copy_exception",
    "copy_object",
    "copy_pandas",
    "copy_polars",
    "copy_tensor",
    "copy_void",
    "find_out",
    "owner_of",
    "pass_and_tell",
    "pass_owner",
    "snapshot",
    "try_plain",
]
