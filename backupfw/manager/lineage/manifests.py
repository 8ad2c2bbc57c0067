"""The lineage of manifests in the database: which backups use one, which manifests may share with it, when it
ends.

The rule itself is :mod:`backupfw.manager.lineage.tree`; this module loads the volume's tree, asks the
rule, and stores what changed.  All functions work inside the caller's transaction and leave the commit
to it.

Why two concurrent requests can never both succeed: a transaction that takes a manifest (for a child or a
duplicate) or gives one up first updates the manifest's own row.  So the database runs these transactions one
after the other, and each reads what it decides on after its update.  A transaction that reads or changes the
tree's edges locks the rows of the volume's tree in the order of their ids
(:func:`backupfw.db.locks.lock`), and reads them after that.

A manifest shares only with manifests of the same volume, store and container, so that is the extent of a
tree.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import CursorResult, Update, delete, exists, func, select, update
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql import ColumnElement

from backupfw.db.locks import lock, put
from backupfw.db.models import Backup, BackupCopy, DataKey, Installation, Manifest, Sweep, Task
from backupfw.db.session import now
from backupfw.errors import StillLocked, TakesTurns
from backupfw.manager.lineage.lifecycle import (
    ANNOUNCED,
    CREATING,
    DELETING,
    ERROR,
    ERROR_DELETING,
    GONE,
    LIVE,
    RELEASED,
    RESTORING,
    WRITING,
)
from backupfw.manager.lineage.tree import Node, Tree

#: The ``installation_id`` of a manifest that is a *link* of Cinder's format: its key is the prefix of all its
#: objects, and its ``base_id`` the link of its parent, without which it cannot be read.  As of any other
#: installation it is in no tree, shared with by nothing, and not swept.
CINDER = "cinder-backup"


@dataclass(frozen=True, slots=True)
class VolumeRows:
    """What a sweep needs to know about one volume, read at one moment.

    :ivar live: keys of its live manifests.
    :ivar known: keys of all its manifests, in any state, except those that are only announced.
    :ivar announced: announced keys of backups that are not deleted; a manifest may stay under such a key
        until its backup is deleted.
    :ivar transient: ids of the backups whose objects can change at any moment.
    :ivar mac_ids: ids of the keys of the digests of manifests that are not gone, and of all its data keys.
    :ivar copying: a copy to the container is being made, so any object may have been put for it.
    :ivar copies: ids of all copies to the container that ever began.
    """

    live: frozenset[str]
    known: frozenset[str]
    announced: frozenset[str]
    transient: frozenset[str]
    mac_ids: frozenset[str]
    copying: bool = False
    copies: frozenset[str] = frozenset()


def _tree_of(row: Manifest) -> ColumnElement[bool]:
    """Return the condition that selects the rows of ``row``'s tree."""
    return (
        (Manifest.volume_id == row.volume_id)
        & (Manifest.store == row.store)
        & (Manifest.container == row.container)
        & (Manifest.installation_id == row.installation_id)
        & Manifest.in_tree
    )


def _load(session: Session, row: Manifest) -> Tree:
    """Lock the tree that ``row`` is in, then load it.

    One statement reads all rows, so the answer is one state of the tree on any database.  Its length grows
    with the volume's live manifests, because gone ones stay only as forks.  Rows that were inserted while
    this transaction waited for the lock are read, too.
    """
    lock(session, Manifest, _tree_of(row))
    found = session.execute(
        select(Manifest.id, Manifest.base_id, Manifest.state, Manifest.detached).where(_tree_of(row))
    )
    return Tree(Node(*columns) for columns in found)


def _row(session: Session, manifest_id: str) -> Manifest:
    row = session.get(Manifest, manifest_id, populate_existing=True)
    if row is None:
        raise LookupError(f"no manifest {manifest_id}")
    return row


def _change(session: Session, statement: Update) -> bool:
    """Run an update of manifests past the session's objects; say whether it hit a row."""
    session.flush()
    result = session.execute(statement.execution_options(synchronize_session=False))
    for known in session.identity_map.values():
        if isinstance(known, Manifest):
            session.expire(known)
    assert isinstance(result, CursorResult)
    return result.rowcount > 0


