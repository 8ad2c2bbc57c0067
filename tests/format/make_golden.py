"""Makes the golden files of a format version, once: ``python -m tests.format.make_golden VERSION``.

It refuses to touch a directory that is there.  A new format version gets a new directory beside the
old one; no release ever rewrites an old one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.memory import MemoryStore
from backupfw.engine import backup
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.sealing import AES_256_GCM, CHACHA20_POLY1305, CLEAR, DataKey, Sealing
from backupfw.engine.ports import BackupJob
from backupfw.errors import ChangeMissed
from tests.format import content
from tests.unit.engine.fakes import MemoryPoint

ROOT = Path(__file__).parent
# Each state of the volume has its own data key; they make the same digests.
KEYS = [
    DataKey(f"{number:02x}" * 16, "ab" * 16, algorithm, bytes([number]) * 32, bytes(range(32)))
    for number, algorithm in enumerate((AES_256_GCM, CHACHA20_POLY1305, AES_256_GCM))
]


class _Control:
    def check(self) -> None:
        pass

    def may_write(self) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        pass


class _Journal:
    def __init__(self) -> None:
        self._entries: dict[int, bytes] = {}

    def finished(self) -> Iterator[tuple[int, bytes]]:
        return iter(sorted(self._entries.items()))

    def record(self, entries: Sequence[tuple[int, bytes]]) -> None:
        self._entries.update(entries)

    def announce(self, key: str) -> None:
        """Nobody asks here."""

    def distrust(self, error: ChangeMissed) -> None:
        raise error

    def is_unneeded(self, key: str) -> bool:
        """It was not given up."""
        return False


def find_key(key_id: str) -> DataKey:
    """Return a data key of version 2."""
    return next(key for key in KEYS if key.id == key_id)


def main(version: int) -> None:
    """Write the objects and what they hold."""
    root = ROOT / f"v{version}"
    root.mkdir()  # fails if it is there
    container = Container(MemoryStore("golden"), "golden")
    container.ensure()
    expected = []
    base = None
    for number, data in enumerate(content.states()):
        job = BackupJob(
            installation="11111111-1111-4111-8111-111111111111",
            project="project/with ümlaut",
            volume="22222222-2222-4222-8222-222222222222",
            backup=f"33333333-3333-4333-8333-33333333333{number}",
            epoch=number,
            attempt=number + 1,
            token=f"{number:x}" * 16,
            geometry=Geometry(len(data), content.BLOCK, content.SEGMENT),
            base=base,
            record={"id": f"backup {number}", "display_name": "gölden", "size": 1, "fail_reason": None},
            pack_size=content.PACK,
            sealing=CLEAR if version == 1 else Sealing(KEYS[number], find_key),
        )
        result = backup.run(job, MemoryPoint(data), container, _Journal(), _Control())
        base = result.manifest_key
        expected.append(
            {
                "manifest": base,
                "length": len(data),
                "blake3": blake3(data).hexdigest(),
                "objects": result.object_count,
                "stored_bytes": result.stored_bytes,
            }
        )
    for info in container.list():
        path = root / "objects" / info.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(container.get(info.key))
    (root / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
