"""The layout: arrows point down only."""

import ast
from pathlib import Path

import background

ROOT = Path(background.__file__).parent
LAYERS = ["_channel", "_pickling", "_worker", "_store", "_durable_worker", "_errors", "_snapshot"]
LAYERS += ["_call", "_debug", "_progress", "_elsewhere", "_workers", "_executors", "_runtime"]
LAYERS += ["_backlog", "_decorator", "", "_demo", "_durable_commands", "__main__"]


def imports(path: Path) -> list[str]:
    tree = ast.walk(ast.parse(path.read_text("utf-8")))
    return [n.module or "" for n in tree if isinstance(n, ast.ImportFrom)]


def test_arrows_point_down() -> None:
    """No module imports one of its own layer or of one above; wrapt has one door."""
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("__init__")
        mine = LAYERS.index(name.split("/")[0])
        for target in imports(path):
            if target.split(".")[0] == "background":
                theirs = LAYERS.index([*target.split("."), ""][1])
                assert theirs < mine, f"{path.name} imports {target}"
        assert ("import wrapt" in path.read_text("utf-8")) == (name == "_decorator")
