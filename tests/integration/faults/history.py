"""Random histories over HTTP, and what must be true of them whatever is killed meanwhile.

A :class:`History` does one thing after another with volumes of its own: writes, backups of every kind,
restores, deletes, resets, duplicates by import.  It does not wait for one before it begins the next, and it
keeps no more of a backup than the digest of what the volume held.  It does not know what a :class:`Monkey`
kills beside it: a request that nobody answered is sent again, after a look at whether it was done.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.content import MIB, change_image, write_content
from tests.integration.service import Client

#: How long anything may take beside everything that is killed, seconds.
PATIENCE = 600.0
#: Statuses of backups and volumes that pass by themselves.
PASSING = {
    "creating", "deleting", "restoring", "restoring-backup", "backing-up", "error_deleting", "extending",
}  # fmt: skip
#: How many bytes at the start of a volume are written to; the rest of its 1 GiB is a hole.
LENGTH = 4 * MIB


def digest_of(path: Path, length: int = LENGTH) -> str:
    """Return the digest of the first bytes of a file; behind them it must have no data."""
    with open(path, "rb") as file:
        digest = hashlib.blake2b(file.read(length)).hexdigest()
        # The rest is a hole, which takes no reading.
        with contextlib.suppress(OSError):
            file.seek(os.lseek(file.fileno(), length, os.SEEK_DATA))
            while piece := file.read(MIB):
                assert not piece.strip(b"\0"), f"{path} has data behind {length}"
    return digest


class Patient:
    """Sends requests again until somebody answers.

    :param check: called again and again while nobody answers; raises when nobody will.
    :ivar again: how many were sent again.
    """

    def __init__(self, client: Client, check: Callable[[], None]) -> None:
        self.client = client
        self.again = 0
        self._check = check

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any, bool]:
        """Return status and body of the first answer, and whether an earlier try may have been done."""
        end = time.monotonic() + PATIENCE
        lost = False
        while True:
            try:
                status, answer = self.client.request(method, path, body)
            except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
                what: object = error
                lost = True
            else:
                assert status < 500 or status == 503, f"{method} {path}: {status} {answer}"
                if status != 503:
                    return status, answer, lost
                what = answer
                lost = True
            self.again += 1
            self._check()
            assert time.monotonic() < end, f"nobody answers {method} {path}: {what}"
            time.sleep(0.2)

    def show(self, kind: str, resource_id: str) -> dict[str, Any] | None:
        """Return a backup, volume or snapshot; None when it is gone."""
        status, answer, _ = self.request("GET", f"/{kind}s/{resource_id}")
        assert status in (200, 404), answer
        return None if status == 404 else answer[kind]

    def status(self, kind: str, resource_id: str) -> str | None:
        """Return its status; None when it is gone."""
        shown = self.show(kind, resource_id)
        return None if shown is None else shown["status"]

    def named(self, kind: str, name: str) -> str | None:
        """Return the id of what has a name, if something has."""
        status, answer, _ = self.request("GET", f"/{kind}s?name={name}")
        assert status == 200, answer
        ids = [item["id"] for item in answer[f"{kind}s"]]
        assert len(ids) <= 1, f"{len(ids)} are called {name}"
        return ids[0] if ids else None

    def make(self, kind: str, path: str, body: dict[str, Any], name: str) -> tuple[str | None, str]:
        """Send what makes something with a name; return its id, or None and why it was refused."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                status, answer = self.client.request("POST", path, body)
            except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
                status, answer = 503, error
            assert status < 500 or status == 503, f"POST {path}: {status} {answer}"
            if status in (200, 201, 202):
                made = next(iter(answer.values()))
                return made.get("id") or made["volume_id"], ""
            if status != 503:
                return None, json.dumps(answer)
            self._check()
            assert time.monotonic() < end, f"nobody answers POST {path}: {answer}"
            time.sleep(0.2)
            # The try that nobody answered may have been done.
            if (found := self.named(kind, name)) is not None:
                return found, ""


@dataclass(eq=False)
class Disk:
    """A volume that is written to.

    :ivar torn: a restore was broken off by us, so that nothing can be said of its content.
    """

    id: str
    in_use: bool = False
    torn: bool = False
    busy: int = 0


