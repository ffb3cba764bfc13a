"""What a person sees of a wait: a bar, or a line every ten seconds (W2)."""

from __future__ import annotations

import importlib
import math
import sys
from contextlib import suppress
from time import monotonic
from typing import Any

from background._core.ledger import Drain
from background._core.naming import describe

__all__ = ["Progress"]

DELAY = 1.0  # seconds after which a wait is shown
REFRESH = 0.2  # seconds between two looks of the bar; nothing is looked at without a bar
PAUSE = 10.0  # seconds between two lines where there is no tqdm


def is_watched() -> bool:
    """Tell whether a person sees what is shown: in a terminal, or in a notebook."""
    with suppress(Exception):  # no standard error, a closed one, an odd one
        if sys.stderr.isatty():
            return True
    ipython = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel")


class Progress:
    """Shows how far a wait has come, whenever `due` (on the clock `monotonic`) has passed."""

    def __init__(self, drain: Drain, who: str, wanted: bool | None) -> None:
        self.drain = drain
        self.who = who
        self.bar: Any = None
        self.due = math.inf
        if is_watched() if wanted is None else wanted:
            self.due = drain.before + DELAY
            self.start = monotonic()
            self.left = self.total = len(self.drain.left())

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()
        self.due = math.inf

    def show(self) -> None:
        """Show the wait if that is due."""
        if monotonic() < self.due:
            return
        try:
            left = len(self.drain.left())
            self.total += max(left - self.left, 0)  # calls that calls have made meanwhile
            self.left = left
            self.draw()
        except Exception:  # the terminal is gone, say: the wait is not about that
            self.due = math.inf

    def draw(self) -> None:
        if self.bar is None:
            try:
                tqdm: Any = importlib.import_module("tqdm.auto").tqdm
            except ImportError:
                self.bar = False
                self.due = self.drain.before + PAUSE
                return
            # Without the monitor: no thread of its own, which at exit could not start.
            kind = type("Bar", (tqdm,), {"monitor_interval": 0})
            self.bar = kind(
                desc=self.who, total=self.total, unit=" calls", leave=False, dynamic_ncols=True
            )
            self.bar.start_t -= monotonic() - self.start  # for its rate: the wait began earlier
        runs = next((call for call in self.drain.calls() if call._owner or call.running()), None)
        now = describe(runs) if runs is not None else ""
        done = self.total - self.left
        if self.bar is False:
            rate = done / max(monotonic() - self.start, 1e-3)
            line = f"{self.who}: {done} of {self.total} calls are done, {rate:.1f} a second"
            print(f"{line}; now {now}" if now else line, file=sys.stderr, flush=True)
            self.due = monotonic() + PAUSE
        else:
            self.bar.total = self.total
            self.bar.set_postfix_str(now, refresh=False)
            self.bar.n = done
            self.bar.refresh()
            self.due = monotonic() + REFRESH

    def hide(self) -> None:
        """Leave the terminal as it was."""
        if self.bar:
            with suppress(Exception):
                self.bar.close()
            self.bar = None
