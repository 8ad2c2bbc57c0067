"""Listings of our own objects: only keys that this format builds come through."""

from __future__ import annotations

from collections.abc import Iterator

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import NotFound
from backupfw.engine.candidates import Candidate
from backupfw.engine.format import keys
from backupfw.engine.ports import Control


def own_objects(
    container: Container, prefix: str, control: Control, *, manifests: bool = False
) -> Iterator[Candidate]:
    """Yield the objects under ``prefix`` whose keys parse, in the listing's order.

    A container that is not there has none.

    :param manifests: yield manifests too (their segment is -1).
    :raises ChunkStoreError: the listing failed; what was yielded is not all.
    """
    try:
        for number, info in enumerate(container.list(prefix)):
            if number % 1000 == 0:
                control.check()
            parsed = keys.parse(info.key)
            if parsed is not None and (manifests or parsed.kind != "manifest"):
                yield Candidate(parsed.segment, info.key, info.size)
    except NotFound:
        return
