"""OpenStack Cinder with its own backup service, in one process: volumes are files, everybody is trusted.

It has two backup services, each in an availability zone of its driver's name: ``posix`` and ``s3``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.servers.cinder import CONFIG, PATIENCE, SERVE, START, Tenant, prepare, wait_scheduler
from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.servers.programs import find_program, missing_programs
from tests.servers.seaweedfs import SeaweedFS

#: Bytes of a chunk: small, so that a volume has many.
CHUNK = 4 << 20
BUCKET = "volumebackups"
PROJECT = "0123456789abcdef0123456789abcdef"

_CONFIG = """\
[DEFAULT]
auth_strategy = noauth
enabled_backends = files
default_volume_type = files
quota_backups = 100
quota_backup_gigabytes = 100000
backup_driver_stats_polling_interval = 10
backup_posix_path = {base}/backups
backup_file_size = {chunk}
backup_s3_endpoint_url = {s3}
backup_s3_store_access_key = {access_key}
backup_s3_store_secret_key = {secret_key}
backup_s3_store_bucket = {bucket}
backup_s3_object_size = {chunk}
"""

_BACKUPS = """\
# The periods of its services are read when it is imported.
import cinder.backup.manager
drivers = {"posix": "posix.PosixBackupDriver", "s3": "s3.S3BackupDriver"}
for name, driver in drivers.items():
    # Each service reads them when it is made; a process of its own would have them in a file.
    cfg.CONF.set_override("backup_driver", "cinder.backup.drivers." + driver)
    cfg.CONF.set_override("storage_availability_zone", name)
    made = {"binary": "cinder-backup", "service_name": "backup", "coordination": True}
    service.Service.create(host=name, **made).start()
cfg.CONF.clear_override("storage_availability_zone")
"""


@dataclass(frozen=True)
class BackupCinder:
    """A running Cinder.

    :ivar backups: the directory of its driver posix.
    """

    base: Path
    port: int

    @property
    def endpoint(self) -> str:
        """The API's root, without a version."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def backups(self) -> Path:
        """The directory of the backup driver ``posix``."""
        return self.base / "backups"

    def tenant(self) -> Tenant:
        """Return a client of the administrator."""
        return Tenant(self, PROJECT, f"admin:{PROJECT}")

    def file(self, volume_id: str) -> Path:
        """Return the file of a volume."""
        return self.base / "files" / f"volume-{volume_id}"

    def back_up(self, volume_id: str, zone: str, **fields: Any) -> str:
        """Make a backup; returns its id when it is available."""
        body = {"backup": {"volume_id": volume_id, "availability_zone": zone, **fields}}
        end = time.monotonic() + PATIENCE
        while True:
            made = str(self.tenant().call("POST", "/backups", body)["backup"]["id"])
            try:
                self._wait(made)
            except AssertionError as error:
                # The scheduler learns of it some seconds after its start, and no call says when.
                if "Service not found" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.5)
            else:
                return made

    def _wait(self, backup_id: str) -> None:
        tenant = self.tenant()
        tenant.wait("backup", backup_id, "available", "error")
        found = tenant.call("GET", f"/backups/{backup_id}")["backup"]
        assert found["status"] == "available", found["fail_reason"]

    def restore(self, backup_id: str) -> Path:
        """Restore a backup to a new volume; returns the volume's file."""
        tenant = self.tenant()
        begun = tenant.call("POST", f"/backups/{backup_id}/restore", {"restore": {}})
        target = str(begun["restore"]["volume_id"])
        self._wait(backup_id)
        tenant.wait("volume", target, "available")
        # Unlike a device, a file is cut when Cinder opens it, and zeros at its end are not written.
        os.truncate(self.file(target), int(tenant.call("GET", f"/volumes/{target}")["volume"]["size"]) << 30)
        return self.file(target)

    def record(self, backup_id: str) -> dict[str, str]:
        """Return the export record of a backup."""
        found: dict[str, str] = self.tenant().call("GET", f"/backups/{backup_id}/export_record")[
            "backup-record"
        ]
        return found

    def import_record(self, record: dict[str, str]) -> str:
        """Import a record; returns the backup's id when it is available."""
        made = self.tenant().call("POST", "/backups/import_record", {"backup-record": record})
        backup_id = str(made["backup"]["id"])
        self._wait(backup_id)
        return backup_id


def cinder_backup_missing() -> str | None:
    """Say what is missing to run it, or None."""
    names = missing_programs("cinder-backup", environment="cinder")
    python = find_program("cinder-manage", "cinder")
    if python and not list(Path(python).parent.parent.glob("lib/python3*/site-packages/boto3")):
        names.append("boto3")
    return f"not installed: {', '.join(names)} (tests/servers/install.sh cinder)" if names else None


@contextmanager
def cinder_backup(directory: Path, store: SeaweedFS) -> Iterator[BackupCinder]:
    """Run it in an empty directory.

    :param store: has its bucket.
    """
    server = BackupCinder(directory, free_port())
    command = prepare(
        directory,
        CONFIG + _CONFIG,
        port=server.port,
        chunk=CHUNK,
        s3=store.endpoint,
        access_key=store.access_key,
        secret_key=store.secret_key,
        bucket=BUCKET,
    )
    server.backups.mkdir()
    process = ServerProcess(command(START + _BACKUPS + SERVE), directory)
    try:
        process.wait_ready(lambda: requests.get(server.endpoint, timeout=5).status_code == 300)
        tenant = server.tenant()
        kind = {"name": "files", "extra_specs": {"volume_backend_name": "files"}}
        tenant.call("POST", "/types", {"volume_type": kind})
        wait_scheduler(tenant, 1)
        yield server
    finally:
        process.stop()
