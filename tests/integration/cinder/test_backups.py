"""Volumes of a real Cinder, with its own policies: backed up, restored, killed and deleted in the middle."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from backupfw_cinder.provider import CinderProvider
from sqlalchemy import update

from backupfw import crash_points
from backupfw.cmd import configure, database
from backupfw.cmd.service import make_expiry
from backupfw.db import models
from backupfw.errors import ServiceUnavailable
from tests.integration.cinder.world import MIB, World
from tests.integration.service import Client
from tests.servers.cinder import BACK_ENDS

pytestmark = pytest.mark.server

PARTS = (0, 100 * MIB + 4096, 512 * MIB)


def fill(there: World, volume: str, seed: int) -> bytes:
    """Write some MiB into a volume; returns what is at each place."""
    content = seed.to_bytes(2, "big") * (MIB // 2) + os.urandom(MIB)
    for offset in PARTS:
        there.server.write(volume, offset, content)
    return content


def holds(there: World, volume: str, content: bytes) -> bool:
    """Return whether a volume has what :func:`fill` wrote, and zeros around it."""
    around = bytes(4096)
    return all(there.server.read(volume, offset, len(content) + 4096) == content + around for offset in PARTS)


@pytest.fixture(params=BACK_ENDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The type of the volumes: in Ceph, or what stands for all that is attached."""
    return str(request.param)


def test_the_main_job(there: World, kind: str) -> None:
    volume = there.volumes.create_volume(
        name="db", description="of accounts", metadata={"tier": "1"}, volume_type=kind
    )
    there.volumes.call("POST", f"/volumes/{volume}/action", {"os-set_bootable": {"bootable": True}})
    image = {"os-set_image_metadata": {"metadata": {"os_distro": "debian"}}}
    there.volumes.call("POST", f"/volumes/{volume}/action", image)
    old = fill(there, volume, 1)
    seen: set[str | None] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            seen.add(there.volumes.status("volume", volume))

    looking = threading.Thread(target=look)
    looking.start()
    full = there.backup(volume, name="first")
    new = fill(there, volume, 2)
    second = there.backup(volume, incremental=True)
    ended.set()
    looking.join()
    assert seen == {"available"}
    if kind == "ceph":
        assert second["comparison"] == "changed blocks by token"
        assert second["read_bytes"] < 32 * MIB
        assert len(there.points(volume)) == 1
    else:
        assert second["comparison"] == "whole comparison: the backup before has no token"
        there.backups.wait("the end of the temporary volume", lambda: not there.left())
    assert full["read_bytes"] < 64 * MIB

    target = there.restore(full["id"])
    assert holds(there, target, old)
    made = there.volumes.call("GET", f"/volumes/{target}")["volume"]
    assert made["os-vol-tenant-attr:tenant_id"] == there.volumes.project
    assert made["volume_type"] == kind
    assert made["bootable"] == "true"
    assert made["volume_image_metadata"] == {"os_distro": "debian"}
    assert made["metadata"] == {"tier": "1", "src_backup_id": full["id"]}
    assert made["name"] == f"restore_backup_{full['id']}"
    assert made["attachments"] == []

    there.backups.delete_backup(full["id"])
    existing = there.volumes.create_volume(volume_type=kind)
    fill(there, existing, 3)
    there.restore(second["id"], existing)
    assert holds(there, existing, new)
    assert there.left() == []

    # The tenant deletes his volume as ever; its backups stay.
    there.volumes.call("DELETE", f"/volumes/{volume}")
    there.volumes.wait("volume", volume, None)
    assert f"volume-{volume}" not in there.server.images()
    assert not there.server.file(volume).exists()
    assert holds(there, there.restore(second["id"], name="again"), new)
    there.backups.delete_backup(second["id"])


