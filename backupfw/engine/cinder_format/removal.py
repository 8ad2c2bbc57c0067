"""Removing a link's objects; only a deletion of its backup asks for that."""

from __future__ import annotations

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import NotFound
from backupfw.engine import objects
from backupfw.engine.cinder_format import names
from backupfw.engine.ports import Control

_BATCH = 1000


def run(container: Container, prefix: str, control: Control) -> None:
    """Delete a link's objects, its metadata last; what else begins with the prefix stays.

    :raises Unavailable: the container is missing.
    :raises ChunkStoreError: the store does not do it.
    :raises TaskStopped: the control said so.
    """
    batch: list[str] = []
    try:
        for info in container.list(f"{prefix}-"):
            split = names.split(info.key)
            if split is not None and split[0] == prefix:
                batch.append(info.key)
            if len(batch) == _BATCH:
                control.check()
                container.delete(batch)
                batch = []
    except NotFound:
        objects.prove_container(container, prefix)
    control.check()
    container.delete([*batch, names.hashes_key(prefix)])
    container.delete([names.metadata_key(prefix)])
    # Deletes succeed in a missing container, and the container may come back with all its objects.
    objects.prove_container(container, prefix)