@dataclass(eq=False)
class Point:
    """A snapshot."""

    id: str
    disk: Disk
    digest: str
    busy: int = 0


@dataclass(eq=False)
class Copy:
    """A backup.

    :ivar digest: of what its volume held.
    :ivar broken: it is in ``error``.
    :ivar busy: how many things are under way with it.
    :ivar meddled: its status was set, or it was deleted by force, while something was done with it.
    """

    id: str
    disk: str
    digest: str
    broken: bool = False
    meddled: bool = False
    deleted: bool = False
    busy: int = 0


@dataclass
class Pending:
    """Something that was begun: ``ended()`` says whether it is over, and checks what came of it."""

    what: str
    ended: Callable[[], bool]
    items: Sequence[Disk | Copy | Point] = field(default=())


class History:
    """What one project does with its volumes.

    :param name: no other history of the project has it.
    :param volume_path: where the bytes of a volume are.
    :param disks: how many volumes it has.
    :param check: called again and again; raises when there is no use in going on.
    :ivar done: how often each thing was done.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        rng: random.Random,
        volume_path: Callable[[str], Path],
        disks: int,
        check: Callable[[], None],
    ) -> None:
        self.api = Patient(client, check)
        self._check = check
        self.done: Counter[str] = Counter()
        self.name = name
        self._rng = rng
        self._volume_path = volume_path
        self._disks: list[Disk] = []
        self._points: list[Point] = []
        self._copies: list[Copy] = []
        self._pending: list[Pending] = []
        self._numbers = 0
        for _ in range(disks):
            self._new_disk()
        self.settle()
        self._deeds: dict[Callable[[], bool], int] = {
            self._write: 6,
            self._backup: 8,
            self._restore: 4,
            self._overwrite: 3,
            self._delete: 4,
            self._force_delete: 1,
            self._reset: 1,
            self._import_twin: 1,
            self._snapshot: 1,
            self._backup_snapshot: 2,
            self._delete_snapshot: 1,
            self._attach: 1,
        }

    # -- what a test calls

    def step(self) -> None:
        """Do one thing, whatever can be done now, and look at what was begun before."""
        deeds, weights = list(self._deeds), list(self._deeds.values())
        while True:
            self._check()
            self.look()
            for deed in self._rng.choices(deeds, weights, k=20):
                if deed():
                    self.done[deed.__name__.strip("_")] += 1
                    return
            time.sleep(0.05)

    def look(self) -> None:
        """Look at what was begun."""
        for pending in list(self._pending):
            if pending.ended():
                self._pending.remove(pending)
                for item in pending.items:
                    item.busy -= 1
                    if isinstance(item, Copy) and item.meddled and not item.busy and not item.deleted:
                        # It is what the service says.
                        item.broken = self.api.status("backup", item.id) != "available"
                        item.meddled = False

    def settle(self) -> None:
        """Return when nothing is under way."""
        end = time.monotonic() + PATIENCE
        while self._pending:
            self.look()
            self._check()
            late = "; ".join(pending.what for pending in self._pending)
            assert time.monotonic() < end, f"gave up waiting: {late}"
            time.sleep(0.2)

    def check(self, most: int | None = None) -> None:
        """With nothing under way: no status is a passing one, and backups restore bit by bit.

        :param most: how many are restored; None for all.
        """
        for kind in ("backup", "volume", "snapshot"):
            status, answer, _ = self.api.request("GET", f"/{kind}s/detail")
            assert status == 200, answer
            passing = [item for item in answer[f"{kind}s"] if item["status"] in PASSING]
            assert not passing, passing
        good = [copy for copy in self._copies if not copy.broken]
        for copy in good if most is None else self._rng.sample(good, min(most, len(good))):
            assert self.api.status("backup", copy.id) == "available", copy
            self._begin_restore(copy)
            self.settle()

    def remove_all(self) -> None:
        """Delete all backups, snapshots and attachments."""
        for copy in list(self._copies):
            self._begin_delete(copy)
        for point in list(self._points):
            self._begin_delete_snapshot(point)
        self.settle()
        assert not self._copies

    # -- what is done; each returns whether it could be

    def _write(self) -> bool:
        disk = self._pick(disk for disk in self._disks if not disk.torn)
        if disk is None:
            return False
        change_image(
            self._volume_path(disk.id),
            self._rng.randrange(1 << 30),
            changes=self._rng.randrange(1, 12),
            length=LENGTH,
        )
        return True

    def _backup(self) -> bool:
        disk = self._pick(disk for disk in self._disks if not disk.torn)
        if disk is None:
            return False
        return self._begin_backup(
            disk, digest_of(self._volume_path(disk.id)), (disk,), {"force": disk.in_use}
        )

    def _backup_snapshot(self) -> bool:
        point = self._pick(self._points)
        if point is None:
            return False
        return self._begin_backup(point.disk, point.digest, (point,), {"snapshot_id": point.id})

    def _begin_backup(
        self, disk: Disk, digest: str, items: tuple[Disk | Point, ...], more: dict[str, Any]
    ) -> bool:
        siblings = [copy for copy in self._copies if copy.disk == disk.id]
        incremental = bool(siblings) and self._rng.random() < 0.8
        name = self._name()
        body = {"volume_id": disk.id, "name": name, "incremental": incremental, **more}
        made, why = self.api.make("backup", "/backups", {"backup": body}, name)
        if made is None:
            # One that is deleted, restored or broken may be unfit for a parent, and so is one that was made
            # after a snapshot.
            assert incremental, why
            assert "snapshot_id" in more or any(copy.busy or copy.broken for copy in siblings), why
            return False
        copy = Copy(made, disk.id, digest)
        self._copies.append(copy)

        def ended() -> bool:
            shown = self.api.show("backup", copy.id)
            status = None if shown is None else shown["status"]
            if status == "creating":
                return False
            if copy.deleted:
                return self._settled("volume", disk.id)
            assert shown is not None, f"backup {copy.id} is gone"
            assert status == "available" or copy.meddled, f"backup {copy.id}: {shown}"
            return self._settled("volume", disk.id)

        self._begin(f"backup {copy.id}", ended, copy, *items)
        return True

    def _restore(self) -> bool:
        copy = self._pick(copy for copy in self._copies if not copy.broken)
        if copy is None:
            return False
        self._begin_restore(copy)
        return True

    def _begin_restore(self, copy: Copy) -> None:
        name = self._name()
        body = {"restore": {"name": name}}
        target, why = self.api.make("volume", f"/backups/{copy.id}/restore", body, name)
        assert target is not None, why

        def ended() -> bool:
            status = self.api.status("volume", target)
            if status in PASSING or not (copy.deleted or self._settled("backup", copy.id)):
                return False
            if status == "available" and not copy.meddled:
                assert digest_of(self._volume_path(target)) == copy.digest, f"{copy} restored to {target}"
            assert status == "available" or copy.meddled, f"volume {target} is {status} after {copy}"
            self._remove("volume", target)
            return True

        self._begin(f"restore of {copy.id} to {target}", ended, copy)

    def _overwrite(self) -> bool:
        copy = self._pick(copy for copy in self._copies if not copy.broken)
        disk = self._pick(disk for disk in self._disks if not disk.in_use)
        if copy is None or disk is None:
            return False
        if disk.torn:
            self._act("volume", disk.id, {"os-reset_status": {"status": "available"}})
        body = {"restore": {"volume_id": disk.id}}
        status, answer, lost = self.api.request("POST", f"/backups/{copy.id}/restore", body)
        assert status == 202 or lost, answer

        def ended() -> bool:
            status = self.api.status("volume", disk.id)
            if status in PASSING or not (copy.deleted or self._settled("backup", copy.id)):
                return False
            disk.torn = copy.meddled
            if not copy.meddled:
                assert status == "available", f"volume {disk.id} is {status} after {copy}"
                assert digest_of(self._volume_path(disk.id)) == copy.digest, f"{copy} restored over {disk}"
            return True

        self._begin(f"restore of {copy.id} over {disk.id}", ended, copy, disk)
        return True

    def _delete(self) -> bool:
        copy = self._pick(self._copies)
        if copy is None:
            return False
        self._begin_delete(copy)
        return True

    def _begin_delete(self, copy: Copy) -> None:
        status, answer, lost = self.api.request("DELETE", f"/backups/{copy.id}")
        assert status == 202 or (lost and status in (400, 404)), answer
        self._gone(copy)

    def _force_delete(self) -> bool:
        copies = [copy for copy in self._copies if not copy.deleted]
        if not copies:
            return False
        copy = self._rng.choice(copies)
        busy = copy.busy
        status, answer, lost = self.api.request("POST", f"/backups/{copy.id}/action", {"os-force_delete": {}})
        assert status == 202 or (lost and status == 404), answer
        copy.meddled = copy.meddled or busy
        self._gone(copy)
        return True

    def _gone(self, copy: Copy) -> None:
        """Wait for the end of a delete."""
        copy.deleted = True

        def ended() -> bool:
            if self.api.status("backup", copy.id) is not None:
                return False
            self._copies.remove(copy)
            return True

        self._begin(f"delete of {copy.id}", ended, copy)

    def _reset(self) -> bool:
        copies = [copy for copy in self._copies if not copy.deleted]
        if not copies:
            return False
        copy = self._rng.choice(copies)
        status = self._rng.choice(("available", "error"))
        # What was under way is ended by it, if it had not ended before.
        copy.meddled = copy.meddled or copy.busy
        self._act("backup", copy.id, {"os-reset_status": {"status": status}})
        if not copy.busy:
            shown = self.api.status("backup", copy.id)
            assert shown in (status, "error"), shown
            copy.broken = shown == "error"
        return True

    def _import_twin(self) -> bool:
        copy = self._pick(copy for copy in self._copies if not copy.broken)
        if copy is None:
            return False
        status, answer, _ = self.api.request("GET", f"/backups/{copy.id}/export_record")
        assert status == 200, answer
        exported = answer["backup-record"]
        record = json.loads(base64.b64decode(exported["backup_url"]))
        record["id"] = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        exported["backup_url"] = base64.b64encode(json.dumps(record).encode()).decode()
        status, answer, lost = self.api.request("POST", "/backups/import_record", {"backup-record": exported})
        assert status == 201 or lost, answer
        duplicate = Copy(record["id"], copy.disk, copy.digest)
        self._copies.append(duplicate)

        def ended() -> bool:
            shown = self.api.show("backup", duplicate.id)
            status = None if shown is None else shown["status"]
            if status == "creating":
                return False
            if duplicate.deleted:
                return True
            # Its original may have been deleted by force in the same moment.
            assert status == "available" or duplicate.meddled or copy.meddled or copy.deleted, shown
            duplicate.meddled = True
            return True

        self._begin(f"import of {copy.id} as {duplicate.id}", ended, copy, duplicate)
        return True

    def _snapshot(self) -> bool:
        disk = self._pick(disk for disk in self._disks if not disk.torn)
        if disk is None or len(self._points) > len(self._disks):
            return False
        digest, name = digest_of(self._volume_path(disk.id)), self._name()
        body = {"snapshot": {"volume_id": disk.id, "name": name, "force": True}}
        made, why = self.api.make("snapshot", "/snapshots", body, name)
        assert made is not None, why
        point = Point(made, disk, digest)
        self._points.append(point)

        def ended() -> bool:
            status = self.api.status("snapshot", point.id)
            assert status in ("creating", "available"), f"snapshot {point.id} is {status}"
            return status == "available"

        self._begin(f"snapshot {point.id}", ended, point, disk)
        return True

    def _delete_snapshot(self) -> bool:
        point = self._pick(self._points)
        if point is None:
            return False
        self._begin_delete_snapshot(point)
        return True

    def _begin_delete_snapshot(self, point: Point) -> None:
        status, answer, lost = self.api.request("DELETE", f"/snapshots/{point.id}")
        assert status == 202 or (lost and status in (400, 404)), answer

        def ended() -> bool:
            if self.api.status("snapshot", point.id) is not None:
                return False
            self._points.remove(point)
            return True

        self._begin(f"delete of snapshot {point.id}", ended, point)

    def _attach(self) -> bool:
        disk = self._pick(disk for disk in self._disks if not disk.torn)
        if disk is None:
            return False
        attach = {"instance_uuid": str(uuid.UUID(int=7, version=4)), "mountpoint": "/dev/vdb"}
        body = {"os-detach": {}} if disk.in_use else {"os-attach": attach}
        status, answer, lost = self.api.request("POST", f"/volumes/{disk.id}/action", body)
        assert status == 202 or lost, answer
        disk.in_use = not disk.in_use
        assert self.api.status("volume", disk.id) == ("in-use" if disk.in_use else "available")
        return True

    # -- parts

    def _new_disk(self) -> None:
        name = self._name()
        made, why = self.api.make("volume", "/volumes", {"volume": {"size": 1, "name": name}}, name)
        assert made is not None, why
        disk = Disk(made)
        self._disks.append(disk)
        seed = self._rng.randrange(1 << 30)

        def ended() -> bool:
            status = self.api.status("volume", disk.id)
            assert status in ("creating", "available"), f"volume {disk.id} is {status}"
            if status == "creating":
                return False
            write_content(self._volume_path(disk.id), LENGTH, seed)
            return True

        self._begin(f"volume {disk.id}", ended, disk)

    def _name(self) -> str:
        self._numbers += 1
        return f"{self.name}-{self._numbers}"

    def _pick(self, items: Any) -> Any:
        """Return one of those with which nothing is done now, or None."""
        free = [item for item in items if not item.busy]
        return self._rng.choice(free) if free else None

    def _begin(self, what: str, ended: Callable[[], bool], *items: Disk | Copy | Point) -> None:
        for item in items:
            item.busy += 1
        self._pending.append(Pending(what, ended, items))

    def _settled(self, kind: str, resource_id: str) -> bool:
        return self.api.status(kind, resource_id) not in PASSING

    def _act(self, kind: str, resource_id: str, body: dict[str, Any]) -> None:
        status, answer, lost = self.api.request("POST", f"/{kind}s/{resource_id}/action", body)
        assert status == 202 or lost, answer

    def _remove(self, kind: str, resource_id: str) -> None:
        status, answer, lost = self.api.request("DELETE", f"/{kind}s/{resource_id}")
        assert status == 202 or (lost and status in (400, 404)), answer
        self._begin(f"delete of {kind} {resource_id}", lambda: self.api.status(kind, resource_id) is None)


class Monkey:
    """Does harm at random moments until it is stopped.

    :param harms: what it does, by name; each call does one harm and undoes it.
    :ivar done: how often it did each.
    """

    def __init__(
        self,
        harms: dict[str, Callable[[random.Random], None]],
        rng: random.Random,
        pause: tuple[float, float],
    ) -> None:
        self.done: Counter[str] = Counter()
        self._harms = harms
        self._rng = rng
        self._pause = pause
        self._stopped = threading.Event()
        self._failure: BaseException | None = None

    def strike(self) -> None:
        """Do one harm now."""
        name = self._rng.choice(sorted(self._harms))
        self._harms[name](self._rng)
        self.done[name] += 1

    def check(self) -> None:
        """Fail if a harm could not be undone: a service that did not stop, or did not start again."""
        if self._failure is not None:
            raise self._failure

    @contextmanager
    def at_work(self) -> Iterator[Monkey]:
        """Let it work until the block is left; then all it harmed runs again."""
        self._stopped.clear()
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            thread.join(PATIENCE)
        assert not thread.is_alive(), "a harm did not end"
        self.check()

    def _work(self) -> None:
        while not self._stopped.wait(self._rng.uniform(*self._pause)):
            try:
                self.strike()
            except BaseException as error:
                self._failure = error
                return


def volume_in(folder: Path) -> Callable[[str], Path]:
    """Return what finds the image of a volume that the service made, by its id."""

    def find(volume_id: str) -> Path:
        (path,) = folder.glob(f"*{volume_id}*")
        return path

    return find
