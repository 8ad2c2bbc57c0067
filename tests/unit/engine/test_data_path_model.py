"""The whole data path as one random machine: engine, lineage on the tables, and a store in memory.

Volumes are written, zeroed, grown and shrunk; backups are made from any live one and from older
snapshots, killed at any put and resumed; some ask the storage what changed, and it may lie; they get
duplicates, are deleted in any order and at the same time; manifests are damaged and repaired; the
catalogue is lost and rebuilt.  After every step the store holds exactly what manifests name (and what an
unfinished backup or release is still about to remove), without any sweep; every backup that is left
restores bit by bit.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, insert, select, update

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.memory import MemoryStore
from backupfw.db.digest import object_digest
from backupfw.db.models import Backup, Base, Manifest
from backupfw.db.session import Database
from backupfw.engine import backup, cleanup, recovery, release, restore, sweep, verify
from backupfw.engine.format.entries import SegmentEntry, decode_entry
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.keys import backup_prefix, installation_prefix, volume_prefix
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.format.sealing import CLEAR, DataKey, no_keys
from backupfw.engine.ports import BackupJob, KnownManifests
from backupfw.errors import ChangeMissed, Damaged, TaskCancelled, UnsupportedFormat
from backupfw.manager.lineage import manifests
from backupfw.manager.operators import recovery as entering
from backupfw.worker.handlers.backup_import import manifest_facts
from tests.unit.engine.fakes import FakeControl, Keyring, MemoryPoint, MemoryTarget, WatchedCipher

BLOCK, SEGMENT, PACK = 512, 8192, 4096
MOST_SEGMENTS = 5
INSTALLATION, PROJECT, VOLUME = "inst", "proj", "vol"
NOW = datetime(2030, 1, 1)


def digest_of(key: str) -> str:
    return object_digest("main", "box", key)


class Killed(Exception):
    """The worker died."""


class FragileContainer(Container):
    """A container whose worker dies at one of its puts, before or after it took effect."""

    def __init__(self, container: Container, puts: int | None, after: bool) -> None:
        super().__init__(container.store, container.name)
        self.left = puts
        self.after = after
        self.dead = False

    def put(self, key: str, body: Body) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                if self.after and not self.dead:
                    super().put(key, body)
                self.dead = True
                raise Killed
        super().put(key, body)


@dataclass
class Journal:
    """A journal that a dead worker cannot write any more."""

    entries: dict[int, bytes] = field(default_factory=dict)
    container: FragileContainer | None = None
    announced: Callable[[str], None] = lambda _key: None

    def announce(self, key: str) -> None:
        if self.container is not None and self.container.dead:
            raise Killed
        self.announced(key)

    def distrust(self, error: ChangeMissed) -> None:
        pass

    def is_unneeded(self, key: str) -> bool:
        return False

    def finished(self) -> Iterator[tuple[int, bytes]]:
        return iter(sorted(self.entries.items()))

    def record(self, entries: Sequence[tuple[int, bytes]]) -> None:
        if self.container is not None and self.container.dead:
            raise Killed
        self.entries.update(entries)


@dataclass
class Writing:
    """A backup that has begun and not ended."""

    manifest_id: str
    base_id: str | None
    base_key: str | None
    data: bytes
    journal: Journal = field(default_factory=Journal)
    attempts: int = 0
    born: str = ""
    epoch: int = 1
    #: What the storage says is the same is not read; and it says that of everything.
    trusting: bool = False
    #: What the storage lies about: ``same``, ``zero`` or nothing.
    lying: str = ""


@dataclass
class Release:
    """A release that has not ended; ``relatives`` as asked by the attempt under way."""

    manifest_id: str
    key: str
    relatives: list[str] | None = None
    known: set[str] = field(default_factory=set)


class Rows:
    """The database, as a sweep asks it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def volume(self, project: str, volume: str) -> manifests.VolumeRows:
        assert (project, volume) == (PROJECT, VOLUME)
        with self._db.read() as session:
            return manifests.volume_rows(
                session, store="main", container="box", installation_id=INSTALLATION, volume_id=VOLUME
            )

    deleting = volume

    def deleted(self, project: str, volume: str) -> None:
        """There are no copies."""


