"""A process that opens an image volume as its first attempt and writes until it is killed."""

from __future__ import annotations

import sys
from pathlib import Path

from backupfw.volume.base import VolumeRef
from tests.unit.volume.helpers import make_provider

directory, volume_id, length, location, storage_id = sys.argv[1:]
volume = VolumeRef(volume_id, int(length), location, adopted=True, storage_id=storage_id)
with make_provider(Path(directory)).open_target(volume, 1) as target:
    said = False
    while True:
        for offset in range(0, volume.length - 4096, 4096):
            target.write(offset, [b"\xee" * 4096])
            if not said:
                print("writing", flush=True)
                said = True
