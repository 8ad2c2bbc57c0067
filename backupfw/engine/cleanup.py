"""Clean-up: deletes what lost attempts of one backup left behind.

It is for a backup that took more than one attempt, failed, or was cancelled.  It deletes every object below
the backup's prefix that the committed manifest does not name; if there is no committed manifest, it deletes
every object below that prefix.  Other backups share only objects that a committed manifest names, so by the
database no other backup needs these objects.  But the database may be an older copy, and the backup may
have been committed since.  So unknown manifests, and the objects that they name, stay
(:func:`removal.spare`).

The journal names objects that a lagging listing does not show; the sweep finds the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from backupfw.chunkstore.container import Container
from backupfw.engine.candidates import Candidate, in_order, of_entry
from backupfw.engine.format import keys
from backupfw.engine.format.entries import SegmentEntry
from backupfw.engine.listing import own_objects
from backupfw.engine.ports import Control, KnownManifests
from backupfw.engine.removal import check_settled, delete_all, spare, unknown_manifests


@dataclass(frozen=True, slots=True)
class CleanupResult:
    """What a clean-up did.

    :ivar objects_deleted: objects it deleted.
    :ivar bytes_deleted: their sizes.
    """

    objects_deleted: int
    bytes_deleted: int


def leftovers(
    backup_prefix: str,
    keep: str | None,
    manifests: KnownManifests,
    recorded: Iterable[SegmentEntry],
    container: Container,
    control: Control,
    *,
    required: bool = True,
) -> CleanupResult:
    """Delete what lies below a backup's prefix and its committed manifest does not name.

    Idempotent.  With a manifest to keep it may run just before the commit: should the task be lost now,
    the next attempt takes over what the journal holds, which this manifest names as well, and puts
    everything else anew.  Without one, no attempt may begin any more.  Memory is bounded, however many
    objects there are.

    :param backup_prefix: the backup's own prefix, ``<installation>/<project>/<volume>/<backup>/``, of our
        installation.
    :param keep: key of the committed manifest; None when there is none and will be none.  With it,
        objects of attempts later than the one that committed are not touched.
    :param manifests: what the database knows of the volume; ``asked`` are those that may name such objects
        although their backup is another one, or the same under another id.
    :param recorded: entries that the journal had of finished segments, in any order; objects of other
        backups that they name are not touched.
    :param required: whether something may have been put: then a container that is missing is a store that is
        away, and not one where nothing was left.
    :raises ValueError: the prefix is no backup's, or ``keep`` is no manifest below it.
    :raises Damaged: a manifest that was asked is missing or damaged, or one that the database does not know
        is damaged; nothing was deleted.
    :raises UnsupportedFormat: one is of a version not known here; nothing was deleted.
    :raises ListingBehind: listings do not show yet all that was put before this process began; nothing was
        deleted, to be run again.
    :raises DeleteFailed: some objects remain.
    :raises ChunkStoreError: the store does not answer; to be run again.
    :raises TaskStopped: the task must end; to be run again.
    """
    parts = backup_prefix.split("/")
    if len(parts) != 5 or parts[-1] or not all(parts[:-1]):
        raise ValueError(f"{backup_prefix} is no backup's prefix")
    last_attempt = None if keep is None else _attempt_of_manifest(keep, backup_prefix)
    journal = (candidate for entry in recorded for candidate in of_entry(entry))
    listed = own_objects(container, backup_prefix, control, manifests=True, required=required)
    # No manifest names itself.
    kept = frozenset((*manifests.asked, *([] if keep is None else [keep])))
    found = in_order(_of_attempts(chain(listed, journal), backup_prefix, kept, last_attempt))
    if not found.count:
        found.close()
        return CleanupResult(0, 0)
    try:
        check_settled(container)
        unknown = unknown_manifests(keys.volume_prefix_of(backup_prefix), manifests, container, control)
    except BaseException:
        found.close()
        raise
    unknown = [key for key in unknown if key != keep]
    with spare(found, sorted(kept), unknown, container, control) as doomed:
        delete_all(doomed, container, control)
        return CleanupResult(doomed.count, doomed.size)


def _attempt_of_manifest(key: str, backup_prefix: str) -> int:
    parsed = keys.parse(key)
    origin = None if parsed is None or parsed.kind != "manifest" else keys.parse_origin(parsed.origin)
    if origin is None or not key.startswith(backup_prefix):
        raise ValueError(f"{key} is no manifest below {backup_prefix}")
    return origin.attempt


def _of_attempts(
    candidates: Iterable[Candidate], backup_prefix: str, kept: Collection[str], last_attempt: int | None
) -> Iterator[Candidate]:
    """Yield the backup's own objects, but the manifests to keep and what later attempts put."""
    for candidate in candidates:
        if not candidate.key.startswith(backup_prefix) or candidate.key in kept:
            continue
        if last_attempt is not None:
            parsed = keys.parse(candidate.key)
            origin = None if parsed is None else keys.parse_origin(parsed.origin)
            if origin is None or origin.attempt > last_attempt:
                continue
        yield candidate
