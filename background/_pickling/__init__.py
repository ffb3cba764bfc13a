"""Calls and their outcomes as bytes: by plain pickle where that does, else by cloudpickle.

Plain pickle sends functions and classes by name. What has no name that another process could
find (all of `__main__` and of modules made at run time, closures, lambdas) goes by value, which
takes cloudpickle.

This package imports nothing of the rest: a worker loads it alone.
"""

from background._pickling.calls import pack_call, pack_result, unpack_call
from background._pickling.errors import _bare as _bare  # pickles of version 0.1 find them here
from background._pickling.errors import pack_error, unpack_error
from background._pickling.functions import LARGE, dragged
from background._pickling.functions import _complete as _complete

__all__ = [
    "LARGE",
    "dragged",
    "pack_call",
    "pack_error",
    "pack_result",
    "unpack_call",
    "unpack_error",
]
