"""`Future`: a future of the standard library that can be awaited."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Generator
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, TypeVar, cast

__all__ = ["Future"]

T = TypeVar("T")


class Future(concurrent.futures.Future[T]):
    """The outcome of a call, now or later: a `concurrent.futures.Future` that can be awaited."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the outcome on any asyncio event loop.

        Cancelling the waiting task ends the wait and leaves the call alone, so that several
        tasks may wait for one call; `cancel` cancels the call.
        """
        import asyncio.events  # here: whoever awaits has it, and nobody else need load it

        if not self.done():
            loop = asyncio.events.get_running_loop()
            woken = loop.create_future()

            def wake() -> None:
                if not woken.done():
                    woken.set_result(None)

            def tell(_: concurrent.futures.Future[T]) -> None:
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(wake)

            self.add_done_callback(tell)
            try:
                yield from woken
            finally:  # a wait that was cancelled leaves nothing behind
                with suppress(AttributeError, ValueError):
                    cast(Any, self)._shared.callbacks.remove(tell)
        try:
            return self.result()
        except CancelledError:
            raise asyncio.CancelledError from None
        finally:
            del self  # the traceback of a failure keeps this frame
