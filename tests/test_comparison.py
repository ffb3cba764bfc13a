"""What the README's tables say: a test behind each cell of ours, a script behind each of all."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = Path(__file__).parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks.comparison.__main__ import GROUPS, OUTPUT, WAYS, titles, try_all  # noqa: E402

# By way and feature, the tests that prove what the cell says; those of a folder are read by
# type checkers.
PROOFS: dict[str, dict[str, list[str]]] = {
    "ours": {
        "order": ["calling::one_worker_keeps_the_order"],
        "end": ["ending::the_end_drains"],
        "ctrl_c": ["ending::ctrl_c_while_the_end_waits"],
        "dropped": ["failures::a_dropped_failure_is_logged_once"],
        "nested": ["futures::a_chain_of_nested_calls"],
        "wait_all": ["ending::flush_waits_for_children"],
        "fork": ["ending::forks_under_a_storm", "ending::a_fork_inside_a_call"],
        "context": ["calling::context_variables"],
        "latest": ["backlog::the_latest_state"],
        "live": ["snapshot::a_call_works_on_the_values_as_they_were"],
        "methods": ["decorating::methods_of_every_kind"],
        "awaited": ["futures::await"],
        "typed": ["typing/right.py", "typing/wrong.py"],
        "memory": ["calling::arguments_and_results_are_freed_at_once"],
    },
    "ours_process": {
        "order": ["process::ten_thousand_calls_with_a_death_in_every_hundred"],
        "end": ["process::the_end_is_quiet"],
        "ctrl_c": ["process::ctrl_c_for_the_whole_group"],
        "dropped": ["failures::a_dropped_failure_is_logged_once"],  # on every executor
        "fork": ["process::no_worker_outlives_its_program_because_of_a_child"],
        "context": ["process::context_variables_stay"],
        "live": ["process::arguments_are_those_of_the_call"],
        "awaited": ["process::a_call_can_be_awaited"],
        "memory": ["calling::arguments_and_results_are_freed_at_once"],  # on every executor
        "no_guard": ["process::from_anywhere"],
        "closure": ["properties::the_outcome_is_the_functions_own"],  # on every executor
        "killed": ["process::killed_in_a_call"],
        "odd_error": ["process::exceptions_that_cant_come_back"],
        "orphan": ["process::no_worker_outlives_a_killed_program"],
    },
    "ours_durable": {
        "survives": ["durable::calls_survive_the_kill_of_their_program"],
        "order": ["durable::calls_survive_the_kill_of_their_program"],
        "starts": ["durable::outcomes_come_to_the_futures", "durable::an_idle_worker_ends"],
        "killed": ["durable::a_killed_worker"],
        "poison": ["durable::a_poison_call"],
        "long": ["durable::a_stopped_worker", "durable::a_call_that_holds_the_gil"],
        "failed": ["durable::outcomes_come_to_the_futures", "durable::retry_and_purge"],
        "result": ["durable::outcomes_come_to_the_futures"],
        "closure": ["properties::the_outcome_is_the_functions_own"],
        "live": ["durable::arguments_as_they_were_at_the_call"],
    },
}
GROUP_OF = {"ours": "Threads", "ours_process": "Processes", "ours_durable": "Queues on disk"}
COSTS = "what the caller pays for a call"  # measured by `python -m benchmarks`

Cells = dict[tuple[str, str, str], str]  # by group, title of the feature, and title of the way


def tables(path: Path) -> list[tuple[list[str], dict[str, list[str]]]]:
    """Return each table of a Markdown file: the titles of its columns, and its rows."""
    found: list[tuple[list[str], dict[str, list[str]]]] = []
    before = ""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("| "):
            label, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            if before.startswith("|"):
                found[-1][1][label] = cells
            else:
                found.append((cells, {}))
        before = line
    return found


def group_of(columns: list[str]) -> str | None:
    """Return the group all of whose columns these are."""
    for group, ways in GROUPS.items():
        if set(columns) <= {way.title for way in ways.values()}:
            return group
    return None


def cells(path: Path) -> Cells:
    """Return what the file's comparisons say."""
    return {
        (group, feature, way): cell
        for columns, rows in tables(path)
        if (group := group_of(columns))
        for feature, row in rows.items()
        for way, cell in zip(columns, row, strict=True)
    }


RECORDED = cells(OUTPUT)


def test_the_readme_says_what_was_observed() -> None:
    """Each cell of the README's comparisons is what its script came to, and is of a known row."""
    readme = cells(ROOT / "README.md")
    assert {group for group, _, _ in readme} == set(GROUPS)
    for (group, feature, way), cell in readme.items():
        if feature != COSTS:
            assert cell == RECORDED[group, feature, way], (group, feature, way)


@pytest.mark.parametrize("way", PROOFS)
def test_each_cell_of_ours_is_proved(way: str) -> None:
    """Each cell of ours has tests that prove it, and those are there."""
    assert set(PROOFS[way]) == set(titles(GROUP_OF[way]))
    for proofs in PROOFS[way].values():
        for proof in proofs:
            file, _, name = proof.partition("::")
            if not name:
                assert (TESTS / file).exists()
                continue
            tree = ast.parse((TESTS / f"test_{file}.py").read_text("utf-8"))
            names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            assert f"test_{name}" in names, proof


@pytest.mark.parametrize("way", PROOFS)
def test_the_scripts_of_ours(way: str) -> None:
    """Each cell of ours is what its script comes to here."""
    features = titles(GROUP_OF[way])
    for (feature, _), word in try_all([way], []).items():
        if word != "mypy is not installed":
            assert word == RECORDED[GROUP_OF[way], features[feature], WAYS[way].title], feature
