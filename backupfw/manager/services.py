"""Services: the processes that report themselves, and which of them live.

All times are the database's, so hosts with wrong clocks neither look dead nor live for ever.

A service is all processes of a host that do the same; they are disabled and frozen together and are in one
zone.  Each may have other stores: the service can reach what one of them can that lives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from oslo_db.exception import DBDuplicateEntry
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.session import now
from backupfw.errors import NotFound
from backupfw.manager import rows

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext
    from backupfw.db.session import Database

#: ``binary`` of a process that runs tasks.
BACKUP_BINARY = "cinder-backup"


class ServiceNotFound(NotFound):
    """No such service."""

    noun = "Service"


@dataclass(frozen=True, slots=True)
class Service:
    """Processes that report themselves under one name.

    :ivar up: whether it reported within the configured ``service_down_time``.
    :ivar frozen: it is being drained: it takes nothing new, and what only it can serve waits for it.
    :ivar every_volume: it can open volumes of other hosts, too.
    :ivar stores: the wire name of each store it can reach, by the store's configured name.
    :ivar reported_at: naive UTC by the database's clock.
    """

    id: int
    host: str
    binary: str
    availability_zone: str | None
    disabled: bool
    disabled_reason: str | None
    frozen: bool
    every_volume: bool
    stores: Mapping[str, str]
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
    statement = select(models.Service).order_by(models.Service.host, models.Service.binary)
    if host is not None:
        statement = statement.where(models.Service.host == host)
    if binary is not None:
        statement = statement.where(models.Service.binary == binary)
    oldest = now(session) - timedelta(seconds=conf.service_down_time)
    return [_service(row, oldest) for row in session.scalars(statement)]


def backup_workers_alive(session: Session, conf: cfg.ConfigOpts) -> bool:
    """Say whether an enabled worker reported itself lately."""
    return any(
        service.up and not service.disabled for service in services(session, conf, binary=BACKUP_BINARY)
    )


def _service(row: models.Service, oldest: datetime) -> Service:
    return Service(**rows.columns(row, Service), up=row.reported_at >= oldest)


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
        every_volume: bool = False,
        process: str = "",
    ) -> None:
        """Report that a process lives, making its service's row at the first time.

        :param stores: wire names of the stores it can reach, by configured name.
        :param every_volume: whether it can open volumes of other hosts, too.
        :param process: which process it is of those that there are; any text, the same each time.
        """

        def work(session: Session) -> None:
            query = select(models.Service).where(models.Service.host == host, models.Service.binary == binary)
            row = session.scalar(query.with_for_update())
            moment = now(session)
            if row is None:
                row = models.Service(host=host, binary=binary, created_at=moment)
                session.add(row)
            oldest = (moment - timedelta(seconds=self._conf.service_down_time)).isoformat(
                timespec="microseconds"
            )
            living = {key: one for key, one in (row.processes or {}).items() if one["at"] >= oldest}
            living[process] = {
                "stores": dict(stores or {}),
                "every_volume": every_volume,
                "at": moment.isoformat(timespec="microseconds"),
            }
            row.processes = living
            row.stores = {name: wire for one in living.values() for name, wire in one["stores"].items()}
            row.every_volume = any(one["every_volume"] for one in living.values())
            row.availability_zone = zone
            row.reported_at = moment

        try:
            self._db.run(work)
        except DBDuplicateEntry:
            # Another one made the row in the meantime; it can be updated now.
            self._db.run(work)

    def list(
        self, ctx: RequestContext, *, host: str | None = None, binary: str | None = None
    ) -> Sequence[Service]:
        """Return the services by host and binary; ``host`` and ``binary`` narrow them down exactly."""
        del ctx  # the API's policy lets administrators in only
        with self._db.read() as session:
            return services(session, self._conf, host=host, binary=binary)

    def is_up(self, service: Service) -> bool:
        """Say whether a listed service was up when it was listed."""
        return service.up

    def set_disabled(
        self, ctx: RequestContext, host: str, binary: str, *, disabled: bool, reason: str | None = None
    ) -> Service:
        """Disable a service, with a reason, or enable it (which forgets the reason).

        A disabled worker takes nothing new, and does not count as one that lives: what only it could
        serve ends after a while.

        :raises ServiceNotFound: it never reported itself.
        """
        del ctx
        return self._set(host, binary, disabled=disabled, disabled_reason=reason if disabled else None)

    def set_frozen(self, ctx: RequestContext, host: str, *, frozen: bool) -> Service:
        """Freeze a host's worker, or thaw it.

        A frozen worker goes on with what runs and takes nothing new, so it drains; it counts as one that
        lives: what only it can serve waits for it.

        :raises ServiceNotFound: it never reported itself.
        """
        del ctx
        return self._set(host, BACKUP_BINARY, frozen=frozen)

    def _set(self, host: str, binary: str, **values: Any) -> Service:
        def work(session: Session) -> Service:
            session.execute(
                update(models.Service)
                .where(models.Service.host == host, models.Service.binary == binary)
                .values(**values)
            )
            found = services(session, self._conf, host=host, binary=binary)
            if not found:
                raise ServiceNotFound(binary)
            return found[0]

        return self._db.run(work)

    def backup_workers_alive(self) -> bool:
        """Say whether an enabled worker reported itself lately."""
        with self._db.read() as session:
            return backup_workers_alive(session, self._conf)
