"""Transfers: one of two takers wins, what goes along, and what nobody can take."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.errors import BackupfwError, InvalidInput, InvalidVolume, QuotaExceeded, VolumeNotFound
from backupfw.manager.usecases.transfers import TransferManager, TransferNotFound
from tests.unit.manager.catalogue import ADMIN, ALICE, BOB, Catalogue, make_conf, make_database


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Catalogue]:
    db = make_database(tmp_path)
    yield Catalogue(db, make_conf())
    db.close()


@pytest.fixture
def transfers(world: Catalogue) -> TransferManager:
    return TransferManager(world.db, world.conf)


def test_a_volume_goes_with_its_snapshots(world: Catalogue, transfers: TransferManager) -> None:
    volume = world.volume(size=2)
    snapshot = world.snapshot(volume)
    offered, key = transfers.create(ALICE, volume_id=volume, name="gift")
    assert world.status(models.Volume, volume) == "awaiting-transfer"
    assert [each.id for each in transfers.list(ALICE).items] == [offered.id]
    assert transfers.list(BOB).items == []
    with pytest.raises(TransferNotFound):
        transfers.get(BOB, offered.id)
    with pytest.raises(TransferNotFound):
        transfers.delete(BOB, offered.id)
    with pytest.raises(InvalidInput, match="invalid auth key"):
        transfers.accept(BOB, offered.id, key + "0")
    world.quotas.update("green", {"gigabytes": 3})
    with pytest.raises(QuotaExceeded):
        transfers.accept(BOB, offered.id, key)
    world.quotas.update("green", {"gigabytes": 4})
    transfers.accept(BOB, offered.id, key)
    taken = world.volumes.get(BOB, volume)
    assert (taken.status, taken.project_id, taken.user_id) == ("available", "green", "bob")
    assert world.snapshots.get(BOB, snapshot).project_id == "green"
    assert (world.usage("blue")["gigabytes"], world.usage("green")["gigabytes"]) == (0, 4)
    with pytest.raises(VolumeNotFound):
        world.volumes.get(ALICE, volume)


def test_snapshots_can_stay_with_their_project(world: Catalogue, transfers: TransferManager) -> None:
    volume = world.volume()
    snapshot = world.snapshot(volume)
    offered, key = transfers.create(ALICE, volume_id=volume, no_snapshots=True)
    transfers.accept(BOB, offered.id, key)
    assert world.snapshots.get(ALICE, snapshot).project_id == "blue"


def test_one_of_many_takers_wins(world: Catalogue, transfers: TransferManager) -> None:
    volume = world.volume()
    offered, key = transfers.create(ALICE, volume_id=volume)
    takers = [RequestContext(project_id=f"p{number}", user_id="u") for number in range(6)]

    def take(ctx: RequestContext) -> bool:
        try:
            transfers.accept(ctx, offered.id, key)
        except BackupfwError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = [ctx.project_id for ctx, did in zip(takers, pool.map(take, takers), strict=True) if did]
    assert won == [world.volumes.get(ADMIN, volume).project_id]


@pytest.mark.parametrize("ends", ["withdrawn", "reset", "force deleted"])
def test_what_is_offered_no_longer_cannot_be_taken(
    world: Catalogue, transfers: TransferManager, ends: str
) -> None:
    volume = world.volume()
    offered, key = transfers.create(ALICE, volume_id=volume)
    with pytest.raises(InvalidVolume):
        transfers.create(ALICE, volume_id=volume)
    with pytest.raises(InvalidVolume):
        world.volumes.delete(ALICE, volume)
    if ends == "withdrawn":
        transfers.delete(ALICE, offered.id)
        assert world.status(models.Volume, volume) == "available"
    elif ends == "reset":
        world.volumes.reset_status(ADMIN, volume, "available")
    else:
        world.volumes.force_delete(ADMIN, volume)
        world.run_all()
    with pytest.raises(TransferNotFound):
        transfers.accept(BOB, offered.id, key)
    if ends != "force deleted":
        transfers.create(ALICE, volume_id=volume)


def test_a_type_goes_only_where_it_may_be_used(world: Catalogue, transfers: TransferManager) -> None:
    kind = world.types.create(ADMIN, name="secret", is_public=False)
    world.types.allow(ADMIN, kind.id, "blue")
    volume = world.volume(volume_type="secret")
    offered, key = transfers.create(ALICE, volume_id=volume)
    with pytest.raises(InvalidVolume, match="type secret"):
        transfers.accept(BOB, offered.id, key)
    world.types.allow(ADMIN, kind.id, "green")
    transfers.accept(BOB, offered.id, key)
