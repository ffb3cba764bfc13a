"""`report`, through which everything goes that the package says."""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from contextlib import suppress
from contextvars import Context, ContextVar
from time import monotonic
from typing import Any, cast

__all__ = [
    "ERROR",
    "WARNING",
    "depth_in",
    "depth_of_run",
    "logger",
    "made_by_handler",
    "report",
    "telling",
]

WARNING, ERROR = logging.WARNING, logging.ERROR
logger = logging.getLogger("background")
# How many reports the running code is part of, one inside the other. Calls inherit it with
# their context, so that what a log handler's calls report takes another way than the
# record that the handler was given: 0 goes to logging, 1 to `sys.stderr`, 2 to descriptor 2.
# Each is one more than the last, so there is no endless loop.
telling: ContextVar[int] = ContextVar("background.telling", default=0)


def depth_in(context: Context | None) -> int:
    """Return how many reports a call with that context is part of."""
    return 0 if context is None else context.get(telling, 0)


# Of calls made at one place whose failures were logged one after the other: how many, and when
# the last one was. Lost updates, without the GIL, do no harm.
_runs: dict[str, tuple[int, float]] = {}
IN_A_ROW, AT_ONCE = 1_000, 0.1  # failures, seconds


def depth_of_run(place: str, born: float) -> int:
    """Return 1 if a failure is the latest of so many that it seems to be caused by its log.

    A log handler that passes records to a thread of its own, whose calls fail, is not known by
    its context: but each call is made just after the failure before it has been logged.
    """
    count, logged = _runs.get(place, (0, 0.0))
    if born > logged + AT_ONCE:
        count = 0
    elif born >= logged - AT_ONCE:  # or before: several such series may run side by side
        count += 1
    if len(_runs) > IN_A_ROW:
        _runs.clear()
    _runs[place] = count, monotonic()
    return int(count >= IN_A_ROW)


def report(
    level: int,
    message: str,
    *args: object,
    error: BaseException | None = None,
    depth: int | None = None,
) -> None:
    """Log a message; never raise what logging raises (B5).

    An ERROR that no handler took is written to standard error. Where our logger was silenced
    on purpose, by its own level, a filter or a handler, that counts; that `dictConfig`
    disabled it, or `logging.disable`, or a level or a NullHandler of the root logger, doesn't.

    Ctrl-C and `SystemExit` on the main thread come from a signal handler as a rule: they are
    raised once the message has been told.
    """
    token = None
    try:
        depth = telling.get() if depth is None else depth
        token = telling.set(depth + 1)
        try:
            if depth == 0:
                taken = hand_to_handlers(level, message, args, error)
            else:
                taken = level < logging.WARNING
        except (KeyboardInterrupt, SystemExit):
            write(message, args, error, depth)
            if threading.current_thread() is threading.main_thread():
                raise
        except BaseException as problem:  # a handler, a filter, or the interpreter's shutdown
            write(message, args, error, depth, problem)
        else:
            if not taken:
                write(message, args, error, depth)
    except (KeyboardInterrupt, SystemExit):
        if threading.current_thread() is threading.main_thread():
            raise
    except BaseException:  # there is nobody left to tell
        pass
    finally:
        if token is not None:
            with suppress(Exception):
                telling.reset(token)


def hand_to_handlers(
    level: int, message: str, args: tuple[object, ...], error: BaseException | None
) -> bool:
    """Log as `Logger.log` does, though the logger be disabled; return whether that is all."""
    shown = logger.manager.disable < level
    if logger.level:
        if level < logger.level:
            return True  # silenced on purpose
    elif level < logger.getEffectiveLevel():
        shown = False
    important = level >= logging.ERROR
    if not shown:
        return not important
    frame = sys._getframe(2)  # who reports
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    code = frame.f_code
    record = logger.makeRecord(
        logger.name, level, code.co_filename, frame.f_lineno, message, args, exc_info, code.co_name
    )
    del frame, exc_info
    kept = logger.filter(record)
    if not kept:
        return True  # silenced on purpose
    if isinstance(kept, logging.LogRecord):  # from Python 3.12, a filter may replace it
        record = kept
    found, taken, problem = pass_to_handlers(record)
    if problem is not None and not taken:
        raise problem
    return taken or (found and not important)


def pass_to_handlers(record: logging.LogRecord) -> tuple[bool, bool, BaseException | None]:
    """Return whether there were handlers, whether one took the record, and what one raised."""
    found = taken = False
    problem: BaseException | None = None
    current: logging.Logger | None = logger
    while current is not None:
        for handler in list(current.handlers):
            silent = isinstance(handler, logging.NullHandler)
            found = found or not silent or current is logger
            if record.levelno < handler.level:
                continue
            try:
                answer = handler.handle(record)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as raised:
                problem = raised
                continue
            # A `handle` of the user's own may return anything; the library's returns
            # something false if a filter refused the record.
            own = type(handler).handle is not logging.Handler.handle
            taken = taken or ((own or bool(answer)) and (not silent or current is logger))
        current = current.parent if current.propagate else None
    return found, taken, problem


def write(
    message: str,
    args: tuple[object, ...],
    error: BaseException | None,
    depth: int,
    problem: BaseException | None = None,
) -> None:
    """Write a message to standard error, or to descriptor 2 if that can't be."""
    text = (message % args if args else message) + "\n"
    if error is not None:
        with suppress(Exception):
            text += "".join(traceback.format_exception(error))
    if problem is not None:
        with suppress(Exception):
            text += f"(logging it failed: {type(problem).__name__}: {problem})\n"
    if depth < 2:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
            return
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # it is None, closed, full, or of somebody's own making
            pass
    with suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


def made_by_handler(code: object) -> bool:
    """Return whether code is a method of a log handler that is in use.

    The handler of a `QueueListener` runs on a thread of its own, where `telling` is not known.
    """
    try:
        known: list[Any] = list(cast(Any, logging)._handlerList)
        handlers: list[Any] = [handler() for handler in known]
        return any(
            getattr(member, "__code__", None) is code
            for kind in {kind for each in handlers for kind in type(each).__mro__}
            for member in list(vars(kind).values())
        )
    except Exception:  # logging as somebody else has replaced it
        return False
