"""Try every way of calling in the background, feature by feature: `python -m benchmarks.comparison`.

`ways.py` says how each way is used, `features.py` tries one feature on one of them in a program
of its own, `durable.py` does so for queues on disk; `calls.py` is what they all call.
"""
