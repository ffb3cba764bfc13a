"""Calls on the caller's own thread: for tests and debugging."""

from __future__ import annotations

from typing import Any

from background._core.call import Call
from background._core.executor import Executor, run_here
from background._errors import SHUT_DOWN

__all__ = ["InlineExecutor"]


class InlineExecutor(Executor):
    """Run each call at once on the caller's thread, with the same futures and errors.

    A test suite that uses it needs no threads and no waiting:

    >>> from background import background, configure
    >>> with configure(executor=InlineExecutor()):
    ...     background(len)("four").done()
    True

    Ctrl-C during a call is raised by the call itself, too.
    """

    def __init__(self) -> None:
        self._closed = False

    def _accept(self, call: Call[Any]) -> None:
        if self._closed:
            raise RuntimeError(SHUT_DOWN)
        run_here(call)
        del call  # the traceback of a failure keeps this frame

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further calls; every earlier one is done."""
        self._closed = True

    def __repr__(self) -> str:
        return "InlineExecutor()"
