"""The file of calls: where it may be and who may write it, how it is made and opened.

What goes wrong with it is an error that says what to do.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from background._executors.sqlite.access import StoreError, make_own, no_place

__all__ = [
    "ENDED",
    "PATIENCE",
    "StoreError",
    "connect",
    "explain",
    "file_at",
    "make_or_check",
    "text",
]

NETWORK = (  # how their names begin
    *("nfs", "cifs", "smb", "ncpfs", "afs", "9p", "ceph", "lustre", "gpfs", "beegfs"),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone"),
)
MOUNTS = Path("/proc/self/mounts")

FORMAT = 1
APPLICATION = 0x62672D31  # says in the file's header whose it is
PATIENCE = 5.0  # seconds after which a lock is an error
ENDED = "('succeeded', 'failed', 'dead', 'cancelled')"

# A call's row is written once. What becomes of it is a second, small row, so that a change of
# state never copies arguments of 50 MB; the triggers keep the two together in one statement.
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE calls (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order in which they were made; never used again
    program INTEGER,                       -- who made it, and which of its calls it is
    number INTEGER,
    call TEXT NOT NULL,                    -- 'plot(…), called at train.py:42 in main'
    place TEXT NOT NULL,                   -- the working directory and where to import from
    made REAL NOT NULL,                    -- for people: no decision rests on the clock
    pickle BLOB
);
CREATE TABLE states (
    id INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    program INTEGER,                       -- NULL once no program waits for the outcome
    number INTEGER,
    owner INTEGER,                         -- the worker that runs it
    attempts INTEGER NOT NULL DEFAULT 0,
    started REAL,
    ended REAL,
    error TEXT,
    traceback TEXT,
    outcome BLOB
);
CREATE TABLE workers (id INTEGER PRIMARY KEY, pid INTEGER NOT NULL, since REAL NOT NULL);
CREATE INDEX by_state ON states (state, id);
CREATE INDEX by_program ON states (program) WHERE state IN {ENDED} AND program IS NOT NULL;
CREATE TRIGGER made AFTER INSERT ON calls BEGIN
    INSERT INTO states (id, state, program, number)
    VALUES (new.id, 'waiting', new.program, new.number);
END;
CREATE TRIGGER done AFTER UPDATE OF state ON states
WHEN new.state IN ('succeeded', 'cancelled') BEGIN
    UPDATE calls SET pickle = NULL WHERE id = new.id;
END;
CREATE TRIGGER gone AFTER DELETE ON calls BEGIN
    DELETE FROM states WHERE id = old.id;
END;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
COMMIT;
"""


def file_at(path: str) -> tuple[int, int]:
    """Return which file there is."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise
    except OSError as error:  # its folder can't be entered, perhaps only for a while
        raise no_place(path, error) from error
    return status.st_dev, status.st_ino


def make_or_check(path: str) -> tuple[int, int]:
    """Make the file for its owner alone, or refuse one that others may write; return which it is.

    The file holds pickles: whoever can write it can run code in the worker.
    """
    check_version()
    check_place(path)
    make_own(path)
    return file_at(path)


def check_place(path: str) -> None:
    """Refuse a network file system, where it can be told: the log of SQLite is shared memory."""
    try:
        mounts = MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # not Linux
        return
    found, kind = "", ""
    for mount in mounts:
        _, point, type_ = mount.split(" ")[:3]
        point = point.replace("\\040", " ")
        inside = path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found):
            found, kind = point, type_
    if kind.startswith(NETWORK):
        raise StoreError(
            f"{path} is on a network file system ({kind} at {found}), where programs on several "
            "machines would damage it: name a file on a local disk"
        )


def check_version() -> None:
    if sqlite3.sqlite_version_info < (3, 35):  # it has no RETURNING
        raise StoreError(
            f"SQLiteExecutor needs SQLite 3.35 or newer, and this Python has "
            f"{sqlite3.sqlite_version}: use a newer Python or SQLite"
        )


def connect(path: str, synchronous: str, checkpoint: int) -> sqlite3.Connection:
    """Return a new connection to the file; see `Store` for what is to be synced, and when."""
    connection = sqlite3.connect(
        path,
        timeout=0,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=24,  # those with ids in them are never the same again
    )
    try:
        prepare(connection, path)
        connection.executescript(
            f"PRAGMA synchronous = {synchronous};PRAGMA wal_autocheckpoint = {checkpoint};"
        )
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, path: str) -> None:
    """Lay the tables into an empty file; refuse one that is not ours."""
    name = os.path.basename(path)

    # By scripts, which run to their end in one step: a statement that a signal handler finds
    # half read would lock out what that opens.
    found: list[int] = []
    connection.create_function("found", 1, found.append)

    def number(pragma: str) -> int:
        connection.executescript(f"SELECT found({pragma}) FROM pragma_{pragma}")
        return found.pop()

    if number("application_id") != APPLICATION and not number("schema_version"):
        connection.executescript("PRAGMA journal_mode = WAL")
        try:
            connection.executescript(SCHEMA)
        except sqlite3.OperationalError:
            connection.rollback()
            if not number("schema_version"):  # else another program was faster
                raise
    if number("application_id") != APPLICATION:
        raise StoreError(f"{path} is an SQLite file of something else: name another file")
    if number("user_version") > FORMAT:
        raise StoreError(
            f"{path} was written by a newer version of background (format "
            f"{number('user_version')}, this one knows {FORMAT}): upgrade background-futures, or "
            f"name another file than {name}"
        )


def explain(error: Exception, path: str) -> StoreError:
    """Return an error that says what to do."""
    texts = {
        sqlite3.SQLITE_BUSY: f"was locked by another program for {PATIENCE:.0f} s: is one stopped "
        "in the middle of a transaction?",
        sqlite3.SQLITE_FULL: "can't grow, the disk is full: free some space",
        sqlite3.SQLITE_NOTADB: "is not a file of calls, nor of SQLite: name another file",
        sqlite3.SQLITE_CORRUPT: "is damaged: move it away, and a new one is made",
        sqlite3.SQLITE_READONLY: "can't be written: this user must be allowed to write the file "
        "and its folder",
        sqlite3.SQLITE_CANTOPEN: "can't be opened: this user must be allowed to write the file "
        "and its folder",
        sqlite3.SQLITE_IOERR: "can't be read or written: is the disk full or broken?",
        sqlite3.SQLITE_TOOBIG: "can't take arguments or results this large: pass the path of a "
        "file instead",
    }
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if isinstance(error, OverflowError):
        code = sqlite3.SQLITE_TOOBIG
    explained = StoreError(f"{path} {texts.get(code, 'is of no use')} ({error})")
    explained.passing = code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    return explained


def text(said: str) -> str:
    """Return a text as UTF-8 can hold it: the name of a file may have bytes that are none."""
    return said.encode(errors="backslashreplace").decode()
