"""A key store 'file' for tests."""

from __future__ import annotations

from pathlib import Path

from backupfw.chunkstore.options import option_values
from backupfw.keys.file import FileKeyStore


def opened(place: Path, master: object = None) -> FileKeyStore:
    """Open the directory ``keys`` of a place.

    :param master: whether its file ``master`` has the master key.
    """
    options: dict[str, object] = {"directory": str(place / "keys")}
    if master is not None:
        options["master_key_file"] = str(place / "master")
    return FileKeyStore(option_values(FileKeyStore.options(), **options))
