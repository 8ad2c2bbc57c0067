"""A plugin of pytest for runs with mutants: functions keep no results of code without a mutant.

mutmut runs the tests once without any, and for each mutant in a copy of that process.
"""

from __future__ import annotations

import sys


def pytest_sessionstart() -> None:
    """Clear the caches of core's functions."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "backupfw":
            for thing in vars(module).values():
                if clear := getattr(thing, "cache_clear", None):
                    clear()
