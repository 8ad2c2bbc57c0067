"""Loop devices and file systems on them, given back whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def run(*command: str) -> str:
    """Run a command and return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def need(*programs: str) -> None:
    """Skip unless we are root, there are loop devices, and these programs are installed."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("needs loop devices (/dev/loop-control is missing)")
    missing = [program for program in ("losetup", *programs) if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


@contextlib.contextmanager
def loop_device(backing: Path, *options: str) -> Iterator[str]:
    """Attach a file to a free loop device."""
    device = run("losetup", *options, "-f", "--show", str(backing))
    try:
        yield device
    finally:
        # A read-only flag would stay with the device and meet its next user.
        subprocess.run(["blockdev", "--setrw", device], check=False, capture_output=True)
        run("losetup", "-d", device)


@contextlib.contextmanager
def mounted(directory: Path, make: str, *make_options: str, size: int = 400 << 20) -> Iterator[Path]:
    """Make a file system on a loop device and mount it."""
    need(make)
    backing = directory / f"{make}.img"
    with open(backing, "wb") as file:
        file.truncate(size)
    run(make, *make_options, str(backing))
    point = directory / f"{make}.mnt"
    point.mkdir()
    with loop_device(backing) as device:
        run("mount", device, str(point))
        try:
            yield point
        finally:
            run("umount", str(point))
