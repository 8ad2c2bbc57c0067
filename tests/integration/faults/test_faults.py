"""Two owners of one task, a killed API and a full store, between real processes.

Each test ends at rest: the audit finds nothing, and what was backed up is restored bit by bit.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.content import MIB, change_image, same_content
from tests.integration.faults.world import ON_BOTH, Installation, Subject, installation, wait
from tests.servers.databases import MariaDB, PostgreSQL
from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.server

LENGTH = 8 * MIB
#: Seconds after which a connection to the broker counts as dead, and for how long the broker is away.
HEARTBEAT = 5
AWAY = 12
#: The longest that the API may take to answer, seconds: less than any wait for a broker, and plenty.
PROMPT = 10


@pytest.fixture(scope="module")
def running(
    fresh_database: Callable[[], str], broker: RabbitMQ, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An installation with two workers, for tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("faults")
    options = {"oslo_messaging_rabbit": {"heartbeat_timeout_threshold": HEARTBEAT}}
    with installation(folder, fresh_database(), broker.url, options) as made:
        for name in ("w1", "w2"):
            made.start_worker(name, wait=False)
        for worker in made.workers.values():
            worker.wait_ready()
        yield made


@pytest.fixture
def healthy(running: Installation) -> Iterator[Installation]:
    """The installation before and after: nothing runs, the audit is content."""
    running.traps.forget_reached()
    yield running
    running.traps.clear()
    for name, worker in list(running.workers.items()):
        if not worker.alive:
            running.start_worker(name)
    running.audit()


# Two workers that both believe they own a task.


@ON_BOTH
@pytest.mark.parametrize("point", ["backup.map-put", "backup.manifest-put"])
def test_a_backup_of_a_frozen_worker(healthy: Installation, point: str, tmp_path: Path) -> None:
    subject = Subject(healthy, tmp_path)
    healthy.traps.set(point, signal.SIGSTOP)
    made = subject.client.backup(subject.volume, wait=False)
    frozen = healthy.wait_struck(point)
    subject.client.wait_status("backup", made, "available")
    frozen.signal(signal.SIGCONT)
    assert healthy.traps.attempts("backup") >= 2
    subject.assert_restores(made)
    subject.client.delete_backup(made)


@ON_BOTH
def test_a_restore_of_a_worker_frozen_in_a_write(healthy: Installation, tmp_path: Path) -> None:
    """The late write of the first owner must not reach the volume after the second one's."""
    subject, dirty = Subject(healthy, tmp_path), Subject(healthy, tmp_path, 2)
    made = subject.client.backup(subject.volume)
    healthy.traps.set("restore.writing", signal.SIGSTOP)
    subject.client.restore(made, dirty.volume, wait=False)
    frozen = healthy.wait_struck("restore.writing")
    subject.client.wait_status("backup", made, "available")
    subject.client.wait_status("volume", dirty.volume, "available")
    # Somebody uses the volume at once: a late write would fall into that.
    change_image(subject.image, 7)
    shutil.copyfile(subject.image, dirty.image)
    frozen.signal(signal.SIGCONT)
    late = subject.client.backup(subject.volume)
    assert same_content(subject.image, dirty.image, LENGTH)
    subject.assert_restores(late)
    assert healthy.traps.attempts("restore") >= 2


@ON_BOTH
def test_a_delete_of_a_frozen_worker(healthy: Installation, tmp_path: Path) -> None:
    subject = Subject(healthy, tmp_path)
    doomed = subject.client.backup(subject.volume)
    change_image(subject.image, 3)
    kept = subject.client.backup(subject.volume, incremental=True)
    healthy.traps.set("delete.some-deleted", signal.SIGSTOP)
    subject.client.expect(202, "DELETE", f"/backups/{doomed}")
    frozen = healthy.wait_struck("delete.some-deleted")
    subject.client.wait_status("backup", doomed, None)
    frozen.signal(signal.SIGCONT)
    subject.assert_restores(kept)


# The API.


