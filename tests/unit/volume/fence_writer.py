"""A process that holds a volume open for writing; started by the fence tests.

Arguments: directory, volume id, length, location, attempt.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from backupfw.volume.base import VolumeRef
from tests.unit.volume.helpers import make_provider


def main() -> None:
    directory, volume_id, length, location, attempt = sys.argv[1:]
    provider = make_provider(Path(directory))
    # Ours goes by its name, an adopted device by its path.
    volume = VolumeRef(volume_id, int(length), location, adopted=location.startswith("/"))
    with provider.open_target(volume, int(attempt)) as target:
        print("ready", flush=True)
        for number in itertools.count():
            target.write(0, [number.to_bytes(8, "big")])


main()
