"""Measure rivals and ourselves side by side: `python -m benchmarks`."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.processes import section

HERE = Path(__file__).parent
TITLES = {
    "simple_queue": "SimpleQueue and a worker (the floor: no future, no errors)",
    "queue_task_done": "queue.Queue, a worker, task_done",
    "thread_pool": "ThreadPoolExecutor(1)",
    "thread_per_call": "a thread per call",
    "index_background": "the index's background",
    "ours_submit": "ThreadExecutor().submit",
    "ours": "@background",
}
ALL = list(TITLES)
LASTING = [name for name in ALL if name != "thread_per_call"]  # its calls never wait in a queue
# measure: (title, contenders, calls, calls when quick, [(figure, rival, reach)])
MEASURES: dict[str, tuple[str, list[str], int, int, list[tuple[str, str, str]]]] = {
    "burst": (
        "A burst of 20,000 calls",
        ALL,
        20_000,
        2_000,
        [
            ("µs a call", "thread_pool", "at most 0.30"),
            ("µs a call", "queue_task_done", "at most 0.8"),
            ("calls/s", "thread_pool", "at least 3"),
        ],
    ),
    "paced": ("A call every 2 ms, the worker asleep", LASTING, 400, 50, []),
    "waiting": (
        "Bytes a waiting call takes",
        LASTING,
        20_000,
        2_000,
        [("bytes", "thread_pool", "at most 0.3")],
    ),
    "growth": (
        "Growth over a million finished calls",
        ["thread_pool", "ours"],
        1_000_000,
        20_000,
        [],
    ),
    "loop": (
        "A loop with plots that wait",
        ["nothing", "thread_pool", "thread_per_call", "ours"],
        600,
        40,
        [("seconds", "nothing", "at most 1.05")],
    ),
}


def run(python: str, name: str, measure: str, number: int, env: dict[str, str]) -> Any:
    """Run one contender in a process of its own and return its figures."""
    command = [python, str(HERE / "contender.py"), name, measure, str(number)]
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    if out.returncode:
        print(out.stderr[-2000:], file=sys.stderr)
        return None
    return json.loads(out.stdout)


def import_cost(env: dict[str, str], rounds: int) -> list[float]:
    """Return how many milliseconds `import background` takes beyond `import wrapt`."""
    code = "import time, {}; s = time.perf_counter(); import background; print({})".format(
        "wrapt", "(time.perf_counter() - s) * 1e3"
    )
    env = {key: value for key, value in env.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp()
    outs = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
        for _ in range(rounds + 1)
    ]
    return [float(out.stdout) for out in outs[1:]]  # the first one compiled


def snapshots(env: dict[str, str], rounds: int) -> list[str]:
    """Return the section on copies as Markdown."""
    command = [sys.executable, str(HERE / "snapshots.py"), str(rounds)]
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True)
    lines = ["", "### A copy of the arguments, in µs", ""]
    lines += ["| | snapshot | copy.deepcopy | array.copy | ratio |", "|---" * 5 + "|"]
    for case, ways in json.loads(out.stdout).items():
        ratio = statistics.median(ways["snapshot"]) / statistics.median(ways["copy.deepcopy"])
        cells = [
            show(ways[way]) if way in ways else ""
            for way in ("snapshot", "copy.deepcopy", "array.copy")
        ]
        lines.append(f"| {case} | {' | '.join(cells)} | {ratio:.2f} |")
    return [*lines, "", "The ratio is to copy.deepcopy (reach: at most 1)."]


def show(figures: list[float]) -> str:
    """Return the median and the spread."""
    digits = 0 if statistics.median(figures) >= 100 else 2
    middle = f"{statistics.median(figures):,.{digits}f}"
    return f"{middle} ({min(figures):,.{digits}f} to {max(figures):,.{digits}f})"


def main() -> None:
    """Measure, print the tables, write RESULTS.md and results.png."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it runs")
    parser.add_argument(
        "--only", choices=[*MEASURES, "snapshot", "process"], help="this measure alone"
    )
    parser.add_argument("--output", type=Path, default=HERE, help="the folder of the results")
    options = parser.parse_args()
    rounds = 1 if options.quick else 7

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        index = str(Path(folder, "bin", "python"))
        install = [index, "-m", "pip", "install", "--quiet", "background==0.2.1"]
        installed = subprocess.run(install, check=False).returncode == 0
        ours = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        theirs = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        results: dict[str, dict[str, dict[str, list[float]]]] = {}
        for measure, (_, contenders, number, quick, _) in MEASURES.items():
            if options.only not in (None, measure):
                continue
            table = results.setdefault(measure, {})
            for _ in range(rounds if measure != "growth" else 1):
                for name in contenders:  # in turn, so that noise hits all
                    if name == "index_background" and not installed:
                        continue
                    foreign = name == "index_background"
                    python, env = (index, theirs) if foreign else (sys.executable, ours)
                    count = quick if options.quick else number
                    if name == "thread_per_call" and measure == "burst":
                        count //= 10
                    for key, value in (run(python, name, measure, count, env) or {}).items():
                        table.setdefault(name, {}).setdefault(key, []).append(value)
        copies = snapshots(ours, rounds) if options.only in (None, "snapshot") else []
        if options.only in (None, "process"):
            copies += section(ours, rounds, options.quick)
        imports = import_cost(ours, 2 if options.quick else 20)

    text = report(results, copies, imports, rounds, installed)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "RESULTS.md"
    header = "# Measured\n\n`python -m benchmarks` writes this; one section for each CPython.\n"
    before = path.read_text("utf-8") if path.exists() else header
    mine = f"\n## CPython {platform.python_version()}"
    others = [
        section
        for section in before.split("\n## ")[1:]
        if not mine.endswith(section.split("\n")[0])
    ]
    sections = sorted([*others, text.removeprefix("## ")])
    path.write_text(header + "".join("\n## " + s.rstrip("\n") + "\n" for s in sections), "utf-8")
    if "burst" in results:
        chart(results["burst"], options.output / "results.png")


