"""Calls in worker threads: for what waits."""

from __future__ import annotations

from background._executors.workers import WorkerExecutor

__all__ = ["ThreadExecutor"]


class ThreadExecutor(WorkerExecutor):
    """Run calls in `max_workers` threads, in the order in which they were made.

    For calls that wait: network, disk, a service. With one worker, the default, calls run
    one at a time. The threads start with the first calls, sleep without waking up while
    there is nothing to do, and end with the executor.

    >>> with ThreadExecutor() as executor:
    ...     executor.submit(pow, 2, 10).result()
    1024
    """

    def __init__(self, max_workers: int = 1) -> None:
        super().__init__(max_workers, "background")
