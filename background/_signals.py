"""Signals that make the program end in order: `configure(drain_on=…)`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable
from time import monotonic
from types import FrameType
from typing import Any, cast

from background._core.ledger import waiting
from background._core.telling import WARNING, report

__all__ = ["check_signals", "drain_on", "forget_signals"]

_before: dict[int, Any] = {}  # the handlers that ours have replaced, by signal
_came: list[float] = []  # when the first one came


def check_signals(value: Any) -> tuple[int, ...]:
    """Return the signals, or raise an error that says what to write."""
    several: list[Any] = []
    if value is not None:
        several = list(cast(Any, value)) if isinstance(value, Iterable) else [value]
    found: list[int] = []
    for each in several:
        if not isinstance(each, int) or isinstance(each, bool):
            raise TypeError(
                f"drain_on must be a signal, several of them or None, not {value!r}; "
                "write drain_on=signal.SIGTERM"
            )
        if each not in signal.valid_signals() or each in (
            getattr(signal, "SIGKILL", None),
            getattr(signal, "SIGSTOP", None),
        ):
            raise ValueError(f"drain_on must be a signal that can be handled, not {value!r}")
        found.append(int(each))
    if found and threading.current_thread() is not threading.main_thread():
        raise ValueError("drain_on can be set in the main thread only, where signals are handled")
    return tuple(dict.fromkeys(found))


def drain_on(signals: tuple[int, ...]) -> None:
    """Handle these signals by an orderly end, and no others any more."""
    for number in [number for number in _before if number not in signals]:
        handler = _before.pop(number)
        if signal.getsignal(number) is end_in_order:  # else somebody has replaced ours
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    for number in signals:
        if number not in _before:
            _before[number] = signal.signal(number, end_in_order)


def end_in_order(number: int, frame: FrameType | None) -> None:
    """End the program as `sys.exit` does, which drains the calls; the second time at once."""
    if _came:
        if monotonic() < _came[0] + 1:  # `timeout` sends each signal twice
            return
        signal.signal(number, signal.SIG_DFL)
        count = len(waiting)
        report(
            WARNING,
            "%s once more: the program ends at once, and drops %d background call%s that had "
            "not started",
            signal.Signals(number).name,
            count,
            "s" * (count != 1),
        )
        os.kill(os.getpid(), number)
        return
    _came.append(monotonic())
    handler = _before.get(number)
    if callable(handler) and handler is not signal.default_int_handler:  # was there before
        handler(number, frame)
    sys.exit(128 + number)


def forget_signals() -> None:
    """Begin anew in the child of a fork."""
    _came.clear()
