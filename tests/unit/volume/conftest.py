"""A provider on the temporary directory's file system and on a memory file system."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backupfw.volume.local.provider import LocalProvider
from tests.unit.volume.helpers import make_provider

MEMORY = Path("/dev/shm")


@pytest.fixture(params=["disk", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on each of the two kinds of file system."""
    if request.param == "disk":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


@pytest.fixture
def provider(directory: Path) -> LocalProvider:
    return make_provider(directory)


@pytest.fixture
def provider_with(directory: Path) -> Callable[..., LocalProvider]:
    """Makes a provider with other option values."""
    return lambda **options: make_provider(directory, **options)
