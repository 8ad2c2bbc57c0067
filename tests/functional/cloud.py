"""The API as clients meet it: the WSGI application on real managers and a SQLite database.

No worker runs here; :class:`Cloud` ends tasks by hand, so a test chooses when an operation is over.
"""

from __future__ import annotations

import base64
import datetime
import json
import shutil
import uuid
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from oslo_config import cfg
from sqlalchemy import delete, event, func, select, update
from webtest import TestApp, TestResponse

from backupfw.api.app import Managers, make_app
from backupfw.conf import api as api_conf
from backupfw.conf import backup as backup_conf
from backupfw.conf import default as default_conf
from backupfw.conf import libraries as library_conf
from backupfw.conf import stores as store_conf
from backupfw.conf import volumes as volume_conf
from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.db.models import Base
from backupfw.db.session import Database, now
from backupfw.manager.messages import MessageManager
from backupfw.manager.policies.manager import PolicyManager
from backupfw.manager.queue.services import BACKUP_BINARY, ServiceManager
from backupfw.manager.rules.quota import QuotaManager
from backupfw.manager.rules.volume_types import VolumeTypeManager
from backupfw.manager.usecases.backups import BackupManager
from backupfw.manager.usecases.snapshots import SnapshotManager
from backupfw.manager.usecases.transfers import TransferManager
from backupfw.manager.usecases.volumes import VolumeManager

SERVICE = "cinder.backup.drivers.posix.PosixBackupDriver"
GIB = 1 << 30
#: An id that nothing has.
NOBODY = "11111111-2222-3333-4444-555555555555"


def default_type(moment: datetime.datetime) -> models.VolumeType:
    """Return the row that the migrations make."""
    return models.VolumeType(
        id=str(uuid.uuid5(uuid.NAMESPACE_URL, "backupfw:volume-type:default")),
        name="__DEFAULT__",
        description="Default Volume Type",
        is_public=True,
        created_at=moment,
    )


@cache
def _empty_database(folder: Path) -> Path:
    path = folder / "empty.sqlite"
    database = Database(f"sqlite:///{path}")
    Base.metadata.create_all(database.engine)
    with database.write() as session:
        session.add(default_type(now(session)))
        session.add(models.Installation(id=1, uuid=NOBODY, created_at=now(session)))
    database.close()
    return path


def configuration(**api: Any) -> cfg.ConfigOpts:
    """Return a configuration with the defaults, and these values in ``[api]``."""
    conf = cfg.ConfigOpts()
    for group in (default_conf, api_conf, backup_conf, volume_conf, library_conf):
        group.register_opts(conf)
    for store in ("main", "offsite"):
        conf.register_opts(
            tuple(option for option in store_conf.COMMON if option is not store_conf.DRIVER),
            store_conf.group_of(store),
        )
    conf(args=[], default_config_files=[], default_config_dirs=[])
    conf.set_override("enabled_stores", ["main", "offsite"])
    conf.set_override("quiesce_commands", ["guest-agent", "database"])
    for name, value in api.items():
        conf.set_override(name, value, "api")
    return conf


def _without_fsync(connection: Any, _record: Any) -> None:
    # These tests outlive no power cut; waiting for the disk would be most of their time.
    connection.execute("PRAGMA synchronous=OFF")


