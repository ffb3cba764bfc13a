"""Measure rivals and ourselves side by side: `python -m benchmarks`."""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path

from benchmarks import charts
from benchmarks.measures import INDEX, MEASURES
from benchmarks.running import Outcome, Table, lay_out, run

HERE = Path(__file__).parent

RIVALS = [
    *("deco", "distributed", "huey", "joblib", "litequeue", "loky", "more-executors", "pebble"),
    *("persist-queue", "unsync"),
]

installing = threading.Lock()  # held while the environment of the index's package is made


def main() -> None:
    """Measure, print the tables, write RESULTS.md and the charts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="everything once, to see that it runs")
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often to measure each (%(default)s)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=MEASURES, default=MEASURES, help="print these, write nothing"
    )
    parser.add_argument("--output", type=Path, default=HERE, help="the folder of the results")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds

    tables: dict[str, Table] = {}
    lines = [
        f"## CPython {platform.python_version()}",
        "",
        f"{platform.system()}, {os.cpu_count()} cores. Medians of {rounds} round"
        f"{'s' * (rounds != 1)} (fewer of what hardly varies or takes long) with the contenders in "
        "turn, each in a process of its own; in brackets the least and the most. Rivals: "
        + ", ".join(f"{name} {version}" for name in RIVALS if (version := installed(name)))
        + ".",
    ]
    print(*lines, sep="\n", flush=True)
    # One at a time; a quick run judges no times.
    pool = ThreadPoolExecutor(4 if options.quick else 1)
    with tempfile.TemporaryDirectory() as folder:
        start = partial(pool.submit, contend, Path(folder), options.quick)
        started = {
            key: [
                {name: start(key, name) for name in measure.contenders}  # in turn: noise hits all
                for _ in range(min(rounds, measure.rounds))
            ]
            for key, measure in MEASURES.items()
            if key in options.only
        }
        try:
            for key, turns in started.items():
                tables[key] = {name: [turn[name].result() for turn in turns] for name in turns[0]}
                section = lay_out(MEASURES[key], tables[key])
                print(*section, sep="\n", flush=True)
                lines += section
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C
    if options.only is MEASURES:
        options.output.mkdir(parents=True, exist_ok=True)
        write(options.output / "RESULTS.md", lines)
        charts.draw(tables, options.output)


def installed(name: str) -> str | None:
    """Return the version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def contend(folder: Path, quick: bool, key: str, name: str) -> Outcome:
    """Run one contender in the environment that it needs."""
    measure = MEASURES[key]
    number = (measure.few if quick else measure.number) // (10 if name in measure.tenth else 1)
    script, function = str(HERE / f"{measure.script}.py"), measure.function or key
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPATH": str(HERE.parent), "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    python = sys.executable
    if name == INDEX:
        del env["PYTHONPATH"]
        python = index_python(folder / "index")
    return run([python, script, name, function, str(number)], env)


def index_python(folder: Path) -> str:
    """Return the Python of an environment with the index's background, if it can be installed."""
    python = str(folder / "bin" / "python")
    with installing:
        if not folder.exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            install = [python, "-m", "pip", "install", "--quiet", "background==0.2.1"]
            subprocess.run(install, check=False)
    return python


def write(path: Path, lines: list[str]) -> None:
    """Write this Python's section of the results; leave those of others as they are."""
    header = (
        "# Measured\n\n`python -m benchmarks` writes this; one section for each CPython. The "
        "charts are those of the last one.\n\n"
        "![What a call costs](calls.png)\n![Training loops](loops.png)\n![Growth](growth.png)\n"
    )
    before = path.read_text("utf-8") if path.exists() else ""
    others = [
        section
        for section in before.split("\n## ")[1:]
        if section.split("\n")[0] != lines[0].removeprefix("## ")
    ]
    sections = sorted([*others, "\n".join(lines).removeprefix("## ")])
    path.write_text(header + "".join("\n## " + s.rstrip("\n") + "\n" for s in sections), "utf-8")


if __name__ == "__main__":
    main()
