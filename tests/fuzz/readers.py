"""Everything that reads what a store holds, and what may come of it whatever that is."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqlalchemy import BigInteger, String

from backupfw import naming
from backupfw.db import models
from backupfw.engine import audit, backup, cleanup, release, restore, sweep, verify
from backupfw.engine.format import keys
from backupfw.engine.format.manifest import ManifestReader, read_head
from backupfw.engine.format.sealing import no_keys
from backupfw.engine.ports import KnownManifests
from backupfw.errors import Damaged, InvalidInput, TargetError, UnsupportedFormat
from backupfw.manager.records import Record
from backupfw.worker.handlers.backup_import import BackupImport
from backupfw.worker.handlers.base import restored_volume
from tests.unit.engine.fakes import (
    FakeControl,
    MemoryJournal,
    MemoryPoint,
    MemoryTarget,
    make_job,
    memory_container,
    objects_of,
)

#: What one input may cost at most.  Most take some milliseconds; a busy machine has others to serve as well.
SECONDS = 60
BYTES = 512 << 20


@contextlib.contextmanager
def bounded(seconds: float = SECONDS, size: int = BYTES) -> Iterator[None]:
    """End what takes longer (TimeoutError) or more memory (MemoryError) than it may."""

    def late(*_: object) -> None:
        raise TimeoutError(f"an input took more than {seconds} s")

    status = Path("/proc/self/status").read_text()
    data = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    old = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_DATA, (data + size, before[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_DATA, before)


class Control(FakeControl):
    """Keeps what it is told, as the database would have to."""

    def progress(self, done: int, total: int) -> None:
        assert 0 <= min(done, total) <= max(done, total) < 1 << 63, (done, total)


@dataclass
class Rows:
    """What the database knows of the volume."""

    live: set[str]
    known: set[str]
    announced: set[str] = field(default_factory=set)
    transient: set[str] = field(default_factory=set)
    mac_ids: set[str] = field(default_factory=set)
    copying: bool = False
    copies: frozenset[str] = frozenset()

    def volume(self, _project: str, _volume: str) -> Rows:
        return self

    deleting = volume

    def deleted(self, _project: str, _volume: str) -> None:
        pass

    def volumes(self) -> set[tuple[str, str]]:
        return {(one[1], one[2]) for one in (key.split("/") for key in self.live)}


@dataclass
class Case:
    """A container in which the bytes of one backup are not what they were.

    :ivar objects: all objects.
    :ivar key: the changed backup's manifest.
    :ivar others: manifests of its volume that nobody changed.
    :ivar data: what the volume holds now.
    """

    objects: dict[str, bytes]
    key: str
    others: list[str]
    data: bytes

    def run(self, name: str) -> None:
        """Let one reader read the same objects as every other, and look at what it leaves."""
        container = memory_container({"box": dict(self.objects)})
        READERS[name](self, container)
        # Whatever the changed one says, the others have what they had.
        left = objects_of(container)
        for other in self.others:
            assert left[other] == self.objects[other]
        for key in _named(self.others, self.objects):
            assert left.get(key) == self.objects[key], key


def _named(manifests: list[str], objects: dict[str, bytes]) -> set[str]:
    container = memory_container({"box": dict(objects)})
    found = {
        key
        for manifest in manifests
        for entry in ManifestReader(container, manifest).segments()
        for key in entry.object_keys()
    }
    return found & set(objects)


def _read(case: Case, container: Any) -> None:
    reader = ManifestReader(container, case.key)
    for entry in reader.segments():
        for key in entry.object_keys():
            assert naming.key_problem(key) is None
            assert key.startswith(keys.volume_prefix_of(case.key))
    assert len(reader.origins()) <= 1 << 17


def _restore(case: Case, container: Any) -> None:
    head = read_head(container, case.key)
    volume = restored_volume(head.record)
    if volume is not None:
        texts = [volume.name, volume.description, volume.volume_type, *volume.metadata.items()]
        for text in [*texts, *(volume.image_metadata or {}).items()]:
            for part in text if isinstance(text, tuple) else [text]:
                assert part is None or (len(part) <= 255 and naming.text_problem(part) is None), part
    restore.run(case.key, container, MemoryTarget(1 << 20, b"\xaa"), Control())


def _verify(case: Case, container: Any) -> None:
    for quick in (False, True):
        verify.run(case.key, container, Control(), lambda *_: None, quick=quick)


def _release(case: Case, container: Any) -> None:
    known = KnownManifests(asked=case.others, keys=[case.key, *case.others])
    release.look(case.key, known, _installation(case), container, Control())
    release.run(case.key, known, _installation(case), container, Control())


def _released_relative(case: Case, container: Any) -> None:
    """One of the others goes, and this one may share with it."""
    goes, *stay = case.others
    case = Case(case.objects, case.key, stay, case.data)
    for asked in (True, False):
        known = KnownManifests([*stay, *([case.key] if asked else [])], frozenset([goes, *stay]))
        before = dict(objects_of(container))
        try:
            release.run(goes, known, goes.split("/", 1)[0] + "/", container, Control())
        except (Damaged, UnsupportedFormat):
            # Nothing goes as long as it is not known what this one needs.
            assert objects_of(container) == before
        else:
            assert case.key in objects_of(container)
        objects_of(container).update(case.objects)


def _cleanup(case: Case, container: Any) -> None:
    prefix = case.key.rsplit("/", 2)[0] + "/"
    known = KnownManifests((), frozenset([case.key, *case.others]))
    cleanup.leftovers(prefix, case.key, known, (), container, Control())


def _sweep(case: Case, container: Any) -> None:
    known = {case.key, *case.others}
    before = set(objects_of(container))
    for rows in (Rows(known, known), Rows(set(case.others), set(case.others))):
        report = sweep.run(_installation(case), container, rows, Control())
        if any(one.stopped for one in report.volumes):
            assert set(objects_of(container)) == before


def _audit(case: Case, container: Any) -> None:
    known = {case.key, *case.others}
    for rows in (Rows(known, known), Rows(set(case.others), set(case.others))):
        audit.run(_installation(case), container, rows, Control())


def _base(case: Case, container: Any) -> None:
    """The next incremental shares with it, and is right, or what it shared is found damaged."""
    origin = keys.parse_origin(case.key.rpartition("/")[0])
    assert origin is not None
    old = ManifestReader(memory_container({"box": case.objects}), case.others[0]).head.geometry
    data = bytearray(case.data)
    data[0] ^= 1
    job = make_job(
        9,
        len(data),
        case.key,
        installation=origin.installation,
        project=origin.project,
        volume=origin.volume,
        geometry=type(old)(len(data), old.block_size, old.segment_size),
        streams=1,
    )
    made = backup.run(job, MemoryPoint(data), container, MemoryJournal(), Control())
    target = MemoryTarget(len(data))
    try:
        restore.run(made.manifest_key, container, target, Control())
    except Damaged:
        return
    assert target.data == data


def _import(case: Case, container: Any) -> None:
    tools: Any = SimpleNamespace(
        stores=SimpleNamespace(wire_names={"mem": "driver"}),
        data_keys=SimpleNamespace(finder=lambda *_: no_keys, of_lineage=lambda *_: ()),
        backups=SimpleNamespace(damaged_objects=SimpleNamespace(keys=lambda *_: frozenset())),
    )
    handler = BackupImport(tools)
    plan = SimpleNamespace(
        key=case.key,
        container="box",
        backup=SimpleNamespace(project_id=case.key.split("/")[1]),
        record=Record(id="b", size=1),
    )
    task = SimpleNamespace(payload={"admin": True})
    facts = handler._facts(task, plan, "mem", container, Control())
    for column in models.Manifest.__table__.columns:
        value = getattr(facts, column.name, None)
        if isinstance(value, str):
            assert isinstance(column.type, String)
            assert len(value) <= (column.type.length or 0), column
            assert naming.text_problem(value) is None, column
        elif value is not None:
            bits = 63 if isinstance(column.type, BigInteger) else 31
            assert 0 <= value < 1 << bits, column
    for number in (facts.object_count, facts.stored_bytes, facts.referenced_bytes):
        assert 0 <= number < 1 << 63


def _installation(case: Case) -> str:
    return case.key.split("/", 1)[0] + "/"


READERS: dict[str, Callable[[Case, Any], None]] = {
    "read": _read,
    "restore": _restore,
    "verify": _verify,
    "release": _release,
    "released relative": _released_relative,
    "clean-up": _cleanup,
    "sweep": _sweep,
    "audit": _audit,
    "base": _base,
    "import": _import,
}
#: What readers may say of bytes that are wrong, each only what its caller expects.
MAY_RAISE: dict[str, tuple[type[Exception], ...]] = {
    "read": (Damaged, UnsupportedFormat),
    "restore": (Damaged, UnsupportedFormat, TargetError),
    "verify": (UnsupportedFormat,),
    "release": (Damaged, UnsupportedFormat),
    "released relative": (),
    "clean-up": (Damaged, UnsupportedFormat),
    "sweep": (),
    "audit": (),
    "base": (),
    "import": (Damaged, UnsupportedFormat, InvalidInput),
}
