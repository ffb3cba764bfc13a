"""Where a file of calls may be, and who may write it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["StoreError", "check_place", "file_at", "make_or_check"]

NETWORK = (  # how their names begin
    *("nfs", "cifs", "smb", "ncpfs", "afs", "9p", "ceph", "lustre", "gpfs", "beegfs"),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone"),
)
MOUNTS = Path("/proc/self/mounts")


class StoreError(OSError):
    """The file can't be used; the message says why and what to do.

    `passing` tells whether it may go well later: the disk is full, or the file is locked.
    """

    passing = False


def file_at(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def make_or_check(path: str) -> tuple[int, int]:
    """Make the file for its owner alone, or refuse one that others may write; return which it is.

    The file holds pickles: whoever can write it can run code in the worker.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        folder = os.path.dirname(path)
        raise StoreError(
            f"{path} can't be made: {error.strerror}; the folder {folder} must exist, and this "
            "user must be allowed to write there"
        ) from error
    for suffix in ("", "-wal", "-shm", "-lock"):
        with suppress(FileNotFoundError):
            check_owner(path + suffix)
    return file_at(path)


def check_owner(path: str) -> None:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is not a file: name a file for the calls")
    if status.st_mode & 0o022:
        raise StoreError(
            f"{path} may be written by others (mode {status.st_mode & 0o777:o}), who could run "
            f"code as you through it: chmod 600 {path}, if you trust what it holds"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise StoreError(
            f"{path} belongs to another user, who could run code as you through it: use a file "
            "of your own"
        )


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
