"""Draw the charts of the results."""

import platform
from pathlib import Path
from typing import Any

from benchmarks.measures import MEASURES
from benchmarks.running import Measure, Table, columns, median

LOOPS = ["loop", "computing", "figures", "pages", "events"]
GROWTH = {
    "growing_waiting": "calls that wait",
    "growing_callers": "threads that call",
    "growing_workers": "workers (dashed: until all are done)",
}
COLORS = {"ours": "tab:orange", "ours_uncollected": "tab:red", "thread_pool": "tab:blue"}


def draw(tables: dict[str, Table], folder: Path) -> None:
    """Draw what a call costs, what plots cost a loop, and how the cost grows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    bars(axes, MEASURES["burst"], tables["burst"], 1)
    axes.set(xscale="log", xlabel="µs that a call costs its caller in a burst (log scale)")
    save(figure, folder / "calls.png")

    figure = Figure(figsize=(8, 14), layout="constrained")
    heights = [len(tables[key]) for key in LOOPS]
    for axes, key in zip(figure.subplots(len(LOOPS), height_ratios=heights), LOOPS, strict=True):
        bare = median(tables[key], "nothing", columns(tables[key])[0])
        bars(axes, MEASURES[key], tables[key], bare or 1)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlabel(f"{MEASURES[key].title}; its time without plots is 1", loc="right")
    save(figure, folder / "loops.png")

    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, len(GROWTH)), GROWTH.items(), strict=True):
        curves(axes, MEASURES[key], tables[key], "-")
        if key == "growing_workers":
            curves(axes, MEASURES[key], tables["growing_drained"], "--")
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="µs a call")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save(figure, folder / "growth.png")


def bars(axes: Any, measure: Measure, table: Table, unit: float) -> None:
    """Draw the first figure of each contender, in units."""
    key = columns(table)[0]
    found = {name: cost for name in table if (cost := median(table, name, key)) is not None}
    names = [measure.contenders[name] for name in found]
    colors = ["tab:orange" if name.startswith("ours") else "tab:gray" for name in found]
    drawn = axes.barh(names, [cost / unit for cost in found.values()], color=colors)
    axes.bar_label(drawn, fmt=" %.3g")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def curves(axes: Any, measure: Measure, table: Table, style: str) -> None:
    """Draw the figure of each contender over the size."""
    sizes = columns(table)
    xs = [int(size.replace(",", "")) for size in sizes]
    for name in table:
        costs = [median(table, name, size) for size in sizes]
        color = COLORS.get(name, "tab:gray")
        axes.plot(xs, costs, style, marker=".", color=color, label=measure.contenders[name])
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    figure.suptitle(f"CPython {platform.python_version()}")
    figure.savefig(path, dpi=120)