def test_what_may_begin(there: World, kind: str) -> None:
    volume = there.volumes.create_volume(volume_type=kind)
    content = fill(there, volume, 1)
    body = {"backup": {"volume_id": volume}}
    there.stranger.expect(404, "POST", "/backups", {"backup": {"volume_id": volume, "force": True}})
    there.backups.expect(404, "GET", f"/volumes/{volume}")
    assert there.backups.expect(200, "GET", "/volumes/detail")["volumes"] == []
    attachment = there.volumes.attach(volume)
    refused = there.backups.expect(400, "POST", "/backups", body)
    assert "force" in refused["badRequest"]["message"]
    backup = there.backups.backup(volume, force=True)
    assert there.volumes.status("volume", volume) == "in-use"
    body = {"restore": {"volume_id": volume}}
    assert there.backups.expect(400, "POST", f"/backups/{backup}/restore", body)
    there.volumes.call("DELETE", f"/attachments/{attachment}")
    there.volumes.wait("volume", volume, "available")
    there.stranger.expect(404, "POST", f"/backups/{backup}/restore", body)
    smaller = there.volumes.create_volume(volume_type=kind)
    larger = there.volumes.create_volume(size=2, volume_type=kind)
    there.restore(backup, larger)
    assert holds(there, larger, content)
    too_large = there.backups.backup(larger)
    refused = there.backups.expect(
        400, "POST", f"/backups/{too_large}/restore", {"restore": {"volume_id": smaller}}
    )
    assert "too small" in refused["badRequest"]["message"]
    # His quota in the Cinder counts for a new one.
    there.keeper.call(
        "PUT", f"/os-quota-sets/{there.volumes.project}", {"quota_set": {"gigabytes": 1, "volumes": 1}}
    )
    try:
        there.backups.expect(413, "POST", f"/backups/{backup}/restore", {"restore": {}})
    finally:
        there.keeper.call("DELETE", f"/os-quota-sets/{there.volumes.project}")
    assert there.backups.status("backup", backup) == "available"


def test_a_snapshot(there: World, kind: str) -> None:
    volume = there.volumes.create_volume(volume_type=kind)
    content = fill(there, volume, 1)
    snapshot = there.volumes.create_snapshot(volume)
    fill(there, volume, 2)
    backup = there.backup(volume, snapshot_id=snapshot)
    assert holds(there, there.restore(backup["id"]), content)
    assert there.volumes.status("snapshot", snapshot) == "available"
    there.volumes.call("DELETE", f"/volumes/{volume}?cascade=true")
    there.volumes.wait("volume", volume, None)


def test_the_volume_is_deleted_in_the_middle(there: World, kind: str) -> None:
    volume = there.volumes.create_volume(volume_type=kind)
    fill(there, volume, 1)
    snapshot = there.volumes.create_snapshot(volume)
    there.traps.set("backup.opened", signal.SIGSTOP)
    backup = there.backups.backup(volume, wait=False)
    there.wait_struck("backup.opened")
    # He does not see what is made for the backup.
    seen = there.volumes.call("GET", f"/snapshots?volume_id={volume}")["snapshots"]
    assert [one["id"] for one in seen] == [snapshot]
    assert there.volumes.status("volume", volume) == "available"
    there.volumes.call("DELETE", f"/volumes/{volume}?cascade=true")
    there.volumes.wait("volume", volume, None, "error_deleting", "available")
    os.kill(there.service.pid, signal.SIGCONT)
    there.backups.wait_status("backup", backup, "error", "available")
    if there.volumes.status("volume", volume) is not None:
        # Ceph keeps an image that somebody reads; now nobody does.
        there.keeper.call("POST", f"/volumes/{volume}/action", {"os-reset_status": {"status": "available"}})
        there.volumes.call("DELETE", f"/volumes/{volume}?cascade=true")
        there.volumes.wait("volume", volume, None)
    there.backups.wait("the end of what was made", lambda: not there.left())
    there.backups.delete_backup(backup)


def at(task: str) -> list[str]:
    return [name for name in crash_points.NAMES if name.startswith(f"{task}.")]


