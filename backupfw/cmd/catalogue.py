"""What the database knows, for commands that work beside the service."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, and_, func, literal, or_, select, union_all
from sqlalchemy.orm import Session, aliased

from backupfw import naming
from backupfw.cmd.progress import counted
from backupfw.conf import stores
from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.db.models import Backup, DamageMark, DataKey, Manifest
from backupfw.db.session import now
from backupfw.engine import objects, removal
from backupfw.errors import (
    BackupNotFound,
    BackupPolicyNotFound,
    InvalidBackup,
    InvalidInput,
    NotFound,
    SnapshotNotFound,
    VolumeNotFound,
)
from backupfw.manager import rows
from backupfw.manager.lineage import manifests
from backupfw.manager.lineage.lifecycle import AVAILABLE, ERROR, GONE, LIVE, RESTORING, WRITING
from backupfw.manager.outcomes import damaged_objects
from backupfw.manager.queue import services
from backupfw.manager.rules import copies
from backupfw.manager.rules.volume_rules import may_be_id

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.chunkstore.container import Container
    from backupfw.db.session import Database
    from backupfw.manager.lineage.manifests import VolumeRows

Named = models.Backup | models.Volume | models.Snapshot | models.BackupPolicy

#: Rows are read in pages of this many.
_PAGE = 1000
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
#: How many ids a refusal of an ambiguous name reports.
_MAX_IDS = 5

#: What an operator can name, and the error where there is none.
_NOT_FOUND: Mapping[type[Named], type[NotFound]] = {
    models.Backup: BackupNotFound,
    models.Volume: VolumeNotFound,
    models.Snapshot: SnapshotNotFound,
    models.BackupPolicy: BackupPolicyNotFound,
}


def find_id(
    db: Database,
    model: type[Named],
    text: str,
    project: str | None = None,
    *,
    by_name: Mapping[str, str | None] | None = None,
) -> str:
    """Return the id of what an operator names: by its id, or by its name where nothing else has that.

    A text in the form of an id is never taken for a name.

    :param project: only of this project; None for any.
    :param by_name: columns and values that it must have where a name is given; an id may be anywhere.  None
        demands nothing.
    :raises NotFound: there is nothing of that id or name.
    :raises InvalidInput: several have that name; the message lists them with their projects.
    """
    row: Any = model
    # What is deleted of others keeps its row.
    there = [] if model is models.BackupPolicy else [row.deleted.is_(False)]
    if project is not None:
        there.append(row.project_id == project)
    if model is models.Snapshot:
        # Temporary snapshots are not shown.
        there.append(row.temporary.is_(False))
    missing = _NOT_FOUND[model]
    if not text or not naming.is_name(text):
        # Spelt in ASCII, because it may have characters that no terminal shows.
        raise missing(ascii(text[: naming.MAX_NAME]))
    wanted = {column: value for column, value in (by_name or {}).items() if value is not None}
    named = select(row.id, row.project_id).where(row.display_name == text, *there).filter_by(**wanted)
    named = named.order_by(row.created_at, row.id).limit(_MAX_IDS + 1)
    with db.read() as session:
        if may_be_id(text):
            spelt = select(row.id).where(row.id.in_((text, text.lower())), *there)
            if (found := session.scalars(spelt.limit(1)).first()) is not None:
                return str(found)
            if _UUID.fullmatch(text):
                # Not taken for a name: otherwise a volume whose name is the id of a deleted one would stand
                # for that one.
                raise missing(text)
        found = session.execute(named).all()
    if not found:
        raise missing(text)
    if len(found) > 1:
        some = ", ".join(f"{one.id} of project {one.project_id}" for one in found[:_MAX_IDS])
        more = ", ..." if len(found) > _MAX_IDS else ""
        raise InvalidInput(f"Several {missing.noun.lower()}s are named {text!r}; give the id: {some}{more}.")
    return str(found[0].id)


def find_backed_up(db: Database, text: str, project: str | None = None) -> str:
    """Return the id of a volume that has backups, or is there; it may be deleted, then only its id names it.

    :param project: a name is looked up in this project only; None for any.
    :raises InvalidInput: there is neither such a volume nor a backup of one, or several have that name.
    """
    try:
        return find_id(db, models.Volume, text, by_name={"project_id": project})
    except VolumeNotFound:
        if may_be_id(text) and backups_exist(db, text, None):
            return text
        # A misspelt name must be an error: an empty result would look as if all were well.
        raise InvalidInput(f"There is no backup of {text}.") from None


class DatabaseCatalogue:
    """What the database knows of volumes in one container.

    A catalogue of :mod:`backupfw.engine.sweep` and of :mod:`backupfw.engine.audit`.
    """

    def __init__(self, db: Database, store: str, container: str, installation: str) -> None:
        self._db = db
        self._where = {"store": store, "container": container, "installation_id": installation}
        self._sweep_id = str(uuid.uuid4())

    def volume(self, project: str, volume: str) -> VolumeRows:  # noqa: ARG002  (volume ids are unique)
        """Read the rows of a volume now."""
        with self._db.read() as session:
            return manifests.volume_rows(session, volume_id=volume, **self._where)

    def deleting(self, project: str, volume: str) -> VolumeRows:  # noqa: ARG002
        """Read the rows of a volume now; no copy of it to the container begins until ``deleted``."""
        place = {name: self._where[name] for name in ("store", "container")}

        def work(session: Session) -> VolumeRows:
            manifests.hold_copies_back(session, self._sweep_id, volume_id=volume, **place)
            return manifests.volume_rows(session, volume_id=volume, **self._where)

        return self._db.run(work)

    def deleted(self, project: str, volume: str) -> None:  # noqa: ARG002
        """Copies of a volume may begin again."""
        self._db.run(lambda session: manifests.let_copies_begin(session, self._sweep_id, volume))

    def volumes(self) -> Iterator[tuple[str, str]]:
        """Yield project and volume of all live manifests of ours in the container, some read at a time."""
        row = Manifest
        found = (
            select(row.volume_id, row.project_id)
            .where(row.state == LIVE)
            .filter_by(**self._where)
            .distinct()
            .order_by(row.volume_id, row.project_id)
            .limit(_PAGE)
        )
        volume, project = "", ""
        while True:
            after = or_(row.volume_id > volume, row.project_id > project)
            with self._db.read() as session:
                page = session.execute(found.where(row.volume_id >= volume, after)).all()
            yield from ((project, volume) for volume, project in page)
            if len(page) < _PAGE:
                return
            volume, project = page[-1]


def give_up_announced(db: Database, container: Container) -> None:
    """Give up the keys of manifests in a container that no attempt will ever settle, and that are not there.

    Workers settle what they announce.  One of an older release deletes or commits a backup and leaves open
    what a newer one had announced for it.
    """
    store, name = container.store.name, container.name
    with db.read() as session:
        announced = manifests.announced_beside_live(session, store, name)
    # The others stay open: later backups, which the database does not know, may share with their manifests.
    missing = [
        object_digest(store, name, key)
        for key in announced
        if objects.is_missing(container, key) and removal.is_absent(container, key)
    ]
    row = Manifest
    which = manifests.announced_for_nobody() | row.key_digest.in_(missing)
    db.run(lambda session: manifests.give_up(session, row.store == store, row.container == name, which))


class UnknownManifests:
    """Counts the unknown manifests of all containers that were looked at.

    :ivar ours: those of this installation.
    :ivar foreign: those of others, by installation.
    """

    def __init__(self) -> None:
        self.ours = 0
        self.foreign: Counter[str] = Counter()

    def add(self, ours: int, foreign: Mapping[str, int]) -> None:
        """Count those of one container."""
        self.ours += ours
        self.foreign.update(foreign)

    def lines(self) -> list[str]:
        """Return the lines of a report on them; none if there are none."""
        lines = []
        if self.ours:
            lines.append(
                f"{counted(self.ours, 'manifest')} of this installation that the database does not know"
            )
        lines += [
            f"{counted(count, 'manifest')} of another installation: {installation}"
            for installation, count in sorted(self.foreign.items())
        ]
        return lines


def containers(db: Database, conf: cfg.ConfigOpts, wanted: list[str] | None) -> list[tuple[str, str]]:
    """Return the (store, container) pairs of enabled stores that hold or held objects of ours.

    :param wanted: only of these stores; None for all.
    """
    names = [name for name in conf.enabled_stores if wanted is None or name in wanted]
    with db.read() as session:
        known = [
            pair
            for row in (Manifest, DataKey)
            for pair in session.execute(select(row.store, row.container).distinct())
        ]
    pairs = {(store, container) for store, container in known if store in names}
    return sorted(pairs | {(name, stores.default_container(conf, name)) for name in names})


def is_in_use(db: Database, conf: cfg.ConfigOpts, store: str, container: str) -> bool:
    """Return whether a container has a backup, gets one, or has objects of one that is being removed."""
    if container == stores.default_container(conf, store):
        return True
    backups = select(Backup.id).where(Backup.deleted.is_(False)).limit(1)
    manifests = select(Manifest.id).where(Manifest.state != GONE).limit(1)
    with db.read() as session:
        return any(
            session.execute(query.filter_by(store=store, container=container)).first() is not None
            for query in (backups, manifests)
        )


@dataclass(frozen=True, slots=True)
class BackupHealth:
    """A backup, and what is known of its data.

    :ivar size: GiB.
    :ivar damaged_objects: how many objects are known to be damaged of those that it is made of.
    """

    id: str
    project_id: str
    volume_id: str
    status: str
    created_at: datetime
    verified_at: datetime | None
    verified_how: str | None
    verified_result: str | None
    fully_verified_at: datetime | None
    size: int
    is_incremental: bool
    name: str | None
    damaged_objects: int


def _of(volume: str | None, project: str | None) -> ColumnElement[bool]:
    found: ColumnElement[bool] = Backup.deleted.is_(False)
    if volume is not None:
        found &= Backup.volume_id == volume
    if project is not None:
        found &= Backup.project_id == project
    return found


def backups(
    db: Database, volume: str | None = None, project: str | None = None, *, damaged: bool = False
) -> Iterator[BackupHealth]:
    """Yield what is known of the data of backups, oldest first, page by page.

    :param damaged: only of those that name damaged objects.
    """
    marks = select(func.count()).where(DamageMark.manifest_id == Backup.manifest_id).label("damaged_objects")
    columns = [getattr(Backup, field.name) for field in fields(BackupHealth)[:-2]]
    columns.append(Backup.display_name.label("name"))
    wanted = _of(volume, project)
    if damaged:
        wanted &= damaged_objects.is_damaged()
    query = select(*columns, marks).order_by(Backup.created_at, Backup.id).limit(_PAGE)
    rest = wanted
    while True:
        with db.read() as session:
            page = [BackupHealth(**row._mapping) for row in session.execute(query.where(rest))]
        yield from page
        if len(page) < _PAGE:
            return
        last, same = page[-1], Backup.created_at == page[-1].created_at
        rest = wanted & ((Backup.created_at > last.created_at) | same & (Backup.id > last.id))


def backups_exist(db: Database, volume: str | None, project: str | None) -> bool:
    """Say whether there is any backup of a volume or a project."""
    with db.read() as session:
        return session.scalar(select(Backup.id).where(_of(volume, project)).limit(1)) is not None


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """The manifest of a backup, and where it is.

    :ivar links: of Cinder's format: containers and keys of its links, the backup's own first.
    """

    id: str
    store: str
    container: str
    key: str
    links: tuple[tuple[str, str], ...]
    encrypted: bool


def manifest_of(db: Database, backup_id: str) -> StoredManifest:
    """Return a backup's live manifest.

    :raises BackupNotFound: there is no such backup.
    :raises InvalidBackup: it has none.
    """
    row = Manifest
    with db.read() as session:
        backup = session.get(Backup, backup_id)
        if backup is None or backup.deleted:
            raise BackupNotFound(backup_id)
        found = session.scalar(
            select(row).where(row.id == backup.manifest_id, row.state == LIVE, row.key.is_not(None))
        )
        if found is None:
            raise InvalidBackup(f"backup {backup_id} has no data in a store (status {backup.status})")
        encrypted, links = found.key_id is not None, manifests.links(session, found)
        return StoredManifest(found.id, found.store, found.container, str(found.key), links, encrypted)


def places_of(db: Database, conf: cfg.ConfigOpts, backup_id: str) -> list[rows.Place]:
    """Return where the data of a backup is: its own store and its copies, in the configured order."""
    with db.read() as session:
        return copies.places(session, session.get_one(Backup, backup_id), conf.enabled_stores)


def to_copy(
    db: Database, store: str | None, project: str | None, *, absent: str | None, present: str | None
) -> list[str]:
    """Return the available backups of our format, oldest first, by the stores in which they have copies.

    :param store: only those whose own store this is; likewise ``project``.
    :param absent: they have no copy there, or one that failed, and are not there themselves; None: anything.
    :param present: they have a copy there, or one that is being made or failed; None: anything.
    """
    copy = models.BackupCopy
    wanted = (
        _of(None, project) & (Backup.status == AVAILABLE) & (Manifest.installation_id != manifests.CINDER)
    )
    if store is not None:
        wanted &= Backup.store == store
    has = select(copy.id).where(copy.backup_id == Backup.id)
    if absent is not None:
        complete = has.where(copy.store == absent, copy.status != ERROR)
        wanted &= (Backup.store != absent) & ~complete.exists()
    if present is not None:
        wanted &= has.where(copy.store == present).exists()
    with db.read() as session:
        return list(
            session.scalars(
                select(Backup.id)
                .join(Manifest, Manifest.id == Backup.manifest_id)
                .where(wanted)
                .order_by(Backup.created_at, Backup.id)
            )
        )


def to_convert(
    db: Database, volume: str | None = None, project: str | None = None, *, backup_id: str | None = None
) -> list[rows.Backup]:
    """Return the available backups of Cinder's format, each after its parent if that is one, too.

    :param backup_id: only this one, and those that it needs.
    """
    wanted = (
        _of(volume, project)
        & Backup.status.in_((AVAILABLE, RESTORING))
        & (Manifest.installation_id == manifests.CINDER)
    )
    with db.read() as session:
        statement = select(Backup).join(Manifest, Manifest.id == Backup.manifest_id).where(wanted)
        found = {
            row.id: rows.backup(session, row)
            for row in session.scalars(statement.order_by(Backup.created_at, Backup.id))
        }
    ordered: list[rows.Backup] = []
    for start in list(found) if backup_id is None else [backup_id]:
        line: list[rows.Backup] = []
        one: str | None = start
        # Each is taken out at once, so parents in a circle end here.
        while (backup := found.pop(one or "", None)) is not None:
            line.append(backup)
            one = backup.parent_id
        ordered += reversed(line)
    return ordered


def with_parents(db: Database, backup_id: str) -> list[str]:
    """Return a backup and the available ones of our format that it was made upon, oldest first."""
    found = [backup_id]
    with db.read() as session:
        backup = session.get(Backup, backup_id)
        while backup is not None and backup.parent_id is not None and backup.parent_id not in found:
            ours = (Manifest.state == LIVE) & (Manifest.installation_id != manifests.CINDER)
            backup = session.scalar(
                select(Backup)
                .join(Manifest, Manifest.id == Backup.manifest_id)
                .where(
                    Backup.id == backup.parent_id,
                    Backup.volume_id == backup.volume_id,
                    Backup.project_id == backup.project_id,
                    Backup.deleted.is_(False),
                    Backup.status == AVAILABLE,
                    ours,
                )
            )
            if backup is not None:
                found.append(backup.id)
    return found[::-1]


def was_verified(db: Database, backup_id: str, since: datetime, *, quick: bool) -> bool:
    """Say whether a backup was verified since a moment; ``quick`` as for :func:`to_verify`."""
    moment = Backup.verified_at if quick else Backup.fully_verified_at
    with db.read() as session:
        return session.scalar(select(Backup.id).where(Backup.id == backup_id, moment >= since)) is not None


def to_verify(
    db: Database,
    volume: str | None = None,
    project: str | None = None,
    *,
    older_than: timedelta | datetime | None = None,
    quick: bool = False,
) -> tuple[datetime, list[str]]:
    """Return the backups to verify: those that never were first, then those whose verification is oldest.

    :param older_than: only those whose verification is at least so old, or of before a moment (naive UTC).
    :param quick: any verification counts; otherwise full ones only.
    :returns: the database's time, and ids.
    """
    moment = Backup.verified_at if quick else Backup.fully_verified_at
    wanted = _of(volume, project) & (Manifest.state == LIVE)
    with db.read() as session:
        begun = now(session)
        if older_than is not None:
            last = begun - older_than if isinstance(older_than, timedelta) else older_than
            wanted &= or_(moment.is_(None), moment <= last)
        ids = session.scalars(
            select(Backup.id)
            .join(Manifest, Manifest.id == Backup.manifest_id)
            .where(wanted)
            .order_by(moment.is_not(None), moment, Backup.created_at, Backup.id)
        ).all()
    return begun, list(ids)


def to_restore_test(
    db: Database,
    project: str | None = None,
    *,
    older_than: timedelta | datetime | None = None,
    newest: bool = False,
) -> list[str]:
    """Return the backups to restore to nowhere: those that never were first, then those tested longest ago.

    :param older_than: as for :func:`to_verify`.
    :param newest: of each volume only the newest backup that has data; then the last test of any of its
        backups counts, of deleted ones, too, because the newest one may be another each night.
    """
    tested = Backup.restore_tested_at
    last = select(Backup.volume_id, func.max(tested).label("at")).group_by(Backup.volume_id).subquery()
    wanted = _of(None, project) & (Manifest.state == LIVE)
    with db.read() as session:
        found = (
            select(
                Backup.id,
                (last.c.at if newest else tested).label("at"),
                Backup.created_at,
                func.row_number()
                .over(partition_by=Backup.volume_id, order_by=(Backup.created_at.desc(), Backup.id))
                .label("place"),
            )
            .join(Manifest, Manifest.id == Backup.manifest_id)
            .join(last, last.c.volume_id == Backup.volume_id)
            .where(wanted)
            .subquery()
        )
        query = select(found.c.id)
        if newest:
            query = query.where(found.c.place == 1)
        if older_than is not None:
            since = now(session) - older_than if isinstance(older_than, timedelta) else older_than
            query = query.where(or_(found.c.at.is_(None), found.c.at <= since))
        ordered = query.order_by(found.c.at.is_not(None), found.c.at, found.c.created_at, found.c.id)
        return list(session.scalars(ordered))


class Holding(NamedTuple):
    """A backup and the live manifest that it names, or that is a copy of it.

    :ivar size: GiB of the volume that was backed up.
    :ivar stays: deleting the backup frees nothing now: the manifest is another installation's, a backup is
        being made upon it, or it is a link that others need.
    :ivar is_copy: it is a copy.
    :ivar volume_name: None where nothing is known of the volume any more.
    """

    volume_id: str
    manifest_id: str
    backup_id: str
    project_id: str
    store: str
    container: str
    key: str
    installation_id: str
    size: int
    stays: bool
    is_copy: bool
    backup_name: str | None
    volume_name: str | None


def holdings(db: Database, installation: str, volume: str | None = None) -> Iterator[Holding]:
    """Yield the backups that have data in a store, and their copies, as they are at one moment, in no order.

    One statement, whose rows come some at a time; its transaction is open until all are read.

    :param installation: this one's id.
    :param volume: only those of this volume.
    """
    row, child = Manifest, aliased(Manifest)
    needs = or_(child.state == WRITING, child.installation_id == manifests.CINDER)
    in_use = select(child.id).where(child.base_id == row.id, needs).exists()
    copy = models.BackupCopy

    def found_as(is_copy: bool) -> Any:
        found = select(
            row.volume_id,
            row.id.label("manifest_id"),
            Backup.id.label("backup_id"),
            Backup.project_id,
            row.store,
            row.container,
            row.key,
            row.installation_id,
            Backup.size,
            or_(in_use, row.installation_id.not_in((installation, manifests.CINDER))).label("stays"),
            literal(is_copy).label("is_copy"),
            Backup.display_name.label("backup_name"),
            models.Volume.display_name.label("volume_name"),
        )
        if is_copy:
            found = found.join(copy, and_(copy.manifest_id == row.id, copy.status == AVAILABLE))
            found = found.join(Backup, Backup.id == copy.backup_id)
        else:
            found = found.join(Backup, Backup.manifest_id == row.id)
        wanted = [Backup.deleted.is_(False), row.state == LIVE, row.key.is_not(None)]
        if volume is not None:
            wanted.append(row.volume_id == volume)
        return found.outerjoin(models.Volume, models.Volume.id == row.volume_id).where(*wanted)

    query = union_all(found_as(False), found_as(True)).execution_options(yield_per=_PAGE)
    with db.read() as session:
        for one in session.execute(query):
            yield Holding(**one._mapping)


def is_live(db: Database, manifest_id: str) -> bool:
    """Say whether a manifest is live now."""
    with db.read() as session:
        return session.scalar(select(Manifest.state).where(Manifest.id == manifest_id)) == LIVE


def volumes_of(db: Database, host: str) -> Iterator[rows.Volume]:
    """Yield the volumes whose storage this host's workers can open, some at a time.

    Not those of a foreign catalogue, where they may be deleted at any time.
    """
    row = models.Volume
    last = ""
    while True:
        with db.read() as session:
            found = session.scalars(
                select(row)
                .where(
                    row.id > last,
                    row.deleted.is_(False),
                    row.mirrored_at.is_(None),
                    row.location.is_not(None),
                    or_(row.host.is_(None), row.host == host),
                )
                .order_by(row.id)
                .limit(_PAGE)
            ).all()
            page = rows.volumes(session, found)
        yield from page
        if len(page) < _PAGE:
            return
        last = page[-1].id


def other_services(db: Database, conf: cfg.ConfigOpts) -> list[services.Service]:
    """Return the workers' services of other hosts, whether they run now or not."""
    with db.read() as session:
        known = services.services(session, conf, binary=services.BACKUP_BINARY)
    return [one for one in known if one.host != conf.host]


def stores_not_enabled(db: Database, conf: cfg.ConfigOpts) -> set[str]:
    """Return the stores that hold live manifests but are not enabled in this configuration."""
    with db.read() as session:
        known = set(session.scalars(select(Manifest.store).where(Manifest.state == LIVE).distinct()))
    return known.difference(conf.enabled_stores)
