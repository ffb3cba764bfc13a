"""What another user of the machine can do to durable calls and to Dask's own cluster: nothing.

He is a real one where the tests run as root.
"""

import grp
import http.client
import importlib.util
import os
import pwd
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil  # a dependency of distributed
import pytest
from conftest import Log

from background import DaskExecutor, SQLiteExecutor
from background._executors.sqlite import access
from background._executors.sqlite.access import StoreError, check_folder, open_beside, resolve

OTHER = 65534  # another user, and his group
two_users = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")


def as_other(command: str) -> bool:
    """Run a command of the shell as another user; return whether he was allowed to."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        user=OTHER,
        group=OTHER,
        extra_groups=[],
        cwd="/",
        timeout=60,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder that other users can get to, which pytest's own are not."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def trouble(file: Path) -> str:
    """Make a call; return why the file is refused, or nothing."""
    with SQLiteExecutor(file, start_worker=False) as executor:
        future = executor.submit(abs, -1)
        if future.cancel():
            return ""
        error = future.exception(60)
    assert isinstance(error, OSError)
    assert str(file.parent) in str(error)
    return str(error)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750, 0o1755])
def test_a_folder_of_this_user(folder: Path, mode: int) -> None:
    """S1: a folder into which nobody else may write is good, also one that all may read."""
    folder.chmod(mode)
    assert trouble(folder / "calls.db") == ""


@pytest.mark.parametrize(
    ("mode", "todo"),
    [
        (0o777, "chmod go-w {}"),
        (0o770, "chmod go-w {}"),
        (0o702, "chmod go-w {}"),
        (0o1777, "mkdir -m 700 {}/"),
        (0o1770, "mkdir -m 700 {}/"),
    ],
)
@two_users
def test_a_folder_that_others_may_write_into(folder: Path, mode: int, todo: str) -> None:
    """S1: it is refused, with the command that helps, and no file is made there."""
    os.chown(folder, -1, OTHER)
    folder.chmod(mode)
    error = trouble(folder / "calls.db")
    assert f"others may write into {folder} (mode {mode:o})" in error
    assert todo.format(folder) in error
    assert list(folder.iterdir()) == []
    # What it says to do helps.
    if mode & stat.S_ISVTX:
        folder /= "calls"
        folder.mkdir(mode=0o700)
    else:
        folder.chmod(mode & ~0o022)
    assert trouble(folder / "calls.db") == ""


@two_users
def test_a_journal_of_another_user(folder: Path) -> None:
    """S1: what another user has put beside the file is never rolled back into it."""
    file = folder / "calls.db"
    assert trouble(file) == ""
    os.chown(folder, -1, OTHER)
    folder.chmod(0o770)
    assert as_other(f"printf anything > {file}-journal")
    assert "others may write into" in trouble(file)
    folder.chmod(0o700)  # now nobody may, but what he made is still there
    assert f"{file}-journal belongs to another user" in trouble(file)
    assert Path(f"{file}-journal").read_text() == "anything"


@two_users
def test_a_folder_of_another_user(folder: Path) -> None:
    """S1: a folder that another user owns, or one inside it, is refused."""
    os.chown(folder, OTHER, OTHER)
    assert f"{folder} belongs to another user" in trouble(folder / "calls.db")
    inner = folder / "inner"
    inner.mkdir(mode=0o700)
    with pytest.raises(StoreError, match=f"{folder} belongs to another user"):
        check_folder(str(inner / "calls.db"))


def test_a_folder_above_that_others_may_write_into(folder: Path) -> None:
    """S1: where another user could put another folder in the place of this one, refuse."""
    inner = folder / "inner"
    inner.mkdir(mode=0o700)
    folder.chmod(0o777)
    with pytest.raises(StoreError, match=f"others may write into {folder} .*: chmod go-w {folder}"):
        check_folder(str(inner / "calls.db"))
    folder.chmod(0o1777)
    assert trouble(inner / "calls.db") == ""


MEMBERS = {
    "of one's own": ("me", [], [], True),
    "of one's own, named": ("me", ["me"], [], True),
    "with a member": ("me", ["you"], [], False),
    "of somebody else, too": ("me", [], ["you"], False),
    "of many": ("staff", [], [], False),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_a_group_of_ones_own(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S1: a folder may be written by a group that has this user alone, as with umask 002."""
    name, members, also, good = MEMBERS[case]
    gid = folder.stat().st_gid
    me = SimpleNamespace(pw_name="me", pw_uid=os.geteuid() or 1000, pw_gid=gid)
    users = [me, *(SimpleNamespace(pw_name=other, pw_uid=1, pw_gid=gid) for other in also)]
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: me)
    monkeypatch.setattr(pwd, "getpwall", lambda: users)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name=name, gr_mem=members))
    folder.chmod(0o775)
    if os.geteuid() == 0:
        assert "others may write into" in trouble(folder / "calls.db")  # whatever the group
        os.chown(folder, 1000, -1)
        monkeypatch.setattr(os, "geteuid", lambda: 1000)

    refusal = pytest.raises(StoreError, match=rf"others may write into {folder} \(mode 775\)")
    with nullcontext() if good else refusal:
        check_folder(f"{folder}/calls.db")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # a container may have no such user
    with refusal:
        check_folder(f"{folder}/calls.db")


