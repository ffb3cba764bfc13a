"""Which modules another process can't import: their functions and classes go by value."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, cast

__all__ = ["local_marks", "local_modules"]

# Such modules are made at run time: by `runpy.run_path`, `spec_from_file_location`,
# `types.ModuleType`, by the child of a multiprocessing program (`__mp_main__`), by pytest's
# import mode "importlib". In `sys.modules` they look like any other.

_NO_PROGRAM = ("__main__", "background", "_cython_", "cython_runtime")
_STDLIB = os.path.dirname(os.__file__) + os.sep
_EXTENSIONS = (".so", ".pyd", ".dll")
_checked: dict[str, tuple[object, bool]] = {}  # by name: the spec, and the verdict
_EMPTY: set[str] = set()


class _Known:
    """What is known of `sys.modules` as it was at some moment."""

    def __init__(self) -> None:
        modules = dict(sys.modules)
        # One that has taken another's place between two calls is the last one.
        self.count, self.newest = len(modules), next(reversed(modules), "")
        cloudpickle: Any = modules.get("cloudpickle")
        # The set itself: to ask for a copy costs as much as all the rest of a look.
        inner: Any = modules.get("cloudpickle.cloudpickle")
        self.registry: set[str] = getattr(inner, "_PICKLE_BY_VALUE_MODULES", _EMPTY)
        by_wish = set(self.registry)
        self.names = {"__main__"}
        for name, module in modules.items():
            if not _importable(name, module):
                self.names.add(name)
                # It is not there, or has not heard of the module, or that is `__main__` again.
                with suppress(Exception):
                    if module.__name__ == name:
                        cloudpickle.register_pickle_by_value(module)
            elif by_wish and _parents(name) & by_wish:
                self.names.add(name)
        self.marks = (b"__main__", *map(_mark, self.names - {"__main__"}))
        self.registered = by_wish | (self.names & self.registry)


_known: _Known | None = None


def _look() -> _Known:
    """Return what is known now; this is done at every call."""
    global _known
    known = _known
    modules = sys.modules
    if known is not None and len(modules) == known.count and known.registry == known.registered:
        try:
            if next(reversed(modules)) is known.newest:
                return known
        except RuntimeError:  # another thread imports something at this moment
            pass
    _known = known = _Known()
    return known


def local_modules() -> set[str]:
    """Return the names of the modules whose functions and classes go by value."""
    return _look().names


def local_marks() -> tuple[bytes, ...]:
    """Return what the names of `local_modules` are in a pickle."""
    return _look().marks


def _mark(name: str) -> bytes:
    data = name.encode("utf-8", "surrogatepass")
    return b"\x8c" + bytes([len(data)]) + data if len(data) < 256 else data


def _parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts) + 1)}


def _importable(name: str, module: object) -> bool:
    """Tell whether another process can import a module that is there; if in doubt, it can."""
    if name == "__mp_main__":
        return False
    # A subclass may be one that loads itself when it is looked at.
    if type(module) is not ModuleType or name.startswith(_NO_PROGRAM):
        return True
    spec = vars(module).get("__spec__")
    key = id(module) if spec is None else spec
    before = _checked.get(name)
    if before is None or before[0] != key:
        found = True
        with suppress(Exception):  # finders are anybody's code
            found = _found_elsewhere(name, spec)
        _checked[name] = before = key, found
    return before[1]


def _found_elsewhere(name: str, spec: ModuleSpec | None) -> bool:
    parent, _, _ = name.rpartition(".")
    origin = None
    if spec is not None:
        if spec.name != name:
            return True  # a second name, as `os.path` is
        origin = spec.origin
        if origin in ("built-in", "frozen"):
            return True
        if origin and _lies_on_path(name, origin):
            return True
    path = None
    if parent:
        above = sys.modules.get(parent)
        if above is None or not _importable(parent, above):
            return above is None
        above_spec = above.__spec__
        if spec is None:
            # Libraries, and extension modules, make such ones when they are imported.
            if above_spec is None:
                return True
            origin = above_spec.origin or ""
            if origin.endswith(_EXTENSIONS) or origin.startswith(_STDLIB):
                return True
            if "-packages" + os.sep in origin:
                return True
        path = getattr(above, "__path__", None)
        if path is None:
            return spec is not None
    found: Any = PathFinder.find_spec(name, path)
    for finder in sys.meta_path if found is None else ():
        found = cast(Any, finder).find_spec(name, path)
        if found is not None:
            break
    if found is None:
        return False
    same = spec is None or found.origin == origin or not found.origin or not origin
    return same or os.path.realpath(found.origin) == os.path.realpath(origin or "")


def _lies_on_path(name: str, origin: str) -> bool:
    """Tell whether a file is where an entry of `sys.path` has a module of that name."""
    root, found, rest = origin.rpartition(os.sep + name.replace(".", os.sep))
    starts = rest.startswith((".", os.sep + "__init__."))
    return bool(found) and starts and root in sys.path