class Cloud:
    """One installation: database, managers, application.

    :param folder: for its database.
    :param templates: where the empty database is kept between tests.
    :param copy_of: the database of another one, closed, to begin with.
    """

    def __init__(self, folder: Path, templates: Path, copy_of: Path | None = None, **api: Any) -> None:
        self.path = folder / f"{uuid.uuid4()}.sqlite"
        shutil.copyfile(copy_of or _empty_database(templates), self.path)
        self.db = Database(f"sqlite:///{self.path}")
        event.listen(self.db.engine, "connect", _without_fsync)
        self.conf = configuration(**api)
        self.woken = 0
        backups = BackupManager(self.db, self.conf, self._wake)
        self.managers = Managers(
            backups=backups,
            policies=PolicyManager(self.db, self.conf, backups),
            volumes=VolumeManager(self.db, self.conf, self._wake),
            snapshots=SnapshotManager(self.db, self.conf, self._wake),
            quota=QuotaManager(self.db, self.conf),
            services=ServiceManager(self.db, self.conf),
            messages=MessageManager(self.db, self.conf),
            types=VolumeTypeManager(self.db, self.conf),
            transfers=TransferManager(self.db, self.conf),
        )
        self.app = TestApp(make_app(self.managers, self.conf))

    def _wake(self) -> None:
        self.woken += 1

    def close(self) -> None:
        """Close the database."""
        self.db.close()

    def client(self, project: str = "demo", roles: str = "member", user: str = "alice") -> Client:
        """Return somebody who calls the API."""
        return Client(self.app, project, f"{user}:{project}:{roles}")

    # What a worker would do.

    def settle(self) -> None:
        """End every task with success."""
        with self.db.write() as session:
            for task in session.scalars(select(models.Task).order_by(models.Task.id)):
                getattr(self, "_end_" + task.kind.replace(".", "_"))(session, task)
            session.execute(delete(models.Task))

    def _set(self, session: Any, model: Any, resource_id: str, **values: Any) -> None:
        session.execute(update(model).where(model.id == resource_id).values(**values))

    def _end_backup_create(self, session: Any, task: models.Task) -> None:
        backup = session.get(models.Backup, task.resource_id)
        key = f"{NOBODY}/{backup.project_id}/{backup.volume_id}/{backup.id}/1.1-ab/manifest"
        manifest = models.Manifest(
            id=str(uuid.uuid4()),
            store="main",
            container=backup.container,
            key=key,
            key_digest=object_digest("main", backup.container, key),
            length=backup.length,
            installation_id=NOBODY,
            project_id=backup.project_id,
            volume_id=backup.volume_id,
            backup_id=backup.id,
            state="live",
            block_size=65536,
            segment_size=1 << 28,
            hash_mode="blake3",
            mac_id=None,
            created_at=now(session),
        )
        session.add(manifest)
        session.flush()
        backup.manifest_id = manifest.id
        backup.status = "available"
        backup.completed = True
        backup.object_count = 3
        backup.service = SERVICE
        backup.service_metadata = key
        for model, owner in ((models.Volume, backup.volume_id), (models.Snapshot, backup.snapshot_id)):
            self._give_back(session, model, owner)

    def _give_back(self, session: Any, model: Any, owner: str | None) -> None:
        row = session.get(model, owner) if owner else None
        if row is not None and row.status == "backing-up":
            row.status, row.previous_status = row.previous_status, None

    def _end_backup_import(self, session: Any, task: models.Task) -> None:
        self._set(session, models.Backup, task.resource_id, status="available")

    def _end_backup_restore(self, session: Any, task: models.Task) -> None:
        self._set(session, models.Backup, task.resource_id, status="available")
        self._set(session, models.Volume, task.payload["volume_id"], status="available", location="x")

    def _end_backup_copy(self, session: Any, task: models.Task) -> None:
        self._set(session, models.Manifest, task.resource_id, state="live")
        mine = models.BackupCopy.manifest_id == task.resource_id
        session.execute(update(models.BackupCopy).where(mine).values(status="available"))

    def _end_backup_verify(self, session: Any, task: models.Task) -> None:
        values = {"verified_at": now(session), "verified_how": "full", "verified_result": "ok"}
        self._set(session, models.Backup, task.source_id or "", fully_verified_at=now(session), **values)

    def _end_backup_delete(self, session: Any, task: models.Task) -> None:
        self._gone(session, models.Backup, task)

    def _end_manifest_release(self, session: Any, task: models.Task) -> None:
        pass

    def _end_volume_create(self, session: Any, task: models.Task) -> None:
        self._set(
            session, models.Volume, task.resource_id, status="available", location=f"/v/{task.resource_id}"
        )

    def _end_volume_extend(self, session: Any, task: models.Task) -> None:
        self._set(session, models.Volume, task.resource_id, status="available")

    def _end_volume_delete(self, session: Any, task: models.Task) -> None:
        self._gone(session, models.Volume, task)

    def _end_snapshot_create(self, session: Any, task: models.Task) -> None:
        self._set(session, models.Snapshot, task.resource_id, status="available", location="/s")

    def _end_snapshot_delete(self, session: Any, task: models.Task) -> None:
        self._gone(session, models.Snapshot, task)

    def _gone(self, session: Any, model: Any, task: models.Task) -> None:
        self._set(session, model, task.resource_id, status="deleted", deleted=True, deleted_at=now(session))

    def set_status(self, model: Any, resource_id: str, status: str) -> None:
        """Put a status into a row, as if something had led to it."""
        with self.db.write() as session:
            self._set(session, model, resource_id, status=status)

    def set_created(self, model: Any, resource_id: str, moment: datetime.datetime) -> None:
        """Put a creation time into a row."""
        with self.db.write() as session:
            self._set(session, model, resource_id, created_at=moment)

    def rewind(self, backup_id: str, volume_id: str) -> None:
        """Make a backup and a volume available again, as if nothing had been begun on them."""
        with self.db.write() as session:
            session.execute(delete(models.Task))
            self._set(session, models.Backup, backup_id, status="available")
            self._set(session, models.Volume, volume_id, status="available", previous_status=None)

    def count(self, model: Any) -> int:
        """Count a table's rows."""
        with self.db.read() as session:
            return session.scalar(select(func.count()).select_from(model)) or 0

    def start_worker(self) -> None:
        """Let a worker report itself."""
        self.managers.services.heartbeat("host1", BACKUP_BINARY, "nova", {"main": SERVICE})

    def volume(self, project: str = "demo", size: int = 1, **values: Any) -> str:
        """Make an available volume; return its id."""
        body = {"volume": {"size": size, **values}}
        made: str = self.client(project).post("/volumes", body).json["volume"]["id"]
        self.settle()
        return made

    def snapshot(self, volume_id: str, project: str = "demo") -> str:
        """Make an available snapshot; return its id."""
        body = {"snapshot": {"volume_id": volume_id, "force": True}}
        made: str = self.client(project).post("/snapshots", body).json["snapshot"]["id"]
        self.settle()
        return made

    def backup(self, volume_id: str, project: str = "demo", **values: Any) -> str:
        """Make an available backup; return its id."""
        body = {"backup": {"volume_id": volume_id, **values}}
        made: str = self.client(project).post("/backups", body, 202).json["backup"]["id"]
        self.settle()
        return made


