"""One test for each fault that the classic backup service is known for.

Each is small and shows the fault where it would arise here; the models and integration tests go deeper.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backupfw import naming
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import ChunkStoreError, InvalidName, PermissionDenied
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.memory import MemoryStore
from backupfw.engine import backup, cleanup, release, restore
from backupfw.engine.format import keys
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.ports import KnownManifests
from backupfw.errors import Damaged, InvalidInput, QuotaExceeded
from backupfw.manager.queue import tasks
from backupfw.manager.rules import quota
from backupfw.manager.rules.placement import Placer
from backupfw.testing.faults import FaultyStore, LaggingStore, RecordingStore, SlowStore
from tests.integration.service import running
from tests.unit.engine.fakes import (
    BLOCK,
    SEGMENT,
    FakeControl,
    MemoryJournal,
    MemoryPoint,
    MemoryTarget,
    make_job,
    memory_container,
    objects_of,
)
from tests.unit.manager.support import World


def content(length: int, seed: int = 1) -> bytearray:
    return bytearray(random.Random(seed).randbytes(length))


def back_up(container: Container, number: int, data: bytes | bytearray, base: str | None = None) -> str:
    job = make_job(number, len(data), base)
    return backup.run(job, MemoryPoint(bytes(data)), container, MemoryJournal(), FakeControl()).manifest_key


def restored(container: Container, key: str, length: int, fill: bytes | None = None) -> bytes:
    target = MemoryTarget(length, fill)
    restore.run(key, container, target, FakeControl())
    return bytes(target.data)


def test_1_zeroed_data_does_not_come_back() -> None:
    """An incremental holds zeros where its parent had data; new and dirty targets get zeros there."""
    container = memory_container()
    data = content(3 * SEGMENT + 100)
    full = back_up(container, 1, data)
    data[BLOCK : 3 * BLOCK] = bytes(2 * BLOCK)
    data[SEGMENT : 2 * SEGMENT] = bytes(SEGMENT)
    data[-50:] = bytes(50)
    incremental = back_up(container, 2, data, full)
    assert restored(container, incremental, len(data)) == data
    assert restored(container, incremental, len(data), fill=b"\xaa") == data


def test_2_a_flipped_bit_is_never_restored() -> None:
    container = memory_container()
    data = content(2 * SEGMENT)
    manifest = back_up(container, 1, data)
    objects = objects_of(container)
    rng = random.Random(2)
    for key, whole in list(objects.items()):
        for _ in range(8):
            place = rng.randrange(len(whole) * 8)
            damaged = bytearray(whole)
            damaged[place // 8] ^= 1 << place % 8
            objects[key] = bytes(damaged)
            target = MemoryTarget(len(data))
            try:
                restore.run(manifest, container, target, FakeControl())
            except Damaged as error:
                assert key in str(error)  # noqa: PT017  (a flip in a footer may go unread)
            else:
                assert target.data == data
        objects[key] = whole


def test_3_a_failing_listing_deletes_nothing_silently() -> None:
    """Release and clean-up raise, so that they are tried again: unknown manifests may name what would go."""
    faulty = FaultyStore(MemoryStore("mem"))
    container = Container(faulty, "box")
    container.ensure()
    key = back_up(container, 1, content(SEGMENT))
    faulty.fail("list", lambda: PermissionDenied("no"), times=None)
    parsed = keys.parse(key)
    assert parsed is not None
    prefix = parsed.origin.rpartition("/")[0] + "/"
    with pytest.raises(ChunkStoreError):
        cleanup.leftovers(prefix, None, KnownManifests(), (), container, FakeControl())
    with pytest.raises(ChunkStoreError):
        release.run(key, KnownManifests(), keys.installation_prefix("inst"), container, FakeControl())
    assert faulty.inner.get("box", key)
    faulty.heal()
    release.run(key, KnownManifests(), keys.installation_prefix("inst"), container, FakeControl())
    assert list(container.list()) == []


def test_4_a_listing_that_lags_disturbs_nothing() -> None:
    """Restore, incremental and release of what no listing shows yet."""
    lagging = LaggingStore(MemoryStore("mem"))
    container = Container(lagging, "box")
    container.ensure()
    data = content(2 * SEGMENT)
    full = back_up(container, 1, data)
    data[:BLOCK] = content(BLOCK, 3)
    incremental = back_up(container, 2, data, full)
    assert list(container.list()) == []
    release.run(
        full, KnownManifests([incremental]), keys.installation_prefix("inst"), container, FakeControl()
    )
    assert restored(container, incremental, len(data)) == data
    lagging.catch_up()
    named = {
        key for entry in ManifestReader(container, incremental).segments() for key in entry.object_keys()
    }
    assert {info.key for info in container.list()} == named | {incremental}


def test_5_more_than_one_page_of_objects() -> None:
    """Thousands of objects are all listed and all deleted."""
    container = memory_container()
    store = container.store
    for number in range(2500):
        origin = make_job(1, SEGMENT).origin
        store.put("box", keys.pack_key(str(origin), number, 0), Body.from_bytes(b"x"))
    cleanup.leftovers(make_job(1, SEGMENT).prefix, None, KnownManifests(), (), container, FakeControl())
    assert list(container.list()) == []


def test_6_no_object_and_no_list_grows_with_the_volume() -> None:
    """The manifest is read by ranges of about a MiB, whatever its size (benchmarks measure the memory)."""
    recording = RecordingStore(MemoryStore("mem"))
    container = Container(recording, "box")
    container.ensure()
    key = back_up(container, 1, content(40 * SEGMENT))
    recording.reset()
    list(ManifestReader(container, key).segments())
    assert recording.requests["get"] >= 1
    assert all(size <= 2 << 20 for size in recording.bytes_by_key.values())


def test_7_progress_is_true_and_nothing_is_left_running() -> None:
    data = content(4 * SEGMENT)
    data[SEGMENT : 2 * SEGMENT] = bytes(SEGMENT)
    before = set(threading.enumerate())
    control = FakeControl()
    source = MemoryPoint(bytes(data), extents=[(0, SEGMENT), (2 * SEGMENT, 2 * SEGMENT)])
    backup.run(make_job(1, len(data)), source, memory_container(), MemoryJournal(), control)
    done = [report[0] for report in control.reports]
    assert done == sorted(done)
    # The hole is nothing to be done: the total is what is really visited.
    assert control.reports[-1] == (3 * SEGMENT, 3 * SEGMENT)
    assert set(threading.enumerate()) == before


def test_9_the_limit_limits() -> None:
    slow = SlowStore(MemoryStore("mem"), latency=0.01)

    class Options:
        max_concurrency = 3

    store = stack(slow, Options())
    store.ensure_container("box")
    store.put("box", "k", Body.from_bytes(b"x"))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: store.get("box", "k"), range(48)))
    store.close()
    assert slow.most_at_once == 3


@pytest.mark.parametrize("name", ["..", ".", "../up", "a/b", "/etc", "a\0b", "", "a\nb", "x" * 256])
def test_10_no_container_name_leaves_the_store(name: str) -> None:
    assert naming.container_problem(name) is not None
    store = stack(MemoryStore("mem"))
    with pytest.raises(InvalidName):
        store.ensure_container(name)
    store.close()
    if name:
        with pytest.raises(InvalidInput):
            Placer(World().conf, {}).wish(name)


def test_11_a_restore_to_a_new_volume_is_accepted_at_once() -> None:
    """The call makes rows and returns; no worker is there that could have made the volume."""
    world = World()
    made = world.backup(world.volume())
    _, target, name = world.backups.restore(world.ctx(), made.id)
    assert name == f"restore_backup_{made.id}"
    assert world.volume_status(target) == "restoring-backup"


@pytest.mark.check
def test_13_a_restart_goes_on_with_running_work(tmp_path: Path) -> None:
    """An orderly restart in the middle of a backup: it ends available, not in error."""
    options = {
        "backup": {"segment_size": 1 << 20, "pack_size": 1 << 18},
        "store:main": {"max_bytes_per_second": 4 << 20},
    }
    image = tmp_path / "image.raw"
    image.write_bytes(content(12 << 20))
    with running(tmp_path / "state", options) as service:
        client = service.client()
        started = client.backup(client.adopt(image), wait=False)
        client.wait_status("backup", started, "creating")
        assert service.stop() == 0
        client = service.start().client()
        client.wait_status("backup", started, "available")
        assert client.volume_path(client.restore(started)).read_bytes() == image.read_bytes()


def test_14_usage_is_what_the_rows_say() -> None:
    """Failures, force deletes and resets cannot make a counter drift: there is none."""
    world = World(backups=2)
    volume = world.volume()
    for _ in range(5):
        failed = world.backups.create(world.ctx(), volume_id=volume)
        world.outcomes.creating.fail(world.claim(tasks.BACKUP_CREATE), "broken")
        world.backups.reset_status(world.ctx(admin=True), failed.id, "error")
        world.backups.force_delete(world.ctx(admin=True), failed.id)
        world.run_delete()
    world.backup(volume)
    world.backup(volume)
    with pytest.raises(QuotaExceeded):
        world.backups.create(world.ctx(), volume_id=volume)
    with world.db.read() as session:
        usage = quota.usage_of(session, "p1")
    assert (usage["backups"], usage["backup_gigabytes"]) == (2, 2)
