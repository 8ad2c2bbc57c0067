"""A served instance behind a real Keystone whose catalogue names it, as an operator registers it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.service import Client, Service, running
from tests.servers.keystone import Keystone, User

#: Catalogue entries as README and docs/clients.md give them: type to path.
ENTRIES = {
    "block-storage": "/v3/%(project_id)s",
    "volumev3": "/v3/%(project_id)s",
    "volumev2": "/v2/%(project_id)s",
}


@dataclass(frozen=True)
class World:
    """The instance, and where its entries stand in the catalogue.

    :ivar region: its own, so that suites with an instance each share one Keystone.
    """

    service: Service
    keystone: Keystone
    region: str

    @property
    def url(self) -> str:
        """The service's root."""
        return f"http://127.0.0.1:{self.service.port}"

    def client(self, user: User, version: str = "v3") -> Client:
        """A raw client in a user's project, to look at what real clients did."""
        token = self.keystone.token(user.name, user.password, user.project)
        return Client(f"{self.url}/{version}/{user.project_id}", token, self.service)

    def variables(self, user: User) -> dict[str, str]:
        """What a user exports before the client commands: an RC file's variables."""
        return {
            "OS_AUTH_URL": self.keystone.url,
            "OS_USERNAME": user.name,
            "OS_PASSWORD": user.password,
            "OS_PROJECT_NAME": user.project,
            "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default",
            "OS_REGION_NAME": self.region,
            "OS_IDENTITY_API_VERSION": "3",
        }


def options(keystone: Keystone) -> dict[str, dict[str, Any]]:
    """The configuration of a service that asks Keystone, without limits that tests do not set."""
    user = keystone.service
    return {
        "api": {"auth_strategy": "keystone"},
        # The suites count on limits of sizes.
        "quota": {
            "volumes": -1,
            "snapshots": -1,
            "backups": -1,
            "gigabytes": 1000,
            "backup_gigabytes": 1000,
        },
        "keystone_authtoken": {
            "auth_type": "password",
            "auth_url": keystone.url,
            "username": user.name,
            "password": user.password,
            "project_name": user.project,
            "user_domain_id": "default",
            "project_domain_id": "default",
        },
    }


@contextmanager
def served(directory: Path, keystone: Keystone, region: str) -> Iterator[World]:
    """Serve an instance and register it in a region of its own."""
    with running(directory / "state", options(keystone)) as service:
        world = World(service, keystone, region)
        keystone.add_endpoints("identity", {"public": keystone.url.removesuffix("/v3")}, region)
        for kind, path in ENTRIES.items():
            keystone.add_endpoints(kind, {"public": world.url + path}, region)
        yield world
