"""Volumes whose storage changed behind the service's back, on real files."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backupfw.db import models
from backupfw.errors import TaskLost
from backupfw.manager.messages import Detail
from backupfw.manager.usecases.attachments import add_attachment
from backupfw.manager.usecases.volumes import VolumeManager
from backupfw.volume.base import SnapshotRef, Tick, VolumeRef, no_tick
from backupfw.volume.local import opening
from backupfw.volume.local.point import LocalPoint
from backupfw.volume.local.provider import LocalProvider
from tests.unit.volume.helpers import make_provider
from tests.unit.worker.world import OneBackend, WorkerWorld

LENGTH = 4 * (64 << 10) + 77
GREW = "VOLUME_VOLUME_BACKUP_013_101"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[WorkerWorld]:
    made = WorkerWorld(tmp_path)
    yield made
    made.close()


@pytest.fixture
def provider(world: WorkerWorld, tmp_path: Path) -> LocalProvider:
    provider = make_provider(tmp_path)
    world.tools = replace(world.tools, backends=OneBackend(provider))  # type: ignore[arg-type]
    return provider


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(os.urandom(LENGTH))
    return path


def adopted(world: WorkerWorld, provider: LocalProvider, image: Path, *, recorded: bool = True) -> str:
    found = provider.adopt(str(image))
    return (
        volumes(world)
        .adopt(
            world.ctx(),
            location=found.location,
            length=found.length,
            storage_id=found.storage_id if recorded else None,
        )
        .id
    )


def volumes(world: WorkerWorld) -> VolumeManager:
    return VolumeManager(world.db, world.conf, world.dispatch.wake)


def backed_up(world: WorkerWorld, volume: str, status: str = "available") -> models.Backup:
    made = world.backups.create(world.ctx(), volume_id=volume)
    with world.worker():
        row = world.wait_backup(made.id, status)
        world.wait_idle()
    return row


def restored(world: WorkerWorld, provider: LocalProvider, backup: models.Backup, folder: Path) -> bytes:
    target = folder / "target.raw"
    target.write_bytes(b"\xff" * backup.length)
    volume = adopted(world, provider, target)
    world.backups.restore(world.ctx(), backup.id, volume_id=volume)
    with world.worker():
        world.wait_idle()
    assert world.volume_status(volume) == "available"
    return target.read_bytes()


@pytest.mark.parametrize("in_use", [False, True])
def test_a_volume_that_grew_is_backed_up_whole(
    world: WorkerWorld, provider: LocalProvider, image: Path, tmp_path: Path, in_use: bool
) -> None:
    volume = adopted(world, provider, image)
    if in_use:
        volumes(world).attachments.attach(world.ctx(), volume)
    with image.open("r+b") as file:
        file.truncate((1 << 30) + 5)
        file.seek(LENGTH)
        file.write(b"what came later")
    made = world.backups.create(world.ctx(), volume_id=volume, force=in_use)
    with world.worker():
        backup = world.wait_backup(made.id, "available")
        world.wait_idle()
    row = world.row(models.Volume, volume)
    assert (row.length, row.size, backup.length, backup.size) == ((1 << 30) + 5, 2, (1 << 30) + 5, 2)
    assert [message.event_id for message in world.rows(models.Message)] == [GREW]
    target = tmp_path / "target.raw"
    target.write_bytes(b"")
    os.truncate(target, backup.length)
    world.backups.restore(world.ctx(), backup.id, volume_id=adopted(world, provider, target))
    with world.worker():
        world.wait_idle()
    with target.open("rb") as file, image.open("rb") as source:
        assert file.read(LENGTH + 100) == source.read(LENGTH + 100)


@pytest.mark.parametrize("grew", [True, False])
def test_a_temporary_snapshot_that_an_earlier_attempt_began_is_as_long_as_the_volume_is_now(
    world: WorkerWorld, provider: LocalProvider, image: Path, monkeypatch: pytest.MonkeyPatch, grew: bool
) -> None:
    volume = adopted(world, provider, image)
    volumes(world).attachments.attach(world.ctx(), volume)
    make = provider.create_snapshot
    made_of: list[str] = []

    def lost_after_the_first(snapshot: SnapshotRef, in_use: bool, tick: Tick = no_tick) -> str:
        made_of.append(snapshot.id)
        location = make(snapshot, in_use, tick)
        if len(made_of) == 1:
            if grew:
                os.truncate(image, LENGTH + 1000)
            with world.db.write() as session:
                (task,) = world.rows_in(session, models.Task)
                task.state, task.owner, task.lease_until = "queued", None, None
            raise TaskLost("the worker is dead")
        return location

    monkeypatch.setattr(provider, "create_snapshot", lost_after_the_first)
    made = world.backups.create(world.ctx(), volume_id=volume, force=True)
    with world.worker():
        backup = world.wait_backup(made.id, "available")
        world.wait_idle()
    assert backup.length == os.path.getsize(image) == LENGTH + 1000 * grew
    # One that is as long as the volume is taken over.
    assert len(set(made_of)) == 1 + grew
    assert not [name for name in os.listdir(provider._volumes_dir) if "snapshot" in name]


def test_an_extension_notes_that_the_storage_is_longer(
    world: WorkerWorld, provider: LocalProvider, image: Path
) -> None:
    volume = adopted(world, provider, image)
    os.truncate(image, (3 << 30) + 5)
    volumes(world).extend(world.ctx(), volume, new_size=2)
    with world.worker():
        world.wait(lambda: world.volume_status(volume) != "extending", "the extension to end")
        world.wait_idle()
    row = world.row(models.Volume, volume)
    assert (row.status, row.length, row.size) == ("available", (3 << 30) + 5, 4)
    assert [message.detail_id for message in world.rows(models.Message)] == [Detail.VOLUME_GREW.value]
    volumes(world).extend(world.ctx(), volume, new_size=5)
    with world.worker():
        world.wait(lambda: world.volume_status(volume) != "extending", "the extension to end")
    row = world.row(models.Volume, volume)
    assert (row.length, row.size, len(world.rows(models.Message))) == (5 << 30, 5, 1)


def _gone(image: Path) -> None:
    image.unlink()


def _shorter(image: Path) -> None:
    os.truncate(image, 1000)


def _link(image: Path) -> None:
    image.rename(image.with_suffix(".moved"))
    image.symlink_to(image.with_suffix(".moved"))


def _fifo(image: Path) -> None:
    image.unlink()
    os.mkfifo(image)


def _directory(image: Path) -> None:
    image.unlink()
    image.mkdir()


def _another(image: Path) -> None:
    content = image.read_bytes()
    image.with_suffix(".new").write_bytes(content)
    image.with_suffix(".new").rename(image)


BEHIND_OUR_BACK: list[tuple[Callable[[Path], None], str]] = [
    (_gone, "is gone"),
    (_shorter, f"is shorter than it should be: it has 1000 of {LENGTH} bytes"),
    (_link, "is a symbolic link, neither an image file nor a block device"),
    (_fifo, "is a FIFO, neither an image file nor a block device"),
    (_directory, "is a directory, neither an image file nor a block device"),
    (_another, "is another one than was adopted: it was replaced"),
]


@pytest.mark.parametrize(("change", "reason"), BEHIND_OUR_BACK)
def test_storage_that_is_not_what_it_was_ends_a_backup_at_once(
    world: WorkerWorld,
    provider: LocalProvider,
    image: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Path], None],
    reason: str,
) -> None:
    volume = adopted(world, provider, image)
    change(image)
    backup = backed_up(world, volume, "error")
    assert backup.fail_reason == f"The storage of volume {volume} {reason}."
    assert "trying again" not in caplog.text
    assert str(image) in caplog.text
    assert f"volume adopt --again {volume}" in caplog.text


@pytest.mark.parametrize(("change", "reason"), BEHIND_OUR_BACK)
def test_no_restore_writes_to_what_is_not_the_volume(
    world: WorkerWorld,
    provider: LocalProvider,
    image: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    reason: str,
) -> None:
    backup = backed_up(world, adopted(world, provider, image))
    target = tmp_path / "target.raw"
    target.write_bytes(bytes(LENGTH))
    volume = adopted(world, provider, target)
    change(target)
    before = {path: path.read_bytes() for path in tmp_path.glob("target*") if path.is_file()}
    world.backups.restore(world.ctx(), backup.id, volume_id=volume)
    with world.worker():
        world.wait_idle()
    assert world.volume_status(volume) == "error_restoring"
    assert world.row(models.Backup, backup.id).fail_reason == f"The storage of volume {volume} {reason}."
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("copied", [False, True])
def test_a_copy_of_the_state_directory_never_touches_the_images_of_the_original(
    world: WorkerWorld,
    provider: LocalProvider,
    image: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    copied: bool,
) -> None:
    """As an earlier release recorded a volume of ours; the copy has its image, or lacks it."""
    precious = os.urandom(LENGTH)
    source = backed_up(world, adopted(world, provider, image))
    original = make_provider(tmp_path / "original")
    volume = world.volume(length=LENGTH)
    path = Path(original.where(VolumeRef(volume, LENGTH)))
    path.write_bytes(precious)
    before = (path.stat().st_mtime_ns, path.stat().st_ctime_ns)
    with world.db.write() as session:
        session.get_one(models.Volume, volume).location = str(path)
    here = tmp_path / "volumes" / path.name
    if copied:
        here.write_bytes(path.read_bytes())
    made = backed_up(world, volume, "available" if copied else "error")
    world.backups.restore(world.ctx(), source.id, volume_id=volume)
    with world.worker():
        world.wait_idle()
        status = world.volume_status(volume)
        volumes(world).force_delete(world.ctx(), volume)
        world.wait_idle()
    if copied:
        assert status == "available"
    else:
        assert (status, made.fail_reason) == ("error_restoring", f"The storage of volume {volume} is gone.")
        assert f"The database names {path}, which is in no directory of this configuration" in caplog.text
    assert not here.exists()
    assert path.read_bytes() == precious
    assert (path.stat().st_mtime_ns, path.stat().st_ctime_ns) == before


@pytest.mark.parametrize("attached", [False, True])
def test_a_volume_that_is_adopted_again_after_a_refused_restore_can_be_used(
    world: WorkerWorld, provider: LocalProvider, image: Path, tmp_path: Path, attached: bool
) -> None:
    backup = backed_up(world, adopted(world, provider, image))
    target, other = tmp_path / "target.raw", tmp_path / "other.raw"
    for path in (target, other):
        path.write_bytes(bytes(LENGTH))
    volume = adopted(world, provider, target)
    other.rename(target)
    world.backups.restore(world.ctx(), backup.id, volume_id=volume)
    with world.worker():
        world.wait_idle()
    assert world.volume_status(volume) == "error_restoring"
    if attached:
        with world.db.write() as session:
            add_attachment(session, volume, str(uuid.uuid4()))
    found = provider.adopt(str(target))
    again = volumes(world).adopt_again(
        world.ctx(), volume, location=found.location, length=found.length, storage_id=found.storage_id
    )
    assert again.status == ("in-use" if attached else "available")
    if not attached:
        world.backups.restore(world.ctx(), backup.id, volume_id=volume)
        with world.worker():
            world.wait_idle()
        assert world.volume_status(volume) == "available"
        assert target.read_bytes() == image.read_bytes()


def test_a_link_on_the_way_is_not_followed(
    world: WorkerWorld, provider: LocalProvider, tmp_path: Path
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    image = tmp_path / "a" / "b" / "image.raw"
    image.write_bytes(b"x" * LENGTH)
    volume = adopted(world, provider, image)
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "a").symlink_to(tmp_path / "c")
    reason = backed_up(world, volume, "error").fail_reason
    assert reason is not None
    assert "a directory on the way is gone or a symbolic link" in reason


def test_a_volume_of_before_is_recorded_at_its_first_good_open(
    world: WorkerWorld, provider: LocalProvider, image: Path
) -> None:
    volume = adopted(world, provider, image, recorded=False)
    backed_up(world, volume)
    assert world.row(models.Volume, volume).storage_id == provider.adopt(str(image)).storage_id
    _another(image)
    assert "replaced" in str(backed_up(world, volume, "error").fail_reason)


def test_a_volume_that_is_written_while_it_is_read_is_not_torn(
    world: WorkerWorld,
    provider: LocalProvider,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody counts at both ends of an image that nobody told to be in use."""
    read_into = LocalPoint.read_into
    left = [1]

    def count(self: LocalPoint, offset: int, buffer: memoryview) -> None:
        read_into(self, offset, buffer)
        if left:
            left.pop()
            with image.open("r+b") as file:
                file.write(b"after")
                file.seek(LENGTH - 5)
                file.write(b"after")

    volume = adopted(world, provider, image)
    with image.open("r+b") as file:
        file.write(b"befor")
        file.seek(LENGTH - 5)
        file.write(b"befor")
    monkeypatch.setattr(LocalPoint, "read_into", count)
    backup = backed_up(world, volume)
    assert not left
    content = restored(world, provider, backup, tmp_path)
    assert content[:5] == content[-5:]
    assert content == image.read_bytes()
    assert list((tmp_path / "volumes").glob("snapshot-*")) == []


def test_stopping_does_not_wait_for_an_open_that_hangs(
    world: WorkerWorld, provider: LocalProvider, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = adopted(world, provider, image)
    hangs, go_on, real = threading.Event(), threading.Event(), opening.hold
    fds: list[int] = []

    def hang(path: str) -> int:
        hangs.set()
        go_on.wait(300)
        fds.append(real(path))
        return fds[-1]

    monkeypatch.setattr(opening, "hold", hang)
    made = world.backups.create(world.ctx(), volume_id=volume)
    with world.worker():
        assert hangs.wait(60)
    # It has stopped, and given the task back; the open hangs on.
    assert not go_on.is_set()
    assert world.status(made.id) == "creating"
    go_on.set()
    world.wait(lambda: fds, "the open to come back")
    monkeypatch.setattr(opening, "hold", real)
    with world.worker():
        world.wait_backup(made.id, "available")
        world.wait_idle()
