"""Listings of this installation's objects: they yield only keys that this format builds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby

from backupfw import naming
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import NotFound, Unavailable
from backupfw.engine.candidates import Candidate, in_order
from backupfw.engine.format import keys
from backupfw.engine.ports import Control

#: A search for manifests lists this many objects of one attempt; then it begins a new listing behind them.
_JUMP_AFTER = 2000


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

    :param manifests: yield manifests and wrapped data keys too (their segment is -1).
    :param required: the container was there once: that it is missing proves nothing.
    :param strange: called with each key that does not parse.
    :raises Unavailable: the container is missing and must be there.
    :raises ChunkStoreError: the listing failed; what was yielded is not all.
    """
    try:
        for number, info in enumerate(container.list(prefix)):
            if number % 1000 == 0:
                control.check()
            parsed = keys.parse(info.key)
            if parsed is None and not keys.is_data_key(info.key):
                strange(info.key)
            elif parsed is not None and parsed.kind != "manifest":
                yield Candidate(parsed.segment, info.key, info.size)
            elif manifests:
                yield Candidate(-1, info.key, info.size)
    except NotFound as error:
        if required:
            raise Unavailable(
                "the container is missing", store=container.store.name, container=container.name
            ) from error


def manifest_keys(
    container: Container, prefix: str, control: Control, leave_out: str | None = None
) -> Iterator[str]:
    """Yield the keys of all manifests under ``prefix``, in the listing's order.

    In a sorted listing, most objects of an attempt are jumped over: its segments sort before its manifest.
    So the number of requests grows with the attempts, not with the objects.

    :param leave_out: a prefix, ending in a slash, whose keys are none of them.
    :raises ChunkStoreError: the listing failed, or the container is missing; what was yielded is not all.
    """

    def is_manifest(key: str) -> bool:
        parsed = keys.parse(key)
        return parsed is not None and parsed.kind == "manifest"

    return _some_keys(container, prefix, control, is_manifest, leave_out)


def data_key_keys(container: Container, prefix: str, control: Control) -> Iterator[str]:
    """Yield the keys of all wrapped data keys under ``prefix``, as :func:`manifest_keys` does.

    :raises ChunkStoreError: the listing failed, or the container is missing; what was yielded is not all.
    """
    return _some_keys(container, prefix, control, keys.is_data_key)


def _some_keys(
    container: Container,
    prefix: str,
    control: Control,
    is_one: Callable[[str], bool],
    leave_out: str | None = None,
) -> Iterator[str]:
    jumps = container.capabilities.sorted_listing
    start: str | None = ""
    while start is not None:
        after, start = start, None
        origin, seen = "", 0
        for number, info in enumerate(container.list(prefix, after)):
            if number % 1000 == 0:
                control.check()
            if info.key <= after:
                # A store that ignores ``after`` would send the same keys for ever.
                continue
            if leave_out is not None and info.key.startswith(leave_out):
                beyond = f"{leave_out[:-1]}0"
            elif is_one(info.key):
                yield info.key
                continue
            else:
                here = info.key.rsplit("/", 2)[0]
                origin, seen = here, seen + 1 if here == origin else 1
                beyond = f"{origin}/g" if seen >= _JUMP_AFTER else ""
            if jumps and beyond > info.key:
                start = beyond
                break


def foreign_manifests(own_prefix: str, container: Container, control: Control) -> dict[str, int]:
    """Return how many manifests other installations have in a container, by installation, sorted.

    A container that is not there has none.

    :param own_prefix: our installation's prefix, with its slash.
    :raises ChunkStoreError: the listing failed.
    """
    listed = manifest_keys(container, "", control, leave_out=own_prefix)
    found: Counter[str] = Counter()
    try:
        found.update(naming.key_part_text(key.split("/", 1)[0]) for key in listed)
    except NotFound:
        return {}
    return dict(sorted(found.items()))


def objects_by_volume(
    container: Container, prefix: str, control: Control, strange: Callable[[str], None] = _unheard
) -> Iterator[tuple[str, Iterator[Candidate]]]:
    """Yield the prefix of every volume that has objects below ``prefix``, and those: of every kind.

    To be read in step: a volume's objects end when the next volume is asked for.

    :param prefix: an installation's, a project's or a volume's; ends in a slash.
    :param strange: called with each key that does not parse.
    :raises ValueError: the prefix is no such thing.
    :raises ChunkStoreError: the listing failed; what was yielded is not all.
    """
    if not prefix.endswith("/") or prefix.startswith("/") or prefix.count("/") > 3:
        raise ValueError(f"{prefix!r} is no prefix of an installation, project or volume")
    yield from _by_volume(container, prefix, control, strange)


def all_by_volume(container: Container, control: Control) -> Iterator[tuple[str, Iterator[Candidate]]]:
    """As :func:`objects_by_volume`, of all installations; only to read, never to delete.

    :raises ChunkStoreError: the listing failed; what was yielded is not all.
    """
    yield from _by_volume(container, "", control, _unheard)


def _by_volume(
    container: Container, prefix: str, control: Control, strange: Callable[[str], None]
) -> Iterator[tuple[str, Iterator[Candidate]]]:
    listed = own_objects(container, prefix, control, manifests=True, strange=strange)
    if container.capabilities.sorted_listing:
        yield from groupby(listed, key=lambda one: keys.volume_prefix_of(one.key))
        return
    # Sorted by key, without the segment; callers that need the order of segments sort again.
    with in_order(Candidate(0, one.key, one.size) for one in listed) as everything:
        for volume_prefix, objects in groupby(everything, key=lambda one: keys.volume_prefix_of(one.key)):
            yield volume_prefix, (Candidate(_segment(one.key), one.key, one.size) for one in objects)


def _segment(key: str) -> int:
    parsed = keys.parse(key)
    return -1 if parsed is None else parsed.segment
