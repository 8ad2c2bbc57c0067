"""Fixtures of the API's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functional.cloud import Client, Cloud


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is made once."""
    return tmp_path_factory.mktemp("templates")


@pytest.fixture
def cloud(tmp_path: Path, templates: Path) -> Iterator[Cloud]:
    """An empty installation."""
    made = Cloud(tmp_path, templates)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, templates: Path) -> Iterator[Cloud]:
    """An installation for the tests of a module that leave nothing behind."""
    made = Cloud(tmp_path_factory.mktemp("shared"), templates)
    yield made
    made.close()


@pytest.fixture
def member(cloud: Cloud) -> Client:
    """A member of project ``demo``."""
    return cloud.client()


@pytest.fixture
def admin(cloud: Cloud) -> Client:
    """An administrator, in project ``demo``."""
    return cloud.client(roles="admin", user="root")
