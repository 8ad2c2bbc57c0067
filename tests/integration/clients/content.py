"""Content for the volumes that clients make, whose smallest size is a GiB."""

from __future__ import annotations

from pathlib import Path

from tests.integration.content import MIB, write_image

GIB = 1 << 30
#: How much of it is not a hole.
LENGTH = 20 * MIB


def fill(volume: Path, seed: int) -> None:
    """Give a volume of one GiB content at its beginning."""
    write_image(volume, LENGTH, seed)
    with open(volume, "r+b") as image:
        image.truncate(GIB)
