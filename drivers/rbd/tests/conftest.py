"""The cluster of the tests of one module, and a provider."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from backupfw_rbd.provider import RbdProvider

from backupfw.chunkstore.options import option_values
from tests.servers import rbd_images
from tests.servers.ceph import Ceph


@pytest.fixture(scope="module")
def cluster() -> Iterator[Ceph]:
    """A running cluster."""
    with rbd_images.running_cluster() as running:
        yield running


@pytest.fixture
def provider(cluster: Ceph) -> RbdProvider:
    """A provider of its pool."""
    return RbdProvider(option_values(RbdProvider.options(), **rbd_images.options(cluster, fence_wait=3)))
