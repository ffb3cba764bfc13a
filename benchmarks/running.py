"""Run contenders in processes of their own, in turn, and lay out what they print as tables."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

LIMIT = 300  # seconds that a contender may take

Outcome = dict[str, float | str] | str  # figures, or why there are none
Table = dict[str, list[Outcome]]  # by contender, one outcome a round


@dataclass(frozen=True)
class Measure:
    """What is measured, of whom, and what is to be reached."""

    script: str
    title: str
    contenders: Mapping[str, str]  # the titles by the names
    number: int
    few: int  # the number for a quick run
    function: str = ""  # of the script, if it isn't called as the measure is
    rounds: int = 1_000  # at most: fewer for what hardly varies
    tenth: tuple[str, ...] = ()  # who is measured with a tenth of the number, being slow
    base: str = ""  # whose first figure the ratios are to
    reaches: tuple[tuple[str, str, str, str], ...] = ()  # figure, of whom, against whom, reach
    text: str = ""


def run(command: list[str], env: dict[str, str]) -> Outcome:
    """Run one contender in a process of its own and return what it printed."""
    # Files, not pipes: a worker that is left over would keep a pipe open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=err, start_new_session=True)
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            return f"not done in {LIMIT} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        err.seek(0)
        if code == 0:
            outcome: Outcome = json.loads(out.read().splitlines()[-1])
            return outcome
        said = err.read()
        print(f"{' '.join(command)}\n{said[-2000:]}", file=sys.stderr)
        return f"failed: {(said.splitlines() or ['no word'])[-1][:100]}"


def figures(outcomes: list[Outcome], key: str) -> list[float]:
    """Return the figures of all rounds."""
    found = [outcome[key] for outcome in outcomes if isinstance(outcome, dict)]
    return [figure for figure in found if not isinstance(figure, str)]


def columns(table: Table) -> list[str]:
    """Return the names of the figures."""
    dicts = (o for outcomes in table.values() for o in outcomes if isinstance(o, dict))
    return list(next(dicts, {"": ""}))


def median(table: Table, name: str, key: str) -> float | None:
    """Return the median of the figures of one contender, if it has any."""
    found = figures(table.get(name, []), key)
    return statistics.median(found) if found else None


def lay_out(measure: Measure, table: Table) -> list[str]:
    """Return a table, with ratios and what is to be reached, as Markdown."""
    keys = columns(table)
    header = ["", *keys, *(["ratio"] if measure.base else [])]
    lines = ["", f"### {measure.title}", "", row(header), "|---" * len(header) + "|"]
    base = median(table, measure.base, keys[0])
    for name, outcomes in table.items():
        if any(isinstance(outcome, dict) for outcome in outcomes):
            cells = [show(outcomes, key) for key in keys]
        else:
            cells = [str(outcomes[0]), *[""] * (len(keys) - 1)]
        if measure.base:
            mine = median(table, name, keys[0])
            cells.append("" if mine is None or not base else f"{mine / base:.2f}")
        lines.append(row([measure.contenders[name], *cells]))
    below = [measure.text] if measure.text else []
    if measure.base:
        below.append(f"Ratio: {keys[0]}, to {measure.contenders[measure.base]}.")
    lines += ["", " ".join(below)] if below else []
    reaches = []
    for key, name, rival, reach in measure.reaches:
        mine, theirs = median(table, name, key), median(table, rival, key)
        if mine is not None and theirs:
            who = f"{measure.contenders[name]} against {measure.contenders[rival]}"
            reaches.append(f"- {key}, {who}: {mine / theirs:.2f} (reach: {reach})")
    return [*lines, *([""] if reaches else []), *reaches]


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def show(outcomes: list[Outcome], key: str) -> str:
    """Return the median and the spread, or the words that were said most often."""
    found = figures(outcomes, key)
    if not found:
        words = Counter(outcome[key] for outcome in outcomes if isinstance(outcome, dict))
        [(said, times)] = words.most_common(1)
        return str(said) if times == len(outcomes) else f"{said} ({times} of {len(outcomes)})"
    middle = statistics.median(found)
    digits = 0 if middle >= 100 or all(figure == int(figure) for figure in found) else 2
    text = f"{middle:,.{digits}f}"
    if min(found) < max(found):
        text += f" ({min(found):,.{digits}f} to {max(found):,.{digits}f})"
    return text + (f", in {len(found)} rounds" if len(found) < len(outcomes) else "")
