"""The named steps of tasks: where a test may see, stop or freeze a worker.

``reach`` costs a comparison, unless the environment variable ``BACKUPFW_STEPS`` names a directory.  Then each
step that is reached is appended to its file ``log``, as ``name session detail``; and the one process that can
take away a file of the step's name (``backup.map-put``) gets the signal whose number is in it, in the middle
of that step.
"""

from __future__ import annotations

import os
from pathlib import Path

#: Every step, in the order in which a task reaches them; some more than once.
STEPS = (
    "backup.begun",
    "backup.planned",
    "backup.bound",
    "backup.pack-put",
    "backup.map-put",
    "backup.recorded",
    "backup.manifest-put",
    "backup.committed",
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
    "api.committed",
)

_directory = os.environ.get("BACKUPFW_STEPS")


def reach(name: str, detail: object = "") -> None:
    """Say that this process is at a step."""
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
    number = int(mine.read_text())
    mine.unlink()
    os.kill(os.getpid(), number)