def test_killed_at_every_step_of_a_backup(there: World, kind: str) -> None:
    volume = there.volumes.create_volume(volume_type=kind)
    previous = there.backups.backup(volume)
    for number, point in enumerate(at("backup")):
        content = fill(there, volume, number)
        there.traps.set(point)
        backup = there.backups.backup(volume, wait=False, incremental=True)
        there.wait_struck(point)
        there.revive()
        there.backups.wait_status("backup", backup, "available")
        assert there.volumes.status("volume", volume) == "available", point
        there.backups.delete_backup(previous)
        # The clean-up follows the deletion, or the backup's end.
        there.backups.wait(f"nothing left after {point}", lambda: not there.left())
        if kind == "ceph":
            there.backups.wait(f"one point after {point}", lambda: len(there.points(volume)) == 1)
        previous = backup
    target = there.restore(previous)
    assert holds(there, target, content)


def test_killed_at_every_step_of_a_restore(there: World, kind: str) -> None:
    volume = there.volumes.create_volume(volume_type=kind)
    content = fill(there, volume, 1)
    backup = there.backups.backup(volume)
    existing = there.volumes.create_volume(volume_type=kind)
    for number, point in enumerate(at("restore")):
        fill(there, existing, number)
        there.traps.set(point)
        target = there.begin_restore(backup, existing if number % 2 else None)
        there.wait_struck(point)
        there.revive()
        there.restored(backup, target)
        assert holds(there, target, content), point
        assert there.left() == [], point


def test_nobody_can_have_the_target_of_a_restore(there: World, kind: str) -> None:
    volume = there.volumes.create_volume(volume_type=kind)
    fill(there, volume, 1)
    backup = there.backups.backup(volume)
    existing = there.volumes.create_volume(volume_type=kind)
    there.traps.set("restore.writing", signal.SIGSTOP)
    there.begin_restore(backup, existing)
    there.wait_struck("restore.writing")
    assert there.volumes.status("volume", existing) == "in-use"
    refused = there.volumes.request(
        "POST", "/attachments", {"attachment": {"volume_uuid": existing, "connector": None}}
    )
    assert refused.status_code == 400
    os.kill(there.service.pid, signal.SIGKILL)
    there.revive()
    there.restored(backup, existing)


#: What a test waits for before it kills: the state of what a backup makes, from the first to the last thing.
MOMENTS: dict[str, Callable[[World], bool]] = {
    "the snapshot is made": lambda there: bool(there.mine("snapshots")),
    "the volume is made": lambda there: bool(there.mine("volumes")),
    "the volume is whole": lambda there: "available" in there.mine("volumes"),
    "the volume is attached": lambda there: "in-use" in there.mine("volumes"),
    "the volume is deleted": lambda there: "deleting" in there.mine("volumes"),
}


def begun(there: World, volume: str, moment: str) -> str:
    """Return a backup that is at a moment now; one that was past it before anybody looked is made again."""
    for _ in range(30):
        backup = there.backups.backup(volume, wait=False)

        def at_the_moment_or_later(backup: str = backup) -> str | None:
            if MOMENTS[moment](there):
                return "now"
            # What was made for the backup goes after its end.
            ended = there.backups.status("backup", backup) == "available" and not there.left()
            return "later" if ended else None

        if there.backups.wait(moment, at_the_moment_or_later) == "now":
            return backup
        there.backups.delete_backup(backup)
    pytest.fail(f"nobody saw that {moment}")


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_a_temporary_volume(there: World, moment: str) -> None:
    volume = there.volumes.create_volume(volume_type="files")
    content = fill(there, volume, 1)
    backup = begun(there, volume, moment)
    os.kill(there.service.pid, signal.SIGKILL)
    there.revive()
    there.backups.wait_status("backup", backup, "available")
    there.backups.wait("the end of what was made", lambda: not there.left())
    assert there.volumes.status("volume", volume) == "available"
    assert holds(there, there.restore(backup), content)


