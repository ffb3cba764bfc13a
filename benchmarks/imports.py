"""Measure what an import takes.

Run as `python imports.py NAME imports NUMBER`; see `measuring`. What the modules share, the
standard library's threads say, counts for each.
"""

import statistics
import subprocess
import sys
from importlib.util import find_spec

from measuring import Figures, main

BEFORE = {"background_beyond_wrapt": "wrapt"}
CODE = """
import time
{before}
start = time.perf_counter()
import {module}
print((time.perf_counter() - start) * 1e3)
"""


def imports(name: str, times: int) -> Figures:
    """Return the milliseconds that the import takes in a new interpreter."""
    before = f"import {BEFORE[name]}" if name in BEFORE else ""
    module = name.partition("_beyond_")[0]
    if find_spec(module.partition(".")[0]) is None:
        raise ModuleNotFoundError(name=module)
    code = CODE.format(before=before, module=module)
    outs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(times + 1)
    ]
    return {"ms": statistics.median(map(float, outs[1:]))}  # the first one may have compiled


if __name__ == "__main__":
    main(str, imports)