def test_a_list_of_users_who_may_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S1: a folder is refused if an access control list lets others write into it."""
    monkeypatch.setattr(access, "is_private", lambda group: True)
    folder.chmod(0o770)
    assert trouble(folder / "calls.db") == ""
    nobody = 0xFFFFFFFF
    entries = [(1, 7, nobody), (2, 7, OTHER), (4, 0, nobody), (0x10, 7, nobody), (0x20, 0, nobody)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(folder, "system.posix_acl_access", acl)
    except (AttributeError, OSError):
        pytest.skip("this file system has no access control lists")
    (folder / "calls.db").unlink()
    assert "others may write into" in trouble(folder / "calls.db")
    folder.chmod(0o750)  # takes it from all who are named
    assert trouble(folder / "calls.db") == ""


# -- Files that are there already ----------------------------------------------------------


def link(path: str) -> None:
    Path(f"{path}.target").write_text("mine")
    os.symlink(f"{path}.target", path)


def hard_link(path: str) -> None:
    Path(f"{path}.target").touch(0o600)
    os.link(f"{path}.target", path)


def of_another(path: str) -> None:
    Path(path).touch(0o600)
    if os.geteuid():
        pytest.skip("only root can make files of other users")
    os.chown(path, OTHER, OTHER)


def readable(path: str) -> None:
    Path(path).touch(0o644)


PLANTED: dict[str, tuple[Callable[[str], None], str]] = {
    "link": (link, "is a link"),
    "pipe": (lambda path: os.mkfifo(path, 0o600), "is not a file"),
    "folder": (lambda path: os.mkdir(path, 0o700), "is not a file"),
    "hard link": (hard_link, "a hard link"),
    "another's": (of_another, "belongs to another user"),
    "readable": (readable, "who could lock it"),
}


CASES = [
    (suffix, planted)
    for suffix in ("", "-wal", "-shm", "-journal", "-lock", ".log")
    for planted in PLANTED
    if (suffix, planted) != ("", "link")  # one's own is followed
    and (planted != "readable" or suffix in ("-lock", ".log"))
]


@pytest.mark.parametrize(("suffix", "planted"), CASES)
def test_what_was_put_there(folder: Path, suffix: str, planted: str) -> None:
    """S1: neither the file nor one beside it is opened if others may have made it."""
    file = folder / "calls.db"
    make, reason = PLANTED[planted]
    make(f"{file}{suffix}")
    if planted != "readable":  # calls are kept then, but no worker starts
        error = trouble(file)
        assert f"{file}{suffix}" in error
        assert reason in error
    with suppress(FileNotFoundError):
        assert Path(f"{file}{suffix}.target").read_text() in ("", "mine")
    if suffix in ("-lock", ".log"):  # also on their own: a tmp cleaner may have been there
        with pytest.raises(StoreError, match=reason):
            open_beside(f"{file}{suffix}", os.O_RDWR)


def test_links_of_this_user(folder: Path) -> None:
    """S1: one's own links are followed, to a file and to a folder, and `..` after them."""
    (folder / "real" / "deep").mkdir(parents=True)
    (folder / "link").symlink_to("real/deep")
    (folder / "calls.db").symlink_to(folder / "link" / ".." / "there.db")
    (folder / "circle").symlink_to("circle")
    assert resolve(f"{folder}/calls.db") == f"{folder.resolve()}/real/there.db"
    for name in ("calls.db", "link/x", "link/../x", "./real//deep/.", "nowhere/x"):
        assert resolve(f"{folder}/{name}") == os.path.realpath(f"{folder}/{name}")
    with SQLiteExecutor(folder / "calls.db", start_worker=False) as executor:
        assert executor.submit(abs, -1).cancel()
    assert (folder / "real" / "there.db").exists()
    assert "is a link" in str(SQLiteExecutor(folder / "circle").submit(abs, -1).exception(60))


