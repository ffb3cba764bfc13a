"""Try every way, feature by feature, and write the table: `python -m benchmarks.comparison`."""

import argparse
import importlib.util
import inspect
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import durable
import features
import ways

HERE = Path(__file__).parent
ROOT = str(HERE.parent.parent)
OUTPUT = HERE.parent / "COMPARISON.md"
GROUPS: dict[str, dict[str, Any]] = {
    "Threads": ways.THREADS,
    "Processes": ways.PROCESSES,
    "Queues on disk": ways.DURABLE,
}
WAYS = {name: way for group in GROUPS.values() for name, way in group.items()}
Cells = dict[tuple[str, str], str]  # by feature and way


def titles(group: str) -> dict[str, str]:
    """Return the features of a group of ways, and what they are called in the table."""
    if group == "Queues on disk":
        return {name: title for name, (title, _) in durable.FEATURES.items()}
    return {
        name: feature.title
        for name, feature in features.FEATURES.items()
        if set(feature.ways) & set(GROUPS[group])
    }


def try_out(feature: str, way: str, index: str | None = None) -> str:
    """Return the word for one cell: try it, in programs of its own."""
    if way == "index" and not index:
        return "— not installed"
    if WAYS[way].module and way != "index" and not importlib.util.find_spec(WAYS[way].module):
        return "— not installed"
    try:
        if way in ways.DURABLE:
            return durable.outcome(feature, way, ROOT)
        python = index if way == "index" and index else sys.executable
        path = ROOT if way.startswith("ours") else None
        return features.FEATURES[feature].outcome(feature, python, way, path)
    except Exception as error:
        raise RuntimeError(f"{feature} could not be tried on {way}") from error


def try_all(names: list[str], only: list[str], index: str | None = None) -> Cells:
    """Try four at a time: most of them wait."""
    cells = [
        (feature, way)
        for group in GROUPS
        for feature in titles(group)
        for way in GROUPS[group]
        if way in names
        and (not only or feature in only)
        and (group == "Queues on disk" or way in features.FEATURES[feature].ways)
    ]
    with ThreadPoolExecutor(4) as pool:
        words = pool.map(lambda cell: try_out(*cell, index), cells)
        return dict(zip(cells, words, strict=True))


def tables(cells: Cells) -> str:
    """Return the tables as Markdown, with what was tried."""
    lines: list[str] = []
    for group in GROUPS:
        names = [way for way in GROUPS[group] if any(way == tried for _, tried in cells)]
        if not names:
            continue
        lines += ["", f"## {group}", ""]
        lines.append("| | " + " | ".join(WAYS[way].title for way in names) + " |")
        lines.append("|---" * (len(names) + 1) + "|")
        for feature, title in titles(group).items():
            row = [cells.get((feature, way), "") for way in names]
            if any(row):
                lines.append(f"| {title} | " + " | ".join(row) + " |")
        lines += ["", "How each was used:", ""]
        for way in names:
            used = " ".join((inspect.getdoc(WAYS[way]) or "").split())
            lines.append(f"- {WAYS[way].title}: {used}")
    return "\n".join(lines) + "\n"


def installed() -> str:
    """Return the versions of the rivals that were tried."""
    names = sorted({way.module for way in WAYS.values() if way.module} - {"background"})
    found = [name for name in names if importlib.util.find_spec(name)]
    distributions = {"more_executors": "more-executors", "persistqueue": "persist-queue"}
    return ", ".join(
        f"{distributions.get(name, name)} {version(distributions.get(name, name))}"
        for name in found
    )


def main() -> None:
    """Try, print the tables, and write COMPARISON.md if everything was tried."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparison", description=__doc__)
    names = sorted({name for group in GROUPS for name in titles(group)})
    parser.add_argument("--only", nargs="+", choices=names, default=[], help="these features alone")
    parser.add_argument("--ways", default=",".join(WAYS), help="these ways alone, with commas")
    options = parser.parse_args()
    chosen = options.ways.split(",")
    if unknown := set(chosen) - set(WAYS):
        parser.error(f"no such way: {', '.join(unknown)}; there are {', '.join(WAYS)}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        index = None
        if "index" in chosen:  # whose import name is ours
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            index = str(Path(folder, "bin", "python"))
            install = [index, "-m", "pip", "install", "--quiet", "background==0.2.1"]
            if subprocess.run(install, check=False).returncode:
                index = None
        cells = try_all(chosen, options.only, index)
    text = tables(cells)
    print(text, f"\nTried in {time.monotonic() - start:.0f} s.", sep="")
    if not options.only and set(chosen) == set(WAYS):
        OUTPUT.write_text(
            "# Compared, feature by feature\n\n"
            "`python -m benchmarks.comparison` writes this. Each cell is what came of a program "
            "of its own that really did this in that way; what has not happened after seconds "
            "in which nothing else is to do counts as hanging. Tried with CPython "
            f"{platform.python_version()} on {platform.system()}; {installed()}.\n" + text,
            "utf-8",
        )


if __name__ == "__main__":
    main()
