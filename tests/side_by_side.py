"""Runs all tests in two processes: the integration tests, which mostly wait, beside all others.

Those of clients, which mostly compute, are among the others: so both take about the same time.

    python -m tests.side_by_side [pytest's options]

With a file or directory among the arguments it is plain pytest, and shows every line as it comes.  Else what
the integration tests print follows when both have ended.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

INTEGRATION = Path("tests/integration")
CLIENTS = INTEGRATION / "clients"


def main(arguments: list[str]) -> int:
    """Run pytest with these arguments; returns its exit status, of two the one that is not success."""
    command = [sys.executable, "-m", "pytest"]
    if any(Path(argument.partition("::")[0]).exists() for argument in arguments):
        return subprocess.run([*command, *arguments], check=False).returncode
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(
            [*command, str(INTEGRATION), f"--ignore={CLIENTS}", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as waiting:
            left_out = [f"--ignore={path}" for path in sorted(INTEGRATION.iterdir()) if path != CLIENTS]
            others = subprocess.run([*command, *left_out, *arguments], check=False)
        print(f"== {INTEGRATION}", flush=True)
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    statuses = {waiting.returncode, others.returncode}
    if len(statuses) > 1:
        # What the options ask for may be among one's tests only.
        statuses -= {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
    return statuses.pop() if statuses else pytest.ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
