"""One writer per volume, whatever the earlier one does."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backupfw.errors import TargetError, TaskLost
from backupfw.volume.base import VolumeRef
from backupfw.volume.local.process import ProcessName
from backupfw.volume.local.provider import LocalProvider
from tests.unit.volume.fence_helpers import freeze, writer_process
from tests.unit.volume.helpers import make_provider, new_volume, read_all

LENGTH = 10_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def volume(provider: LocalProvider) -> VolumeRef:
    return new_volume(provider, "v", LENGTH)


def test_an_earlier_attempt_of_this_process_can_write_no_more(
    provider: LocalProvider, volume: VolumeRef
) -> None:
    with provider.open_target(volume, 1) as early:
        early.write(0, [b"early"])
        with provider.open_target(volume, 2) as late:
            late.write(0, [b"late!"])
            actions: list[Callable[[], object]] = [
                lambda: early.write(0, [b"stale"]),
                lambda: early.zero(0, 5),
                early.flush,
            ]
            for action in actions:
                with pytest.raises(TaskLost):
                    action()
            late.write(5, [b"goes on"])
    assert read_all(provider, volume)[:12] == b"late!goes on"


@pytest.mark.parametrize("attempt", [1, 2])
def test_an_earlier_or_equal_attempt_does_not_get_in(
    provider: LocalProvider, volume: VolumeRef, attempt: int
) -> None:
    with provider.open_target(volume, 2) as late:
        with pytest.raises(TargetError):
            provider.open_target(volume, attempt)
        late.write(0, [b"still mine"])
    with provider.open_target(volume, 1) as later_but_alone:
        later_but_alone.write(0, [b"x"])


def test_two_providers_of_one_process_share_the_fence(
    provider: LocalProvider, volume: VolumeRef, directory: Path
) -> None:
    other = make_provider(directory, volumes_dir=str(directory / "elsewhere"))
    there = replace(volume, location=provider.where(volume), adopted=True)
    with provider.open_target(volume, 1) as early, other.open_target(there, 2), pytest.raises(TaskLost):
        early.write(0, [b"x"])


def test_a_write_in_flight_is_waited_for(
    provider: LocalProvider, volume: VolumeRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_write, go_on = threading.Event(), threading.Event()
    real = os.pwritev

    def slow(fd: int, views: list[memoryview], offset: int) -> int:
        if bytes(views[0]) == b"slow":
            in_write.set()
            go_on.wait(60)
        return real(fd, views, offset)

    monkeypatch.setattr(os, "pwritev", slow)
    with provider.open_target(volume, 1) as early:
        thread = threading.Thread(target=early.write, args=(0, [b"slow"]))
        thread.start()
        assert in_write.wait(60)
        with pytest.raises(TargetError):
            provider.open_target(volume, 2)
        go_on.set()
        with provider.open_target(volume, 3) as late:
            thread.join()
            late.write(0, [b"late"])
    assert read_all(provider, volume)[:4] == b"late"


def test_a_frozen_writer_of_another_process_is_killed(
    provider: LocalProvider, volume: VolumeRef, directory: Path
) -> None:
    with writer_process(directory, volume, attempt=7) as process:
        freeze(process)
        with provider.open_target(volume, 8) as target:
            assert process.wait(60) == -signal.SIGKILL
            target.write(0, [b"mine"])
            target.flush()
        assert read_all(provider, volume)[:8] == b"mine" + read_all(provider, volume)[4:8]
    assert not (directory / "volumes" / ".fence").exists()


@pytest.mark.parametrize("attempt", [6, 7])
def test_a_later_writer_of_another_process_is_left_alone(
    provider: LocalProvider, volume: VolumeRef, directory: Path, attempt: int
) -> None:
    with writer_process(directory, volume, attempt=7) as process:
        with pytest.raises(TargetError, match="later attempt"):
            provider.open_target(volume, attempt)
        assert process.poll() is None


def test_nobody_is_killed_where_that_is_not_wanted(
    provider_with: Callable[..., LocalProvider], provider: LocalProvider, volume: VolumeRef, directory: Path
) -> None:
    with writer_process(directory, volume, attempt=1) as process:
        freeze(process)
        with pytest.raises(TargetError, match=f"process {process.pid}"):
            provider_with(fence_kill=False).open_target(volume, 2)
        assert process.poll() is None
    with provider_with(fence_kill=False).open_target(volume, 3):
        pass


def test_a_dead_writers_record_is_no_obstacle(
    provider: LocalProvider, volume: VolumeRef, directory: Path
) -> None:
    with writer_process(directory, volume, attempt=5) as process:
        process.kill()
        process.wait()
        assert os.listdir(directory / "volumes" / ".fence") != []
        with provider.open_target(volume, 1) as target:
            target.write(0, [b"x"])


def test_a_killed_writers_half_record_goes_with_the_next_one(
    provider: LocalProvider, volume: VolumeRef, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    before = set(directory.rglob("*"))
    with monkeypatch.context() as patch:
        # As if it was killed there.
        patch.setattr(os, "rename", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            provider.open_target(volume, 1)
    assert set(directory.rglob("*")) != before
    with provider.open_target(volume, 2):
        pass
    assert set(directory.rglob("*")) == before


def test_a_writer_that_stops_by_itself_is_not_killed(
    provider_with: Callable[..., LocalProvider], volume: VolumeRef, directory: Path
) -> None:
    with writer_process(directory, volume, attempt=1) as process:
        threading.Timer(0.3, process.terminate).start()
        with provider_with(fence_wait=20).open_target(volume, 2):
            assert process.wait(60) == -signal.SIGTERM


def test_an_unknown_holder_is_neither_killed_nor_passed(provider: LocalProvider, volume: VolumeRef) -> None:
    code = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, provider.where(volume)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(TargetError, match="in use or may still be written"):
            provider.open_target(volume, 9)
        assert process.poll() is None
        process.communicate(b"\n")
    with provider.open_target(volume, 1):
        pass


def test_the_lock_is_given_back(provider: LocalProvider, volume: VolumeRef) -> None:
    with (
        provider.open_target(volume, 1),
        open(provider.where(volume)) as file,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(provider.where(volume)) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_writers_that_come_while_others_end_find_a_directory_for_their_records(
    provider: LocalProvider, directory: Path
) -> None:
    """The last of the writers removes the directory that a new one has just made sure of."""
    failed: list[BaseException] = []

    def write_often(volume: VolumeRef) -> None:
        try:
            for attempt in range(1, 101):
                with provider.open_target(volume, attempt):
                    pass
        except BaseException as error:
            failed.append(error)

    volumes = [new_volume(provider, f"v{number}", LENGTH) for number in range(3)]
    threads = [threading.Thread(target=write_often, args=(one,)) for one in volumes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert not (directory / "volumes" / ".fence").exists()


def test_only_the_process_that_is_meant_is_killed() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        me = ProcessName.of_this()
        start = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        name = replace(me, pid=process.pid, start_time=start)
        # Its number was given to this process after the one that is meant had ended.
        assert replace(name, start_time=start - 1).kill()
        assert not replace(name, boot_id="another").kill()
        assert not replace(name, pid_namespace="pid:[1]").kill()
        assert not me.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        assert name.kill()
        assert process.wait(60) == -signal.SIGKILL
        assert name.kill()


def test_a_thread_with_the_number_of_a_dead_writer_is_no_writer() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        name = replace(ProcessName.of_this(), pid=thread.native_id, start_time=1)
        assert name.kill()
    finally:
        stop.set()
        thread.join()
