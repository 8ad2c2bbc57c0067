"""Transfers: a project offers a volume, and another project with the key accepts it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from sqlalchemy import select
from sqlalchemy.orm import Session

from backupfw.db.locks import lock
from backupfw.db.models import Snapshot, Transfer, Volume
from backupfw.db.session import now
from backupfw.errors import InvalidInput, InvalidVolume, NotFound
from backupfw.manager import actions, listing, rows
from backupfw.manager.actions import Kind
from backupfw.manager.lineage import lifecycle
from backupfw.manager.lineage.lifecycle import VolumeMoves
from backupfw.manager.rules import quota, volume_types
from backupfw.manager.rules.volume_rules import find_volume, is_visible, may_be_id

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext
    from backupfw.db.session import Database

#: Statuses of snapshots without a running operation.
_AT_REST = (lifecycle.AVAILABLE, lifecycle.ERROR, lifecycle.ERROR_DELETING)


class TransferNotFound(NotFound):
    """No such transfer."""

    noun = "Transfer"


class TransferManager:
    """The use cases of transfers.  Thread-safe.

    Backups stay with the project that made them.

    :param conf: has the group ``quota``.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self._conf = conf

    def create(
        self, ctx: RequestContext, *, volume_id: str, name: str | None = None, no_snapshots: bool = False
    ) -> tuple[rows.Transfer, str]:
        """Offer an available volume; returns the transfer and its key, which cannot be read later.

        :param no_snapshots: leave the volume's snapshots to its project.
        :raises VolumeNotFound: there is none, or not for this caller.
        :raises InvalidVolume: its status forbids it, or a task works on its snapshots.
        """
        # The id is chosen outside the transaction: if that is repeated after a lost answer, it finds its row.
        transfer_id, key = str(uuid.uuid4()), secrets.token_hex(16)

        def work(session: Session) -> rows.Transfer:
            volume = find_volume(session, ctx, volume_id, lock=True)
            if volume.status not in VolumeMoves.offer.sources:
                raise InvalidVolume(f"status must be available, but is {volume.status}")
            if not no_snapshots:
                _snapshots(session, volume)
            lifecycle.move(session, Volume, volume_id, VolumeMoves.offer)
            row = Transfer(
                id=transfer_id,
                volume_id=volume_id,
                project_id=volume.project_id,
                display_name=name,
                key_digest=_digest(key),
                no_snapshots=no_snapshots,
                created_at=now(session),
            )
            session.add(row)
            session.flush()
            return rows.transfer(row)

        def made(session: Session) -> rows.Transfer | None:
            found = session.get(Transfer, transfer_id)
            return None if found is None else rows.transfer(found)

        return self._db.run(work, made), key

    def get(self, ctx: RequestContext, transfer_id: str) -> rows.Transfer:
        """Return a transfer.

        :raises TransferNotFound: there is none, or not of this caller's project.
        """
        with self._db.read() as session:
            return rows.transfer(_find(session, ctx, transfer_id))

    def list(
        self, ctx: RequestContext, *, detail: bool = True, **paging: Unpack[listing.Paging]
    ) -> rows.Page[rows.Transfer]:
        """Return a page of transfers; see :func:`backupfw.manager.listing.page`.

        :param detail: accepted as in the other listings.
        """
        del detail
        with self._db.read() as session:
            found, total = listing.page(session, Transfer, ctx, paging)
            return rows.Page([rows.transfer(row) for row in found], total)

    def delete(self, ctx: RequestContext, transfer_id: str) -> None:
        """Withdraw an offer: the volume is available again.

        :raises TransferNotFound: there is none, or not of this caller's project.
        """

        def work(session: Session) -> None:
            volume_id = _find(session, ctx, transfer_id).volume_id
            lock(session, Volume, Volume.id == volume_id)
            session.delete(_find(session, ctx, transfer_id))
            lifecycle.move(session, Volume, volume_id, VolumeMoves.transferred)

        self._db.run(work)

    def accept(self, ctx: RequestContext, transfer_id: str, key: str) -> rows.Transfer:
        """Move an offered volume to the caller's project, with its snapshots unless these stay.

        :raises TransferNotFound: there is none.
        :raises InvalidInput: the key is wrong.
        :raises InvalidVolume: a task works on it or its snapshots, or the project may not use
            its type.
        :raises QuotaExceeded: the project has no room for it.
        """

        def work(session: Session) -> rows.Transfer:
            volume_id = _known(session, transfer_id).volume_id
            lock(session, Volume, Volume.id == volume_id)
            volume = session.get(Volume, volume_id)
            # It may have been accepted or withdrawn while this waited for the lock.
            row = _known(session, transfer_id)
            if not hmac.compare_digest(row.key_digest, _digest(key)):
                raise InvalidInput(f"Attempt to transfer {transfer_id} with invalid auth key.")
            if volume is None or volume.deleted or volume.status != lifecycle.AWAITING_TRANSFER:
                raise InvalidVolume(f"Volume {volume_id} is not offered any more.")
            if volume.volume_type is not None and not volume_types.usable(
                session, ctx.project_id, volume.volume_type
            ):
                raise InvalidVolume(f"Its type {volume.volume_type} cannot be used by the project.")
            snapshots = [] if row.no_snapshots else _snapshots(session, volume)
            if volume.project_id != ctx.project_id:
                gigabytes = volume.size + sum(snapshot.size for snapshot in snapshots)
                wanted = {"volumes": 1, "snapshots": len(snapshots), "gigabytes": gigabytes}
                quota.check(session, self._conf, ctx.project_id, wanted, volume.volume_type)
            done = rows.transfer(row)
            # Whoever gives it away, and whoever gets it, has a record.
            actions.record(session, ctx, Kind.VOLUME_TRANSFER, volume, f"to project {ctx.project_id}")
            given_by = volume.project_id
            session.delete(row)
            lifecycle.move(
                session,
                Volume,
                volume_id,
                VolumeMoves.transferred,
                project_id=ctx.project_id,
                user_id=ctx.user_id,
            )
            for snapshot in snapshots:
                snapshot.project_id, snapshot.user_id = ctx.project_id, ctx.user_id
            actions.record(session, ctx, Kind.VOLUME_TRANSFER, volume, f"from project {given_by}")
            session.flush()
            return done

        return self._db.run(work)


