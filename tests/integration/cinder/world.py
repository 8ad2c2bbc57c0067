"""A service whose volumes are a real Cinder's, behind a real Keystone, and two projects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.integration.service import Client, Service
from tests.integration.test_keystone import options
from tests.integration.traps import Traps
from tests.servers.cinder import POOL, Cinder, Tenant
from tests.servers.keystone import REGION, Keystone, User

MIB = 1 << 20


def section(server: Cinder, user: User) -> dict[str, Any]:
    """Return the configuration of a back end.

    :param user: the service's user.
    """
    return {
        "driver": "cinder",
        "auth_url": server.identity.url,
        "username": user.name,
        "password": user.password,
        "project_name": user.project,
        "user_domain_id": "default",
        "project_domain_id": "default",
        "region_name": REGION,
        "rbd_pools": POOL,
        "rbd_ceph_conf": server.cluster.config,
        "rbd_keyring": server.cluster.base / "keyring.backupfw",
    }


@dataclass
class World:
    """Everything a test needs.

    :ivar backups: the project's client of this service; ``volumes`` its client of the Cinder.
    :ivar stranger: a client of another project; ``other_volumes`` its client of the Cinder.
    :ivar keeper: the service's own client of the Cinder.
    :ivar section: the configuration of the back end.
    :ivar traps: of the service.
    """

    server: Cinder
    service: Service
    backups: Client
    volumes: Tenant
    stranger: Client
    other_volumes: Tenant
    keeper: Tenant
    section: dict[str, Any]
    traps: Traps

    def backup(self, volume_id: str, **fields: Any) -> dict[str, Any]:
        """Make a backup; returns it when it is available."""
        return self.shown(self.backups.backup(volume_id, **fields))

    def shown(self, backup_id: str) -> dict[str, Any]:
        """Return a backup as ``backupfw backup show`` has it."""
        return dict(json.loads(self.service.command("backup", "show", backup_id, "--format", "json").stdout))

    def begin_restore(self, backup_id: str, volume_id: str | None = None, **fields: Any) -> str:
        """Begin a restore; returns the target."""
        body = {"restore": {"volume_id": volume_id, **fields}}
        return str(
            self.backups.expect(202, "POST", f"/backups/{backup_id}/restore", body)["restore"]["volume_id"]
        )

    def restore(self, backup_id: str, volume_id: str | None = None, **fields: Any) -> str:
        """Restore; returns the target when both are available."""
        target = self.begin_restore(backup_id, volume_id, **fields)
        self.restored(backup_id, target)
        return target

    def restored(self, backup_id: str, target: str) -> None:
        """Wait for the end of a restore."""
        self.backups.wait_status("backup", backup_id, "available")
        self.volumes.wait("volume", target, "available")

    def points(self, volume_id: str) -> list[str]:
        """Return the snapshots of a volume's image."""
        return self.server.snapshots(volume_id)

    def mine(self, kind: str) -> list[str]:
        """Return the statuses of the snapshots or volumes that this service has made for itself."""
        return [one["status"] for one in self.keeper.call("GET", f"/{kind}/detail")[kind]]

    def left(self) -> list[str]:
        """Return what this service has left in the Cinder: attachments, snapshots, volumes."""
        found = []
        for kind in ("attachments", "snapshots", "volumes"):
            listed = self.keeper.call("GET", f"/{kind}/detail?all_tenants=1")[kind]
            for one in listed:
                if kind == "attachments" or str(one.get("name", "")).startswith("backupfw"):
                    found.append(f"{kind} {one['id']}")
        return found

    def wait_struck(self, point: str) -> None:
        """Wait until the trap has worked."""
        self.backups.wait(f"the trap at {point}", lambda: self.traps.sprung(point))

    def revive(self) -> None:
        """Start the killed service again."""
        self.service.kill()
        self.service.start()


@contextmanager
def world(
    server: Cinder,
    identity: Keystone,
    directory: Path,
    more: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> Iterator[World]:
    """Run the service.

    :param more: sections of its configuration.
    """
    server.cluster.make_user("backupfw", "mon", "profile rbd", "osd", f"profile rbd pool={POOL}")
    keeper = identity.add_user("backup-keeper", "backup-service", "admin")
    (role,) = identity.request("GET", "/roles?name=service")["roles"]
    identity.request("PUT", f"/projects/{keeper.project_id}/users/{keeper.id}/roles/{role['id']}")
    owner = identity.add_user("owner-of-volumes", "volume-owners", "member")
    other = identity.add_user("stranger-to-volumes", "volume-strangers", "member")
    traps = Traps(directory / "traps")
    own = {**section(server, keeper), "attach_dir": directory / "attached"}
    configured = {
        **options(identity),
        "volumes": {"enabled": "local, cinder"},
        "volumes:cinder": own,
        "backup": {"segment_size": 4 * MIB, "lease_seconds": 5},
        **more,
    }
    service = Service(directory / "state", configured, environment=traps.environment)
    try:
        service.start()

        def client(user: User) -> Client:
            token = identity.token(user.name, user.password, user.project)
            return Client(f"http://127.0.0.1:{service.port}/v3/{user.project_id}", token, service)

        yield World(
            server,
            service,
            client(owner),
            server.tenant(owner),
            client(other),
            server.tenant(other),
            server.tenant(keeper),
            own,
            traps,
        )
    finally:
        service.stop()
