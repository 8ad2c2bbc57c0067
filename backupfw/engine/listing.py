"""Listings of our own objects: only keys that this format builds come through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import NotFound, Unavailable
from backupfw.engine.candidates import Candidate, in_order
from backupfw.engine.format import keys
from backupfw.engine.ports import Control


def _unheard(_key: str) -> None:
    """Drop what does not parse."""


def own_objects(
    container: Container,
    prefix: str,
    control: Control,
    *,
    manifests: bool = False,
    required: bool = False,
    strange: Callable[[str], None] = _unheard,
) -> Iterator[Candidate]:
    """Yield the objects under ``prefix`` whose keys parse, in the listing's order.

    A container that is not there has none, unless it must be there.

    :param manifests: yield manifests too (their segment is -1).
    :param required: the container was there once: that it is missing proves nothing.
    :param strange: hears the keys that do not parse.
    :raises Unavailable: the container is missing and must be there.
    :raises ChunkStoreError: the listing failed; what was yielded is not all.
    """
    try:
        for number, info in enumerate(container.list(prefix)):
            if number % 1000 == 0:
                control.check()
            parsed = keys.parse(info.key)
            if parsed is None:
                strange(info.key)
            elif manifests or parsed.kind != "manifest":
                yield Candidate(parsed.segment, info.key, info.size)
    except NotFound as error:
        if required:
            raise Unavailable(
                "the container is missing", store=container.store.name, container=container.name
            ) from error


def objects_by_volume(
    container: Container, prefix: str, control: Control, strange: Callable[[str], None] = _unheard
) -> Iterator[tuple[str, Iterator[Candidate]]]:
    """Yield the prefix of every volume that has objects below ``prefix``, and those, manifests included.

    To be read in step: a volume's objects end when the next volume is asked for.

    :param prefix: an installation's, a project's or a volume's; ends in a slash.
    :param strange: hears the keys that do not parse.
    :raises ValueError: the prefix is no such thing.
    :raises ChunkStoreError: the listing failed; what was yielded is not all.
    """
    if not prefix.endswith("/") or prefix.startswith("/") or prefix.count("/") > 3:
        raise ValueError(f"{prefix!r} is no prefix of an installation, project or volume")
    listed = own_objects(container, prefix, control, manifests=True, strange=strange)
    if container.capabilities.sorted_listing:
        yield from groupby(listed, key=_volume_prefix)
        return
    # Sorted by key, with the segment left out; whoever needs a volume's by segment sorts them anyway.
    with in_order(Candidate(0, one.key, one.size) for one in listed) as everything:
        for volume_prefix, objects in groupby(everything, key=_volume_prefix):
            yield volume_prefix, (Candidate(_segment(one.key), one.key, one.size) for one in objects)


def _volume_prefix(candidate: Candidate) -> str:
    return "/".join(candidate.key.split("/", 3)[:3]) + "/"


def _segment(key: str) -> int:
    parsed = keys.parse(key)
    assert parsed is not None
    return parsed.segment