def links(session: Session, manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Return container and key of a manifest of Cinder's format and of those that it needs, newest first.

    :returns: nothing for one of ours.
    """
    found: list[tuple[str, str]] = []
    one: Manifest | None = manifest if manifest.installation_id == CINDER else None
    while one is not None:
        found.append((one.container, str(one.key)))
        one = None if one.base_id is None else session.get(Manifest, one.base_id)
    return tuple(found)


def is_needed_link(session: Session, manifest_id: str) -> bool:
    """Return whether links of Cinder's format need this one; nothing else has a base that is not ours."""
    child = select(Manifest.id).where(
        Manifest.base_id == manifest_id, Manifest.installation_id == CINDER, Manifest.state != GONE
    )
    return session.scalar(child.limit(1)) is not None


def find_link(session: Session, store: str, backup_id: str) -> Manifest | None:
    """Return a live link of Cinder's format, by the backup that Cinder made."""
    found = select(Manifest).where(
        Manifest.backup_id == backup_id,
        Manifest.installation_id == CINDER,
        Manifest.store == store,
        Manifest.state == LIVE,
    )
    return session.scalar(found.order_by(Manifest.created_at).limit(1))


def drop_links(session: Session, manifest_id: str | None) -> str | None:
    """Delete the rows of links that no record names and no other link needs, from this one on.

    Their objects stay: no backup that was imported here had them.

    :return: where that ended, if at a link that a converted backup had: its objects go when nothing needs it.
    """
    while manifest_id is not None:
        lock(session, Manifest, Manifest.id == manifest_id)
        row = session.get(Manifest, manifest_id, populate_existing=True)
        named = select(Backup.id).where(Backup.manifest_id == manifest_id)
        if row is not None and row.copied:
            return manifest_id
        if row is None or row.state != LIVE or is_needed_link(session, manifest_id):
            return None
        if session.scalar(named.where(Backup.deleted.is_(False)).limit(1)) is not None:
            return None
        session.execute(
            update(Backup).where(Backup.manifest_id == manifest_id).values(manifest_id=None),
            execution_options={"synchronize_session": False},
        )
        above = row.base_id
        session.execute(delete(Manifest).where(Manifest.id == manifest_id))
        session.expire_all()
        manifest_id = above
    return None


def take(session: Session, manifest_id: str) -> bool:
    """Take a manifest for a child or a duplicate that the caller inserts in this transaction.

    :return: False if it is not live (any more): it can have no child or duplicate.
    """
    return _change(
        session,
        update(Manifest)
        .where(Manifest.id == manifest_id, Manifest.state == LIVE)
        .values(touched=Manifest.touched + 1),
    )


def release_if_unused(session: Session, manifest_id: str, *, even_locked: bool = False) -> bool:
    """Release a live manifest when no record names it and no child is being made from it, or needs it.

    To be called after every removal of a record that named it, and after the end (any end) of a child
    that was being made from it.  Irrevocable; the caller adds the task that deletes the objects.

    :param even_locked: whether its objects' locks in the store do not count.
    :return: True when this call released it.
    :raises StillLocked: no record names it, but it is locked, so it stays live until then.
    """
    # Updated first: a transaction that takes it or gives it up waits here, or is seen below.
    if not take(session, manifest_id):
        return False
    named = select(Backup.id).where(Backup.manifest_id == manifest_id, Backup.deleted.is_(False))
    copy = select(BackupCopy.id).where(BackupCopy.manifest_id == manifest_id)
    if any(session.scalar(one.limit(1)) is not None for one in (named, copy)):
        return False
    if not even_locked:
        refuse_while_locked(session, manifest_id)
    if is_base_of_running(session, manifest_id) or is_needed_link(session, manifest_id):
        return False
    return _change(session, update(Manifest).where(Manifest.id == manifest_id).values(state=RELEASED))


def locked_until(session: Session, manifest_id: str) -> datetime | None:
    """Return until when what a manifest names is locked in its store, naive UTC; None: not (any more)."""
    until = session.scalar(select(Manifest.locked_until).where(Manifest.id == manifest_id))
    return until if until is not None and until > now(session) else None


def earliest(*ends: datetime | None) -> datetime | None:
    """Return until when all of some objects are locked, as far as it is known of each when its lock ends."""
    known = [end for end in ends if end is not None]
    return min(known) if len(known) == len(ends) else None


def refuse_while_locked(session: Session, manifest_id: str) -> None:
    """Refuse to release a manifest that is locked.

    :raises StillLocked: it is.
    """
    until = locked_until(session, manifest_id)
    if until is not None:
        raise StillLocked(until, (until - now(session)).total_seconds())


def abandon(session: Session, manifest_id: str) -> bool:
    """Give up a manifest that was being written: no manifest shares with it, and its own objects can be
    deleted.

    The base it was made from may be unused now: see :func:`release_if_unused`.

    :return: True when this call did it.
    """
    return _change(
        session,
        update(Manifest).where(Manifest.id == manifest_id, Manifest.state == WRITING).values(state=RELEASED),
    )


def relatives(session: Session, manifest_id: str) -> list[Manifest]:
    """Find the manifests that a release of this one must read before it deletes anything, in no order.

    These are the manifests in the database that may share objects; unknown ones must be found by a listing
    (see :func:`volume_keys`).  A manifest in state ``writing`` has no key yet: the release must wait for it.

    Every attempt of a release must call this again, in a transaction that began after the commit of the
    transaction that released the manifest.  So if two manifests are released at the same time, the later one
    sees the other one as released.

    :raises LookupError: there is no such manifest.
    :raises ValueError: it is still writing or live.
    """
    row = _row(session, manifest_id)
    if row.state in (WRITING, LIVE):
        raise ValueError(f"manifest {manifest_id} is {row.state}")
    tree = _load(session, row)
    if manifest_id not in tree:
        return []
    # The lock has expired what the session knew of them.
    return list(session.scalars(select(Manifest).where(Manifest.id.in_(tree.relatives(manifest_id)))))


def volume_keys(session: Session, manifest_id: str) -> set[str]:
    """Return the keys of all manifests of this one's volume that the database ever knew, in any state.

    Announced ones that were given up are among them, those that are open are not: a manifest that a listing
    shows beside these keys is unknown.

    :raises LookupError: there is no such manifest.
    """
    row = _row(session, manifest_id)
    found = session.scalars(
        select(Manifest.key).where(
            Manifest.volume_id == row.volume_id,
            Manifest.store == row.store,
            Manifest.container == row.container,
            Manifest.installation_id == row.installation_id,
            Manifest.state != ANNOUNCED,
        )
    )
    return {key for key in found if key is not None}


def live_backups(session: Session, manifest_id: str) -> dict[str, list[str]]:
    """Return the keys of the live manifests of this one's volume, itself among them if it is live.

    Each with the sorted ids of the backups whose records name it.

    :raises LookupError: there is no such manifest.
    """
    row = _row(session, manifest_id)
    by_backup = (Backup.manifest_id == Manifest.id) | Backup.id.in_(
        select(BackupCopy.backup_id).where(BackupCopy.manifest_id == Manifest.id)
    )
    found = session.execute(
        select(Manifest.key, Backup.id)
        .outerjoin(Backup, by_backup & Backup.deleted.is_(False))
        .where(_tree_of(row), Manifest.state == LIVE)
        .order_by(Backup.id)
    )
    names: dict[str, list[str]] = {}
    for key, backup_id in found:
        if key is not None:
            names.setdefault(key, []).extend([] if backup_id is None else [backup_id])
    return names


def is_base_of_running(session: Session, manifest_id: str) -> bool:
    """Return whether an incremental backup is being made from this manifest."""
    child = select(Manifest.id).where(Manifest.base_id == manifest_id, Manifest.state == WRITING)
    return session.scalar(child.limit(1)) is not None


def keys_that_may_name(session: Session, manifest_id: str) -> list[str]:
    """Return the keys of live manifests that can name objects of this one's backup before it is committed.

    If the database was restored from an older copy, an attempt that the copy does not know may have been
    committed, and later backups may share with that one.  They came back by an import, detached, or by a
    rebuild: then another manifest of the backup is known, or was, and any of the volume may be meant.

    :raises LookupError: there is no such manifest.
    """
    row = _row(session, manifest_id)
    another = select(Manifest.id).where(
        Manifest.volume_id == row.volume_id,
        Manifest.store == row.store,
        Manifest.container == row.container,
        Manifest.installation_id == row.installation_id,
        Manifest.backup_id == row.backup_id,
        Manifest.id != manifest_id,
        Manifest.state.in_((LIVE, RELEASED, GONE)),
        Manifest.length.is_not(None),
    )
    found = select(Manifest.key).where(_tree_of(row), Manifest.state == LIVE)
    if session.scalar(another.limit(1)) is None:
        found = found.where(Manifest.detached)
    return sorted(key for key in session.scalars(found) if key is not None)


# Copies.  A copy puts objects under keys that other manifests in its container name, or named, and that an
# earlier copy may have put and a release may be deleting.  So in one tree copies and releases take turns: a
# copy begins when no release there is at work, and a release plans when no copy has begun.  The same holds
# for a sweep, whose orphans a copy would take for its own: no copy begins while one deletes, and none deletes
# while one is made.  The lock of the installation's row decides between them: a volume may have no row.
# ``copy_step`` of a copy's row says how far it is: null, ``begun``, or ``placed``: its base is known.  Rows
# that were made before there was this column say it in ``source_identity``; there it is said still, for the
# processes of that release, whose removals and sweeps must see the copies of this one.
_BEGUN, _PLACED = "begun", "placed"
#: Longer than any request that deletes, with its repetitions: as long copies wait for a sweep that died.
_SWEEP_HOLDS = timedelta(hours=1)
_STEP = func.coalesce(Manifest.copy_step, Manifest.source_identity)


def _step(row: Manifest) -> str | None:
    return row.copy_step or row.source_identity


def _set_step(row: Manifest, step: str) -> None:
    row.copy_step = row.source_identity = step


def is_copying() -> ColumnElement[bool]:
    """The condition on a manifest's row that it is a copy that has begun and has not ended."""
    return Manifest.copied & (Manifest.state == WRITING) & _STEP.is_not(None)


def is_placed() -> ColumnElement[bool]:
    """The condition on a copy's row that something may have been put for it."""
    return _STEP == _PLACED


def refuse_while_copying(session: Session, manifest_id: str) -> None:
    """Refuse to plan a release in whose container a copy of the same volume has begun.

    :raises TakesTurns: one has.
    """
    row = _row(session, manifest_id)
    lock(session, Manifest, _tree_of(row))
    if session.scalar(select(Manifest.id).where(_tree_of(row), is_copying()).limit(1)) is not None:
        raise TakesTurns("a copy of a backup that may share the data is being made")


def _waits_for_lock() -> ColumnElement[bool]:
    """The condition on a released manifest that its removal only waits for the end of a lock in the store.

    That may take weeks.  The next attempt plans anew: it waits for copies that have begun, and leaves what
    those that are complete need.
    """
    # Said, because SQLAlchemy does not look two levels up: it would take the backups of all manifests.
    backups = select(Backup.id).where(Backup.manifest_id == Manifest.id).correlate(Manifest)
    of_it = (Task.resource_id == Manifest.id) | Task.resource_id.in_(backups)
    waiting = Task.locked & (Task.state == "queued")
    removal = Task.kind.in_(("backup.delete", "manifest.release")) & of_it
    return exists().where(removal) & ~exists().where(removal, ~waiting)


def begin_copy(session: Session, row: Manifest) -> bool:
    """Begin a copy (state writing), or go on with it.

    :return: whether its place in the lineage is known: see :func:`place_copy`.
    :raises TakesTurns: a release in its tree has not ended, or a sweep deletes objects of the volume there.
    """
    if _step(row) is None:
        lock(session, Installation)
        sweeping = select(Sweep.id).where(
            Sweep.volume_id == row.volume_id,
            Sweep.store == row.store,
            Sweep.container == row.container,
            Sweep.until > now(session),
        )
        if session.scalar(sweeping.limit(1)) is not None:
            raise TakesTurns("a sweep deletes orphans of the same volume there")
        lock(session, Manifest, _tree_of(row))
        released = select(Manifest.id).where(_tree_of(row), Manifest.state == RELEASED, ~_waits_for_lock())
        if session.scalar(released.limit(1)) is not None:
            raise TakesTurns("the removal of a backup of the same volume has not ended there")
        _set_step(row, _BEGUN)
        session.flush()
    return _step(row) == _PLACED


def hold_copies_back(session: Session, sweep_id: str, *, store: str, container: str, volume_id: str) -> None:
    """Let no copy of a volume to a container begin until :func:`let_copies_begin`, or for an hour.

    To be called before each request of a sweep; if no copy has begun, as the transaction reads afterwards,
    none does.
    """
    lock(session, Installation)
    moment = now(session)
    session.execute(delete(Sweep).where(Sweep.until <= moment))
    mark = {"id": sweep_id, "volume_id": volume_id, "store": store, "container": container}
    put(session, Sweep, [{**mark, "until": moment + _SWEEP_HOLDS}])


def let_copies_begin(session: Session, sweep_id: str, volume_id: str) -> None:
    """Say that the requests of a sweep for a volume have ended."""
    session.execute(delete(Sweep).where(Sweep.id == sweep_id, Sweep.volume_id == volume_id))


def place_copy(session: Session, row: Manifest, base_digest: str | None, *, detached: bool) -> None:
    """Record a copy's place in the lineage, before anything is put for it.

    :param base_digest: of the key of the manifest whose objects it shares; None: it shares none.
    :param detached: its neighbours are not known.
    """
    base_id = None
    if base_digest is not None and not detached:
        found = select(Manifest.id).where(_tree_of(row), Manifest.key_digest == base_digest)
        base_id = session.scalar(found)
        detached = base_id is None or not take(session, base_id)
    row.base_id = None if detached else base_id
    row.detached = detached
    _set_step(row, _PLACED)
    session.flush()


def has_begun(row: Manifest) -> bool:
    """Return whether an attempt at a copy, or at a conversion, has begun; its row has no blocks before."""
    return _step(row) is not None if row.copied else row.block_size > 0


def count_as_copy(row: Manifest) -> None:
    """Say of a live manifest that it is a copy: it was found in a store, or is a link that was converted."""
    row.copied = True
    _set_step(row, _PLACED)


def may_have_objects(row: Manifest) -> bool:
    """Return whether an attempt may have put objects for a manifest, so that its container was there."""
    if row.copied:
        return _step(row) == _PLACED
    return row.key is not None or row.source_identity is not None


def free_key(session: Session, key_digest: str) -> None:
    """Let another row have the key of a copy that is gone."""
    _change(
        session,
        update(Manifest)
        .where(Manifest.key_digest == key_digest, Manifest.state == GONE, Manifest.length.is_not(None))
        .values(key=None, key_digest=None),
    )


def announce(session: Session, row: Manifest, key: str, key_digest: str) -> None:
    """Record that an attempt will put a manifest for ``row`` (state writing) under this key.

    From now on the key is *open*: a manifest may or may not be committed under it, because an operator may
    restore this state of the database later.  :func:`commit` or :func:`give_up` ends that; until then the
    manifest counts as unknown.
    """
    session.add(
        Manifest(
            id=str(uuid.uuid4()),
            store=row.store,
            container=row.container,
            key=key,
            key_digest=key_digest,
            installation_id=row.installation_id,
            project_id=row.project_id,
            volume_id=row.volume_id,
            backup_id=row.backup_id,
            in_tree=False,
            state=ANNOUNCED,
            epoch=row.epoch,
            block_size=row.block_size,
            segment_size=row.segment_size,
            hash_mode=row.hash_mode,
            key_id=row.key_id,
            mac_id=row.mac_id,
            created_at=row.updated_at,
            updated_at=row.updated_at,
        )
    )
    session.flush()


def is_announced(session: Session, key_digest: str) -> bool:
    """Return whether this key is announced and open."""
    found = select(Manifest.id).where(Manifest.key_digest == key_digest, Manifest.state == ANNOUNCED)
    return session.scalar(found) is not None


def is_given_up(session: Session, key_digest: str) -> bool:
    """Return whether this key was announced and given up."""
    found = select(Manifest.id).where(
        Manifest.key_digest == key_digest, Manifest.state == GONE, Manifest.length.is_(None)
    )
    return session.scalar(found) is not None


def is_unneeded(session: Session, key_digest: str) -> bool:
    """Return whether a key was announced and given up, and what lies there can be deleted unread.

    While its backup is being made, a live manifest, the base, names all that such a manifest names of other
    backups.  Later their objects may stay for it alone: whoever removes the backup's data must read it
    first.  When that is done, nothing stays for it.
    """
    released = aliased(Manifest)
    removed_later = exists().where(
        released.volume_id == Manifest.volume_id,
        released.backup_id == Manifest.backup_id,
        released.state == RELEASED,
    ) | exists().where(
        Backup.id == Manifest.backup_id,
        Backup.deleted.is_(False),
        Backup.status.in_((ERROR, DELETING, ERROR_DELETING)),
    )
    found = select(Manifest.id).where(
        Manifest.key_digest == key_digest, Manifest.state == GONE, Manifest.length.is_(None), ~removed_later
    )
    return session.scalar(found) is not None


def announced_keys(session: Session, backup_id: str, *which: ColumnElement[bool]) -> list[str]:
    """Return the keys that attempts of a backup announced and that are open.

    :param which: conditions on the rows.
    """
    found = session.scalars(
        select(Manifest.key).where(Manifest.backup_id == backup_id, Manifest.state == ANNOUNCED, *which)
    )
    return sorted(key for key in found if key is not None)


def given_up_keys(session: Session, backup_id: str) -> list[str]:
    """Return the keys that attempts of a backup announced and that were given up.

    The rows stay; only the store knows whether a manifest is still under such a key.
    """
    found = session.scalars(
        select(Manifest.key).where(
            Manifest.backup_id == backup_id, Manifest.state == GONE, Manifest.length.is_(None)
        )
    )
    return sorted(key for key in found if key is not None)


def give_up(session: Session, *which: ColumnElement[bool]) -> None:
    """Give up announced keys: they will never be committed.

    Only these callers can know that: an attempt, for its own key; an attempt, for all keys of its backup that
    it did not find complete in the store; the deletion of the backup; a sweep, for keys that no attempt will
    settle and that are not in the store.

    :param which: conditions on the rows.
    """
    _change(
        session,
        update(Manifest)
        .where(Manifest.state == ANNOUNCED, *which)
        .values(state=GONE, updated_at=now(session)),
    )


def announced_for_nobody() -> ColumnElement[bool]:
    """The condition that a key is open and its backup is deleted, so it will not be committed.

    A deletion gives up the keys of its backup, but a worker of an older release does not.
    """
    return (Manifest.state == ANNOUNCED) & ~_has_backup()


def _has_backup() -> ColumnElement[bool]:
    """Return the condition that the backup that made a manifest is not deleted."""
    return exists().where(Backup.id == Manifest.backup_id, Backup.deleted.is_(False))


def announced_beside_live(session: Session, store: str, container: str) -> list[str]:
    """Return the keys in a container that are open although their backup was committed under another key.

    No attempt will settle them: a worker of an older release committed, or the manifest names damaged
    objects.
    """
    live = aliased(Manifest)
    found = session.scalars(
        select(Manifest.key).where(
            Manifest.store == store,
            Manifest.container == container,
            Manifest.state == ANNOUNCED,
            exists().where(
                live.volume_id == Manifest.volume_id,
                live.in_tree,
                live.backup_id == Manifest.backup_id,
                live.state == LIVE,
            ),
        )
    )
    return sorted(key for key in found if key is not None)


def forget_announced(session: Session, key_digest: str) -> None:
    """Drop an announced key that gets a row of another kind in this transaction."""
    session.execute(
        delete(Manifest).where(Manifest.key_digest == key_digest, Manifest.state == ANNOUNCED),
        execution_options={"synchronize_session": False},
    )


def commit(session: Session, row: Manifest, key: str, key_digest: str, length: int) -> bool:
    """Make a manifest that was being written live, under the key that was announced for it.

    :return: False: the key was given up; nothing was changed.
    """
    forget_announced(session, key_digest)
    if is_given_up(session, key_digest):
        return False
    row.state = LIVE
    row.key = key
    row.key_digest = key_digest
    row.length = length
    return True


def volume_rows(
    session: Session,
    *,
    store: str,
    container: str,
    installation_id: str,
    volume_id: str,
    ending: str | None = None,
) -> VolumeRows:
    """Read what a sweep needs to know about a volume; call it after the listing of the volume's objects.

    :param ending: the row of a copy that was given up: what was put for it is to be swept.
    """
    is_open = (Manifest.state == ANNOUNCED) & _has_backup()
    place = {
        "volume_id": volume_id,
        "store": store,
        "container": container,
        "installation_id": installation_id,
    }
    columns = (
        Manifest.id,
        Manifest.key,
        Manifest.state,
        Manifest.backup_id,
        Manifest.mac_id,
        is_copying().label("is_copying"),
        (Manifest.copied & _STEP.is_not(None)).label("has_copied"),
        is_open.label("is_open"),
    )
    here = [getattr(Manifest, name) == value for name, value in place.items()]
    found = session.execute(select(*columns).where(*here)).all()
    mac_ids = {row.mac_id for row in found if row.state != GONE and row.mac_id is not None}
    mac_ids.update(session.scalars(select(DataKey.mac_id).filter_by(**place)))
    transient = {row.backup_id for row in found if row.state in (WRITING, RELEASED) and row.id != ending}
    moving = select(Backup.id).where(
        Backup.volume_id == volume_id,
        Backup.deleted.is_(False),
        Backup.status.in_((CREATING, RESTORING, DELETING, ERROR_DELETING)),
    )
    # Of the backup whose copy is ending, only the copy was here.
    ended = {row.backup_id for row in found if row.id == ending}
    transient.update(one for one in session.scalars(moving) if one not in ended)
    return VolumeRows(
        live=frozenset(row.key for row in found if row.state == LIVE),
        known=frozenset(row.key for row in found if row.key is not None and row.state != ANNOUNCED),
        announced=frozenset(row.key for row in found if row.is_open),
        transient=frozenset(transient),
        mac_ids=frozenset(mac_ids),
        copying=any(row.is_copying for row in found),
        copies=frozenset(row.id for row in found if row.has_copied),
    )


def mark_gone(session: Session, manifest_id: str) -> bool:
    """Record that a released manifest's objects are deleted, and contract the tree.

    The row stays, so that an import of the deleted backup is refused; :mod:`backupfw.manager.operators.purge`
    says for how long.

    :return: False if it was gone already; the tree is contracted in both cases.
    :raises LookupError: there is no such manifest.
    :raises ValueError: it was never released.
    """
    row = _row(session, manifest_id)
    if row.state not in (RELEASED, GONE):
        raise ValueError(f"manifest {manifest_id} is {row.state}")
    # Locked before the row is changed, so that two manifests of one volume wait for each other without a
    # deadlock.
    tree = _load(session, row)
    marked = _change(
        session,
        update(Manifest)
        .where(Manifest.id == manifest_id, Manifest.state == RELEASED)
        .values(state=GONE, updated_at=now(session)),
    )
    if manifest_id in tree:
        tree.mark_gone(manifest_id)
    for changed_id, (base_id, in_tree) in tree.contract().items():
        _change(
            session,
            update(Manifest).where(Manifest.id == changed_id).values(base_id=base_id, in_tree=in_tree),
        )
    if row.installation_id == CINDER:
        _change(session, update(Manifest).where(Manifest.id == manifest_id).values(base_id=None))
    return marked
