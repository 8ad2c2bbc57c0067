"""Quotas: counted from rows, under the lock of the project's row.

There are no counters, so nothing can drift: the usage is counted from the rows that are not deleted.
:func:`check` locks the project's row before it counts.  So if two transactions want the last free place, the
second one waits, counts the rows of the first one, and is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from sqlalchemy import and_, delete, func, literal, select, update
from sqlalchemy.orm import Session

from backupfw.db.locks import insert_if_absent, lock, put
from backupfw.db.models import Backup, BackupPolicy, Project, Quota, QuotaClass, Snapshot, Volume, VolumeType
from backupfw.errors import InvalidInput, QuotaExceeded

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext
    from backupfw.db.session import Database

#: No limit.
UNLIMITED = -1
#: The largest limit that can be set.
LARGEST = (1 << 31) - 1
#: The quota class whose limits hold for projects that have none of their own.
DEFAULT_CLASS = "default"
#: The id of a row to lock where no project's row fits; no project has an empty id.
NO_PROJECT = ""

#: Limits that clients expect beside the configured ones, with their defaults: the size of one volume,
#: and volume groups, which do not exist here.
_UNCONFIGURED = {"per_volume_gigabytes": UNLIMITED, "groups": 10}
#: All resources that have a limit.
RESOURCES = ("volumes", "snapshots", "gigabytes", "backups", "backup_gigabytes", *_UNCONFIGURED)

#: Resources that only this service has.  Published clients take a limit that they do not know for one of a
#: volume type, so an answer has it only if it was set; the configured one holds all the same.
_OWN = ("backup_policies",)

#: Resources for which the volumes of one type can have their own limit, e.g. ``volumes_gold``; such a limit
#: exists only if it was set.
_BY_TYPE = ("volumes", "snapshots", "gigabytes")
#: Width of the column that holds a resource's name.
_MAX_NAME = 64

#: The counted tables, and the resources of their number and of their GiB.
_COUNTED: tuple[tuple[type[Backup | Volume | Snapshot], str, str], ...] = (
    (Backup, "backups", "backup_gigabytes"),
    (Volume, "volumes", "gigabytes"),
    (Snapshot, "snapshots", "gigabytes"),
)

_TEXTS = {
    "backups": "Maximum number of backups allowed ({limit}) exceeded",
    "backup_gigabytes": "Requested backup exceeds allowed Backup gigabytes quota. "
    "Requested {wanted}G, quota is {limit}G and {used}G has been consumed.",
    "volumes": "Maximum number of volumes allowed ({limit}) exceeded for quota 'volumes'.",
    "gigabytes": "Requested volume or snapshot exceeds allowed gigabytes quota. "
    "Requested {wanted}G, quota is {limit}G and {used}G has been consumed.",
    "snapshots": "Maximum number of snapshots allowed ({limit}) exceeded",
    "per_volume_gigabytes": "Requested volume size {wanted}G is larger than maximum allowed limit {limit}G.",
    "groups": "Maximum number of groups allowed ({limit}) exceeded",
    "backup_policies": "Maximum number of backup policies allowed ({limit}) exceeded",
}


def check(
    session: Session,
    conf: cfg.ConfigOpts,
    project_id: str,
    wanted: Mapping[str, int],
    volume_type: str | None = None,
) -> None:
    """Refuse a request that would exceed a limit of a project; lock its quota until the transaction ends.

    Call it before the new rows are added to the session (they would count twice), and after the rows
    of volumes, snapshots and backups that the transaction locks (one order for all: no deadlocks).

    :param session: a write transaction.
    :param wanted: how much more of each resource: a number of rows, or GiB; nothing where it is 0.
    :param volume_type: the type of the requested volumes.
    :raises QuotaExceeded: a limit would be exceeded, with the text clients know.
    """
    wanted = {resource: amount for resource, amount in wanted.items() if amount > 0}
    if not wanted:
        return
    lock_project(session, project_id)
    limits = own_defaults(conf) | limits_of(session, conf, project_id)
    of_type = {f"{name}_{volume_type}": wanted[name] for name in _BY_TYPE if name in wanted}
    _refuse(session, project_id, limits, {**wanted, **of_type})


def check_type(session: Session, conf: cfg.ConfigOpts, project_id: str, kind: str, gigabytes: int) -> None:
    """Refuse to change a volume's type if that would exceed a limit of the new type.

    :param gigabytes: of the volume.
    :raises QuotaExceeded: a limit would be exceeded.
    """
    lock_project(session, project_id)
    more = {f"volumes_{kind}": 1, f"gigabytes_{kind}": gigabytes}
    _refuse(session, project_id, limits_of(session, conf, project_id), more)


def _refuse(session: Session, project_id: str, limits: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    """Refuse a request that would exceed a limit; a resource may have none."""
    wanted = {resource: amount for resource, amount in wanted.items() if resource in limits}
    used = usage_of(session, project_id, wanted)
    # If several limits are exceeded, the error names the gigabytes first.
    for resource in sorted(wanted):
        limit = limits[resource]
        if limit != UNLIMITED and used[resource] + wanted[resource] > limit:
            base = resource if resource in _TEXTS else _split(resource)[0]
            text = _TEXTS[base].format(limit=limit, wanted=wanted[resource], used=used[resource])
            raise QuotaExceeded(base, text, used[resource] + wanted[resource] - limit)


def follow_type(session: Session, name: str, new: str | None) -> None:
    """Rename the limits of a type's volumes with the type, or delete them with it."""
    for model in (Quota, QuotaClass):
        for resource in _BY_TYPE:
            own = model.resource == f"{resource}_{name}"
            if new is None or len(f"{resource}_{new}") > _MAX_NAME:
                session.execute(delete(model).where(own))
            else:
                session.execute(
                    update(model).where(own).values(resource=f"{resource}_{new}"),
                    execution_options={"synchronize_session": False},
                )


