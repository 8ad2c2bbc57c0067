"""Races of requests at two nodes of a cluster: a lock of one node is none at the other, a changed row is.

The races that ``tests/unit`` has for every database run here too, each connection at the next node.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import pytest

from backupfw import errors
from backupfw.db import models
from backupfw.db.session import Database
from backupfw.manager.queue.claims import Limits
from tests.unit.manager import test_claims, test_races
from tests.unit.manager.catalogue import ADMIN, ALICE, Catalogue
from tests.unit.manager.catalogue import make_conf as make_catalogue_conf
from tests.unit.manager.support import World, check_consistent

pytestmark = pytest.mark.server

world = test_races.world
test_two_restores = test_races.test_two_restores_to_one_volume_and_two_of_one_backup
test_many_creations = test_races.test_many_creations_never_exceed_the_quota
test_a_release_against_a_child = test_races.test_a_release_against_a_child_of_the_same_manifest

#: How often two of everything meet.
TRIES = 40


@pytest.fixture
def worlds(nodes: list[Database]) -> list[World]:
    """One installation, by each node."""
    return [World(database=db) for db in nodes]


@pytest.fixture
def catalogues(nodes: list[Database], worlds: list[World]) -> list[Catalogue]:
    """The managers of volumes and their types, by each node."""
    return [Catalogue(db, make_catalogue_conf()) for db in nodes]


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Run calls at the same time; an error that is not the user's fails the test."""
    results = test_races.together(*calls)
    assert None not in results, "a call ended with an error that is none of ours"
    return results


@pytest.mark.parametrize("limit", [1, 20])
def test_the_last_place_of_a_quota_is_given_once(worlds: list[World], limit: int) -> None:
    for number in range(TRIES if limit == 1 else 2):
        project = f"q{number}"
        for world in worlds:
            world.conf.quota.backups = limit
        volumes = [worlds[0].volume(project) for _ in range(limit + 1)]
        # All but one place are taken one after the other.
        for volume in volumes[2:]:
            worlds[0].backups.create(worlds[0].ctx(project), volume_id=volume)
        results = at_once(
            *(
                lambda world=world, volume=volume, project=project: world.backups.create(  # type: ignore[misc]
                    world.ctx(project), volume_id=volume
                )
                for world, volume in zip(worlds, volumes, strict=False)
            )
        )
        assert sum(isinstance(result, errors.QuotaExceeded) for result in results) == 1, results
        assert len(worlds[1].rows(models.Backup, models.Backup.project_id == project)) == limit
    check_consistent(worlds[0])


def test_metadata_of_two_requests_is_one_of_theirs(catalogues: list[Catalogue]) -> None:
    """Neither mixed when it is replaced, nor lost when keys are added."""
    volume = catalogues[0].volumes.create(ALICE, size=1).id
    catalogues[0].run_all()
    for number in range(TRIES):
        wanted = [{"k": f"{side}{number}", side: "1"} for side in "ab"]
        at_once(
            *(
                lambda one=one, mine=mine: one.volumes.metadata.replace(ALICE, volume, mine)  # type: ignore[misc]
                for one, mine in zip(catalogues, wanted, strict=True)
            )
        )
        for one in catalogues:
            assert one.volumes.metadata.get(ALICE, volume) in wanted
        at_once(
            *(
                lambda one=one, key=key: one.volumes.metadata.set(ALICE, volume, {key: "2"})  # type: ignore[misc]
                for one, key in zip(catalogues, ("x", "y"), strict=True)
            )
        )
        assert {"x", "y"} < set(catalogues[0].volumes.metadata.get(ALICE, volume))


def test_a_type_is_deleted_beside_a_volume_that_asks_for_it(catalogues: list[Catalogue]) -> None:
    """Either the volume has it and it stays, or it goes and the volume is refused."""
    for one in catalogues:
        one.conf.set_override("volumes", -1, "quota")
        one.conf.set_override("gigabytes", -1, "quota")
    for number in range(TRIES // 2):
        kind = catalogues[number % 2].types.create(ADMIN, name=f"t{number}")
        created, deleted = at_once(
            lambda kind=kind: catalogues[0].volumes.create(ALICE, size=1, volume_type=kind.name),  # type: ignore[misc]
            lambda kind=kind: (catalogues[1].types.delete(ADMIN, kind.id), True),  # type: ignore[misc]
        )
        refused = [isinstance(result, errors.BackupfwError) for result in (created, deleted)]
        assert sorted(refused) == [False, True], (created, deleted)


def test_a_task_is_claimed_once(worlds: list[World]) -> None:
    for _ in range(TRIES):
        worlds[0].backups.create(worlds[0].ctx(), volume_id=worlds[1].volume())
        claimed = test_races.together(
            *(lambda number=number: worlds[number].tasks.claim(f"h/{number}", 60) for number in (0, 1))  # type: ignore[misc]
        )
        (task,) = [found for found in claimed if found is not None]
        test_claims.end(worlds[0], task)


def test_the_running_never_exceed_a_limit(any_db: Database) -> None:
    test_claims.test_the_running_never_exceed_a_limit(any_db, Limits(total=3))


def test_what_was_written_at_one_node_is_read_at_the_other(worlds: list[World]) -> None:
    turns = cycle(worlds)
    for _ in range(TRIES):
        writer, reader = next(turns), next(turns)
        next(turns)
        volume = writer.volume()
        assert reader.volume_status(volume) == "available"
        backup = reader.backups.create(reader.ctx(), volume_id=volume)
        assert writer.status(backup.id) == "creating"
        writer.run_create()
        assert reader.backups.get(reader.ctx(), backup.id).status == "available"
