"""Starting and stopping earlier writers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from backupfw.volume.base import VolumeRef

ROOT = Path(__file__).resolve().parents[3]


@contextlib.contextmanager
def writer_process(directory: Path, volume: VolumeRef, attempt: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start another process that writes the volume without end; it writes already."""
    arguments = [str(directory), volume.id, str(volume.length), str(volume.location), str(attempt)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.volume.fence_writer", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def freeze(process: subprocess.Popen[bytes]) -> None:
    """Stop a process in the middle of what it does, and wait until it is."""
    os.kill(process.pid, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
