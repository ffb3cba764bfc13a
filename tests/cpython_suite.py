"""Run CPython's own tests of concurrent.futures on `ThreadExecutor` and our `Future`.

A program, so that what it puts in place of the originals stays in a process of its own:
`test_cpython.py` runs it.
"""

import concurrent.futures
import concurrent.futures._base
import importlib
import sys
import types
import unittest

import background

# Each reads private names of the original, or builds it with arguments that only it has.
LEFT_OUT = {
    "test_cancel_futures": "expects that of fifty calls one has started; a thread starts slower",
    "test_default_workers": "reads _max_workers",
    "test_saturation": "reads _work_queue and _threads",
    "test_idle_thread_reuse": "reads _threads",
    "test_del_shutdown": "reads _threads",
    "test_threads_terminate": "reads _threads",
    "test_context_manager_shutdown": "reads _threads",
    "test_thread_names_assigned": "passes thread_name_prefix and reads _threads",
    "test_thread_names_default": "reads _threads",
    "test_shutdown_no_wait": "reads _threads",
    "test_cancel_futures_wait_false": "starts a program that imports the original by name",
    "test_hang_gh83386": "starts a program that imports the original by name",
    "test_interpreter_shutdown": "starts a program that imports the original by name",
    "test_submit_after_interpreter_shutdown": "starts a program that imports the original by name",
    "test_hang_global_shutdown_lock": "reads the original's global lock",
}
MODULES = ["thread_pool", "wait", "as_completed", "shutdown", "future"]


def tests_of(module: types.ModuleType) -> unittest.TestSuite:
    """Return the tests of threads and futures, without those that are left out."""
    wanted = unittest.TestSuite()
    for name, cls in sorted(vars(module).items()):
        is_test = isinstance(cls, type) and issubclass(cls, unittest.TestCase)
        if is_test and name.startswith(("ThreadPool", "Future")):
            for case in unittest.defaultTestLoader.loadTestsFromTestCase(cls):
                if case.id().rpartition(".")[2] not in LEFT_OUT:
                    wanted.addTest(case)
    return wanted


def main() -> int:
    """Run them; return 0 if all passed, 5 if this Python ships none."""
    concurrent.futures.ThreadPoolExecutor = background.ThreadExecutor  # type: ignore[misc, assignment]
    concurrent.futures._base.Future = background.Future  # type: ignore[misc]
    try:
        package = importlib.import_module("test.test_concurrent_futures")
    except ImportError:
        return 5
    suite = unittest.TestSuite()
    if hasattr(package, "__path__"):
        for name in MODULES:
            suite.addTest(tests_of(importlib.import_module(f"{package.__name__}.test_{name}")))
    else:  # one module, up to CPython 3.11
        suite.addTest(tests_of(package))
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    return 0 if result.wasSuccessful() and result.testsRun > 30 else 1


if __name__ == "__main__":
    sys.exit(main())
