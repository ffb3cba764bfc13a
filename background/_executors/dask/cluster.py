"""The cluster that `DaskExecutor` starts where it is given none."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from typing import Any

from background._platform import interpreter

__all__ = ["Cluster"]

HOST = "127.0.0.1"
# Pages about the calls, which all users of the machine could read, without bokeh, too.
NO_PAGES: dict[str, list[str]] = {
    f"distributed.{role}.http.routes": [] for role in ("scheduler", "worker")
}


class Cluster:
    """A scheduler in a thread of the program, and worker processes that end without it.

    Whoever can connect to one of them can run code in it, and so could all users of the
    machine. So they speak TLS by a key that is made for this cluster, and that each side must
    have. It is in a folder that this user alone can enter: command lines and ports are for all
    to see.
    """

    def __init__(self) -> None:
        interpreter()  # raises in a frozen program, of which Dask would start copies
        if importlib.util.find_spec("cryptography") is None:
            raise ModuleNotFoundError(
                "DaskExecutor() starts no cluster without cryptography, because every user of "
                "this machine could run code in it: pip install 'background-futures[dask]'",
                name="cryptography",
            )
        distributed: Any = importlib.import_module("distributed")
        # Dask's own folder for what workers put aside has a name that all know, and modules are
        # imported from there.
        self.folder = tempfile.mkdtemp(prefix="background-")
        self.process = os.getpid()
        try:
            self.start(distributed.Security.temporary())
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        # Later than Dask's own hook, so it runs before; all calls have been waited for.
        atexit.register(self.close)

    def start(self, security: Any) -> None:
        """Start scheduler, workers and client."""
        config: Any = importlib.import_module("dask.config")
        system: Any = importlib.import_module("dask.system")
        distributed: Any = importlib.import_module("distributed")
        subprocess: Any = importlib.import_module("distributed.deploy.subprocess")
        quiet = logging.CRITICAL  # what goes wrong with a call comes by its future
        options = {"host": HOST, "local_directory": self.folder}
        worker: dict[str, Any] = {
            "cls": subprocess.SubprocessWorker,
            "options": {
                "worker_kwargs": {
                    **options,
                    "security": self.write(security),
                    "config": NO_PAGES,
                    "preload": [self.write_path()],
                    "nthreads": 1,
                    # Seconds without a scheduler, and for a worker to start: on a busy machine
                    # some take 10.
                    "death_timeout": 60,
                    "silence_logs": quiet,
                }
            },
        }
        scheduler = {
            **options,
            "port": 0,
            "protocol": "tls://",
            "security": security,
            "dashboard": False,
            "dashboard_address": f"{HOST}:0",
        }
        with config.set(NO_PAGES):
            self.cluster: Any = distributed.SpecCluster(
                workers=dict.fromkeys(range(system.CPU_COUNT), worker),
                worker=worker,
                scheduler={"cls": distributed.Scheduler, "options": scheduler},
                security=security,
                name="background",
                silence_logs=quiet,
            )
        self.client: Any = distributed.Client(self.cluster, set_as_default=False)

    def write(self, security: Any) -> dict[str, Any]:
        """Write the key into the folder; return how a worker finds it, without it."""
        names: dict[str, Any] = {"require_encryption": True}
        for kind in ("ca_file", "worker_cert", "worker_key", "client_cert", "client_key"):
            names[f"tls_{kind}"] = path = os.path.join(self.folder, f"{kind}.pem")
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(file, "w", encoding="ascii") as stream:
                stream.write(getattr(security, f"tls_{kind}"))
        return names

    def write_path(self) -> str:
        """Write a module that has a worker import from where the program does, after its own."""
        places = [os.path.abspath(place) for place in map(str, sys.path)]
        name = os.path.join(self.folder, "background_path.py")
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(f"import sys\nsys.path += [p for p in {places!a} if p not in sys.path]\n")
        return name

    def close(self) -> None:
        """End the workers; what they still run is lost."""
        atexit.unregister(self.close)
        if os.getpid() != self.process:
            return  # the child of a fork: the cluster is its parent's
        # Dask would log, with tracebacks, the connections of what it closes first.
        dask = logging.getLogger("distributed")
        before = dask.level
        dask.setLevel(logging.CRITICAL)
        try:
            self.client.close()
            self.cluster.close()
        finally:
            dask.setLevel(before)
            shutil.rmtree(self.folder, ignore_errors=True)
