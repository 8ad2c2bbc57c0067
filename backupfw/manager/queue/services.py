"""Services: the processes that send heartbeats, and which of them live.

All times are the database's, so a host with a wrong clock neither looks dead nor lives for ever.

A service is all worker processes of a host; they are disabled and frozen together and have one zone.  They
can have different stores: the service has the stores of all its live processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from backupfw.conf.volumes import LOCAL
from backupfw.db import models
from backupfw.db.locks import insert_if_absent, lock
from backupfw.db.session import clock, now
from backupfw.errors import InvalidInput, NotFound
from backupfw.manager import rows

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext
    from backupfw.db.session import Database

#: ``binary`` of a process that runs tasks.
BACKUP_BINARY = "cinder-backup"
_LOCAL_ONLY: Mapping[str, bool] = MappingProxyType({LOCAL: False})


class ServiceNotFound(NotFound):
    """No such service."""

    noun = "Service"


class HostNotFound(NotFound):
    """No such host."""

    noun = "Host"


@dataclass(frozen=True, slots=True)
class HostUsage:
    """The volumes of a project on a host: their number, and their GiB."""

    volumes: int
    volume_gigabytes: int
    snapshots: int
    snapshot_gigabytes: int


@dataclass(frozen=True, slots=True)
class Service:
    """The processes of one host and binary.

    :ivar up: whether it sent a heartbeat within the configured ``service_down_time``, and has not left since.
    :ivar frozen: it is being drained: it takes no new tasks, and tasks that only it can serve wait for it.
    :ivar backends: its volume back ends, and whether it can open volumes of other hosts there, too.
    :ivar stores: the wire name of each store it can reach, by the store's configured name.
    :ivar processes: the ``stores`` and back ends of each of its processes; None or empty where they are not
        known, or all have left.
    :ivar reported_at: naive UTC by the database's clock.
    """

    id: int
    host: str
    binary: str
    availability_zone: str | None
    disabled: bool
    disabled_reason: str | None
    frozen: bool
    backends: Mapping[str, bool]
    stores: Mapping[str, str]
    processes: Mapping[str, Any] | None
    reported_at: datetime
    created_at: datetime
    up: bool

    @property
    def state(self) -> str:
        """``up`` or ``down``."""
        return "up" if self.up else "down"

    @property
    def status(self) -> str:
        """``enabled`` or ``disabled``."""
        return "disabled" if self.disabled else "enabled"


def services(
    session: Session, conf: cfg.ConfigOpts, *, host: str | None = None, binary: str | None = None
) -> list[Service]:
    """Return the known services, by host and binary."""
    # The clock comes with the rows: an idle worker asks often.
    statement = select(models.Service, clock(session)).order_by(models.Service.host, models.Service.binary)
    if host is not None:
        # A host's name also matches names with "@" and a suffix.
        part = models.Service.host.startswith(f"{host}@", autoescape=True)
        statement = statement.where(or_(models.Service.host == host, part))
    if binary is not None:
        statement = statement.where(models.Service.binary == binary)
    lasting = timedelta(seconds=conf.service_down_time)
    return [_service(row, moment - lasting) for row, moment in session.execute(statement)]


def backup_workers_alive(session: Session, conf: cfg.ConfigOpts) -> bool:
    """Say whether an enabled worker reported itself lately."""
    return any(
        service.up and not service.disabled for service in services(session, conf, binary=BACKUP_BINARY)
    )


def _service(row: models.Service, oldest: datetime) -> Service:
    # All of its processes may have left by themselves.
    left = row.processes is not None and not row.processes
    known = rows.columns(row, Service)
    if row.backends is None:
        known["backends"] = {LOCAL: row.every_volume}
    return Service(**known, up=row.reported_at >= oldest and not left)


def backends_of(process: Mapping[str, Any]) -> Mapping[str, bool]:
    """Return the back ends of one of a service's ``processes``."""
    # A process of an older release says it of all volumes, which have no back ends there.
    found: Mapping[str, bool] = process.get("backends", {LOCAL: process["every_volume"]})
    return found


def _set_living(row: models.Service, living: dict[str, Any]) -> None:
    """Store which processes live, and so which stores and volume back ends their service has."""
    row.processes = living
    row.stores = {name: wire for one in living.values() for name, wire in one["stores"].items()}
    row.every_volume = any(one["every_volume"] for one in living.values())
    backends: dict[str, bool] = {}
    for one in living.values():
        for name, shared in backends_of(one).items():
            backends[name] = shared or backends.get(name, False)
    row.backends = backends