class Client:
    """Calls in one project with one token; every answer's frame is checked.

    :ivar base: path before each call's, e.g. ``/v2/demo``.
    :ivar version: sent in the microversion header; None sends no header.
    """

    def __init__(
        self, app: TestApp, project: str, token: str | None, version: str | None = None, base: str = ""
    ) -> None:
        self.app = app
        self.project = project
        self.base = base or f"/v2/{project}"
        self.token = token
        self.version = version

    def at(self, version: str | None) -> Client:
        """Return the same caller on v3, at this microversion (``3.9`` or ``latest``)."""
        return Client(self.app, self.project, self.token, version, f"/v3/{self.project}")

    def without_project(self) -> Client:
        """Return the same caller on v3 with no project in the path."""
        return Client(self.app, self.project, self.token, self.version, "/v3")

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        status: int | None = None,
        *,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> TestResponse:
        """Send a request; ``status`` is what is expected (None: no 5xx)."""
        sent = dict(headers or {})
        if self.token is not None:
            sent["X-Auth-Token"] = self.token
        if self.version is not None:
            sent["OpenStack-API-Version"] = f"volume {self.version}"
        data = raw
        if data is None and body is not None:
            data = json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        response = self.app.request(
            self.base + path, method=method, body=data or b"", headers=sent, expect_errors=True
        )
        check_frame(response, method)
        self._check_version(response)
        if status is None:
            assert response.status_int < 500, (method, path, body, response.body)
        else:
            assert response.status_int == status, (method, path, body, response.body)
        return response

    def _check_version(self, response: TestResponse) -> None:
        if self.base.startswith("/v2"):
            assert "OpenStack-API-Version" not in response.headers
            return
        assert "OpenStack-API-Version" in response.headers.getall("Vary")
        if response.status_int != 406:
            said = response.headers["OpenStack-API-Version"]
            assert said == f"volume {({None: '3.0', 'latest': '3.71'}).get(self.version, self.version)}"

    def get(self, path: str, status: int = 200) -> TestResponse:
        """``GET``."""
        return self.call("GET", path, None, status)

    def post(self, path: str, body: Any, status: int = 202) -> TestResponse:
        """``POST``."""
        return self.call("POST", path, body, status)

    def put(self, path: str, body: Any, status: int = 200) -> TestResponse:
        """``PUT``."""
        return self.call("PUT", path, body, status)

    def delete(self, path: str, status: int = 202) -> TestResponse:
        """``DELETE``."""
        return self.call("DELETE", path, None, status)


FAULT_KEYS = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    406: "computeFault",
    413: "overLimit",
    415: "badMediaType",
    500: "computeFault",
    503: "serviceUnavailable",
}


def check_frame(response: TestResponse, method: str = "GET") -> None:
    """Check what every answer has: request ids, JSON, and the one form of a fault."""
    assert response.headers["x-openstack-request-id"].startswith("req-")
    assert response.headers["x-openstack-request-id"] == response.headers["x-compute-request-id"]
    if response.body:
        assert response.content_type == "application/json"
        json.loads(response.body)
    if response.status_int >= 400 and method != "HEAD":
        assert list(response.json) == [FAULT_KEYS[response.status_int]]
        fault = response.json[FAULT_KEYS[response.status_int]]
        assert fault["code"] == response.status_int
        assert isinstance(fault["message"], str)
        assert set(fault) - {"retryAfter"} == {"code", "message"}
        if response.status_int == 413:
            assert fault["retryAfter"] == "0"
            assert response.headers["Retry-After"] == "0"


def message(response: TestResponse) -> str:
    """Return a fault's message."""
    (fault,) = response.json.values()
    text: str = fault["message"]
    return text


def record(**values: Any) -> dict[str, Any]:
    """Return an import body; a value of ``...`` leaves a field out."""
    fields = {
        "id": str(uuid.uuid4()),
        "size": 1,
        "display_name": "theirs",
        "service": SERVICE,
        "service_metadata": "a/b/c/d/1.1-ab/manifest",
        "container": "volumebackups",
        **values,
    }
    kept = {key: value for key, value in fields.items() if value is not ...}
    url = base64.b64encode(json.dumps(kept).encode()).decode()
    return {"backup-record": {"backup_service": SERVICE, "backup_url": url}}
