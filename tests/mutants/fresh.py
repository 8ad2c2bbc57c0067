"""A plugin of pytest for runs with mutants: functions keep no results from one test to the next.

mutmut runs the tests once to see which of them call a function, and runs only those for its mutants, each
time in a copy of that process: a function whose result is kept is called by one test, and not again.
"""

from __future__ import annotations

import sys


def pytest_runtest_setup() -> None:
    """Clear the caches of core's functions."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "backupfw":
            for thing in vars(module).values():
                if clear := getattr(thing, "cache_clear", None):
                    clear()