class DataPath(RuleBasedStateMachine):
    """The machine.  ``records`` are what users see: (manifest, content)."""

    db: Database
    #: What happened, over all runs: a machine that never meets these cases shows nothing.
    seen: Counter[str]
    #: The data keys, which change now and then; None: nothing is encrypted.
    keyring: Keyring | None = None

    def __init__(self) -> None:
        super().__init__()
        with self.db.write() as session:
            session.execute(delete(Backup))
            session.execute(update(Manifest).values(base_id=None))
            session.execute(delete(Manifest))
        self.store = MemoryStore("main")
        self.container = Container(self.store, "box")
        self.container.ensure()
        self.volume = bytearray(SEGMENT * 2)
        self.snapshots: list[bytes] = []
        self.records: dict[str, tuple[str, bytes]] = {}
        self.keys: dict[str, str] = {}
        self.names: dict[str, set[str]] = {}
        self.writing: list[Writing] = []
        self.releases: list[Release] = []
        self.damaged: dict[str, bytes] = {}
        #: By token, the content of each point of a backup that was committed.
        self.points: dict[str, bytes] = {}
        self.ids = 0
        self.disasters = False
        #: Counts the times that the database went back: tokens are drawn anew.
        self.life = 0

    # -- helpers ----------------------------------------------------------------------------------

    @property
    def objects(self) -> dict[str, bytes]:
        return self.store.contents["box"]

    def find_key(self, key_id: str) -> DataKey:
        return no_keys(key_id) if self.keyring is None else self.keyring.find(key_id)

    def new_id(self, kind: str) -> str:
        self.ids += 1
        return f"{kind}{self.ids:04d}"

    def pick(self, items: Sequence[Any], choice: int) -> Any:
        return items[choice % len(items)]

    def live(self) -> list[str]:
        return sorted({manifest_id for manifest_id, _ in self.records.values()})

    def attempt(
        self, work: Writing, puts: int | None = None, after: bool = False, holes: bool = False
    ) -> bool:
        """Run one attempt of a backup; True when it committed."""
        work.attempts += 1
        if self.keyring is not None and work.attempts % 2:
            self.keyring.rotate()
        if self.took_over(work):
            return True
        container = FragileContainer(self.container, puts, after)
        work.journal.container = container
        journal_was = len(work.journal.entries)
        job = BackupJob(
            installation=INSTALLATION,
            project=PROJECT,
            volume=VOLUME,
            backup=work.manifest_id,
            epoch=work.epoch,
            attempt=work.attempts,
            token=f"{random.Random(f'{work.manifest_id}.{work.attempts}.{self.life}').getrandbits(64):016x}",
            geometry=Geometry(len(work.data), BLOCK, SEGMENT),
            base=work.base_key,
            since=self.since(work),
            verify_unchanged=1.0 if work.lying else 0.1,
            read_all=bool(work.lying) and not work.trusting,
            pack_size=PACK,
            streams=1,
            sealing=CLEAR if self.keyring is None else self.keyring.sealing,
        )
        extents = None
        if holes:
            extents = [
                (at, min(BLOCK, len(work.data) - at))
                for at in range(0, len(work.data), BLOCK)
                if any(work.data[at : at + BLOCK])
            ]
        everywhere = [range(len(work.data))]
        point = MemoryPoint(
            work.data,
            extents,
            token=f"point of {work.manifest_id}",
            earlier=self.points,
            grain=BLOCK // 2,
            lies=everywhere if work.lying == "same" else (),
            # Without a token, what a storage says is zero is not checked.
            zero_lies=everywhere if work.lying == "zero" and (job.since or job.read_all) else (),
        )
        try:
            result = backup.run(job, point, container, work.journal, FakeControl())
        except Killed:
            self.seen["killed"] += 1
            return False
        except ChangeMissed:
            assert work.lying
            self.seen["a lie was found"] += 1
            # What was finished does not count for a backup that reads everything.
            work.trusting, work.epoch = False, work.epoch + 1
            work.journal.entries.clear()
            return self.attempt(work, holes=holes)
        self.seen["by token"] += job.since is not None
        if job.since is None and not holes and not journal_was:
            assert point.read_bytes >= len(work.data)
        if work.attempts > 1 and journal_was:
            self.seen["resumed"] += 1
            self.seen["a newer backup had appeared"] += max(self.records, default="") > work.born
        if result.base_problem:
            self.seen["base was damaged"] += 1
        self.commit(work, result.manifest_key)
        return True

    def since(self, work: Writing) -> str | None:
        """Return the token of the base's point, if it can be compared with."""
        if not work.trusting or work.base_key is None or work.base_key in self.damaged:
            # What a storage says is zero is checked only beside a base that is whole.
            return None
        try:
            note = ManifestReader(self.container, work.base_key, self.find_key).head.point
        except (Damaged, UnsupportedFormat):
            return None
        return None if note is None or note.token not in self.points else note.token

    def took_over(self, work: Writing) -> bool:
        """Commit a whole manifest that an earlier attempt announced, or decide that there will be none."""
        with self.db.read() as session:
            announced = manifests.announced_keys(session, work.manifest_id)
        for key in announced:
            try:
                found = verify.look(key, (), self.container, FakeControl(), find_key=self.find_key)
            except (Damaged, UnsupportedFormat):
                continue
            if not found.damaged and found.head.base in (None, work.base_key):
                self.commit(work, key)
                self.seen["taken over"] += 1
                return True
        with self.db.write() as session:
            manifests.give_up(session, Manifest.backup_id == work.manifest_id)
        return False

    def commit(self, work: Writing, key: str) -> None:
        reader = ManifestReader(self.container, key, self.find_key)
        named = {key}.union(*(entry.object_keys() for entry in reader.segments()))
        with self.db.write() as session:
            row = session.get_one(Manifest, work.manifest_id)
            manifests.commit(session, row, key, digest_of(key), len(work.data))
        self.names[work.manifest_id], self.keys[work.manifest_id] = named, key
        self.points[f"point of {work.manifest_id}"] = work.data
        self.add_record(work.manifest_id, work.data)
        if work in self.writing:
            self.writing.remove(work)
        if work.attempts > 1:
            self.clean_up(work, key)
        self.let_go(work.base_id)

    def clean_up(self, work: Writing, keep: str | None) -> None:
        """Remove what attempts left; if a manifest that may name it is damaged, that waits for its repair."""
        prefix = backup_prefix(INSTALLATION, PROJECT, VOLUME, work.manifest_id)
        known, recorded = self.known(work.manifest_id), self.recorded(work)
        before = dict(self.objects)
        try:
            cleanup.leftovers(prefix, keep, known, recorded, self.container, FakeControl())
        except (Damaged, UnsupportedFormat):
            assert set(known.asked) & set(self.damaged)
            assert self.objects == before
            self.repair()
            cleanup.leftovers(prefix, keep, known, recorded, self.container, FakeControl())

    def announce(self, manifest_id: str, key: str) -> None:
        with self.db.write() as session:
            manifests.announce(session, session.get_one(Manifest, manifest_id), key, digest_of(key))

    def known(self, manifest_id: str) -> KnownManifests:
        with self.db.read() as session:
            return KnownManifests(
                manifests.keys_that_may_name(session, manifest_id),
                manifests.volume_keys(session, manifest_id),
            )

    def recorded(self, work: Writing) -> list[SegmentEntry]:
        entries = (
            decode_entry(data, volume_prefix(INSTALLATION, PROJECT, VOLUME))
            for data in work.journal.entries.values()
        )
        return [entry for entry in entries if entry is not None]

    def add_record(self, manifest_id: str, data: bytes) -> None:
        record_id = self.new_id("r")
        with self.db.write() as session:
            assert manifests.take(session, manifest_id)
            session.add(
                Backup(
                    id=record_id,
                    project_id=PROJECT,
                    volume_id=VOLUME,
                    status="available",
                    manifest_id=manifest_id,
                    created_at=NOW,
                )
            )
        self.records[record_id] = (manifest_id, data)

    def let_go(self, manifest_id: str | None) -> None:
        if manifest_id is None:
            return
        with self.db.write() as session:
            released = manifests.release_if_unused(session, manifest_id)
        if released:
            self.releases.append(Release(manifest_id, self.keys[manifest_id]))

    def begin(self, choice: int, full: bool, snapshot: bool) -> Writing:
        data = bytes(self.volume)
        if snapshot and self.snapshots:
            data = self.pick(self.snapshots, choice)
        base_id = None if full or not self.live() else self.pick(self.live(), choice)
        manifest_id = self.new_id("m")
        with self.db.write() as session:
            if base_id is not None:
                assert manifests.take(session, base_id)
            session.add(
                Manifest(
                    id=manifest_id,
                    store="main",
                    container="box",
                    installation_id=INSTALLATION,
                    project_id=PROJECT,
                    volume_id=VOLUME,
                    backup_id=manifest_id,
                    base_id=base_id,
                    state="writing",
                    block_size=BLOCK,
                    segment_size=SEGMENT,
                    hash_mode="blake3",
                    created_at=NOW,
                    updated_at=NOW,
                )
            )
        base_key = None if base_id is None else self.keys[base_id]
        work = Writing(
            manifest_id,
            base_id,
            base_key,
            data,
            born=max(self.records, default=""),
            trusting=choice % 3 != 0,
            lying={1: "same", 4: "zero"}.get(choice % 7, ""),
        )
        work.journal.announced = partial(self.announce, manifest_id)
        return work

    def damaged_asked(self, asked: Release) -> bool:
        """Whether the release must fail: a relative is damaged, or is gone since it was asked."""
        assert asked.relatives is not None
        return any(key in self.damaged or key not in self.objects for key in asked.relatives)

    def restore(self, key: str, target: MemoryTarget) -> None:
        restore.run(key, self.container, target, FakeControl(), streams=1, find_key=self.find_key)

    def check_restore(self, record_id: str, dirty: bool, larger: int = 0) -> None:
        manifest_id, data = self.records[record_id]
        target = MemoryTarget(len(data) + larger, b"\xa5" if dirty else None)
        if self.keys[manifest_id] in self.damaged:
            # Fault 2: what is wrong is said, never handed out.
            with pytest.raises((Damaged, UnsupportedFormat)):
                self.restore(self.keys[manifest_id], target)
            return
        self.restore(self.keys[manifest_id], target)
        # Fault 1: zeroed data stays zero, on a new target and on a dirty one.
        assert bytes(target.flushed[: len(data)]) == data
        assert bytes(target.data[len(data) :]) == (b"\xa5" if dirty else b"\0") * larger

    # -- the volume -------------------------------------------------------------------------------

    @initialize(seed=st.integers(0, 99))
    def fill(self, seed: int) -> None:
        # Not in every run: without a lineage everything is everything's relative.
        self.disasters = seed % 3 == 0
        self.volume[:] = random.Random(seed).randbytes(len(self.volume))

    @rule(
        seed=st.integers(0, 1 << 16), kind=st.sampled_from(["write", "write", "zero", "resize", "snapshot"])
    )
    def change_the_volume(self, seed: int, kind: str) -> None:
        rng = random.Random(seed)
        size = len(self.volume)
        if kind == "write":
            for _ in range(rng.randint(1, 12)):
                at = rng.randrange(0, size, BLOCK)
                count = min(BLOCK, size - at)
                data = rng.randbytes(count) if rng.random() < 0.8 else (b"ab" * count)[:count]
                self.volume[at : at + count] = data
        elif kind == "zero":
            at = rng.randrange(0, size, BLOCK)
            end = min(at + rng.randint(1, 16) * BLOCK, size)
            self.volume[at:end] = bytes(end - at)
        elif kind == "resize":
            # Half blocks too: the last block may be short.
            length = rng.randint(1, MOST_SEGMENTS * SEGMENT // 256) * 256
            self.volume = (self.volume + bytearray(max(0, length - size)))[:length]
        else:
            self.snapshots = [*self.snapshots[-3:], bytes(self.volume)]

    # -- backups ----------------------------------------------------------------------------------

    @rule(choice=st.integers(0, 99), full=st.booleans(), snapshot=st.booleans(), holes=st.booleans())
    def back_up(self, choice: int, full: bool, snapshot: bool, holes: bool) -> None:
        assert self.attempt(self.begin(choice, full and choice % 2 == 0, snapshot), holes=holes)

    @precondition(lambda self: len(self.writing) < 3)
    @rule(choice=st.integers(0, 99), snapshot=st.booleans(), puts=st.integers(0, 12), after=st.booleans())
    def back_up_and_die(self, choice: int, snapshot: bool, puts: int, after: bool) -> None:
        work = self.begin(choice, False, snapshot)
        self.writing.append(work)
        self.attempt(work, puts, after)

    @precondition(lambda self: self.writing)
    @rule(choice=st.integers(0, 99), puts=st.one_of(st.none(), st.integers(0, 12)), after=st.booleans())
    def resume(self, choice: int, puts: int | None, after: bool) -> None:
        self.attempt(self.pick(self.writing, choice), puts, after)

    @precondition(lambda self: self.writing)
    @rule(choice=st.integers(0, 99))
    def give_up(self, choice: int) -> None:
        work = self.pick(self.writing, choice)
        self.writing.remove(work)
        with self.db.write() as session:
            assert manifests.abandon(session, work.manifest_id)
            manifests.give_up(session, Manifest.backup_id == work.manifest_id)
        self.let_go(work.base_id)
        self.clean_up(work, None)
        with self.db.write() as session:
            assert manifests.mark_gone(session, work.manifest_id)

    @precondition(lambda self: self.records)
    @rule(choice=st.integers(0, 99))
    def import_a_twin(self, choice: int) -> None:
        manifest_id, data = self.pick(list(self.records.values()), choice)
        self.add_record(manifest_id, data)
        self.seen["duplicates"] += 1

    # -- deletes ----------------------------------------------------------------------------------

    @precondition(lambda self: self.records)
    @rule(choice=st.integers(0, 99))
    def delete_record(self, choice: int) -> None:
        self.delete_now(self.pick(sorted(self.records), choice))

    @precondition(lambda self: any(work.base_id in self.live() for work in self.writing))
    @rule(choice=st.integers(0, 99))
    def delete_a_base(self, choice: int) -> None:
        """All records of a manifest go while a backup is being made from it."""
        bases = sorted({work.base_id for work in self.writing if work.base_id in self.live()} - {None})
        base_id = self.pick(bases, choice)
        for record_id in [one for one, (manifest_id, _) in self.records.items() if manifest_id == base_id]:
            self.delete_now(record_id)
        self.seen["a base was deleted"] += 1
        # It is held: what is left of the release comes when the child has ended.
        assert all(asked.manifest_id != base_id for asked in self.releases)

    def delete_now(self, record_id: str) -> None:
        manifest_id, _ = self.records.pop(record_id)
        with self.db.write() as session:
            session.execute(update(Backup).where(Backup.id == record_id).values(deleted=True))
        self.let_go(manifest_id)

    @precondition(lambda self: self.releases)
    @rule(choice=st.integers(0, 99))
    def ask(self, choice: int) -> None:
        """An attempt of a release begins; others may run before it goes on."""
        self.ask_now(self.pick(self.releases, choice))

    def ask_now(self, asked: Release) -> None:
        with self.db.write() as session:
            found = manifests.relatives(session, asked.manifest_id)
            assert all(row.state == "live" for row in found), "a base is held by what is made from it"
            asked.relatives = [row.key for row in found if row.key is not None]
            asked.known = manifests.volume_keys(session, asked.manifest_id)
        self.seen["relatives, three and more"] += len(asked.relatives) >= 3

    @precondition(lambda self: self.releases)
    @rule(choice=st.integers(0, 99), stop=st.sampled_from([None, None, 0, 1, 2, 3]))
    def run_release(self, choice: int, stop: int | None) -> None:
        self.go_on(self.pick(self.releases, choice), stop)

    def go_on(self, asked: Release, stop: int | None = None) -> None:
        if asked.relatives is None:
            self.ask_now(asked)
        before = set(self.objects)
        # When nothing is left of it, as after a return to an older database, nobody else is asked.
        own = backup_prefix(INSTALLATION, PROJECT, VOLUME, asked.manifest_id)
        must_wait = self.damaged_asked(asked) and any(key.startswith(own) for key in self.objects)
        # One that was committed after the attempt asked is read, too, if it may name one of the objects.
        may_wait = any(key not in asked.known and key in self.objects for key in self.damaged)
        relatives, asked.relatives = asked.relatives, None
        prefix = installation_prefix(INSTALLATION)
        control = FakeControl(stop_after=stop)
        try:
            known = KnownManifests(relatives or [], asked.known)
            release.run(asked.key, known, prefix, self.container, control)
        except TaskCancelled:
            self.seen["a release was killed"] += 1
            return
        except (Damaged, UnsupportedFormat):
            assert must_wait or may_wait
            self.seen["a release had to wait"] += 1
            assert set(self.objects) == before, "nothing goes while a relative cannot be read"
            return
        assert not must_wait, "a damaged relative went unnoticed"
        assert asked.key not in self.objects
        with self.db.write() as session:
            assert manifests.mark_gone(session, asked.manifest_id)
        self.releases.remove(asked)
        self.seen["released with relatives"] += bool(relatives)
        self.seen["others were being released"] += bool(self.releases)
        self.refuse_import(asked.key)

    def end_releases(self) -> None:
        rounds = 0
        while self.releases:
            self.go_on(self.releases[rounds % len(self.releases)])
            rounds += 1
            assert rounds < 1000, "releases wait for each other"

    def refuse_import(self, key: str) -> None:
        """What is gone stays known, so an import of it can be refused."""
        with self.db.read() as session:
            state = session.scalar(select(Manifest.state).where(Manifest.key == key))
        assert state == "gone"

    # -- misfortune -------------------------------------------------------------------------------

    @precondition(lambda self: self.records and len(self.damaged) < 2)
    @rule(choice=st.integers(0, 99), where=st.integers(0, 1 << 20))
    def damage(self, choice: int, where: int) -> None:
        self.flip(self.keys[self.pick(self.live(), choice)], where)

    @precondition(lambda self: self.releases)
    @rule(choice=st.integers(0, 99), where=st.integers(0, 1 << 20))
    def damage_a_relative(self, choice: int, where: int) -> None:
        asked = self.pick(self.releases, choice)
        self.ask_now(asked)
        if asked.relatives:
            self.flip(self.pick(asked.relatives, choice), where)
            self.go_on(asked)

    def flip(self, key: str, where: int) -> None:
        if key not in self.damaged:
            data = bytearray(self.objects[key])
            self.damaged[key] = bytes(data)
            data[where % len(data)] ^= 1 << (where % 8)
            self.objects[key] = bytes(data)

    @precondition(lambda self: self.damaged)
    @rule()
    def repair(self) -> None:
        for key, data in self.damaged.items():
            if key in self.objects:
                self.objects[key] = data
        self.damaged.clear()

    @precondition(lambda self: self.disasters and self.records and not (self.writing or self.damaged))
    @rule(seed=st.integers(0, 1 << 16))
    def lose_the_catalogue(self, seed: int) -> None:
        """Rows of live manifests are lost and entered again by import, without their lineage."""
        self.end_releases()
        rng = random.Random(seed)
        lost = [one for one in self.live() if rng.random() < 0.5]
        with self.db.write() as session:
            session.execute(update(Manifest).where(Manifest.base_id.in_(lost)).values(base_id=None))
            session.execute(
                update(Manifest).where(Manifest.id.in_(lost)).values(base_id=None, detached=True, touched=0)
            )
        # What such a manifest shares is found out when it is released.
        named = sorted(record for record, (manifest_id, _) in self.records.items() if manifest_id in lost)
        if named:
            self.delete_now(self.pick(named, seed))
        for asked in self.releases:
            self.ask_now(asked)

    # -- what must hold ---------------------------------------------------------------------------

    @precondition(lambda self: self.records)
    @rule(choice=st.integers(0, 99), dirty=st.booleans(), larger=st.sampled_from([0, 1, 5000]))
    def restore_one(self, choice: int, dirty: bool, larger: int) -> None:
        self.check_restore(self.pick(sorted(self.records), choice), dirty, larger)

    @rule(dry_run=st.booleans())
    def sweep(self, dry_run: bool) -> None:
        before = dict(self.objects)
        prefix = volume_prefix(INSTALLATION, PROJECT, VOLUME)
        report = sweep.run(prefix, self.container, Rows(self.db), FakeControl(), dry_run=dry_run)
        if not self.releases:
            assert report.orphans == 0, "there is nothing for a sweep to find"
            assert self.objects == before
        live_damage = {self.keys[one] for one in self.live()} & set(self.damaged)
        assert all(one.stopped for one in report.volumes) if live_damage else True

    @invariant()
    def the_store_holds_what_manifests_name(self) -> None:
        need = set().union(*(self.names[one] for one in self.live()))
        held = {work.base_id for work in self.writing if work.base_id is not None}
        need = need.union(*(self.names[one] for one in held))
        found = set(self.objects)
        assert need <= found, f"lost: {sorted(need - found)}"
        allowed = need.union(*(self.names[one.manifest_id] for one in self.releases))
        prefixes = tuple(
            backup_prefix(INSTALLATION, PROJECT, VOLUME, work.manifest_id) for work in self.writing
        )
        left = {key for key in found - allowed if not key.startswith(prefixes)}
        assert not left, f"left over: {sorted(left)}"

    def teardown(self) -> None:
        """Everything ends: every backup restores, then all is deleted and the store is empty."""
        self.repair()
        for record_id in sorted(self.records):
            self.check_restore(record_id, dirty=len(record_id) % 2 == 0)
        while self.writing:
            self.give_up(0)
        self.end_releases()
        self.the_store_holds_what_manifests_name()
        for record_id in sorted(self.records):
            self.check_restore(record_id, dirty=True)
        while self.records:
            self.delete_record(len(self.records))
        self.end_releases()
        assert self.objects == {}
        with self.db.read() as session:
            assert session.scalar(select(Manifest.id).where(Manifest.in_tree).limit(1)) is None


class Copy:
    """A copy of the database, and what the machine knew when it was made."""

    def __init__(self, play: DataPath) -> None:
        with play.db.read() as session:
            self.rows = {
                table: [dict(row) for row in session.execute(select(table)).mappings()]
                for table in (Manifest.__table__, Backup.__table__)
            }
        self.records, self.keys, self.names = dict(play.records), dict(play.keys), dict(play.names)
        self.writing = [
            replace(work, journal=replace(work.journal, entries=dict(work.journal.entries)))
            for work in play.writing
        ]
        self.releases = [Release(one.manifest_id, one.key) for one in play.releases]

    def put_back(self, play: DataPath) -> None:
        with play.db.write() as session:
            session.execute(delete(Backup))
            session.execute(update(Manifest).values(base_id=None))
            session.execute(delete(Manifest))
            for table, rows in self.rows.items():
                # Edges after the rows that they point to.
                for row in rows:
                    session.execute(
                        insert(table).values({**row, **({"base_id": None} if "base_id" in row else {})})
                    )
            for row in self.rows[Manifest.__table__]:
                session.execute(
                    update(Manifest).where(Manifest.id == row["id"]).values(base_id=row["base_id"])
                )
        play.records, play.keys, play.names = dict(self.records), dict(self.keys), dict(self.names)
        play.writing, play.releases = self.writing, self.releases
        play.life += 1


def random_steps(play: DataPath, rng: random.Random, steps: int) -> None:
    for _ in range(steps):
        choice = rng.randrange(100)
        what = rng.choice(["change", "back up", "back up", "die", "resume", "give up", "delete", "release"])
        if what == "change":
            play.change_the_volume(choice, rng.choice(["write", "zero", "resize"]))
        elif what == "back up":
            play.back_up(choice, full=rng.random() < 0.3, snapshot=False, holes=False)
        elif what == "die" and len(play.writing) < 3:
            play.back_up_and_die(choice, snapshot=False, puts=rng.randrange(12), after=rng.random() < 0.5)
        elif what == "resume" and play.writing:
            play.resume(choice, rng.choice([None, None, 1, 5]), after=rng.random() < 0.5)
        elif what == "give up" and play.writing:
            play.give_up(choice)
        elif what == "delete" and play.records:
            play.delete_record(choice)
        elif what == "release" and play.releases:
            play.run_release(choice, None)


def go_back(machine: type[DataPath], seed: int) -> int:
    """Go back to a copy, then delete everything; returns how many manifests the copy does not know."""
    play, rng = machine(), random.Random(seed)
    play.fill(seed)
    random_steps(play, rng, rng.randint(1, 12))
    kept = Copy(play)
    random_steps(play, rng, rng.randint(1, 12))
    # An announced key is in the copy: who gives up or deletes that backup later, deletes what lies there.
    known = {row["key"] for row in kept.rows[Manifest.__table__]}
    made_since = {
        play.keys[manifest_id]: data
        for manifest_id, data in play.records.values()
        if play.keys[manifest_id] not in known
    }
    kept.put_back(play)
    random_steps(play, rng, rng.randint(1, 8))
    while play.writing:
        if rng.random() < 0.5:
            play.give_up(rng.randrange(100))
        else:
            play.resume(rng.randrange(100), None, after=False)
    while play.records:
        play.delete_record(rng.randrange(100))
    play.end_releases()
    # What every record that was kept names restores; and nothing else is left.
    named = set()
    for key, data in made_since.items():
        target = MemoryTarget(len(data), b"\xa5")
        play.restore(key, target)
        assert bytes(target.flushed) == data
        reader = ManifestReader(play.container, key)
        named |= {key}.union(*(entry.object_keys() for entry in reader.segments()))
    assert named <= set(play.objects)
    return len(made_since)


def rebuild(play: DataPath) -> None:
    """Lose the database, and enter what the store has, as ``catalogue rebuild`` does; then sweep."""
    content = {name.removeprefix("point of "): data for name, data in play.points.items()}
    content |= {work.manifest_id: work.data for work in play.writing}
    play.points = {f"point of {name}": data for name, data in content.items()}
    wanted = {play.keys[manifest_id] for manifest_id, _ in play.records.values()}
    with play.db.write() as session:
        session.execute(delete(Backup))
        session.execute(update(Manifest).values(base_id=None))
        session.execute(delete(Manifest))
    play.seen["attempts were lost"] += bool(play.writing)
    play.seen["releases were lost"] += bool(play.releases)
    play.records, play.keys, play.names, play.writing, play.releases = {}, {}, {}, [], []
    play.life += 1
    prefix = installation_prefix(INSTALLATION)
    broken = []
    for volume in recovery.run(prefix, play.container, FakeControl(), lambda _prefix: play.find_key):
        found = []
        for one in volume.manifests:
            assert one.head is not None
            sizes = (one.object_count, one.stored_bytes, one.referenced_bytes)
            facts = manifest_facts(one.head, play.container, "service", *sizes)
            problem = f"{one.missing} are missing" if one.missing else None
            attempt = one.head.origin.attempt
            found.append(entering.Found(facts, attempt, problem, base=one.base, detached=one.detached))
            play.seen["with its base"] += one.base is not None
            play.seen["detached"] += one.detached
        for entered in entering.enter(play.db, found, lambda _found: {}, INSTALLATION):
            assert entered.result == entering.ENTERED
            key = entered.found.facts.key
            with play.db.read() as session:
                row = session.execute(select(Manifest).where(Manifest.key == key)).scalar_one()
            named = {key}.union(
                *(entry.object_keys() for entry in ManifestReader(play.container, key).segments())
            )
            play.keys[row.id], play.names[row.id] = key, named
            play.records[entered.backup_id] = (row.id, content[entered.found.facts.backup_id])
            if entered.found.problem is not None:
                assert key not in wanted
                broken.append(entered.backup_id)
    assert wanted <= {play.keys[manifest_id] for manifest_id, _ in play.records.values()}
    # What is not whole was being made or released when the database was lost.
    for record_id in broken:
        play.delete_now(record_id)
    play.end_releases()

    sweep.run(prefix, play.container, Rows(play.db), FakeControl())
    play.the_store_holds_what_manifests_name()


def start_anew(machine: type[DataPath], seed: int) -> None:
    """Lose the database at random steps, and go on with what the store has; at the end delete everything."""
    play, rng = machine(), random.Random(seed)
    play.fill(seed)
    for _ in range(3):
        random_steps(play, rng, rng.randint(1, 14))
        rebuild(play)
        for record_id in sorted(play.records):
            play.check_restore(record_id, dirty=True)
        # What is made from now on shares with what was found.
        play.life += 1
    random_steps(play, rng, rng.randint(1, 14))
    play.teardown()


@pytest.fixture(params=["clear", pytest.param("encrypted", marks=pytest.mark.check)])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[DataPath]]:
    # Buffers and batches for a volume this small: a resume shall find something in the journal.
    monkeypatch.setattr("backupfw.engine.segment_backup.READ_BYTES", SEGMENT)
    monkeypatch.setattr(backup, "JOURNAL_SEGMENTS", 1)
    database = Database("sqlite://")
    Base.metadata.create_all(database.engine)
    keyring = Keyring() if request.param == "encrypted" else None
    # Over all histories no nonce is used twice.
    cipher = type("Watched", (WatchedCipher,), {"used": set()})
    monkeypatch.setattr("backupfw.engine.format.sealing.ObjectCipher", cipher)
    yield type("DataPathOnTables", (DataPath,), {"db": database, "seen": Counter(), "keyring": keyring})
    assert bool(cipher.used) == (keyring is not None)
    database.close()


