"""Measure `snapshot` beside `copy.deepcopy`, and arrays beside their own `copy`.

Run as `python snapshots.py ROUNDS`; prints the figures as JSON, in microseconds a copy.
"""

import copy
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any


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


def cost(function: Callable[[Any], object], value: Any, times: int) -> float:
    """Return the microseconds of one call."""
    start = time.perf_counter()
    for _ in range(times):
        function(value)
    return (time.perf_counter() - start) / times * 1e6


def main() -> None:
    """Measure all in turn, so that noise hits all."""
    from background import snapshot

    rounds = int(sys.argv[1])
    figures: dict[str, dict[str, list[float]]] = {}
    for case, value in cases().items():
        ways: dict[str, Callable[[Any], object]] = {
            "snapshot": snapshot,
            "copy.deepcopy": copy.deepcopy,
        }
        if case.startswith("array"):
            ways["array.copy"] = lambda array: array.copy()
        times = max(1, int(20_000 / cost(copy.deepcopy, value, 3)))  # some 20 ms
        for _ in range(rounds):
            for way, function in ways.items():
                row = figures.setdefault(case, {}).setdefault(way, [])
                row.append(cost(function, value, times))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
