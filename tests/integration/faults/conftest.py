"""The servers that the fault suite breaks, shared by all its tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers.rabbitmq import RabbitMQ, rabbitmq, rabbitmq_missing


@contextmanager
def server_directory() -> Iterator[Path]:
    """A directory that the servers' own user can reach; below pytest's it could not, see its mode."""
    with tempfile.TemporaryDirectory(prefix="backupfw-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="session")
def broker() -> Iterator[RabbitMQ]:
    if missing := rabbitmq_missing():
        pytest.skip(missing)
    with server_directory() as directory, rabbitmq(directory) as running:
        yield running