def play(machine: type[DataPath], **options: Any) -> None:
    profile = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), **options)
    run_state_machine_as_test(machine, settings=profile)


def play_the_rare_cases(machine: type[DataPath]) -> None:
    """Meet, by a script, what random steps may miss: which put a kill meets depends on threads' timing."""
    play = machine()
    play.fill(0)
    for choice in range(3):
        play.change_the_volume(choice, "write")
        play.back_up(choice, full=False, snapshot=False, holes=False)
    # Of kills at each put, some find finished segments in the journal; then a newer backup appears.
    for puts in range(8):
        play.volume[:] = random.Random(puts).randbytes(len(play.volume))
        play.back_up_and_die(puts, snapshot=False, puts=puts, after=True)
    play.back_up(1, full=True, snapshot=False, holes=False)
    while play.writing:
        play.resume(0, puts=None, after=False)
    for seed in range(3):
        play.lose_the_catalogue(seed)
        play.end_releases()
    play.the_store_holds_what_manifests_name()
    play.teardown()


@pytest.mark.check
def test_a_database_that_went_back(machine: type[DataPath]) -> None:
    seeds = range(5 if machine.keyring else 15)
    unknown = [go_back(machine, seed) for seed in seeds]
    assert sum(number > 0 for number in unknown) > len(seeds) // 3


