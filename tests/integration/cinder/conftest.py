"""A real Cinder, whose volumes are in a real Ceph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.cinder.world import World, world
from tests.servers.ceph import Ceph, ceph, ceph_missing
from tests.servers.cinder import Cinder, cinder, cinder_missing
from tests.servers.directory import server_directory
from tests.servers.keystone import Keystone, keystone, keystone_missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Ceph]:
    """The Ceph that has the volumes."""
    if reason := ceph_missing() or cinder_missing():
        pytest.skip(reason)
    with server_directory() as directory, ceph(directory, gateway=False) as running:
        yield running


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keystone]:
    """A Keystone of its own: in the catalogue of that for everybody, other tests have other Cinders."""
    if reason := keystone_missing():
        pytest.skip(reason)
    with keystone(tmp_path_factory.mktemp("keystone")) as server:
        yield server


@pytest.fixture(scope="session")
def real_cinder(cluster: Ceph, identity: Keystone) -> Iterator[Cinder]:
    """A Cinder that serves a Keystone's users, by its own policies."""
    with server_directory() as directory, cinder(directory, cluster, identity) as server:
        yield server


@pytest.fixture(scope="session")
def there(
    real_cinder: Cinder, identity: Keystone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A service in front of it."""
    with world(real_cinder, identity, tmp_path_factory.mktemp("service")) as running:
        yield running