def _digest(key: str) -> str:
    # The key is random and long, so it needs no salt.
    return hashlib.sha256(key.encode("utf-8")).hexdigest()


def _known(session: Session, transfer_id: str) -> Transfer:
    row = None
    if may_be_id(transfer_id):
        query = select(Transfer).where(Transfer.id == transfer_id)
        row = session.scalar(query.execution_options(populate_existing=True))
    if row is None:
        raise TransferNotFound(transfer_id)
    return row


def _find(session: Session, ctx: RequestContext, transfer_id: str) -> Transfer:
    row = _known(session, transfer_id)
    if not is_visible(ctx, row.project_id):
        raise TransferNotFound(transfer_id)
    return row


def _snapshots(session: Session, volume: Volume) -> Sequence[Snapshot]:
    """Lock and return the snapshots that go with a volume.

    :raises InvalidVolume: a task works on one.
    """
    going = (
        Snapshot.volume_id == volume.id,
        Snapshot.project_id == volume.project_id,
        Snapshot.deleted.is_(False),
        Snapshot.temporary.is_(False),
    )
    lock(session, Snapshot, *going)
    found = session.scalars(select(Snapshot).where(*going).order_by(Snapshot.id)).all()
    for snapshot in found:
        if snapshot.status not in _AT_REST:
            raise InvalidVolume(f"Its snapshot {snapshot.id} must be at rest, but is {snapshot.status}.")
    return found
