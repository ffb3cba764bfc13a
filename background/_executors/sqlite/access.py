"""Who may write the file of calls and what lies beside it; whoever can, can run code as we.

Only the folder decides: what others put there is not opened.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import suppress

__all__ = ["StoreError", "check_folder", "make_own", "no_place", "open_beside", "resolve"]

SUFFIXES = ("", "-wal", "-shm", "-journal", "-lock", ".log")
LINKS = 40  # more than that are a circle


class StoreError(OSError):
    """The file can't be used; the message says why and what to do.

    `passing` tells whether it may go well later: the disk is full, or the file is locked.
    """

    passing = False


def resolve(path: str) -> str:
    """Return a path without links.

    One that another user made stays in it: the path is refused when it is opened.
    """
    whole = path if path.startswith("/") else os.path.join(os.getcwd(), path)
    rest = whole.split("/")[::-1]
    found, links = "/", 0
    while rest:
        part = rest.pop()
        if part in ("", "."):
            continue
        if part == "..":
            found = os.path.dirname(found)
            continue
        found, folder = os.path.join(found, part), found
        with suppress(OSError):  # it is no link, or nothing yet
            if links < LINKS and is_trusted(os.lstat(found)):
                rest += os.readlink(found).split("/")[::-1]
                found = "/" if rest[-1] == "" else folder
                links += 1
    return found


def is_trusted(status: os.stat_result) -> bool:
    """Return whether it belongs to this user, or to root, who can do everything anyway."""
    return status.st_uid in (0, os.geteuid())


def make_own(path: str) -> None:
    """Make the file of calls for its owner alone, or refuse one that others may write."""
    check_folder(path)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise no_place(path, error) from error
    for suffix in SUFFIXES:
        with suppress(FileNotFoundError):
            check_owner(path + suffix, os.lstat(path + suffix))


def open_beside(path: str, flags: int) -> int:
    """Open a file beside that of the calls, or make it; return its descriptor.

    What another user put there is refused: it might be a link to a file of this user's, or a
    pipe, which would never be opened; or he would read it, or hold our locks.
    """
    check_folder(path)
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with suppress(FileNotFoundError):
            check_owner(path, os.lstat(path))  # before: to open a device may change something
        file = os.open(path, flags, 0o600)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path} can't be opened: {error.strerror}") from error
    try:
        check_owner(path, status := os.fstat(file))
        if status.st_mode & 0o044:
            raise StoreError(
                f"{path} may be read by others (mode {status.st_mode & 0o777:o}), who could lock "
                f"it, so that no worker starts: chmod 600 {path}"
            )
        os.set_blocking(file, True)
    except BaseException:
        os.close(file)
        raise
    return file


def check_owner(path: str, status: os.stat_result) -> None:
    """Refuse a file that others may have made or may write."""
    if not stat.S_ISREG(status.st_mode):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "not a file"
        raise StoreError(f"{path} is {kind}: name a file for the calls, or move this away")
    mode = status.st_mode & 0o777
    if mode & 0o022:
        raise StoreError(
            f"{path} may be written by others (mode {mode:o}), who could run code as you through "
            f"it: chmod 600 {path}, if you trust what it holds"
        )
    if not is_trusted(status):
        raise StoreError(
            f"{path} belongs to another user, who could run code as you through it: use a file "
            "of your own"
        )
    if status.st_nlink > 1:
        raise StoreError(
            f"{path} has another name, too (a hard link), by which it could be changed: copy it, "
            "and move the copy to its place"
        )


# -- Its folder ----------------------------------------------------------------------------


def check_folder(path: str) -> None:
    """Refuse a file in a folder into which others may write, as OpenSSH does with its keys.

    They could put a journal beside the file, which SQLite writes back into it when the file is
    opened next, whoever made it. Nor may they put another folder in its place: that holds
    for the folders above it, where a sticky bit is enough.
    """
    inner = folder = os.path.dirname(path)
    while True:
        try:
            status = os.lstat(folder)
        except OSError as error:
            raise no_place(path, error) from error
        if not stat.S_ISDIR(status.st_mode):
            kind = "a link of another user, or one made after the executor"
            if not stat.S_ISLNK(status.st_mode):
                kind = "not a folder"
            raise StoreError(f"{path} can't be used, {folder} is {kind}: name another file")
        if not is_trusted(status):
            raise StoreError(
                f"{folder} belongs to another user, who could run code as you through the files "
                f"in it: name a file in a folder of your own (mkdir -m 700 ~/calls) than {path}"
            )
        sticky = bool(status.st_mode & stat.S_ISVTX)
        if is_open(folder, status) and not (sticky and folder != inner):
            if sticky:
                todo = f"mkdir -m 700 {folder}/calls-of-mine, and name a file in there"
            elif status.st_uid == os.geteuid():
                todo = f"chmod go-w {folder}"
            else:
                todo = "name a file in a folder of your own (mkdir -m 700 ~/calls)"
            raise StoreError(
                f"{path} is of no use: others may write into {folder} (mode "
                f"{stat.S_IMODE(status.st_mode):o}) and so run code as you: {todo}"
            )
        parent = os.path.dirname(folder)
        if parent == folder:
            return
        folder = parent


def is_open(folder: str, status: os.stat_result) -> bool:
    """Return whether others may write into a folder."""
    if status.st_mode & 0o002:
        return True
    return bool(status.st_mode & 0o020) and (has_acl(folder) or not is_private(status.st_gid))


def has_acl(folder: str) -> bool:
    """Return whether there are users and groups named who may enter; their mask is the mode's."""
    if sys.platform != "linux":
        return False
    try:
        return bool(os.getxattr(folder, "system.posix_acl_access"))
    except OSError:  # there is none, or the file system has none
        return False


def is_private(group: int) -> bool:
    """Return whether a group has this user alone.

    Many distributions give each user such a group, and a umask of 002: all folders may be
    written by the group then. Root has neither, and containers run programs of any user in its
    group.
    """
    if os.geteuid() == 0:
        return False
    import grp  # POSIX alone has them, and most folders don't need them
    import pwd

    try:
        user, name = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    if user.pw_gid != group or name.gr_name != user.pw_name:
        return False
    also = {other.pw_name for other in pwd.getpwall() if other.pw_gid == group}
    return also.union(name.gr_mem) <= {user.pw_name}


def no_place(path: str, error: OSError) -> StoreError:
    """Return the error for a folder that is not there, or can't be written."""
    explained = StoreError(
        f"{path} can't be made: {error.strerror}; the folder {os.path.dirname(path)} must exist, "
        "and this user must be allowed to write there"
    )
    # A home that is not mounted, or whose ticket has expired, comes back.
    explained.passing = error.errno in (errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN)
    return explained
