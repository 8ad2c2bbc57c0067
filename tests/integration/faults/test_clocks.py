"""Workers whose clocks are wrong: leases, delays and times shown come from the database's clock alone."""

from __future__ import annotations

import glob
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.integration.content import MIB, same_content
from tests.integration.faults.world import Installation, Subject, installation, wait
from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.server

#: Seconds: long enough for a machine that stands still a while.
LEASE = 7
#: How long nobody may take a task from its worker: several looks for tasks, and a renewal.
WATCHED = 5
#: Requests per second to the store, while tasks are watched, and else.
SLOWLY, QUICKLY = 3, 1000
#: The workers, and how many seconds their clocks are off.
OFF_BY = {"right": 0, "ahead": 3600, "behind": -3600}

#: What a worker's log says after SIGHUP.
READ_AGAIN = "Read the configuration again"

# Fakes the calendar's clock and leaves those alone that measure time; but an absolute sleep by one of these
# it takes for a calendar time, and refuses.  A relative one it lets pass.
_SLEEP = """
import select
import time

time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


def clock_off_by(seconds: int, folder: Path) -> Mapping[str, str]:
    """The environment of a process whose clock is off.

    :param folder: for what it needs.
    """
    if not seconds:
        return {}
    libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not libraries:
        pytest.skip("not installed: faketime (tests/servers/install.sh faketime)")
    patches = folder / "patches"
    patches.mkdir(exist_ok=True)
    (patches / "sitecustomize.py").write_text(_SLEEP)
    return {
        "LD_PRELOAD": libraries[0],
        "FAKETIME": f"{seconds:+d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": str(patches),
    }


@pytest.fixture
def installed(fresh_database: Callable[[], str], broker: RabbitMQ, tmp_path: Path) -> Iterator[Installation]:
    """An installation whose workers run one task each, slowly."""
    options = {
        "store:main": {"max_requests_per_second": SLOWLY},
        "backup": {"workers": 1, "lease_seconds": LEASE},
    }
    with installation(tmp_path, fresh_database(), broker.url, options) as made:
        yield made


def clock_of(installed: Installation, name: str) -> datetime:
    """What a worker's clock showed when it last wrote a line."""
    log = (installed.folder / f"{name}.log").read_text()
    found = re.findall(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)", log, re.MULTILINE)
    return datetime.fromisoformat(found[-1])


def near(one: datetime, two: datetime) -> bool:
    """Whether two times are minutes apart at most."""
    return abs(one - two) < timedelta(minutes=10)


def watch(installed: Installation, kind: str, workers: Sequence[str]) -> None:
    """See that each of the workers runs a task's first attempt, and goes on with it."""

    def owners() -> list[str]:
        query = "SELECT owner FROM tasks WHERE kind = :kind AND attempt = 1 AND state = 'running'"
        return sorted(row.owner.partition("/")[0] for row in installed.rows(query, kind=kind))

    wait(f"each of {workers} to run a {kind}", lambda: owners() == sorted(workers), installed.log_tail)
    end = time.monotonic() + WATCHED
    while time.monotonic() < end:
        assert owners() == sorted(workers), installed.log_tail()
        time.sleep(0.2)


def pace(installed: Installation, before: int, requests: int) -> None:
    """Change how many requests per second the living workers send to the store."""
    config = installed.folder / "common.conf"
    config.write_text(
        config.read_text().replace(
            f"max_requests_per_second = {before}\n", f"max_requests_per_second = {requests}\n"
        )
    )
    for name, worker in installed.workers.items():
        if worker.alive:
            log = installed.folder / f"{name}.log"
            known = log.read_text().count(READ_AGAIN)
            os.kill(worker.pid, signal.SIGHUP)
            wait("a new pace", lambda log=log, known=known: log.read_text().count(READ_AGAIN) > known)


def test_one_ahead_one_behind(installed: Installation, tmp_path: Path) -> None:
    """No lease is taken from a worker that keeps it, and none stays with one that was killed."""
    for name, off in OFF_BY.items():
        installed.start_worker(name, clock_off_by(off, installed.folder), wait=False)
    subjects = [Subject(installed, tmp_path, number, 12 * MIB) for number in range(3)]
    client = subjects[0].client
    for worker in installed.workers.values():
        worker.wait_ready()
    made = [client.backup(subject.volume, wait=False) for subject in subjects]
    watch(installed, "backup.create", list(OFF_BY))
    installed.workers["ahead"].kill()
    for name, off in OFF_BY.items():
        assert near(clock_of(installed, name), datetime.now() + timedelta(seconds=off))
    pace(installed, SLOWLY, QUICKLY)
    for backup in made:
        client.wait_status("backup", backup, "available")
        shown = client.expect(200, "GET", f"/backups/{backup}")["backup"]
        for field in ("created_at", "updated_at", "data_timestamp"):
            assert near(datetime.fromisoformat(shown[field]), datetime.now(UTC).replace(tzinfo=None)), field
    pace(installed, QUICKLY, SLOWLY)
    targets = [client.restore(backup, wait=False) for backup in made[:2]]
    watch(installed, "backup.restore", ["behind", "right"])
    installed.workers["behind"].kill()
    pace(installed, SLOWLY, QUICKLY)
    targets.append(client.restore(made[2], wait=False))
    for subject, backup, target in zip(subjects, made, targets, strict=True):
        client.wait_status("backup", backup, "available")
        client.wait_status("volume", target, "available")
        assert same_content(subject.image, installed.path_of(target), subject.length)
    installed.audit()
