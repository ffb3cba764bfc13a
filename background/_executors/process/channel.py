"""Messages between a program and its worker processes, over a socket.

This module imports nothing of the package: a worker loads it alone.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any

__all__ = ["CALL", "RAISED", "READY", "RETURNED", "STATE", "Channel", "Message"]

CALL, STATE = 0, 1  # what a program says: run this call; this has changed in the program
RETURNED, RAISED, READY = 0, 1, 2  # what a worker answers to a call; that it can take calls

in_worker = False  # whether this process is a worker

_HEAD = struct.Struct("<QQQ")  # the kind of the message, its number of buffers, its bytes
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # SIGPIPE may end the program
_BATCH = 1000  # what one system call takes

Message = tuple[int, bytearray, list[bytearray]]


class Channel:
    """One end of a connection over which messages go, one at a time.

    A message is a number, bytes and any number of buffers, none of which is copied on the
    way to the socket or from it.
    """

    def __init__(self, connection: socket.socket) -> None:
        # A program may have set `socket.setdefaulttimeout`: here a call takes what it takes.
        connection.settimeout(None)
        self.connection = connection
        self._inbox = bytearray(1 << 16)  # so that a small message takes one system call
        self._start = self._end = 0

    def send(self, kind: int, data: bytes, buffers: Sequence[Any] = ()) -> None:
        """Send a message; raises OSError if the other end is gone."""
        sizes = struct.pack(f"<{len(buffers)}Q", *map(len, buffers))
        self.write(_HEAD.pack(kind, len(buffers), len(data)) + sizes, data, *buffers)

    def write(self, *data: Any) -> None:
        """Write bytes and buffers; raises OSError if the other end is gone."""
        parts: list[memoryview] = [memoryview(part) for part in data]
        while parts:
            sent = self.connection.sendmsg(parts[:_BATCH], (), _NO_SIGNAL)
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]

    def receive(self) -> Message:
        """Return the next message; raises EOFError or OSError if the other end is gone."""
        kind, count, size = _HEAD.unpack(self._read(_HEAD.size))
        sizes = [size, *struct.unpack(f"<{count}Q", self._read(8 * count))]
        parts: list[bytearray] = []
        try:
            parts += map(self._read, sizes)
        except MemoryError:  # the message is read and dropped, so that the next one can come
            left = sum(sizes[len(parts) :])
            while left:
                left -= len(self._read(min(left, len(self._inbox))))
            raise
        return kind, parts[0], parts[1:]

    def _read(self, size: int) -> bytearray:
        read = bytearray(size)
        view = memoryview(read)
        while size:
            if self._start == self._end and size >= len(self._inbox):
                got = self.connection.recv_into(view)
            else:
                if self._start == self._end:
                    self._start, self._end = 0, self.connection.recv_into(self._inbox)
                got = min(size, self._end - self._start)
                view[:got] = self._inbox[self._start : self._start + got]
                self._start += got
            if not got:
                raise EOFError
            view = view[got:]
            size -= got
        return read
