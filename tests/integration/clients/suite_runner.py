"""The tests that come with a client, in one process; run by the interpreter that has the client.

``suite_runner.py list PACKAGE`` prints the ids of all tests below a package, one a line.
``suite_runner.py run PACKAGE FILE`` runs those whose ids the file has, one a line, and prints a JSON object
for each: what became of it, and why.
"""

import importlib
import json
import os
import sys
import unittest

from testtools.testsuite import filter_by_ids, iterate_tests


class Told(unittest.TestResult):
    """Prints what becomes of each test, on a file that the tests do not print to."""

    def __init__(self, out) -> None:
        super().__init__()
        self.out = out

    def tell(self, test, status, why="") -> None:
        print(json.dumps({"id": test.id(), "status": status, "why": why}), file=self.out, flush=True)

    def addSuccess(self, test) -> None:  # noqa: N802
        self.tell(test, "success")

    def addSkip(self, test, reason) -> None:  # noqa: N802
        self.tell(test, "skip", reason)

    def addFailure(self, test, err) -> None:  # noqa: N802
        self.tell(test, "fail", self._exc_info_to_string(err, test))

    addError = addFailure  # noqa: N815


def main(action, package, chosen=None) -> None:
    top, _, _ = importlib.import_module(package.partition(".")[0]).__path__[0].rpartition(os.sep)
    suite = unittest.TestLoader().discover(os.path.join(top, *package.split(".")), top_level_dir=top)
    if action == "list":
        for test in iterate_tests(suite):
            print(test.id())
        return
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with open(chosen) as ids:
        suite = filter_by_ids(suite, set(ids.read().split()))
    suite.run(Told(out))


main(*sys.argv[1:])
