"""The picture that the demo draws: where the time of each training went."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Run", "Span", "draw_timelines"]

Span = tuple[float, float]  # from and to, in seconds of `perf_counter`


@dataclass
class Run:
    """One training: its moments, and what came of it."""

    name: str
    steps: int
    start: float = 0.0
    loop_end: float = 0.0
    flush_end: float = 0.0
    calls: list[Span] = field(default_factory=list[Span])  # when the loop was inside plot(…)
    plots: list[Span] = field(default_factory=list[Span])  # when a picture was made
    accuracy: float = 0.0

    @property
    def loop(self) -> float:
        """Seconds that the loop took."""
        return self.loop_end - self.start

    @property
    def flush(self) -> float:
        """Seconds that the flush took."""
        return self.flush_end - self.loop_end

    @property
    def stood(self) -> float:
        """Seconds that the loop stood still for its plots."""
        return sum(end - start for start, end in self.calls)


def draw_timelines(runs: list[Run], latency: float, path: Path) -> None:
    """Draw when steps ran, when plots ran and where the loop stood still, one run a panel."""
    blue, orange, red, grey = "#3b6ea8", "#e39b3b", "#c8352e", "#5c5c5c"
    # Figures of their own, never pyplot, which keeps one current figure for all threads.
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(12, 9.6), dpi=120, layout="constrained"
    )
    importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    bare = runs[0].loop
    end = max(run.flush_end - run.start for run in runs)
    heights = [1 if run.name == "no plots" else 2 for run in runs]
    panels = figure.subplots(len(runs), 1, sharex=True, gridspec_kw={"height_ratios": heights})
    for run, panel, lanes in zip(runs, panels, heights, strict=True):

        def bars(lane: int, spans: list[Span], color: str, start: float = run.start) -> None:
            # No thinner than a hair, so that each call of some microseconds is seen.
            widths = [(a - start, max(b - a, end / 2000)) for a, b in spans]
            panel.broken_barh(widths, (lanes - 1 - lane - 0.34, 0.68), color=color, linewidth=0)  # noqa: B023

        edges = [run.start, *(edge for call in run.calls for edge in call), run.loop_end]
        bars(0, list(zip(edges[::2], edges[1::2], strict=True)), blue)
        stood = [call for call in run.calls if call[1] - call[0] > end / 2000]
        bars(0, stood, red)
        if run.flush > end / 2000:
            bars(0, [(run.loop_end, run.flush_end)], red)
        if lanes == 2:
            bars(1, run.plots, orange)
        panel.axvline(bare, color=grey, linestyle=(0, (4, 3)), linewidth=1)
        panel.set_ylim(-0.6, lanes - 0.4)
        panel.set_yticks(range(lanes), ["plots", "steps"][-lanes:], fontsize=11)
        panel.tick_params(length=0)
        panel.spines[["top", "right", "left", "bottom"]].set_visible(False)
        panel.set_title(headline(run, bare), loc="left", fontsize=12)
    panels[-1].tick_params(axis="x", length=4)
    panels[-1].spines["bottom"].set_visible(True)
    panels[-1].set_xlim(0, end * 1.01)
    panels[-1].set_xlabel("seconds since the run began; dashed: the end of the loop without plots")
    patch = importlib.import_module("matplotlib.patches").Patch
    names = {blue: "steps run", red: "the loop stands still", orange: "a plot runs"}
    figure.legend(
        handles=[patch(color=color, label=label) for color, label in names.items()],
        loc="outside upper right",
        ncols=3,
        frameon=False,
        fontsize=11,
    )
    figure.suptitle(
        f"The same training; its plots wait {latency * 1000:g} ms for a service, or compute",
        x=0.01,
        ha="left",
        fontsize=13,
        fontweight="bold",
    )
    figure.savefig(path)


def headline(run: Run, bare: float) -> str:
    """Return what a panel of the timelines shows, in words."""
    text = f"{run.name}: the loop took {run.loop:.2f} s"
    if run.calls:
        stood = f"{run.stood:.2f} s" if run.stood > 0.1 else f"{run.stood * 1000:.1f} ms"
        text += f", {run.loop / bare:.2f} times that of no plots; {len(run.calls)} calls of plot "
        text += f"held it up for {stood}"
    if run.flush > 0.001:
        text += f"; flush(): {run.flush:.2f} s"
    return text
