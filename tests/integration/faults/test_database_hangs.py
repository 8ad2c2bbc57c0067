"""A worker whose connections to the database hang, while everybody else's work."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.integration.content import MIB, change_image, same_content
from tests.integration.faults.gate import Gate
from tests.integration.faults.world import Installation, Subject, wait

pytestmark = pytest.mark.server


@pytest.fixture
def gate(installed: Installation) -> Iterator[Gate]:
    """The way of one worker to the database."""
    port = make_url(installed.database).port
    assert port is not None
    with Gate(port) as gate:
        yield gate


def test_it_stops_writing_and_comes_back(installed: Installation, gate: Gate, tmp_path: Path) -> None:
    """Its deadline ends a restore, another worker goes on, and what it said meanwhile comes too late."""
    through_gate = make_url(installed.database).set(port=gate.port).render_as_string(hide_password=False)
    installed.start_worker(
        "cut",
        # Slow, so that it still writes when its lease is over.
        options={"database": {"connection": through_gate}, "store:main": {"max_requests_per_second": 4}},
        wait=False,
    )
    installed.start_worker("sound")
    installed.workers["cut"].wait_ready()
    subject, dirty = (Subject(installed, tmp_path, seed, 16 * MIB) for seed in (1, 2))
    client = subject.client
    installed.only("sound")
    backup = client.backup(subject.volume)
    installed.only("cut")
    installed.traps.forget_reached()
    client.restore(backup, dirty.volume, wait=False)
    wait(
        "the restore to write",
        lambda: "restore.writing" in str(installed.traps.reached()),
        installed.log_tail,
    )
    gate.freeze()
    log = installed.folder / "cut.log"
    wait("the worker to stop", lambda: "lost its lease" in log.read_text(), installed.log_tail)
    installed.only("sound")
    client.wait_status("backup", backup, "available")
    client.wait_status("volume", dirty.volume, "available")
    assert same_content(subject.image, dirty.image, subject.length)
    # It went by itself, nobody had to end it.
    assert "ended process" not in (installed.folder / "sound.log").read_text()
    # Somebody uses the volume, while the worker's database is still away, and then comes back.
    change_image(subject.image, 7, changes=3)
    shutil.copyfile(subject.image, dirty.image)
    gate.thaw()
    installed.only("cut")
    late = client.backup(subject.volume, incremental=True)
    installed.only(None)
    assert same_content(subject.image, dirty.image, subject.length)
    subject.assert_restores(late)
    installed.audit()
