"""The file of a durable executor: its calls on disk, and which workers live.

Everything that happens to the file is one statement here, and each is a transaction of its
own. So whoever is killed between two of them leaves a call that is waiting, running or done,
and a signal handler or a `__del__` that makes a call never finds a transaction half done.
"""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

from background._executors.sqlite import file
from background._executors.sqlite.locks import Life, alone

__all__ = ["Claim", "Outcome", "Store", "StoredCall"]

ATTEMPTS = 3  # a call that has killed so many workers is dead
KEEP = 86_400  # seconds for which an outcome that nobody reads is kept
# SQLite's own way to wait for a lock sleeps longer and longer: beside a worker that drains, a
# call took up to 530 ms. Asking again every 0.3 ms, it took 2.3 ms at the 99th percentile.
PAUSE = 0.0003
LONG = 8000  # pages of 4 KB in the log beside the file from which a worker starts it anew


@dataclass(frozen=True, slots=True)
class StoredCall:
    """A call as it stands in the file; see `SQLiteExecutor.calls`.

    `state` is waiting, running, succeeded, failed, dead (it killed its worker three times) or
    cancelled. `made`, `started` and `ended` are seconds since the epoch; `pid` is the process
    of the worker that runs it, or was killed in it a moment ago.
    """

    id: int
    state: str
    call: str
    attempts: int
    made: float
    started: float | None
    ended: float | None
    error: str | None
    traceback: str | None
    pid: int | None


class Claim(NamedTuple):
    """A call that a worker has taken."""

    id: int
    program: int
    call: str
    place: str
    pickle: bytes


class Outcome(NamedTuple):
    """How a call of a program ended."""

    id: int
    number: int
    state: str
    attempts: int
    error: str | None
    traceback: str | None
    outcome: bytes | None


class Done(NamedTuple):
    """What a statement did."""

    rows: list[Any]
    changed: int
    row_id: int


