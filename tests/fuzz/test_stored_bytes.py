"""Fuzzing of what reads bytes that somebody else may have written: stored objects, records, journal rows.

Each is changed inside of its checksums, which are then made right again, so that the changes get past the
first look.  A short run, always the same, is one of the tests; ``make fuzz`` goes on for
``BACKUPFW_FUZZ_SECONDS`` with other numbers.  What once found a fault is kept in ``seeds/``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from backupfw import naming
from backupfw.engine.format import entries, keys
from backupfw.engine.format.binary import BadBytes
from backupfw.engine.format.sealing import CLEAR
from backupfw.engine.format.segment_map import SegmentMap
from backupfw.engine.segment_restore import BlockDecoder
from backupfw.errors import InvalidInput
from backupfw.manager import records
from tests.format import content
from tests.fuzz import edits, forge
from tests.fuzz.readers import MAY_RAISE, READERS, Case, bounded
from tests.unit.manager.test_records import FOREIGN

SECONDS = float(os.environ.get("BACKUPFW_FUZZ_SECONDS", "600"))
SEEDS = Path(__file__).parent / "seeds"
GOLDEN = Path(__file__).parent.parent / "format" / "v1"
KEYS = [case["manifest"] for case in json.loads((GOLDEN / "expected.json").read_text())]
OBJECTS = {
    path.relative_to(GOLDEN / "objects").as_posix(): path.read_bytes()
    for path in (GOLDEN / "objects").rglob("*")
    if path.is_file()
}
#: The last of the golden backups is changed; it shares with those before.
KEY, OTHERS = KEYS[-1], KEYS[:-1]
DATA = bytes(list(content.states())[-1])


def golden() -> forge.Backup:
    return forge.Backup(dict(OBJECTS), KEY)


def first_of(kind: int) -> bytes:
    return next(payload for one, payload in golden().content if one == kind)


def own_entries(backup: forge.Backup) -> list[entries.SegmentEntry]:
    """Return the segments that the changed backup has a map of its own for."""
    origin = KEY.rpartition("/")[0]
    return [entry for entry in backup.entries() if entry.map.origin == origin and entry.packs]


def put_page(kind: int) -> Callable[[forge.Backup, bytes], None]:
    return lambda backup, data: backup.put_page(kind, data)


def put_map(backup: forge.Backup, data: bytes) -> None:
    backup.put_map(own_entries(backup)[0], data)


def own_pack(backup: forge.Backup) -> tuple[entries.SegmentEntry, int]:
    origin = KEY.rpartition("/")[0]
    return next(
        (entry, place)
        for entry in own_entries(backup)
        for place, one in enumerate(entry.packs)
        if one.origin == origin
    )


def put_pack(backup: forge.Backup, data: bytes) -> None:
    """Header and footer are changed, the blocks not."""
    entry, place = own_pack(backup)
    blocks = backup.pack_parts(entry, place)[1]
    backup.put_pack(entry, place, data[:128].ljust(128, b"\0"), blocks, data[128:])


def put_blocks(backup: forge.Backup, data: bytes) -> None:
    entry, place = own_pack(backup)
    header, _, footer = backup.pack_parts(entry, place)
    backup.put_pack(entry, place, header, data, footer)


def put_object(backup: forge.Backup, data: bytes) -> None:
    backup.objects[KEY] = data


def move(backup: forge.Backup, data: bytes) -> None:
    with contextlib.suppress(ValueError):
        backup.move(json.loads(data))


def _place() -> bytes:
    head = json.loads(first_of(forge.HEAD))
    names = ("installation", "project", "volume", "backup", "epoch", "attempt", "token")
    return json.dumps({name: head[name] for name in names}).encode()


def _head() -> bytes:
    """The golden head, and what a newer one says of its volume."""
    head = json.loads(first_of(forge.HEAD))
    head["record"]["volume"] = {
        "name": "data",
        "description": "of the shop",
        "metadata": {"a": "b"},
        "volume_type": "fast",
        "bootable": True,
        "image_metadata": {"os": "x"},
    }
    return json.dumps(head).encode()


def _sample_pack() -> bytes:
    header, _, footer = golden().pack_parts(*own_pack(golden()))
    return header + footer


#: Parts of stored objects: what they hold, and how other bytes take their place.
PARTS: dict[str, tuple[bytes, Callable[[forge.Backup, bytes], None]]] = {
    "manifest": (OBJECTS[KEY], put_object),
    "header": (golden().header(), lambda backup, data: backup.put_header(data)),
    "head": (_head(), put_page(forge.HEAD)),
    "place": (_place(), move),
    "entries": (first_of(forge.SEGMENTS), put_page(forge.SEGMENTS)),
    "origins": (first_of(forge.ORIGINS), put_page(forge.ORIGINS)),
    "map": (OBJECTS[own_entries(golden())[0].map_key][:-32], put_map),
    "pack": (_sample_pack(), put_pack),
    "blocks": (golden().pack_parts(*own_pack(golden()))[1], put_blocks),
}
BLOCK = b"text " * 819 + b"t"
DRIVER_INFO = {"store": "main", "encryption": {"data_key": "d" * 32, "mac": "a" * 32}}
RECORD = json.dumps({**FOREIGN, "driver_info": DRIVER_INFO, "metadata": {"a": "b"}}).encode()


def read_part(name: str, data: bytes) -> None:
    """Let every reader read a backup whose part is this; what is wrong with one names it."""
    backup = golden()
    PARTS[name][1](backup, data)
    case = Case(backup.objects, backup.key, OTHERS, DATA)
    for reader in READERS:
        try:
            with bounded(), contextlib.suppress(*MAY_RAISE[reader]):
                case.run(reader)
        except BaseException as error:
            error.add_note(f"reader: {reader}")
            raise


def read_record(data: bytes) -> None:
    with bounded(), contextlib.suppress(InvalidInput):
        found = records.decode(base64.b64encode(data).decode("ascii"))
        for value in (found.display_name, found.volume_id, found.container, *found.metadata.values()):
            assert value is None or naming.text_problem(value) is None


def read_text(data: bytes) -> None:
    """Read a record that is not even base64."""
    with bounded(), contextlib.suppress(InvalidInput):
        records.decode(data.decode("utf-8", "surrogateescape"))


def read_journal(data: bytes) -> None:
    with bounded(), contextlib.suppress(BadBytes):
        entries.decode_entry(data, keys.volume_prefix_of(KEY))


def read_block(data: bytes) -> None:
    """Decompress a block, in little more memory than it has bytes."""
    found = SegmentMap(0, 4096, 4096)
    found.codecs[0] = 2
    found.digests[:] = blake3(BLOCK).digest()
    with bounded(size=64 << 20), contextlib.suppress(BadBytes):
        BlockDecoder(CLEAR).decode(found, 0, memoryview(data), None)


def read_key(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with bounded():
        parsed = keys.parse(text)
        if parsed is not None:
            assert naming.key_problem(text) is None
            assert text.startswith(parsed.origin + "/")


OTHER: dict[str, tuple[bytes, Callable[[bytes], None]]] = {
    "record": (RECORD, read_record),
    "text": (base64.b64encode(RECORD), read_text),
    "journal": (entries.encode_entry(own_entries(golden())[0]), read_journal),
    "block": (zstandard.compress(BLOCK), read_block),
    "key": (KEY.encode(), read_key),
}
TARGETS = [*PARTS, *OTHER]


def sample(name: str) -> bytes:
    return PARTS[name][0] if name in PARTS else OTHER[name][0]


def read(name: str, data: bytes) -> None:
    if name in PARTS:
        read_part(name, data)
    else:
        OTHER[name][1](data)


def inputs(name: str) -> st.SearchStrategy[bytes]:
    data = sample(name)
    found = edits.edits.map(lambda todo: edits.changed(data, todo))
    if data.startswith(b"{"):
        found |= edits.members.map(lambda todo: edits.changed_members(data, todo))
    return found


def fuzz(name: str, examples: int, number: int | None = None) -> None:
    """Try so many inputs: always the same ones, or those that a number gives."""

    @settings(
        max_examples=examples,
        derandomize=number is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(inputs(name))
    def one(data: bytes) -> None:
        try:
            read(name, data)
        except BaseException as error:
            kept = f"{name}-{blake3(data).hexdigest()[:12]}"
            error.add_note(f"input: {data!r}; as a seed: tests/fuzz/seeds/{kept}")
            raise

    if number is not None:
        one = seed(number)(one)
    one()


@pytest.mark.parametrize("name", [name for name in PARTS if name != "header"])
@pytest.mark.parametrize("reader", READERS)
def test_what_nobody_changed_is_read(name: str, reader: str) -> None:
    """So the changes begin with something that is right, and so does what puts them in their place."""
    backup = golden()
    PARTS[name][1](backup, sample(name))
    Case(backup.objects, backup.key, OTHERS, DATA).run(reader)


@pytest.mark.parametrize("path", sorted(SEEDS.glob("*-*")), ids=lambda path: path.name)
def test_what_once_found_a_fault(path: Path) -> None:
    read(path.name.partition("-")[0], path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_end_in_what_is_said_of_bad_ones(name: str) -> None:
    fuzz(name, 10 if name in PARTS else 100)


@pytest.fixture
def rounds() -> Iterator[int]:
    numbers = random.Random()
    end = time.monotonic() + SECONDS

    def forever() -> Iterator[int]:
        while time.monotonic() < end:
            yield numbers.randrange(1 << 32)

    return forever()


@pytest.mark.fuzz
@pytest.mark.timeout(0)
def test_on_and_on(rounds: Iterator[int], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "backupfw")
    tried = 0
    for number in rounds:
        for name in TARGETS:
            examples = 50 if name in PARTS else 500
            fuzz(name, examples, number)
            tried += examples
        print(f"fuzz: {tried} inputs, nothing found", flush=True)