# As long as it takes.
@pytest.mark.timeout(0)
@pytest.mark.soak
def test_a_database_that_went_back_for_long(machine: type[DataPath]) -> None:
    for seed in range(5, 3000):
        go_back(machine, seed)


@pytest.mark.check
def test_a_database_that_was_rebuilt(machine: type[DataPath]) -> None:
    for seed in range(2 if machine.keyring else 8):
        start_anew(machine, seed)
    cases = ("attempts were lost", "releases were lost", "with its base", "detached")
    missed = [case for case in cases if not machine.seen[case] and machine.keyring is None]
    assert not missed, f"never came up: {missed}; seen: {machine.seen}"


@pytest.mark.parametrize("order", [1, -1])
def test_children_of_a_base_that_is_gone_are_relatives(machine: type[DataPath], order: int) -> None:
    """They share its objects, and no manifest says that they do."""
    play = machine()
    play.fill(1)
    play.back_up(0, full=True, snapshot=False, holes=False)
    for seed in (1, 2):
        play.change_the_volume(seed, "write")
        play.back_up(0, full=False, snapshot=False, holes=False)
    base, *children = sorted(play.records)
    play.delete_now(base)
    play.end_releases()
    rebuild(play)
    for record_id in sorted(play.records)[::order]:
        play.check_restore(record_id, dirty=True)
        play.delete_now(record_id)
        play.end_releases()
        play.the_store_holds_what_manifests_name()
    assert len(children) == 2
    assert play.objects == {}


@pytest.mark.soak
def test_a_database_that_was_rebuilt_for_long(machine: type[DataPath]) -> None:
    for seed in range(2, 3000):
        start_anew(machine, seed)


def test_any_history_of_backups_restores_exactly(machine: type[DataPath]) -> None:
    cases = (
        "killed",
        "resumed",
        "a newer backup had appeared",
        "base was damaged",
        "duplicates",
        "a base was deleted",
        "released with relatives",
        "relatives, three and more",
        "others were being released",
        "a release had to wait",
        "a release was killed",
        "by token",
        "a lie was found",
    )
    play_the_rare_cases(machine)
    # The same code decides with and without encryption.
    examples = 4 if machine.keyring else 10
    play(machine, max_examples=examples, stateful_step_count=50, derandomize=True)
    missed = [case for case in cases if not machine.seen[case] and machine.keyring is None]
    assert not missed, f"never came up: {missed}; seen: {machine.seen}"


# As long as it takes.
@pytest.mark.timeout(0)
@pytest.mark.soak
def test_data_path_for_long(machine: type[DataPath]) -> None:
    play(machine, max_examples=5000, stateful_step_count=100)