def test_the_api_is_killed_between_commit_and_message(healthy: Installation, tmp_path: Path) -> None:
    subject = Subject(healthy, tmp_path)
    healthy.traps.set("api.committed")
    with pytest.raises((OSError, urllib.error.URLError)):
        subject.client.request(
            "POST", "/backups", {"backup": {"volume_id": subject.volume, "name": "killed"}}
        )
    assert healthy.api is not None
    healthy.api.kill()
    healthy.start_api()
    (made,) = subject.client.expect(200, "GET", "/backups?name=killed")["backups"]
    subject.client.wait_status("backup", made["id"], "available")
    subject.assert_restores(made["id"])


# The broker and the database.


def test_the_broker_is_away_and_forgets(healthy: Installation, broker: RabbitMQ, tmp_path: Path) -> None:
    """Without it the API answers and workers find tasks by looking; later they hear of them again."""
    # It would find a task by itself too late for this test.
    healthy.start_worker("deaf", options={"backup": {"poll_seconds": 300}})
    subject = Subject(healthy, tmp_path)
    made = []
    broker.stop()
    try:
        end = time.monotonic() + AWAY
        while not made or time.monotonic() < end:
            asked = time.monotonic()
            made.append(subject.client.backup(subject.volume, wait=False))
            assert time.monotonic() - asked < PROMPT
            subject.client.wait_status("backup", made[-1], "available")
    finally:
        broker.start()
    broker.purge()
    healthy.only("deaf")
    woken = subject.client.backup(subject.volume, wait=False)

    def done() -> bool:
        # Each request wakes workers up; one that has not come back to the broker yet does not hear it.
        subject.client.expect(202, "POST", "/volumes", {"volume": {"size": 1}})
        time.sleep(1)
        return subject.client.status("backup", woken) == "available"

    wait("a worker to hear the API", done, healthy.log_tail)
    healthy.only(None)
    healthy.workers.pop("deaf").kill()
    subject.assert_restores(made[0])
    subject.assert_restores(woken)


@ON_BOTH
def test_the_database_restarts_in_mid_task(
    healthy: Installation, database_server: PostgreSQL | MariaDB, tmp_path: Path
) -> None:
    subject = Subject(healthy, tmp_path)
    healthy.traps.set("backup.map-put", signal.SIGSTOP)
    made = subject.client.backup(subject.volume, wait=False)
    frozen = healthy.wait_struck("backup.map-put")
    database_server.close()
    frozen.signal(signal.SIGCONT)
    # Whoever asks meanwhile is told what is the matter, and may ask again.
    assert subject.client.request("GET", f"/backups/{made}")[0] == 503
    database_server.start()
    subject.client.wait("the API", lambda: subject.client.request("GET", f"/backups/{made}")[0] == 200)
    subject.client.wait_status("backup", made, "available")
    subject.assert_restores(made)


def test_the_database_loses_what_it_confirmed(healthy: Installation, tmp_path: Path) -> None:
    """As after a crash without durable commits: the lost segment is done again, and leaves no hole."""
    subject = Subject(healthy, tmp_path)
    healthy.traps.set("backup.recorded", signal.SIGSTOP)
    made = subject.client.backup(subject.volume, wait=False)
    frozen = healthy.wait_struck("backup.recorded")
    healthy.execute("DELETE FROM segments")
    frozen.signal(signal.SIGCONT)
    subject.client.wait_status("backup", made, "available")
    subject.assert_restores(made)


# The store.


@pytest.mark.root
def test_the_disk_of_the_store_is_full(
    fresh_database: Callable[[], str], broker: RabbitMQ, tmp_path: Path
) -> None:
    """A backup that does not fit ends in error, leaves nothing, and the next one finds room."""
    store = tmp_path / "small"
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(store)], check=True)
    try:
        options = {"store:main": {"path": str(store)}, "backup": {"max_attempts": 1}}
        with installation(tmp_path, fresh_database(), broker.url, options) as made:
            made.start_worker("w1")
            subject = Subject(made, tmp_path)
            failed = subject.client.backup(subject.volume, wait=False)
            subject.client.wait_status("backup", failed, "error")
            shown = subject.client.expect(200, "GET", f"/backups/{failed}")["backup"]
            assert "full" in shown["fail_reason"]
            assert subject.client.status("volume", subject.volume) == "available"
            made.audit()
            subprocess.run(["mount", "-o", "remount,size=64m", str(store)], check=True)
            subject.assert_restores(subject.client.backup(subject.volume))
            made.audit()
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)
