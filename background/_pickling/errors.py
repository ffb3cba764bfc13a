"""Exceptions as bytes, whatever they are, and back."""

from __future__ import annotations

import pickle
import traceback
from contextlib import suppress
from typing import Any

from background._pickling.functions import dumps

__all__ = ["pack_error", "unpack_error"]


def pack_error(error: BaseException) -> bytes:
    """Return an exception as bytes, whatever it is."""
    trace = "the traceback can't be shown"
    with suppress(BaseException):  # an exception may answer by force for its notes and causes
        trace = "".join(traceback.format_exception(error)).rstrip()
    message = "its message failed"
    with suppress(BaseException):
        message = str.__str__(str(error))  # it may be of a class that can't be pickled
    return pickle.dumps((_round_trip(error), type(error).__qualname__, message, trace), 5)


def unpack_error(data: bytes | bytearray, where: str) -> BaseException:
    """Return the exception, or a `RuntimeError` that says so in its place.

    The traceback, which can't be pickled, is a note: `where`, and then the lines.
    """
    packed, name, message, trace = pickle.loads(data)
    error: BaseException | None = None
    if packed is not None:
        error = _loaded(packed)
    if error is None:
        error = RuntimeError(
            f"{name}: {message} (this stands for a {name} that can't be pickled and unpickled)"
        )
    with suppress(BaseException):  # it takes no notes, or raises anything when asked for them
        BaseException.add_note(error, f"{where}:\n{trace}")
    return error


def _round_trip(error: BaseException) -> bytes | None:
    """Return the pickle of an exception if that can be unpickled."""
    for value in (error, _Bare(error)):
        with suppress(BaseException):  # the hooks of users may raise anything
            packed = dumps(value)
            if type(_loaded(packed)) is type(error):
                return packed
    return None


def _loaded(packed: bytes) -> BaseException | None:
    with suppress(BaseException):  # its constructor may raise anything
        error = pickle.loads(packed)
        if isinstance(error, BaseException):
            return error
    return None


class _Bare:
    """Is unpickled as an exception that is made without its constructor.

    That may want other arguments than those that the exception keeps as its own.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        error = self.error
        return _bare, (type(error), error.args, vars(error))


def _bare(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error