class Store:
    """The file of calls.

    Args:
        path: where it is; it is made by the first statement.
        synchronous: what SQLite syncs: `"NORMAL"` or `"FULL"`.
        checkpoint: after how many pages of 4 KB in the log beside the file this process
            moves them into the file, which syncs and so takes milliseconds.
    """

    def __init__(self, path: str, synchronous: str, checkpoint: int) -> None:
        self.path = path
        self._synchronous = synchronous
        self._checkpoint = checkpoint
        self._connection: sqlite3.Connection | None = None
        self._reading = False  # by the holder of the lock
        self._file: tuple[int, int] | None = None
        _stores.add(self)

    # -- Calls, by the programs that make them --------------------------------------------

    def put(self, program: int, number: int, call: str, place: str, pickle: bytes) -> int:
        """Write a call; it is on disk when this returns. Return its id."""
        return self._do(
            "INSERT INTO calls (program, number, call, place, made, pickle)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (program, number, file.text(call), place, time.time(), pickle),
        ).row_id

    def take_back(self, program: int, number: int) -> None:
        """Delete a call whose `put` was interrupted, unless a worker has it."""
        self._do(
            "DELETE FROM calls WHERE id IN (SELECT id FROM states"
            " WHERE state = 'waiting' AND program = ? AND number = ?)",
            (program, number),
        )

    def cancel(self, key: int) -> bool:
        """Cancel a call that waits; return whether it still did."""
        return bool(
            self._do(
                "UPDATE states SET state = 'cancelled', ended = ?"
                " WHERE id = ? AND state = 'waiting'",
                (time.time(), key),
            ).changed
        )

    def outcomes(self, program: int) -> list[Outcome]:
        """Return how calls of a program ended; those that `read` was told of are left out."""
        rows = self._do(
            "SELECT id, number, state, attempts, error, traceback, outcome FROM states"
            f" WHERE program = ? AND state IN {file.ENDED} LIMIT 1000",
            (program,),
        ).rows
        return [Outcome(*row) for row in rows]

    def read(self, outcomes: Iterable[Outcome]) -> None:
        """Delete results that their program has; keep failures, for people, until a purge."""
        by_state: dict[bool, list[int]] = {True: [], False: []}
        for outcome in outcomes:
            by_state[outcome.state == "succeeded"].append(outcome.id)
        if ids := by_state[True]:
            self._do(f"DELETE FROM calls WHERE id IN {among(ids)}")
        if ids := by_state[False]:
            self._do(f"UPDATE states SET program = NULL, outcome = NULL WHERE id IN {among(ids)}")

    def running(self, program: int) -> list[int]:
        """Return the numbers of a program's calls that run."""
        rows = self._do(
            "SELECT number FROM states WHERE state = 'running' AND program = ?", (program,)
        ).rows
        return [row[0] for row in rows]

    def gone(self, ids: list[int]) -> set[int]:
        """Return those of the calls that are no longer in the file."""
        rows = self._do(f"SELECT id FROM states WHERE id IN {among(ids)}").rows
        return set(ids).difference(row[0] for row in rows)

    # -- Calls, by the workers that run them ----------------------------------------------

    def claim(self, owner: int, key: int | None = None) -> Claim | None:
        """Take the oldest call that waits, or the one with this id if it waits."""
        if key is None:
            if not self.waits():  # a look needs no lock
                return None
            which = "(SELECT id FROM states WHERE state = 'waiting' ORDER BY id LIMIT 1)"
        else:
            which = str(key)
        rows = self._do(
            "UPDATE states SET state = 'running', owner = ?, started = ?, attempts = attempts + 1"
            f" WHERE id = {which} AND state = 'waiting' RETURNING id",
            (owner, time.time()),
        ).rows
        if not rows:
            return None
        select = "SELECT id, program, call, place, pickle FROM calls WHERE id = ?"
        return Claim(*self._do(select, rows[0]).rows[0])

    def waits(self) -> bool:
        """Return whether a call waits."""
        return bool(self._do("SELECT 1 FROM states WHERE state = 'waiting' LIMIT 1").rows)

    def finish(
        self, key: int, owner: int, outcome: bytes, error: str | None, traceback: str | None
    ) -> bool:
        """Write how a call ended; return False if it is no longer this worker's."""
        return bool(
            self._do(
                "UPDATE states SET state = ?, owner = NULL, ended = ?, error = ?, traceback = ?,"
                " outcome = ? WHERE id = ? AND owner = ? AND state = 'running'",
                (
                    "succeeded" if error is None else "failed",
                    time.time(),
                    error and file.text(error),
                    traceback and file.text(traceback),
                    outcome,
                    key,
                    owner,
                ),
            ).changed
        )

    def give_back(self, key: int, owner: int) -> None:
        """Let a call wait again that its worker has not begun to run."""
        self._do(
            "UPDATE states SET state = 'waiting', owner = NULL, attempts = attempts - 1"
            " WHERE id = ? AND owner = ? AND state = 'running'",
            (key, owner),
        )

    def orphans(self, life: Life) -> list[int]:
        """Return the owners of running calls that live no more."""
        rows = self._do("SELECT DISTINCT owner FROM states WHERE state = 'running'").rows
        return [row[0] for row in rows if not life.taken(row[0])]

    def bury(self, owner: int) -> None:
        """Give the calls of a worker that was killed to the next one; three times, then never."""
        self._do(
            "UPDATE states SET state = iif(attempts < ?1, 'waiting', 'dead'), owner = NULL,"
            " ended = iif(attempts < ?1, NULL, ?2), error = 'the worker that ran it was killed'"
            " WHERE owner = ?3 AND state = 'running'",
            (ATTEMPTS, time.time(), owner),
        )
        self.leave(owner)

    def join(self, owner: int) -> None:
        """Write a worker down, for people."""
        self._do("INSERT INTO workers VALUES (?, ?, ?)", (owner, os.getpid(), time.time()))

    def leave(self, owner: int) -> None:
        """Strike a worker out."""
        self._do("DELETE FROM workers WHERE id = ?", (owner,))

    def prune(self, life: Life) -> None:
        """Delete outcomes that nobody has read for a day, and workers that are no more."""
        self._do(
            "DELETE FROM calls WHERE id IN (SELECT id FROM states"
            " WHERE state IN ('succeeded', 'cancelled') AND ended < ?)",
            (time.time() - KEEP,),
        )
        for (owner,) in self._do("SELECT id FROM workers").rows:
            if not life.taken(owner):
                self.leave(owner)

    def shorten(self) -> None:
        """Start the log beside the file anew if it has grown large.

        While others write without a pause SQLite's own way to do so never finds the moment.
        """
        # Most of the work locks nobody out; how long the log is comes with it.
        ((_, pages, _),) = self._do("PRAGMA wal_checkpoint(PASSIVE)").rows
        if pages > LONG:
            self._do("PRAGMA busy_timeout = 100")  # the others pause for microseconds only
            self._do("PRAGMA wal_checkpoint(RESTART)")
            self._do("PRAGMA busy_timeout = 0")

    # -- For people -----------------------------------------------------------------------

    def calls(self) -> list[StoredCall]:
        """Return all calls in the file, the oldest first."""
        rows = self._do(
            "SELECT s.id, state, call, attempts, made, started, ended, error, traceback, pid"
            " FROM calls AS c JOIN states AS s ON s.id = c.id LEFT JOIN workers AS w"
            " ON w.id = owner ORDER BY s.id"
        ).rows
        return [StoredCall(*row) for row in rows]

    def workers(self, life: Life) -> list[StoredWorker]:
        """Return the workers that live."""
        rows = self._do("SELECT id, pid, since FROM workers ORDER BY since").rows
        return [StoredWorker(*row) for row in rows if life.taken(row[0])]

    def retry(self, ids: list[int] | None) -> int:
        """Let failed and dead calls wait again, all or these; return how many."""
        return self._do(
            "UPDATE states SET state = 'waiting', program = NULL, attempts = 0, started = NULL,"
            " ended = NULL, error = NULL, traceback = NULL, outcome = NULL"
            f" WHERE state IN ('failed', 'dead'){only(ids)}"
        ).changed

    def purge(self, ids: list[int] | None) -> int:
        """Delete calls that have ended, all or these; return how many."""
        return self._do(
            "DELETE FROM calls WHERE id IN"
            f" (SELECT id FROM states WHERE state IN {file.ENDED}{only(ids)})"
        ).changed

    # -- Statements -----------------------------------------------------------------------

    def version(self) -> int:
        """Return a number that changes when another process changes the file."""
        number: int = self._do("PRAGMA data_version").rows[0][0]
        return number

    def _do(self, sql: str, parameters: tuple[object, ...] = ()) -> Done:
        """Carry out one statement, which is a transaction of its own."""
        deadline: float | None = None
        while True:
            try:
                return alone(self._execute, sql, parameters)
            except (sqlite3.Error, OverflowError) as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (
                    sqlite3.SQLITE_BUSY,
                    sqlite3.SQLITE_LOCKED,
                ):
                    trouble = file.explain(error, self.path)
                    break
                now = monotonic()
                if deadline is None:
                    deadline = now + file.PATIENCE
                elif now > deadline:
                    trouble = file.explain(error, self.path)
                    break
            time.sleep(PAUSE)
        raise trouble  # here: the frames of the other would hold the arguments

    def _execute(self, sql: str, parameters: tuple[object, ...]) -> Done:
        # A signal handler may come between the two lines that read: what it writes needs a
        # connection of its own, because what is read here keeps this one at a moment of the past.
        nested, connection = self._reading, self._connect()
        if nested:
            connection = self._open()
        self._reading = True
        try:
            cursor = connection.execute(sql, parameters)
            # With RETURNING the change is complete only after the last row.
            return Done(cursor.fetchall(), cursor.rowcount, cursor.lastrowid or 0)
        finally:
            self._reading = nested
            if nested:
                connection.close()

    def _connect(self) -> sqlite3.Connection:
        """Return the connection to the file that is there now."""
        connection = self._connection
        if connection is not None:
            with suppress(FileNotFoundError):
                if file.file_at(self.path) == self._file:
                    return connection
            self.close()  # somebody has moved the file away: calls into it would be lost
        connection = self._open()
        if self._connection is None:
            self._connection = connection
        elif self._connection is not connection:  # a signal handler that came has opened one
            connection.close()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        self._file = file.make_or_check(self.path)
        return file.connect(self.path, self._synchronous, self._checkpoint)

    def close(self) -> None:
        """Close the connection; the next statement opens one again."""
        alone(self._close)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class StoredWorker:
    """A worker that lives."""

    id: int
    pid: int
    since: float


def among(ids: Iterable[int]) -> str:
    return f"({', '.join(map(str, ids))})"


def only(ids: list[int] | None) -> str:
    return "" if ids is None else f" AND id IN {among(ids)}"


# -- Fork ----------------------------------------------------------------------------------

_stores: weakref.WeakSet[Store] = weakref.WeakSet()
_inherited: list[sqlite3.Connection | None] = []


def after_fork_in_child() -> None:
    """Start without connections; SQLite forbids even closing those of the parent."""
    for store in list(_stores):
        _inherited.append(store._connection)
        store._connection = None


os.register_at_fork(after_in_child=after_fork_in_child)
