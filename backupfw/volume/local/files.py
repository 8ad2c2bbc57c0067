"""Image files of the service: their names, and their atomic creation."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator

from backupfw.errors import InvalidInput

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
_SUFFIX = ".img"
_PART = ".part"


def volume_name(volume_id: str) -> str:
    """Return the file name of a volume's image."""
    return f"volume-{_checked(volume_id)}{_SUFFIX}"


def snapshot_name(snapshot_id: str) -> str:
    """Return the file name of a snapshot's image."""
    return f"snapshot-{_checked(snapshot_id)}{_SUFFIX}"


def _checked(resource_id: str) -> str:
    if not _ID.fullmatch(resource_id):
        raise InvalidInput(f"{resource_id!r} is not an id.")
    return resource_id


@contextlib.contextmanager
def new_file(directory: str, name: str) -> Iterator[int]:
    """Yield a new, empty file; when the block ends without an error, it is durable as ``directory/name``.

    Each call writes to a file of its own, removes the files of killed calls, and never replaces a finished
    file.  So a frozen call that wakes up after another one has finished cannot damage its file.  If
    ``name`` exists by then, it stays and the new file is deleted.
    """
    remove_parts(directory, name)
    part = os.path.join(directory, f"{name}.{secrets.token_hex(8)}{_PART}")
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield fd
        os.fsync(fd)
        publish(part, os.path.join(directory, name))
    finally:
        os.close(fd)
        unlink(part)
    sync_directory(directory)


def publish(part: str, final: str) -> bool:
    """Let a finished file stand under its final name, too, unless something has that name.

    :returns: whether it does now.
    """
    try:
        os.link(part, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A file system without hard links: the check is not atomic there.
        if os.path.lexists(final):
            return False
        os.rename(part, final)
    return True


def remove(directory: str, name: str) -> None:
    """Remove a file and its unfinished predecessors; missing ones count as removed."""
    remove_parts(directory, name)
    unlink(os.path.join(directory, name))
    with contextlib.suppress(FileNotFoundError):
        sync_directory(directory)


def remove_parts(directory: str, name: str) -> None:
    """Remove the files that killed calls of :func:`new_file` left for this name."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.listdir(directory):
            if entry.startswith(f"{name}.") and entry.endswith(_PART):
                unlink(os.path.join(directory, entry))


def unlink(path: str) -> None:
    """Remove a file's name; a missing one counts as removed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sync_directory(directory: str) -> None:
    """Make the directory's entries durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