def _split(resource: str) -> tuple[str, str]:
    """Return base and type of the name of a limit for one type's volumes; other names have no type."""
    base, _, kind = resource.partition("_")
    return (base, kind) if base in _BY_TYPE and kind else (resource, "")


def lock_project(session: Session, project_id: str) -> None:
    """Lock a project's row until the transaction ends, making it at the project's first use."""
    if not lock(session, Project, Project.id == project_id):
        session.execute(insert_if_absent(session, Project), {"id": project_id})
        # The row exists now, whichever transaction inserted it; wait for its lock.
        lock(session, Project, Project.id == project_id)


def usage_of(session: Session, project_id: str, resources: Collection[str] = RESOURCES) -> dict[str, int]:
    """Count what a project uses; hidden snapshots of running backups do not count.

    :param resources: the resources to count; only their tables are read.
    """
    # Those that are not counted stay 0: the size of one volume, and groups, which do not exist.
    used = dict.fromkeys(resources, 0)
    for model, rows, gigabytes in _COUNTED:
        if rows not in used and gigabytes not in used:
            continue
        statement = select(func.count(), func.coalesce(func.sum(model.size), 0)).where(
            model.project_id == project_id, model.deleted.is_(False)
        )
        if issubclass(model, Volume | Snapshot):
            statement = statement.where(model.mirrored_at.is_(None))
        if model is Snapshot:
            statement = statement.where(Snapshot.temporary.is_(False))
        count, size = session.execute(statement).one()
        for resource, amount in ((rows, count), (gigabytes, size)):
            if resource in used:
                used[resource] += int(amount)
    if "backup_policies" in used:
        mine = select(func.count()).where(BackupPolicy.project_id == project_id)
        used["backup_policies"] = session.scalar(mine) or 0
    for name in resources:
        base, kind = _split(name)
        if kind:
            used[name] = _usage_of_type(session, project_id, base, kind)
    return used


def _usage_of_type(session: Session, project_id: str, resource: str, kind: str) -> int:
    of_type = and_(Volume.volume_type == kind, Volume.mirrored_at.is_(None))
    amount = 0
    for model, rows, gigabytes, where in (
        (Volume, "volumes", "gigabytes", [of_type]),
        (
            Snapshot,
            "snapshots",
            "gigabytes",
            [Snapshot.temporary.is_(False), Snapshot.volume_id.in_(select(Volume.id).where(of_type))],
        ),
    ):
        if resource in (rows, gigabytes):
            figure = func.count() if resource == rows else func.coalesce(func.sum(model.size), 0)
            statement = select(figure).where(model.project_id == project_id, model.deleted.is_(False), *where)
            amount += int(session.scalar(statement) or 0)
    return amount


def limits_of(session: Session, conf: cfg.ConfigOpts, project_id: str) -> dict[str, int]:
    """Return a project's limits: its own, else those of the default class, else the configured ones."""
    default = select(QuotaClass.resource, QuotaClass.hard_limit, literal(0).label("own")).where(
        QuotaClass.class_name == DEFAULT_CLASS
    )
    own = select(Quota.resource, Quota.hard_limit, literal(1)).where(Quota.project_id == project_id)
    # The project's own limits come last, so they win.
    found = session.execute(default.union_all(own).order_by("own"))
    return _configured(conf) | _known((resource, limit) for resource, limit, _own in found)


def _class_limits(session: Session, conf: cfg.ConfigOpts, name: str) -> dict[str, int]:
    rows = select(QuotaClass.resource, QuotaClass.hard_limit).where(QuotaClass.class_name == name)
    return _configured(conf) | _known((resource, limit) for resource, limit in session.execute(rows))


def _configured(conf: cfg.ConfigOpts) -> dict[str, int]:
    return {
        resource: _UNCONFIGURED[resource] if resource in _UNCONFIGURED else int(getattr(conf.quota, resource))
        for resource in RESOURCES
    }


def own_defaults(conf: cfg.ConfigOpts) -> dict[str, int]:
    """Return the configured limits of the resources that only this service has."""
    return {resource: int(getattr(conf.quota, resource)) for resource in _OWN}