def test_a_working_directory_that_is_gone(folder: Path) -> None:
    """S1: a path that doesn't need the working directory doesn't fail without it."""
    script = """
    import os, sys
    from background import SQLiteExecutor
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
    print(SQLiteExecutor(sys.argv[1] + "/calls.db", start_worker=False).submit(abs, -1).cancel())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=True)
    assert done.stdout == b"True\n"


def test_a_log_that_others_may_read(folder: Path, log: Log) -> None:
    """S1: a file that others could lock is told; the calls wait for the worker."""
    readable(f"{folder}/calls.db.log")
    with SQLiteExecutor(folder / "calls.db") as executor:
        future = executor.submit(abs, -1)
        assert "may be read by others (mode 644), who could lock it" in log.errors[0]
        assert future.cancel()


@two_users
def test_links_of_another_user(folder: Path) -> None:
    """S1: a link that another user made is not followed, to the file nor to its folder."""
    mine = folder / "mine"
    mine.mkdir(mode=0o700)
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    assert as_other(f"ln -s {mine} {shared}/folder && ln -s {mine}/new {shared}/calls.db")
    assert f"{shared}/folder is a link" in trouble(shared / "folder" / "calls.db")
    assert trouble(shared / "calls.db")
    assert list(mine.iterdir()) == []


# -- Dask ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_dask() -> Iterator[DaskExecutor]:
    """Start the cluster of `DaskExecutor()`."""
    pytest.importorskip("distributed")
    with DaskExecutor() as executor:
        assert executor.submit(abs, -1).result(120) == 1
        yield executor


def stranger(certificate: bool) -> ssl.SSLContext:
    """Return how somebody else connects, who doesn't care with whom he speaks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if certificate:
        from distributed import Security

        context = Security.temporary().get_connection_args("client")["ssl_context"]
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def answers(address: str, context: ssl.SSLContext | None) -> bool:
    """Connect; return whether one of Dask's processes speaks to us, which it does first."""
    host, port = address.removeprefix("tls://").split(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        try:
            if context is None:
                connection.sendall(b"let me in")
                return connection.recv(1) != b""
            with context.wrap_socket(connection) as wrapped:
                return wrapped.recv(1) != b""
        except (ssl.SSLError, ConnectionError):
            return False


def test_dask_speaks_to_its_own(on_dask: DaskExecutor) -> None:
    """S2: scheduler, workers and their supervisors shut out who has not the cluster's key."""
    cluster = on_dask._cluster
    assert cluster is not None
    workers = cluster.cluster.scheduler.workers.values()
    addresses = [cluster.cluster.scheduler.address]
    addresses += [address for worker in workers for address in (worker.address, worker.nanny)]
    assert len(addresses) >= 3
    ours = cluster.cluster.security.get_connection_args("client")["ssl_context"]
    for address in addresses:
        assert address.startswith("tls://127.0.0.1:")
        assert answers(address, ours)
        for context in (None, stranger(certificate=False), stranger(certificate=True)):
            assert not answers(address, context)


def test_dask_has_no_pages(on_dask: DaskExecutor) -> None:
    """S2: scheduler and workers tell nothing about the calls to a browser."""
    assert on_dask._cluster is not None
    scheduler = on_dask._cluster.cluster.scheduler
    ports = [scheduler.http_server.port]
    ports += [worker.services["dashboard"] for worker in scheduler.workers.values()]
    for port in ports:
        for page in ("/info/main/workers.html", "/json/identity.json", "/metrics", "/health", "/"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", page)
            assert connection.getresponse().status == 404
            connection.close()


def test_the_key_of_dask(on_dask: DaskExecutor) -> None:
    """S2: nobody else can read the cluster's key, or replace what its workers put aside."""
    assert on_dask._cluster is not None
    folder = Path(on_dask._cluster.folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in folder.glob("*.pem"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = (folder / "worker_key.pem").read_text().splitlines()[1]
    for worker in on_dask._cluster.cluster.scheduler.workers.values():
        assert worker.local_directory.startswith(f"{folder}/")
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            assert key not in " ".join([*process.cmdline(), *process.environ().values()])
    if os.geteuid() == 0:
        assert as_other("ls /")
        assert not as_other(f"ls {folder}")
        assert not as_other(f"cat {folder}/worker_key.pem")


def test_dask_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    """S2: without what keeps others out no cluster is started, and the call says so."""
    pytest.importorskip("distributed")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "cryptography" else find(name)
    )
    with DaskExecutor() as executor:
        error = executor.submit(abs, -1).exception(60)
        assert isinstance(error, ModuleNotFoundError)
        assert "pip install 'background-futures[dask]'" in str(error)
        assert executor._cluster is None


def test_the_folder_of_dask_goes() -> None:
    """S2: the key is deleted with the cluster; a child of a fork deletes nothing."""
    pytest.importorskip("distributed")
    script = """
    import os, sys
    from background import DaskExecutor
    executor = DaskExecutor()
    executor.submit(abs, -1).result(120)
    folder = executor._cluster.folder
    pid = os.fork()
    if not pid:
        executor._cluster.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.path.exists(folder + "/worker_key.pem")
    assert executor.submit(abs, -1).result(120) == 1
    print(folder)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.startswith(tempfile.gettempdir())
    assert not os.path.exists(done.stdout.strip())
