"""A served instance goes back to a copy of its database, as docs/operating.md says it is done."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.files import files_below
from tests.integration.content import MIB, change_image, same_content, write_image
from tests.integration.service import Client, Service
from tests.integration.traps import Traps

LENGTH = 12 * MIB
SMALL_SEGMENTS = {"backup": {"segment_size": 4 * MIB, "pack_size": MIB}}


class Instance:
    """An instance with one volume, of whose database there is a copy."""

    def __init__(self, folder: Path, encryption: str) -> None:
        self.traps = Traps(folder / "crash-points")
        options = {**SMALL_SEGMENTS, "store:main": {"encryption": encryption}}
        self.service = Service(folder / "state", options, environment=self.traps.environment)
        self.image = folder / "image.raw"
        self._database = self.service.state / "backupfw.sqlite"
        self._kept = folder / "kept.sqlite"
        self._folder = folder

    @property
    def client(self) -> Client:
        return self.service.client()

    def copy_database(self) -> None:
        """What ``.backup`` of the command sqlite3 does; the service runs, or stands still."""
        with sqlite3.connect(self._database) as one, sqlite3.connect(self._kept) as other:
            one.backup(other)
        one.close()
        other.close()

    def copy_database_at(self, point: str) -> None:
        """Copy while the service stands still at a crash point, and let it go on."""
        self.client.wait(f"crash point {point}", lambda: self.traps.sprung(point))
        self.copy_database()
        os.kill(self.service.pid, signal.SIGCONT)

    def go_back(self) -> None:
        """Stop, and put the copy in place."""
        assert self.service.stop() == 0
        for end in ("", "-wal", "-shm"):
            Path(f"{self._database}{end}").unlink(missing_ok=True)
        self._kept.rename(self._database)

    def keep_image(self, name: str) -> Path:
        """A copy of what the volume holds now."""
        kept = self._folder / name
        kept.write_bytes(self.image.read_bytes())
        return kept

    def objects(self) -> dict[str, bytes]:
        """All objects of the store."""
        store = self.service.state / "store"
        return {str(one.relative_to(store)): one.read_bytes() for one in files_below(store)}

    def export(self, backup: str) -> dict[str, Any]:
        """The record that an operator keeps elsewhere."""
        answer: dict[str, Any] = self.client.expect(200, "GET", f"/backups/{backup}/export_record")
        return answer

    def import_and_restore(self, backup: str, record: dict[str, Any], content: Path) -> None:
        """Import a kept record; its backup restores what the volume was when it was made."""
        made = self.client.expect(201, "POST", "/backups/import_record", record)["backup"]["id"]
        assert made == backup
        self.client.wait_status("backup", made, "available")
        target = self.client.restore(made)
        assert same_content(content, self.client.volume_path(target), LENGTH)

    def assert_reported(self, manifests: str) -> None:
        """Audit and sweep say what the database does not know, and the sweep deletes nothing of it."""
        told = f"{manifests} of this installation that the database does not know"
        audit = self.service.command("audit", check=False)
        others = [line for line in audit.stdout.splitlines() if "manifest unknown" not in line]
        assert others == [told, manifests.replace("manifest", "finding")], audit.stdout
        assert audit.returncode == 1
        before = self.objects()
        sweep = self.service.command("sweep")
        assert told in sweep.stdout.splitlines(), sweep.stdout
        assert " 0 orphans " in sweep.stdout, sweep.stdout
        assert self.objects() == before


@pytest.fixture(params=["off", "project"], ids=["clear", "encrypted"])
def instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Instance]:
    made = Instance(tmp_path, request.param)
    write_image(made.image, LENGTH)
    made.service.start()
    yield made
    made.service.stop()


def test_a_full_backup_is_deleted_that_an_unknown_increment_shares(instance: Instance) -> None:
    volume = instance.client.adopt(instance.image)
    full = instance.client.backup(volume)
    instance.copy_database()
    change_image(instance.image, 1)
    increment = instance.client.backup(volume, incremental=True)
    content, record = instance.keep_image("increment"), instance.export(increment)

    instance.go_back()
    instance.assert_reported("1 manifest")
    instance.service.start()
    instance.client.delete_backup(full)
    instance.assert_reported("1 manifest")
    instance.import_and_restore(increment, record, content)
    assert instance.service.command("audit").stdout.splitlines() == ["nothing wrong"]
    # Now that it is known, all of it goes with it.
    instance.client.delete_backup(increment)
    assert not instance.objects()


@pytest.mark.parametrize("then", ["deleted", "force deleted"])
def test_a_backup_is_made_again_whose_first_self_is_unknown(instance: Instance, then: str) -> None:
    volume = instance.client.adopt(instance.image)
    instance.traps.set("backup.recorded", signal.SIGSTOP)
    full = instance.client.backup(volume, wait=False)
    instance.copy_database_at("backup.recorded")
    instance.client.wait_status("backup", full, "available")
    full_content, full_record = instance.keep_image("full"), instance.export(full)
    change_image(instance.image, 1)
    increment = instance.client.backup(volume, incremental=True)
    content, record = instance.keep_image("increment"), instance.export(increment)
    needed = instance.objects()
    # It moves on, so the backup that is made again is another one.
    change_image(instance.image, 2)

    instance.go_back()
    instance.service.start()
    if then == "deleted":
        instance.client.wait_status("backup", full, "available")
        target = instance.client.restore(full)
        assert same_content(instance.image, instance.client.volume_path(target), LENGTH)
        instance.client.delete_backup(full)
    else:
        instance.client.expect(202, "POST", f"/backups/{full}/action", {"os-force_delete": {}})
        instance.client.wait_status("backup", full, None)
    assert needed.items() <= instance.objects().items()
    instance.assert_reported("2 manifests")
    instance.import_and_restore(increment, record, content)
    instance.assert_reported("1 manifest")
    instance.import_and_restore(full, full_record, full_content)
    assert instance.service.command("audit").stdout.splitlines() == ["nothing wrong"]
    instance.client.delete_backup(full)
    instance.client.delete_backup(increment)
    assert not instance.objects()
