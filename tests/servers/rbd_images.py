"""A Ceph cluster with images, and what another program does with them."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from backupfw_rbd.cluster import Connection, Opened, bindings, pool_of
from backupfw_rbd.places import Place

from tests.servers.ceph import Ceph, ceph, ceph_missing
from tests.servers.directory import server_directory
from tests.waiting import wait_until

POOL, SPACE = "volumes", "tenant"
#: Small objects, so that images of few bytes have many.
ORDER = 16


@contextmanager
def running_cluster() -> Iterator[Ceph]:
    """Run a cluster with a pool of images, a namespace in it, and a user as the documentation describes."""
    if reason := ceph_missing():
        pytest.skip(reason)
    with server_directory() as directory, ceph(directory, gateway=False) as cluster:
        cluster.make_pool(POOL)
        cluster.make_user("backupfw", "mon", "profile rbd", "osd", f"profile rbd pool={POOL}")
        with pool(cluster) as io:
            bindings()[1].RBD().namespace_create(io, SPACE)
        yield cluster


def options(cluster: Ceph, **more: object) -> dict[str, object]:
    """Return the options of a provider."""
    return {
        "pools": [POOL, f"{POOL}/{SPACE}"],
        "ceph_conf": str(cluster.config),
        "keyring": str(cluster.base / "keyring.backupfw"),
        **more,
    }


def administrator(cluster: Ceph) -> Connection:
    """Return how another program reaches the cluster."""
    return Connection(str(cluster.config), "admin")


@contextmanager
def pool(cluster: Ceph, namespace: str = "") -> Iterator[Any]:
    """Lend another program's access to the pool."""
    with administrator(cluster).connected() as connected, pool_of(connected, POOL, namespace) as io:
        yield io


@contextmanager
def image(cluster: Ceph, place: Place | str, *, write: bool = True) -> Iterator[Any]:
    """Lend an image as another program opens it."""
    place = Place.parse(place) if isinstance(place, str) else place
    opened = Opened(administrator(cluster), place, write=write)
    try:
        with opened as found:
            yield found
    finally:
        opened.close()


def make_image(
    cluster: Ceph, length: int, name: str | None = None, *, namespace: str = "", **how: Any
) -> Place:
    """Make an image of zeros as another program does.

    :param how: ``features``, by their names, and what ``RBD.create`` takes.
    """
    _, rbd = bindings()
    name = name or f"volume-{uuid.uuid4()}"
    features = how.pop("features", "layering,exclusive-lock,object-map,fast-diff,deep-flatten")
    how.setdefault("order", ORDER)
    with pool(cluster, namespace) as io:
        number = rbd.RBD().features_from_string(features) if features else 0
        rbd.RBD().create(io, name, length, old_format=False, features=number, **how)
    return Place(POOL, name, namespace)


def remove_image(cluster: Ceph, place: Place) -> None:
    """Remove an image with all its snapshots, if it is there."""
    _, rbd = bindings()

    def remove(io: Any) -> bool:
        try:
            with rbd.Image(io, place.image) as found:
                for snapshot in list(found.list_snaps()):
                    if found.is_protected_snap(snapshot["name"]):
                        found.unprotect_snap(snapshot["name"])
                    found.remove_snap(snapshot["name"])
            rbd.RBD().remove(io, place.image)
        except rbd.ImageNotFound:
            return True
        except rbd.ImageBusy:
            # A client that was killed counts as there until Ceph forgets it.
            return False
        return True

    with pool(cluster, place.namespace) as io:
        wait_until(f"{place} to be removed", lambda: remove(io))


def names(cluster: Ceph, *, locks: bool = True) -> Collection[str]:
    """Return all that is in the pool: images, and of each its snapshots, metadata and locks.

    :param locks: a client that was killed leaves a lock, until another one needs it.
    """
    _, rbd = bindings()
    found = set()
    for namespace in ("", SPACE):
        with pool(cluster, namespace) as io:
            for name in rbd.RBD().list(io):
                place = Place(POOL, name, namespace)
                found.add(str(place))
                with rbd.Image(io, name) as one:
                    found |= {f"{place}@{snapshot['name']}" for snapshot in one.list_snaps()}
                    found |= {f"{place} {key}={value}" for key, value in one.metadata_list()}
                    with suppress(rbd.ImageNotFound):
                        owners = one.lock_get_owners() if locks else ()
                        found |= {f"{place} lock {owner['owner']}" for owner in owners}
    return found