class ServiceManager:
    """Keeps the list of services.  Thread-safe.

    :param conf: has the option ``service_down_time``, seconds after which a silent service is down.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self._conf = conf

    def heartbeat(
        self,
        host: str,
        binary: str,
        zone: str | None = None,
        stores: Mapping[str, str] | None = None,
        backends: Mapping[str, bool] = _LOCAL_ONLY,
        process: str = "",
    ) -> None:
        """Record that a process lives; the first call inserts its service's row.

        :param stores: wire names of the stores it can reach, by configured name.
        :param backends: its volume back ends, and whether it can open volumes of other hosts there, too.
        :param process: any text that identifies the process among those of the service; the same in every
            call.
        """

        def work(session: Session) -> None:
            mine = (models.Service.host == host, models.Service.binary == binary)
            if not lock(session, models.Service, *mine):
                moment = now(session)
                new = {
                    "host": host,
                    "binary": binary,
                    "stores": {},
                    "created_at": moment,
                    "reported_at": moment,
                }
                session.execute(insert_if_absent(session, models.Service), new)
                # The row exists now, whichever transaction inserted it; wait for its lock.
                lock(session, models.Service, *mine)
            row, moment = session.execute(select(models.Service, clock(session)).where(*mine)).one()
            oldest = (moment - timedelta(seconds=self._conf.service_down_time)).isoformat(
                timespec="microseconds"
            )
            living = {key: one for key, one in (row.processes or {}).items() if one["at"] >= oldest}
            living[process] = {
                "stores": dict(stores or {}),
                "backends": dict(backends),
                # For processes of an older release.
                "every_volume": all(backends.values()),
                "at": moment.isoformat(timespec="microseconds"),
            }
            _set_living(row, living)
            row.availability_zone = zone
            row.reported_at = moment

        self._db.run(work)

    def leave(self, host: str, binary: str, process: str) -> None:
        """Record that a process ends by itself; after the last process its service is down at once.

        :param process: as it was reported by :meth:`heartbeat`.
        """

        def work(session: Session) -> None:
            mine = (models.Service.host == host, models.Service.binary == binary)
            if lock(session, models.Service, *mine):
                row = session.execute(select(models.Service).where(*mine)).scalar_one()
                living = {key: one for key, one in (row.processes or {}).items() if key != process}
                if living:
                    _set_living(row, living)
                else:
                    # Its stores stay: tasks that only it can serve wait for it.
                    row.processes = {}
                row.reported_at = now(session)

        self._db.run(work)

    def list(
        self, ctx: RequestContext, *, host: str | None = None, binary: str | None = None
    ) -> Sequence[Service]:
        """Return the services by host and binary.

        :param host: only those of this host; ``node`` is also the host of ``node@store``.
        :param binary: only those of this binary.
        """
        del ctx  # the API's policy admits only administrators
        with self._db.read() as session:
            return services(session, self._conf, host=host, binary=binary)

    def usage_of_host(self, ctx: RequestContext, host: str) -> Mapping[str, HostUsage]:
        """Return the volumes that only this host's workers can open, by project.

        :raises HostNotFound: no service of this host ever sent a heartbeat.
        """
        del ctx
        found: dict[str, list[int]] = {}
        volumes = models.Volume.host == host
        with self._db.read() as session:
            if not services(session, self._conf, host=host):
                raise HostNotFound(host)
            for row, place in (
                (models.Volume, volumes),
                (models.Snapshot, models.Snapshot.volume_id.in_(select(models.Volume.id).where(volumes))),
            ):
                totals = (
                    select(row.project_id, func.count(), func.sum(row.size))
                    .where(place, row.deleted.is_(False))
                    .group_by(row.project_id)
                )
                for project, count, size in session.execute(totals):
                    counts = found.setdefault(project, [0, 0, 0, 0])
                    at = 0 if row is models.Volume else 2
                    counts[at : at + 2] = [int(count), int(size)]
        return {project: HostUsage(*counts) for project, counts in sorted(found.items())}

    def set_disabled(
        self, ctx: RequestContext, host: str, binary: str, *, disabled: bool, reason: str | None = None
    ) -> Service:
        """Disable a service, with a reason, or enable it (which forgets the reason).

        A disabled worker takes no new tasks, and does not count as live: tasks that only it can serve
        expire.

        :raises ServiceNotFound: it never sent a heartbeat.
        """
        del ctx
        return self._set(host, binary, disabled=disabled, disabled_reason=reason if disabled else None)

    def set_frozen(self, ctx: RequestContext, host: str, *, frozen: bool) -> Service:
        """Freeze a host's worker, or thaw it.

        A frozen worker finishes its running tasks and takes no new ones.  It counts as live: tasks that only
        it can serve wait for it.

        :raises InvalidInput: no worker of this host ever sent a heartbeat.
        """
        del ctx
        try:
            return self._set(host, BACKUP_BINARY, frozen=frozen)
        except ServiceNotFound as error:
            # Clients expect a 400, not a 404, for an unknown host.
            raise InvalidInput(f"Host {host} could not be found.") from error

    def _set(self, host: str, binary: str, **values: Any) -> Service:
        def work(session: Session) -> Service:
            session.execute(
                update(models.Service)
                .where(models.Service.host == host, models.Service.binary == binary)
                .values(**values)
            )
            for found in services(session, self._conf, host=host, binary=binary):
                if found.host == host:
                    return found
            raise ServiceNotFound(binary)

        return self._db.run(work)

    def backup_workers_alive(self) -> bool:
        """Say whether an enabled worker reported itself lately."""
        with self._db.read() as session:
            return backup_workers_alive(session, self._conf)