def test_an_attachment_of_somebody_else_stays(there: World) -> None:
    volume = there.volumes.create_volume(volume_type="ceph")
    content = fill(there, volume, 1)
    backup = there.backups.backup(volume)
    existing = there.volumes.create_volume(volume_type="ceph")
    there.traps.set("restore.planned", signal.SIGSTOP)
    there.begin_restore(backup, existing)
    there.wait_struck("restore.planned")
    # As Glance's store does, or somebody by hand.
    reserving = {"attachment": {"volume_uuid": existing, "connector": None}}
    his = there.keeper.call("POST", "/attachments", reserving)["attachment"]["id"]
    os.kill(there.service.pid, signal.SIGCONT)
    there.backups.wait("an attempt", lambda: "Somebody else uses volume" in there.service.log())
    assert there.keeper.status("attachment", his) == "reserved"
    there.keeper.call("DELETE", f"/attachments/{his}")
    # As a worker that was killed before it was complete.
    connector = {"host": "h", "ip": "127.0.0.1", "platform": "x86_64", "os_type": "linux", "multipath": False}
    begun = {"volume_uuid": existing, "connector": {**connector, "mountpoint": "backupfw-1"}}
    ours = there.keeper.call("POST", "/attachments", {"attachment": begun})["attachment"]["id"]
    there.restored(backup, existing)
    assert there.keeper.status("attachment", ours) is None
    assert holds(there, existing, content)


def give_away(there: World, volume: str) -> None:
    """Transfer a volume to the other project."""
    offered = there.volumes.call("POST", "/volume-transfers", {"transfer": {"volume_id": volume}})["transfer"]
    accepting = {"accept": {"auth_key": offered["auth_key"]}}
    there.other_volumes.call("POST", f"/volume-transfers/{offered['id']}/accept", accepting)


def test_a_volume_is_transferred_while_its_task_waits(there: World, kind: str) -> None:
    volume = there.volumes.create_volume(volume_type=kind)
    fill(there, volume, 1)
    before = there.backups.backup(volume)
    there.traps.set("backup.begun", signal.SIGSTOP)
    backup = there.backups.backup(volume, wait=False)
    there.wait_struck("backup.begun")
    give_away(there, volume)
    fill(there, volume, 2)
    os.kill(there.service.pid, signal.SIGCONT)
    there.backups.wait_status("backup", backup, "error")
    reason = there.backups.expect(200, "GET", f"/backups/{backup}")["backup"]["fail_reason"]
    assert "belongs to another project now" in reason
    # Each has what he asked for: the backup of before stays where it was, and nobody gets the other's.
    body = {"restore": {"volume_id": volume}}
    there.backups.expect(404, "POST", f"/backups/{before}/restore", body)
    there.stranger.expect(404, "GET", f"/backups/{before}")
    there.stranger.expect(404, "POST", f"/backups/{before}/restore", body)
    own = there.stranger.backup(volume)
    there.backups.expect(404, "GET", f"/backups/{own}")

    target = there.volumes.create_volume(volume_type=kind)
    there.traps.set("restore.begun", signal.SIGSTOP)
    there.begin_restore(before, target)
    there.wait_struck("restore.begun")
    give_away(there, target)
    his = fill(there, target, 3)
    os.kill(there.service.pid, signal.SIGCONT)
    there.backups.wait_status("backup", before, "available")
    assert holds(there, target, his)
    assert there.other_volumes.status("volume", target) == "available"
    there.backups.wait("the end of what was made", lambda: not there.left())


def test_a_new_volume_that_no_worker_restored_to_shows_it(there: World, kind: str) -> None:
    """It would be available, and empty."""
    volume = there.volumes.create_volume(volume_type=kind)
    content = fill(there, volume, 1)
    backup = there.backups.backup(volume)
    keeper = Client(
        there.backups.base.replace(there.volumes.project, there.keeper.project),
        there.keeper.token,
        there.service,
    )
    (worker,) = keeper.expect(200, "GET", "/os-services?binary=cinder-backup")["services"]
    named = {"host": worker["host"], "binary": worker["binary"]}
    keeper.expect(200, "PUT", "/os-services/disable", named)
    target = there.begin_restore(backup)
    there.volumes.wait("volume", target, "available")
    there.service.stop()
    try:
        assert there.service.config is not None
        args = argparse.Namespace(
            state_dir=str(there.service.state), config_file=[str(there.service.config)], debug=False
        )
        conf = configure.load(args).conf
        with database.opened(conf) as db:
            expiry = make_expiry(conf, db)
            assert expiry.expire() == 0
            with db.write() as session:
                session.execute(update(models.Task).values(updated_at=datetime(2000, 1, 1), not_before=None))
            assert expiry.expire() == 1
    finally:
        there.service.start()
        keeper.expect(200, "PUT", "/os-services/enable", named)
    assert there.volumes.status("volume", target) == "error"
    assert there.backups.status("backup", backup) == "available"
    assert there.left() == []
    assert holds(there, there.restore(backup), content)


