"""Old stored bytes restore, verify, and can be built upon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from backupfw.engine import backup, restore, verify
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.format.sealing import CLEAR, Sealing
from tests.format import content
from tests.format.make_golden import find_key
from tests.unit.engine.fakes import (
    FakeControl,
    FaultyContainer,
    MemoryJournal,
    MemoryPoint,
    MemoryTarget,
    make_job,
    memory_container,
)

VERSIONS = sorted(Path(__file__).parent.glob("v*"))
CASES = [
    pytest.param(root, case, id=f"{root.name}-{place}")
    for root in VERSIONS
    for place, case in enumerate(json.loads((root / "expected.json").read_text()))
]


def load(root: Path) -> FaultyContainer:
    objects = root / "objects"
    files = {
        path.relative_to(objects).as_posix(): path.read_bytes()
        for path in objects.rglob("*")
        if path.is_file()
    }
    return memory_container({"box": files})


def test_there_is_a_golden_set_for_every_version() -> None:
    assert [root.name for root in VERSIONS] == ["v1", "v2"]
    assert len(CASES) == 6


@pytest.mark.parametrize(("root", "case"), CASES)
@pytest.mark.parametrize("fill", [None, b"\xaa"])
def test_golden_bytes_restore(root: Path, case: dict[str, Any], fill: bytes | None) -> None:
    target = MemoryTarget(case["length"], fill)
    restore.run(case["manifest"], load(root), target, FakeControl(), find_key=find_key)
    assert blake3(target.data).hexdigest() == case["blake3"]


@pytest.mark.parametrize(("root", "case"), CASES)
def test_golden_bytes_verify_and_hold_their_record(root: Path, case: dict[str, Any]) -> None:
    box = load(root)
    damage: list[str] = []
    assert verify.run(
        case["manifest"], box, FakeControl(), lambda key, _: damage.append(key), find_key=find_key
    ).ok
    assert damage == []
    head = ManifestReader(box, case["manifest"], find_key).head
    assert head.origin.project == "project/with ümlaut"
    assert head.record["display_name"] == "gölden"
    assert head.geometry == Geometry(case["length"], content.BLOCK, content.SEGMENT)


@pytest.mark.parametrize("root", VERSIONS, ids=lambda root: root.name)
def test_the_seed_still_makes_what_was_stored(root: Path) -> None:
    """So that the volumes can be looked at, should a restore ever differ."""
    expected = [case["blake3"] for case in json.loads((root / "expected.json").read_text())]
    assert [blake3(data).hexdigest() for data in content.states()] == expected


@pytest.mark.parametrize("root", VERSIONS, ids=lambda root: root.name)
def test_a_new_backup_shares_with_a_golden_base(root: Path) -> None:
    box = load(root)
    case = json.loads((root / "expected.json").read_text())[-1]
    head = ManifestReader(box, case["manifest"], find_key).head
    data = content.third()
    data[0] ^= 1
    job = make_job(
        9,
        len(data),
        case["manifest"],
        installation=head.origin.installation,
        project=head.origin.project,
        volume=head.origin.volume,
        geometry=head.geometry,
        pack_size=content.PACK,
        sealing=CLEAR if head.key_id is None else Sealing(find_key(head.key_id), find_key),
    )
    result = backup.run(job, MemoryPoint(data), box, MemoryJournal(), FakeControl())
    assert (result.base_problem, result.changed_segments) == (None, 1)
    target = MemoryTarget(len(data))
    restore.run(result.manifest_key, box, target, FakeControl(), find_key=find_key)
    assert target.data == data
