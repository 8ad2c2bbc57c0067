"""Servers that several suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.keystone import Keystone, keystone, keystone_missing


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keystone]:
    """A Keystone for everybody: make projects and users of your own in it."""
    reason = keystone_missing()
    if reason:
        pytest.skip(reason)
    with keystone(tmp_path_factory.mktemp("keystone")) as server:
        yield server
