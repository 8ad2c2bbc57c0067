"""What every unit test is followed by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.manager.support import World


@pytest.fixture(autouse=True)
def closed_worlds() -> Iterator[None]:
    """Close the worlds that a test made: each holds descriptors of its database, and a store's threads."""
    before = set(World.living)
    yield
    for world in set(World.living) - before:
        world.close()
