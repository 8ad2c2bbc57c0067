"""Writes the man page from the commands: ``python -m tests.architecture.man docs/man``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.architecture.checkout import ROOT


def write(folder: Path) -> Path:
    """Write the page into a folder; returns its path."""
    with tempfile.TemporaryDirectory() as cache:
        # That page alone, of all of docs/.
        only = ["-D", "root_doc=commands", "-D", "include_patterns=commands.rst"]
        words = ["-q", "-W", "-E", "-b", "man", *only, "-d", cache, str(ROOT / "docs"), str(folder)]
        # Usages are as wide as the terminal.
        environment = {**os.environ, "COLUMNS": "80"}
        subprocess.run([sys.executable, "-m", "sphinx", *words], check=True, env=environment)
    return folder / "backupfw.1"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
