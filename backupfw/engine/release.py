"""Release: deletes the objects that only one manifest names, then that manifest.

Two sources say which other manifests may name an object: the lineage (the *relatives*), and a listing of
the volume's manifests, which shows the unknown ones (:func:`removal.spare`).  The order of the work makes
it safe to kill it anywhere and to run it again:

1. Read the manifest, then the others, all of them to the end.  Nothing is deleted before every page is read.
   So a manifest that is missing, damaged or of an unknown format costs only time: the call raises, and the
   release waits.
2. Delete the objects that no other manifest names, in bulk.
3. Delete the manifest.  As long as it is there, everything above can be done again; when it is gone,
   everything was done.

No listing decides what is deleted, so a lagging listing leaves no orphans.  There is one exception: if the
released manifest is damaged or was lost, nobody can read what it named.  Then the backup's own objects are
listed, and those that no other manifest names are deleted.  This is safe: if a live manifest needs an object
of this backup, every manifest on the path between them named it, and the first live one on that path is a
relative, which is read in full here.  The sweep finds the objects that the damaged manifest shared with
others, and those that the listing did not show (``ReleaseResult.complete`` is False).  The damaged manifest
must be deleted, because the sweep stops at every manifest that it cannot read.
"""

from __future__ import annotations

from dataclasses import dataclass

from backupfw import crash_points
from backupfw.chunkstore.container import Container
from backupfw.engine import objects
from backupfw.engine.candidates import Spool, in_order, named_by, of_entry
from backupfw.engine.format import keys
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.listing import own_objects
from backupfw.engine.ports import Control, KnownManifests
from backupfw.engine.removal import check_settled, delete_all, spare, unknown_manifests
from backupfw.errors import Damaged


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """What a release did.

    :ivar objects_deleted: objects it deleted, the manifest included; 0 when all was done before.
    :ivar bytes_deleted: their sizes as the manifest states them.
    :ivar complete: False when the released manifest was damaged or lost, so that objects may be left to the
        sweep.
    """

    objects_deleted: int
    bytes_deleted: int
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a manifest keeps in the store; each pair is a number of objects and the sum of their sizes.

    :ivar own: what no other manifest names, and the manifest: what a release would delete.
    :ivar shared: what others name as well; an object that several others name counts once.
    :ivar shared_with: for each manifest that was asked and names any of it, how much.
    """

    own: tuple[int, int]
    shared: tuple[int, int]
    shared_with: dict[str, tuple[int, int]]


def look(
    manifest_key: str,
    manifests: KnownManifests,
    own_prefix: str,
    container: Container,
    control: Control,
) -> Holdings:
    """Say what a release would delete, and what stays because other manifests name it; nothing is changed.

    Memory is bounded as in :func:`run`.  Each manifest asked is read twice, this one once.

    :param manifests: as in :func:`run`, but ``asked`` are all the volume's manifests in use, without this
        one; the answer says how much each of them shares.
    :param own_prefix: the prefix of the manifest's installation; objects outside of it are not counted.
    :raises Damaged: the manifest or one that was asked is missing or damaged.
    :raises UnsupportedFormat: one of them is of a version not known here.
    :raises ChunkStoreError: the store does not answer.
    """
    spool, origins, size = _named(manifest_key, own_prefix, container, control)
    count, total = spool.count, spool.size
    shared_with: dict[str, tuple[int, int]] = {}
    try:
        for key in manifests.asked:
            found = named_by(spool, key, container, control)
            if found[0]:
                shared_with[key] = found
        unknown = _unknown(manifest_key, manifests, container, control)
    except BaseException:
        spool.close()
        raise
    with spare(spool, manifests.asked, unknown, container, control, origins) as doomed:
        return Holdings(
            own=(doomed.count + 1, doomed.size + size),
            shared=(count - doomed.count, total - doomed.size),
            shared_with=shared_with,
        )


def run(
    manifest_key: str,
    manifests: KnownManifests,
    own_prefix: str,
    container: Container,
    control: Control,
) -> ReleaseResult:
    """Delete the objects of a released manifest that no other one names, then the manifest.

    Idempotent, and two runs at a time do no harm.  Memory is bounded, whatever the manifest's size.

    :param manifest_key: key of the released manifest, or of one that will never be committed; one of our
        installation.
    :param manifests: what the database knows of the volume; ``asked`` are the relatives, that may share
        objects with it, computed after it was released (for this attempt, not an earlier one).
    :param own_prefix: our installation's prefix, ``<installation>/``; nothing outside of it is deleted.
    :raises ValueError: the manifest is not one of our installation.
    :raises Damaged: a relative is missing or damaged, or a manifest that the database does not know is
        damaged; nothing was deleted.
    :raises UnsupportedFormat: the manifest or a relative is of a version not known here; nothing was
        deleted.
    :raises ListingBehind: listings do not show yet all that was put before this process began; nothing was
        deleted, to be run again.
    :raises DeleteFailed: objects remain; the manifest is still there.
    :raises ChunkStoreError: the store does not answer; to be run again.
    :raises TaskStopped: the task must end; to be run again.
    """
    parsed = keys.parse(manifest_key)
    if parsed is None or parsed.kind != "manifest" or not manifest_key.startswith(own_prefix):
        raise ValueError(f"{manifest_key} is no manifest of installation {own_prefix}")
    if own_prefix.count("/") != 1 or not own_prefix.endswith("/"):
        raise ValueError(f"{own_prefix} is no installation's prefix")
    if manifest_key in manifests.asked:
        raise ValueError("a manifest is no relative of itself")
    origins: set[str] | None = None
    try:
        spool, origins, size = _named(manifest_key, own_prefix, container, control)
    except Damaged:
        backup_prefix = parsed.origin.rpartition("/")[0] + "/"
        spool, size = in_order(own_objects(container, backup_prefix, control)), 0
        if not spool.count and objects.is_missing(container, manifest_key):
            spool.close()
            return ReleaseResult(0, 0)
    try:
        if spool.count:
            check_settled(container)
        unknown = _unknown(manifest_key, manifests, container, control)
    except BaseException:
        spool.close()
        raise
    with spare(spool, manifests.asked, unknown, container, control, origins) as doomed:
        delete_all(doomed, container, control)
        control.check()
        crash_points.reach("delete.data-deleted")
        container.delete([manifest_key])
        return ReleaseResult(doomed.count + 1, doomed.size + size, complete=origins is not None)


def _unknown(
    manifest_key: str, manifests: KnownManifests, container: Container, control: Control
) -> list[str]:
    """Return the volume's manifests that the database does not know.

    The manifest that is released is never among them.
    """
    found = unknown_manifests(keys.volume_prefix_of(manifest_key), manifests, container, control)
    return [key for key in found if key != manifest_key]


def _named(
    manifest_key: str, own_prefix: str, container: Container, control: Control
) -> tuple[Spool, set[str], int]:
    """Return what the manifest names and we may delete, all its origins, and its size."""
    reader = ManifestReader(container, manifest_key)
    origins: set[str] = set()
    spool = Spool()
    try:
        for number, entry in enumerate(reader.segments()):
            if number % 256 == 0:
                control.check()
            origins |= entry.origins()
            spool.extend(one for one in of_entry(entry) if one.key.startswith(own_prefix))
    except BaseException:
        spool.close()
        raise
    return spool, origins, reader.totals.manifest_bytes
