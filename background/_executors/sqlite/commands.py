"""The commands about a file of durable calls: `worker`, `status`, `retry`, `purge`."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import asdict

from background._executors.sqlite.access import StoreError, resolve
from background._executors.sqlite.locks import Life
from background._executors.sqlite.store import Store, StoredCall
from background._executors.sqlite.supervisor import supervise

__all__ = ["purge", "retry", "status", "worker"]

SHOWN = 10  # waiting calls in the table
ORDER = ["running", "waiting", "failed", "dead", "cancelled", "succeeded"]


def worker(path: str, workers: int, *, drain: bool, synchronous: str, create: bool) -> int:
    """Run calls in the foreground; return an exit code."""
    if not create:
        must_exist(path)
    return supervise(resolve(path), workers, 0.0 if drain else None, synchronous)


def status(path: str, *, as_json: bool) -> int:
    """Print how the calls of a file stand."""
    store = open_store(path)
    calls = store.calls()
    alive = store.workers(Life(store.path))
    if as_json:
        whole = {
            "path": store.path,
            "workers": [asdict(worker) for worker in alive],
            "calls": [asdict(call) for call in calls],
        }
        print(json.dumps(whole, indent=2))
        return 0
    counts = Counter(call.state for call in calls)
    said = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
    pids = {worker.pid for worker in alive}
    print(f"{path}: {said or 'no calls'}")
    now = time.time()
    for one in alive:
        print(f"worker {one.pid}, alive for {ago(one.since, now)}")
    if not alive:
        print("no worker is alive")
    rows = [("id", "state", "call", "")]
    for state in ORDER[:4]:
        those = [call for call in calls if call.state == state]
        shown = those[:SHOWN] if state == "waiting" else those
        rows += [(str(call.id), state, call.call, about(call, now, pids)) for call in shown]
        if len(those) > len(shown):
            rows.append(("…", state, f"and {len(those) - len(shown)} more", ""))
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print()
        for key, state, call, text in rows:
            line = f"{key:>{widths[0]}}  {state:{widths[1]}}  {call:{widths[2]}}  {text}"
            print(line.rstrip())
    return 0


def about(call: StoredCall, now: float, pids: set[int]) -> str:
    """Return what there is to say of a call."""
    if call.state == "running":
        since = ago(call.started or now, now)
        if call.pid not in pids:
            return f"its worker was killed; began {since} ago"
        return f"for {since}, in worker {call.pid}"
    if call.state == "waiting":
        again = f", {call.attempts} of 3 attempts made" if call.attempts else ""
        return f"for {ago(call.made, now)}{again}"
    return f"{ago(call.ended or now, now)} ago: {(call.error or '').splitlines()[0]}"


def ago(then: float, now: float) -> str:
    """Return a time span for people."""
    seconds = max(now - then, 0)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def retry(path: str, ids: list[int] | None) -> int:
    """Let failed calls wait again."""
    store = open_store(path)
    count = store.retry(ids)
    print(f"{count} call{'s wait' if count != 1 else ' waits'} again")
    if count and not store.workers(Life(store.path)):
        print(f"no worker is alive: python -m background worker {path}")
    return 0 if count or ids is None else 1


def purge(path: str, ids: list[int] | None) -> int:
    """Delete what is kept of calls that are done."""
    count = open_store(path).purge(ids)
    print(f"{count} call{'s' * (count != 1)} deleted")
    return 0 if count or ids is None else 1


def open_store(path: str) -> Store:
    """Return the file; these commands make none."""
    must_exist(path)
    return Store(resolve(path), "NORMAL", 64_000)


def must_exist(path: str) -> None:
    if not os.path.exists(path):
        raise StoreError(f"there is no file {path}")
