"""Backups of Cinder's format: finding a backup's links in a store, and what the database keeps of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from oslo_log import log

from backupfw import naming
from backupfw.chunkstore.base import ObjectInfo
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import InvalidName, NotFound
from backupfw.engine.cinder_format import metadata, verify
from backupfw.engine.cinder_format.chain import Chain, Link, Place
from backupfw.engine.cinder_format.metadata import Head
from backupfw.engine.format.binary import BadBytes
from backupfw.engine.ports import Control
from backupfw.errors import Damaged, InvalidInput, UnsupportedFormat
from backupfw.manager import records
from backupfw.manager.lineage.manifests import CINDER
from backupfw.manager.rules.found_manifests import ManifestFacts
from backupfw.manager.rules.volume_rules import may_be_id
from backupfw.worker.handlers.base import restored_volume
from backupfw.worker.stored import record_of

LOG = log.getLogger(__name__)

#: Most objects that are listed in search of the children of one link: a minute of most stores.
MOST_LISTED = 1_000_000
_METADATA = "_metadata"
#: Containers of backups that have a place of their own.
_OWN = re.compile("[0-9a-f]{2}")
#: How the digests of links are made.
_HASH_MODE = "md5"


def read_chain(
    newest: Place,
    find: Callable[[str], Place | None],
    container_of: Callable[[str], Container] | None,
    control: Control,
) -> Chain:
    """Read a backup's link and all that it needs; the caller closes what is returned.

    :param newest: the backup's own link.
    :param find: returns the place of the link of a backup, if it is known without the store.
    :param container_of: gives a container of the same store; None: parents are not searched for.
    :raises InvalidInput: a parent is not found, or the chain is too long.
    :raises Damaged: the metadata of a link is wrong or missing.
    :raises UnsupportedFormat: a link has an unknown version.
    :raises ChunkStoreError: the store could not be read.
    """
    chain = Chain(control)
    try:
        place = newest
        while True:
            head = chain.add(place)
            if head.parent_id is None:
                return chain
            parent = find(head.parent_id)
            if parent is None and container_of is not None:
                parent = _search(place, head, head.parent_id, container_of, control)
            if parent is None:
                raise InvalidInput(
                    f"The backup needs its parent {head.parent_id}, which was not found in the store;"
                    " import that one first."
                )
            place = parent
    except BaseException:
        chain.close()
        raise


def _search(
    child: Place, head: Head, parent_id: str, container_of: Callable[[str], Container], control: Control
) -> Place | None:
    """Look for a parent's link where Cinder's drivers put it: beside its child's, or in a place of its own.

    That its metadata names the right backup is checked when it is read.
    """
    name, start = _own_place(head.backup_id)
    if child.container.name == name and child.prefix.startswith(start):
        name, start = _own_place(parent_id)
        container = container_of(name)
    elif head.volume_id in child.prefix:
        container = child.container
        start = child.prefix[: child.prefix.index(head.volume_id) + len(head.volume_id)]
    else:
        return None
    with suppress(NotFound, InvalidName):
        for number, info in enumerate(container.list(start)):
            if number % 1000 == 0:
                control.check()
            if info.key.endswith(f"_backup_{parent_id}{_METADATA}"):
                return Place(container, info.key.removesuffix(_METADATA))
    return None


def unknown_child(
    link: Place,
    backup_id: str,
    volume_id: str,
    container_of: Callable[[str], Container],
    knows: Callable[[str, str], bool],
    control: Control,
) -> str | None:
    """Return a backup whose link needs this one and is not known to the database; None: none is found.

    Looked at is where Cinder's drivers put it: what the volume's backups have beside it, or the places of
    their own of all backups.  Of these at most :data:`MOST_LISTED` objects are listed.

    :param backup_id: of the link, as Cinder calls it; ``volume_id`` likewise.
    :param knows: whether the database knows, or knew, the link with a prefix in a container.
    :raises ChunkStoreError: the store could not be read.
    :raises TaskStopped: the control said so.
    """
    name, start = _own_place(backup_id)
    if link.container.name == name and link.prefix.startswith(start):
        found = (one for one in link.container.store.list_containers() if _OWN.fullmatch(one))
        infos = ((one, info) for one in map(container_of, found) for info in _listed(one, ""))
    elif volume_id in link.prefix:
        start = link.prefix[: link.prefix.index(volume_id) + len(volume_id)]
        infos = ((link.container, info) for info in _listed(link.container, start))
    else:
        return None
    for number, (container, info) in enumerate(infos):
        if number % 1000 == 0:
            control.check()
        if number == MOST_LISTED:
            LOG.warning("Not all of store %s was searched for children", container.store.name)
            return None
        prefix = info.key.removesuffix(_METADATA)
        if prefix in (info.key, link.prefix) or volume_id not in prefix or knows(container.name, prefix):
            continue
        with suppress(BadBytes, Damaged, UnsupportedFormat):
            head = metadata.read(container, prefix, info.size, lambda _: control.check())
            if head.parent_id == backup_id:
                return head.backup_id
    return None


def _listed(container: Container, start: str) -> Iterator[ObjectInfo]:
    """List a container; one that is missing has nothing."""
    with suppress(NotFound):
        yield from container.list(start)


def _own_place(backup_id: str) -> tuple[str, str]:
    """Return container and beginning of the keys of a backup that has a directory of its own."""
    return backup_id[:2], f"{backup_id[2:4]}/{backup_id}/"


def owner(head: Head) -> str | None:
    """Return the project whose volume was backed up, if the description of the volume says it."""
    found = head.volume["base"].get("project_id")
    return found if isinstance(found, str) and naming.storable(found) == found and found else None


@dataclass(frozen=True, slots=True)
class FoundLink:
    """A link that a listing of a container shows: what is kept of it while all others are found.

    :ivar owner: as :func:`owner` says.
    """

    place: Place
    backup_id: str
    volume_id: str
    parent_id: str | None
    owner: str | None


def find(container: Container, control: Control) -> Iterator[FoundLink | str]:
    """Yield the links of a container; of one whose metadata cannot be read only the prefix.

    :raises ChunkStoreError: the store could not be read.
    :raises TaskStopped: the control said so.
    """
    for number, info in enumerate(container.list("")):
        if number % 1000 == 0:
            control.check()
        prefix = info.key.removesuffix(_METADATA)
        if prefix == info.key:
            continue
        try:
            head = metadata.read(container, prefix, info.size, lambda _: control.check())
        except (BadBytes, Damaged, UnsupportedFormat):
            yield prefix
        else:
            place = Place(container, prefix)
            yield FoundLink(place, head.backup_id, head.volume_id, head.parent_id, owner(head))


def parents_first(found: Mapping[str, FoundLink]) -> Iterator[FoundLink]:
    """Yield links, each after its parent if that is among them.

    :param found: by the ids of their backups.
    """
    done: set[str] = set()
    for start in sorted(found):
        line: list[str] = []
        one: str | None = start
        while one is not None and one in found and one not in done:
            # Marked at once, so that parents in a circle end here; reading their chain says what is wrong.
            done.add(one)
            line.append(one)
            one = found[one].parent_id
        yield from (found[backup_id] for backup_id in reversed(line))


def record(link: Link, found: ManifestFacts) -> records.Record:
    """Return what a link says of its backup, as an export record of Cinder's would."""
    head, place = link.head, link.place
    values = {
        "name": head.name,
        "description": head.description,
        "created_at": head.created_at,
        "data_timestamp": head.created_at,
        "user_id": head.volume["base"].get("user_id"),
    }
    container, prefix = place.container.name, place.prefix
    name, start = _own_place(head.backup_id)
    if container == name and prefix.startswith(start):
        container, prefix = f"{name}/{start.rstrip('/')}", prefix.removeprefix(start)
    made = records.of_manifest(head.backup_id, found.size, values)
    return replace(made, container=container, service_metadata=prefix)


