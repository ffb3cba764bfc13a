"""Try every way of calling in the background: `python -m benchmarks.comparison`.

`ways.py` says how each way is used, `features.py` tries one feature on one of them in a program
of its own, `durable.py` does so for queues on disk; `calls.py` is what they all call.
"""

import sys
from pathlib import Path

# They find one another as scripts do: the index's package of our import name is tried in an
# environment where nothing of this repository can be imported.
sys.path.insert(0, str(Path(__file__).parent))
