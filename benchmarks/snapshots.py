"""Measure `snapshot` beside `copy.deepcopy`, and arrays beside their own `copy`.

Run as `python snapshots.py NAME snapshots NUMBER`, where the number is that of the milliseconds
to spend on each case; see `measuring`.
"""

import copy
import random
import time
from collections.abc import Callable
from typing import Any

from measuring import Figures, main


def cases() -> dict[str, Any]:
    """Return what a training passes to its plots."""
    import numpy as np

    random.seed(1)
    names = ("loss", "accuracy", "rate", "norm")
    return {
        "array, 10 KB": np.ones(1_250),
        "array, 1 MB": np.ones(125_000),
        "array, 50 MB": np.ones(6_250_000),
        "four lists of 2,500 floats in a dict": {
            name: [random.random() for _ in range(2_500)] for name in names
        },
        "10,000 dicts in a list": [{"step": i, "loss": random.random()} for i in range(10_000)],
        "100 arrays of 1 KB in a dict": {str(i): np.ones(125) for i in range(100)},
    }


def way(name: str) -> Callable[[Any], object]:
    """Return a way to copy."""
    if name == "snapshot":
        from background import snapshot

        return snapshot
    return copy.deepcopy if name == "deepcopy" else copy_array


def copy_array(value: Any) -> object:
    return value.copy()


def cost(function: Callable[[Any], object], value: Any, times: int) -> float:
    """Return the microseconds of one call."""
    start = time.perf_counter()
    for _ in range(times):
        function(value)
    return (time.perf_counter() - start) / times * 1e6


def snapshots(function: Callable[[Any], object], milliseconds: int) -> Figures:
    """Return the microseconds of a copy of each case."""
    figures: Figures = {}
    for case, value in cases().items():
        if function is copy_array and not case.startswith("array"):
            figures[case] = ""
            continue
        times = max(1, int(milliseconds * 1e3 / cost(function, value, 3)))
        figures[case] = cost(function, value, times)
    return figures


if __name__ == "__main__":
    main(way, snapshots)