@contextmanager
def forgetful(endpoint: str) -> Iterator[tuple[str, set[str]]]:
    """A proxy that does what is asked, and then does not answer requests of some methods.

    :returns: yields its endpoint, and these methods.
    """
    silent: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            answer = requests.request(
                self.command, endpoint + self.path, data=data, headers=headers, timeout=60
            )
            if self.command in silent:
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PUT = _do  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", silent
        server.shutdown()


def test_an_answer_that_is_lost_leaves_no_second_volume(there: World) -> None:
    caller = SimpleNamespace(project_id=there.volumes.project, user_token=there.volumes.token)
    values = {opt.dest: opt.default for opt in CinderProvider.options()}
    values |= {name: str(value) for name, value in there.section.items() if name != "driver"}
    with forgetful(there.server.endpoint) as (endpoint, silent):
        values |= {"rbd_pools": None, "endpoint_override": f"{endpoint}/v3/{there.keeper.project}"}
        catalogue = CinderProvider.catalogue(SimpleNamespace(**values))
        wanted: dict[str, Any] = {"size": 1, "volume_type": "ceph", "availability_zone": None, "metadata": {}}

        def make(request: str, name: str = "lost") -> str:
            return catalogue.create_volume(caller, name=name, request=request, **wanted).id

        def those(name: str) -> list[str]:
            return [one["id"] for one in there.volumes.call("GET", f"/volumes?name={name}")["volumes"]]

        silent.add("POST")
        first = make("r1")
        assert those("lost") == [first]
        # Until the end it does not answer at all; the next request finds what was made.
        silent.add("GET")
        with pytest.raises(ServiceUnavailable):
            make("r1")
        silent.clear()
        assert make("r1") == first
        assert make("r1", "found") == first
        assert (those("lost"), those("found")) == ([], [first])
        other = make("r2")
        assert those("lost") == [other]
    for volume in (first, other):
        there.volumes.wait("volume", volume, "available")
        there.volumes.call("DELETE", f"/volumes/{volume}")


def test_a_policy_finds_volumes_that_nobody_has_named(there: World) -> None:
    mine = {"found": "by metadata"}
    volumes = {there.volumes.create_volume(volume_type="ceph", metadata=mine) for _ in range(2)}
    other = there.volumes.create_volume(volume_type="ceph")
    his = there.other_volumes.create_volume(volume_type="ceph", metadata=mine)
    wanted = {
        "name": "found",
        "schedule": {"cron": "@yearly"},
        "selection": {"metadata": mine},
        "retention": {"last": 1},
    }
    made = there.backups.expect(201, "POST", "/backup-policies", {"backup_policy": wanted})["backup_policy"]
    path = f"/backup-policies/{made['id']}"
    found = there.backups.expect(200, "POST", f"{path}/action", {"preview": {}})["preview"]
    assert {one["volume_id"] for one in found["volumes"]} == volumes
    there.backups.expect(202, "POST", f"{path}/action", {"run": {}})

    def ended() -> bool:
        runs = there.backups.expect(200, "GET", f"{path}/runs")["runs"]
        return {(one["volume_id"], one["status"]) for one in runs} == {(one, "ok") for one in volumes}

    there.backups.wait("the runs", ended)
    there.backups.expect(204, "DELETE", path)
    for backup in there.backups.expect(200, "GET", "/backups/detail")["backups"]:
        if backup["volume_id"] in volumes:
            there.backups.delete_backup(backup["id"])
    for volume in (*volumes, other):
        there.volumes.call("DELETE", f"/volumes/{volume}")
    there.other_volumes.call("DELETE", f"/volumes/{his}")
