"""Directories of servers: what a killed run leaves, the next one removes; what is used, stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.servers.directory import server_directory

_RUN = """
import sys
from tests.servers.directory import server_directory
with server_directory(sys.argv[1]) as path:
    (path / "data").write_text("x")
    print(path, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    place = str(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        text=True,
    ) as run:
        assert run.stdout is not None
        left = Path(run.stdout.readline().strip())
        with server_directory(place) as mine:
            with server_directory(place) as other:
                assert left.exists()
                assert mine.exists()
            assert not other.exists()
            run.kill()
            run.wait()
            with server_directory(place):
                assert not left.exists()
                assert mine.exists()
    assert list(tmp_path.iterdir()) == []
