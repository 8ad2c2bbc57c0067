"""The servers of the suites, started once for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.ceph import Ceph, ceph, ceph_missing
from tests.servers.seaweedfs import SeaweedFS, seaweedfs, seaweedfs_missing


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A Ceph cluster with its gateway."""
    if missing := ceph_missing():
        pytest.skip(missing)
    with ceph(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A SeaweedFS server."""
    if missing := seaweedfs_missing():
        pytest.skip(missing)
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server
