"""What the scripts share that measure one contender in a process of its own.

`python SCRIPT NAME MEASURE NUMBER` prints figures as JSON, by the name of the column. Nothing
of this repository is imported before the contender is, so that the index's package of our
import name can run in an environment of its own.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]
Figures = dict[str, float | str]


class Unable(Exception):
    """A contender has nothing that could be measured; says why, in a few words."""


def nothing(a: Any, b: Any) -> None:
    """Stand for a call that costs nothing."""


class Gate:
    """Holds up the worker that runs `hold`; needs no object that a contender may pickle."""

    def __init__(self, wrap: Callable[[Call], Call]) -> None:
        self.ends = os.pipe()
        wrap(os.read)(self.ends[0], 1)

    def open(self) -> None:
        os.write(self.ends[1], b"!")

    def close(self) -> None:
        for end in self.ends:
            os.close(end)


def main(contender: Callable[[str], Any], *measures: Callable[[Any, int], Figures]) -> None:
    """Measure once and print the figures, or why there are none."""
    name, chosen, number = sys.argv[1:]
    measure = {measure.__name__: measure for measure in measures}[chosen]
    try:
        figures: Figures | str = measure(contender(name), int(number))
    except Unable as reason:
        figures = str(reason)
    except ModuleNotFoundError as missing:
        figures = f"{missing.name} is not installed"
    print(json.dumps(figures), flush=True)
