"""The layout: arrows point down only, folders included."""

import ast
from collections.abc import Iterator
from pathlib import Path

import background

ROOT = Path(background.__file__).parent
# From the ground up: no file imports one of its own line or of a line above it.
FLOORS = """
_pickling.modules
_pickling.names _snapshot.snapshot _core.telling _core.future _executors.sqlite.access
_pickling.functions _snapshot.objects _executors.sqlite.file
_pickling.errors _pickling.refusals _snapshot.containers _snapshot.libraries _executors.sqlite.locks
_pickling.calls
_platform _executors.process.channel _pickling _errors _core.naming
_executors.process.worker _executors.sqlite.store _snapshot _core.ledger
_executors.sqlite.supervisor _core.failures _core.hints _core.circles
_core.waiting
_executors.sqlite.worker _core.results
_core.call
_core.executor
_debug _progress _signals _executors.elsewhere _executors.workers
_executors.inline _executors.threads _executors.eventloop _executors.foreign
_executors.process.child _executors.sqlite.outcomes _executors.dask.cluster
_executors.sqlite.executor _executors.dask.executor _executors.process.executor
_settings _stats
_flush
_backlog _exit _picture
_decorator
.
_demo _executors.sqlite.commands
__main__
"""
FLOOR = {name: i for i, line in enumerate(FLOORS.split("\n")) for name in line.split()}
FOLDERS = {"_core", "_executors", "_executors.process", "_executors.sqlite", "_executors.dask"}


def name_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix("__init__").removesuffix(".") or "."


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield what a file of the package imports from the package when it runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        names = []
        if isinstance(node, ast.ImportFrom):
            name = (node.module or "").removeprefix("background.")
            # `from folder import module` imports the module.
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if name in FOLDERS
                else [node.module or ""]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name == "background" or name.startswith("background."):
                yield name.removeprefix("background").removeprefix(".") or "."
        yield from imports(node)


FILES = {
    name_of(path): path
    for path in ROOT.rglob("*.py")
    # A folder's `__init__.py` that only says what the folder is has no floor.
    if name_of(path) not in FOLDERS
}
ARROWS = {name: set(imports(ast.parse(path.read_text("utf-8")))) for name, path in FILES.items()}


def test_arrows_point_down() -> None:
    """No file imports one of its own floor or of one above."""
    assert set(FILES) == set(FLOOR)
    for name, targets in ARROWS.items():
        for target in targets:
            assert FLOOR[target] < FLOOR[name], f"{name} imports {target}"


def test_folders_point_down() -> None:
    """No two folders import each other."""
    folder = {name: name.rpartition(".")[0] for name in [*FILES, *FOLDERS]}
    arrows = {
        (folder[name], folder[target])
        for name, targets in ARROWS.items()
        for target in targets
        if folder[name] and folder[target] and folder[name] != folder[target]
    }
    assert not [arrow for arrow in arrows if arrow[::-1] in arrows]


def test_wrapt_has_one_door() -> None:
    """One file alone knows wrapt."""
    knows = [name for name, path in FILES.items() if "import wrapt" in path.read_text("utf-8")]
    assert knows == ["_decorator"]


def test_folders_say_what_they_are() -> None:
    """The `__init__.py` of a folder runs no code of the package: a worker loads a file alone."""
    for folder in FOLDERS:
        tree = ast.parse((ROOT / folder.replace(".", "/") / "__init__.py").read_text("utf-8"))
        assert len(tree.body) == 1
        assert ast.get_docstring(tree)
