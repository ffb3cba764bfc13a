"""The cluster that `DaskExecutor` starts where it is given none."""

from __future__ import annotations

import atexit
import importlib
import logging
from typing import Any

__all__ = ["Cluster"]


class Cluster:
    """A scheduler in a thread of the program, and worker processes that end without it."""

    def __init__(self) -> None:
        system: Any = importlib.import_module("dask.system")
        distributed: Any = importlib.import_module("distributed")
        subprocess: Any = importlib.import_module("distributed.deploy.subprocess")
        quiet = logging.CRITICAL  # what goes wrong with a call comes by its future
        options = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
        worker = {
            "cls": subprocess.SubprocessWorker,
            "options": {
                "worker_kwargs": {
                    "host": "127.0.0.1",
                    "nthreads": 1,
                    # Seconds without a scheduler, and for a worker to start: on a busy machine
                    # some take 10.
                    "death_timeout": 60,
                    "silence_logs": quiet,
                }
            },
        }
        self.cluster: Any = distributed.SpecCluster(
            workers=dict.fromkeys(range(system.CPU_COUNT), worker),
            worker=worker,
            scheduler={"cls": distributed.Scheduler, "options": {**options, "port": 0}},
            name="background",
            silence_logs=quiet,
        )
        self.client: Any = distributed.Client(self.cluster, set_as_default=False)
        # Later than Dask's own hook, so it runs before; all calls have been waited for.
        atexit.register(self.close)

    def close(self) -> None:
        """End the workers; what they still run is lost."""
        atexit.unregister(self.close)
        # Dask would log, with tracebacks, the connections of what it closes first.
        dask = logging.getLogger("distributed")
        before = dask.level
        dask.setLevel(logging.CRITICAL)
        try:
            self.client.close()
            self.cluster.close()
        finally:
            dask.setLevel(before)
