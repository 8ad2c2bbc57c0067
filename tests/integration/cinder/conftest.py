"""A real Cinder, whose volumes are in a real Ceph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.ceph import ceph, ceph_missing
from tests.servers.cinder import Cinder, cinder, cinder_missing
from tests.servers.directory import server_directory
from tests.servers.keystone import Keystone


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """The directory of a Ceph that Cinders share."""
    if reason := ceph_missing() or cinder_missing():
        pytest.skip(reason)
    with server_directory() as directory, ceph(directory):
        yield directory


@pytest.fixture(scope="session")
def believing_cinder(cluster: Path) -> Iterator[Cinder]:
    """A Cinder that believes every caller."""
    with server_directory() as directory, cinder(directory, cluster) as server:
        yield server


@pytest.fixture(scope="session")
def real_cinder(cluster: Path, identity: Keystone) -> Iterator[Cinder]:
    """A Cinder that serves a Keystone's users, by its own policies."""
    with server_directory() as directory, cinder(directory, cluster, identity) as server:
        yield server
