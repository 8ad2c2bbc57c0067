"""Crash points: named places in tasks where a test can see, kill or freeze a process.

``reach`` costs a comparison, unless the environment variable ``BACKUPFW_CRASH_POINTS`` names a directory.
Then each crash point that is reached is appended to the directory's file ``log``, as ``name session detail``.
A file with the name of a crash point (``backup.map-put``) holds the number of a signal: the first process
that reaches the crash point adds its process id to the file's name and sends that signal to itself.
"""

from __future__ import annotations

import os
from pathlib import Path

#: Every crash point, in the order in which a task reaches them; some more than once.
NAMES = (
    "backup.begun",
    "backup.planned",
    "backup.opened",
    "backup.bound",
    "backup.pack-put",
    "backup.map-put",
    "backup.recorded",
    "backup.manifest-put",
    "backup.committed",
    "quiesce.begun",
    "quiesce.frozen",
    "quiesce.taken",
    "quiesce.thawed",
    "copy.begun",
    "copy.planned",
    "copy.placed",
    "copy.pack-put",
    "copy.map-put",
    "copy.objects-put",
    "copy.manifest-put",
    "copy.copied",
    "copy.committed",
    "restore.begun",
    "restore.planned",
    "restore.made",
    "restore.opened",
    "restore.writing",
    "restore.flushed",
    "restore.checkpointed",
    "restore.written",
    "restore.committed",
    "delete.begun",
    "delete.planned",
    "delete.some-deleted",
    "delete.data-deleted",
    "delete.removed",
    "delete.committed",
    "import.begun",
    "import.planned",
    "import.found",
    "import.verified",
    "import.committed",
    "scrub.begun",
    "scrub.segment",
    "scrub.recorded",
    "scrub.saved",
    "scrub.proven",
    "scrub.committed",
    "key.made",
    "key.recorded",
    "key.put",
    "keys.dropped",
    "policy.taken",
    "policy.made",
    "policy.let-go",
    "api.committed",
)

_directory = os.environ.get("BACKUPFW_CRASH_POINTS")


def reach(name: str, detail: object = "") -> None:
    """Record that this process is at a crash point, and send itself the signal that is set there."""
    if _directory is not None:
        _at(Path(_directory), name, detail)


def _at(directory: Path, name: str, detail: object) -> None:
    with open(directory / "log", "a", encoding="utf-8") as log:
        log.write(f"{name} {os.getsid(0)} {detail}\n")
    trap = directory / name
    mine = directory / f"{name}.{os.getpid()}"
    try:
        # Several processes may be here: a rename has one winner.
        trap.rename(mine)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), int(mine.read_text()))