def report(
    results: Any, copies: list[str], imports: list[float], rounds: int, installed: bool
) -> str:
    """Return the tables as Markdown."""
    lines = [
        f"## CPython {platform.python_version()}",
        "",
        f"{platform.system()}, {os.cpu_count()} cores, medians of {rounds} rounds with the "
        "contenders in turn, each in a process of its own; in brackets the least and the most.",
    ]
    if not installed:
        lines += ["", "The index's background could not be installed and is left out."]
    for measure, table in results.items():
        title, _, _, _, reaches = MEASURES[measure]
        keys = list(next(iter(table.values())))
        lines += [
            "",
            f"### {title}",
            "",
            "| | " + " | ".join(keys) + " |",
            "|---" * (len(keys) + 1) + "|",
        ]
        for name, figures in table.items():
            cells = [show(figures[key]) for key in keys]
            lines.append(f"| {TITLES.get(name, 'no plots')} | " + " | ".join(cells) + " |")
        lines.append("")
        for key, rival, reach in reaches:
            if "ours" in table and rival in table:
                ratio = statistics.median(table["ours"][key]) / statistics.median(table[rival][key])
                what = TITLES.get(rival, "no plots")
                lines.append(f"- {key}, @background against {what}: {ratio:.2f} (reach: {reach})")
    lines += [*copies, "", f"Import beyond wrapt's: {show(imports)} ms (reach: at most 15)", ""]
    return "\n".join(lines)


def chart(table: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw what a call costs its caller."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    names = list(table)
    costs = [statistics.median(table[name]["µs a call"]) for name in names]
    colors = ["tab:orange" if name.startswith("ours") else "tab:gray" for name in names]
    bars = axes.barh([TITLES[name] for name in names], costs, color=colors)
    axes.bar_label(bars, [f" {cost:.1f}" for cost in costs])
    axes.set_xscale("log")
    axes.set_xlabel("µs that a call costs its caller in a burst (log scale)")
    axes.set_title(f"CPython {platform.python_version()}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