def facts(chain: Chain, service: str, project: str, control: Control) -> ManifestFacts:
    """Return what the database keeps of a backup's link and of those that it needs.

    :param service: ``backup_service`` of the record.
    :param project: the owner of the backup.
    :raises InvalidInput: an object is missing, or the volume has no bytes.
    """
    chain.check()
    if not chain.length:
        raise InvalidInput("The backup has no bytes.")
    report = verify.look(chain, control)
    if not report.ok:
        raise InvalidInput(f"{report.damaged} of the backup's objects are missing or damaged.")
    found: ManifestFacts | None = None
    referenced = 0
    for number, link in reversed(list(enumerate(chain.links))):
        referenced += link.stored_bytes
        found = _facts(link, chain.length_of(number), found, service, project, referenced)
    assert found is not None
    return found


def _facts(
    link: Link, length: int, base: ManifestFacts | None, service: str, project: str, referenced: int
) -> ManifestFacts:
    head = link.head
    volume = restored_volume(record_of(head))
    key = head.volume["base"].get("encryption_key_id")
    place = link.place
    if naming.key_problem(place.prefix) is not None:
        raise InvalidInput("The backup's data has a place that cannot be.")
    return ManifestFacts(
        store=place.container.store.name,
        service=service,
        container=place.container.name,
        key=place.prefix,
        installation_id=CINDER,
        project_id=project,
        volume_id=head.volume_id,
        backup_id=head.backup_id,
        epoch=1,
        length=length,
        block_size=0,
        segment_size=0,
        hash_mode=_HASH_MODE,
        key_id=None,
        mac_id=None,
        object_count=link.object_count,
        stored_bytes=link.stored_bytes,
        referenced_bytes=referenced,
        volume_key_id=key if isinstance(key, str) and may_be_id(key) else None,
        volume_record=None
        if volume is None
        else records.volume_record(None, volume.bootable, volume.image_metadata or {}),
        base=base,
    )