def _known(rows: Iterable[tuple[str, int]]) -> dict[str, int]:
    known = (*RESOURCES, *_OWN)
    return {resource: limit for resource, limit in rows if resource in known or _split(resource)[1]}


def _checked(session: Session, limits: Mapping[str, int]) -> dict[str, int]:
    kinds = {kind for _, kind in map(_split, limits) if kind}
    there = set(session.scalars(select(VolumeType.name).where(VolumeType.name.in_(kinds))))
    bad = [
        resource
        for resource in limits
        if resource not in (*RESOURCES, *_OWN)
        and (_split(resource)[1] not in there or len(resource) > _MAX_NAME)
    ]
    if bad:
        raise InvalidInput(f"Bad key(s) in quota set: {', '.join(bad)}")
    for resource, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, int) or not UNLIMITED <= limit <= LARGEST:
            raise InvalidInput(
                f"Quota limit {resource} must be an integer from {UNLIMITED} to {LARGEST}, not {limit!a}."
            )
    return dict(limits)


class QuotaManager:
    """Shows and changes limits.  Thread-safe.

    :param conf: has the group ``quota`` with one integer option per configured resource.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self._conf = conf

    def limits(self, ctx: RequestContext, project_id: str | None = None) -> dict[str, int]:
        """Return the ten absolute limits and usages of a project (the caller's), as clients name them."""
        project = ctx.project_id if project_id is None else project_id
        with self._db.read() as session:
            limits = limits_of(session, self._conf, project)
            used = usage_of(session, project)
        return {
            "maxTotalVolumes": limits["volumes"],
            "maxTotalSnapshots": limits["snapshots"],
            "maxTotalVolumeGigabytes": limits["gigabytes"],
            "maxTotalBackups": limits["backups"],
            "maxTotalBackupGigabytes": limits["backup_gigabytes"],
            "totalVolumesUsed": used["volumes"],
            "totalSnapshotsUsed": used["snapshots"],
            "totalGigabytesUsed": used["gigabytes"],
            "totalBackupsUsed": used["backups"],
            "totalBackupGigabytesUsed": used["backup_gigabytes"],
        }

    def show(
        self, project_id: str, usage: bool = False, *, everything: bool = False
    ) -> dict[str, int] | dict[str, dict[str, int]]:
        """Return a project's limits by resource; with ``usage`` each as limit, in_use and reserved.

        Nothing is ever reserved: each accepted request has its row at once.

        :param everything: also what no published client knows and nobody has set.
        """
        with self._db.read() as session:
            limits = limits_of(session, self._conf, project_id)
            if everything:
                limits = own_defaults(self._conf) | limits
            if not usage:
                return limits
            used = usage_of(session, project_id, limits)
        return {name: {"limit": limit, "in_use": used[name], "reserved": 0} for name, limit in limits.items()}

    def defaults(self) -> dict[str, int]:
        """Return the limits of projects that have none of their own."""
        return self.class_show(DEFAULT_CLASS)

    def update(self, project_id: str, limits: Mapping[str, int], *, force: bool = False) -> dict[str, int]:
        """Set some of a project's limits and return all of them.

        :param force: allow a limit below the usage: further requests are refused until enough was deleted.
        :raises InvalidInput: an unknown resource, a limit out of range, or below the usage.
        """

        def work(session: Session) -> dict[str, int]:
            chosen = _checked(session, limits)
            lock_project(session, project_id)
            used = {} if force else usage_of(session, project_id, chosen)
            for resource, amount in used.items():
                if UNLIMITED < chosen[resource] < amount:
                    raise InvalidInput(
                        f"Quota limit {resource} must not be below what is used: {amount}, but is"
                        f" {chosen[resource]}."
                    )
            wanted = [
                {"project_id": project_id, "resource": resource, "hard_limit": limit}
                for resource, limit in chosen.items()
            ]
            put(session, Quota, wanted)
            return limits_of(session, self._conf, project_id)

        return self._db.run(work)

    def delete(self, project_id: str) -> None:
        """Drop a project's own limits; the defaults hold again."""

        def work(session: Session) -> None:
            lock_project(session, project_id)
            session.query(Quota).where(Quota.project_id == project_id).delete()

        self._db.run(work)

    def class_show(self, name: str) -> dict[str, int]:
        """Return the limits of a quota class; one nobody changed has the configured ones."""
        with self._db.read() as session:
            return _class_limits(session, self._conf, name)

    def class_update(self, name: str, limits: Mapping[str, int]) -> dict[str, int]:
        """Set some limits of a quota class and return all of them.

        :raises InvalidInput: an unknown resource, or a limit out of range.
        """

        def work(session: Session) -> dict[str, int]:
            chosen = _checked(session, limits)
            lock_project(session, NO_PROJECT)
            wanted = [
                {"class_name": name, "resource": resource, "hard_limit": limit}
                for resource, limit in chosen.items()
            ]
            put(session, QuotaClass, wanted)
            return _class_limits(session, self._conf, name)

        return self._db.run(work)
