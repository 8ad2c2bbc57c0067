"""OpenStack Keystone on SQLite, with projects, users and endpoints made for tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.servers.programs import find_program, missing_programs

REGION = "RegionOne"
#: Of ``admin`` in project ``admin``.
ADMIN_PASSWORD = "very-secret-password-of-the-admin"

_CONFIG = """\
[DEFAULT]
log_file = {base}/keystone-app.log
use_stderr = false
[database]
connection = sqlite:///{base}/keystone.db
[token]
provider = fernet
expiration = {token_life}
[fernet_tokens]
key_repository = {base}/fernet
[fernet_receipts]
key_repository = {base}/fernet
[credential]
key_repository = {base}/credkeys
[cache]
enabled = true
backend = dogpile.cache.memory
[identity]
password_hash_rounds = 4
[oslo_policy]
enforce_scope = true
enforce_new_defaults = true
"""

# One process imports Keystone once and forks for each command, which is three times as fast.
_SETUP = """\
import getpass, grp, os, sys
base, url, password = sys.argv[1:]
from keystone.cmd import cli
mine = ["--keystone-user", getpass.getuser(), "--keystone-group", grp.getgrgid(os.getgid()).gr_name]
endpoints = [word for kind in ("public", "internal", "admin") for word in (f"--bootstrap-{kind}-url", url)]
for command in (
    ["db_sync"],
    ["fernet_setup", *mine],
    ["credential_setup", *mine],
    ["bootstrap", "--bootstrap-password", password, "--bootstrap-region-id", "RegionOne", *endpoints],
):
    child = os.fork()
    if child == 0:
        cli.main(argv=["keystone-manage", "--config-file", f"{base}/keystone.conf", *command])
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{command} failed")
"""

# One thread: two that read and then write lock each other out of SQLite, and Keystone answers with a 500.
_SERVE = """\
import sys
port = int(sys.argv[1])
sys.argv = ["keystone"]
from keystone.wsgi.api import application
import waitress
waitress.serve(application, host="127.0.0.1", port=port, threads=1)
"""


@dataclass(frozen=True)
class User:
    """A user with a role in a project of its own or of another user."""

    id: str
    name: str
    password: str
    project: str
    project_id: str


@dataclass
class Keystone:
    """A running Keystone.

    :ivar url: with ``/v3``.
    :ivar service: the user whom servers validate tokens with.
    """

    base: Path
    port: int
    process: ServerProcess | None = None
    service: User = field(init=False)
    _token: str = ""

    @property
    def url(self) -> str:
        """The v3 API."""
        return f"http://127.0.0.1:{self.port}/v3"

    def request(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """Send a request as the administrator (or with another token); returns the decoded answer."""
        for _ in range(2):
            if token is None and not self._token:
                self._token = self.token("admin", ADMIN_PASSWORD, "admin")
            answer = requests.request(
                method, self.url + path, json=body, headers={"X-Auth-Token": token or self._token}, timeout=30
            )
            if answer.status_code != 401 or token is not None:
                break
            # Tokens are short-lived here.
            self._token = ""
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def authtoken(self, user: User) -> Sequence[str]:
        """Return the options with which a server validates tokens as a user."""
        return (
            f"www_authenticate_uri = {self.url}",
            f"auth_url = {self.url}",
            "auth_type = password",
            f"username = {user.name}",
            f"password = {user.password}",
            f"project_name = {user.project}",
            "user_domain_id = default",
            "project_domain_id = default",
        )

    def token(self, name: str, password: str, project: str | None) -> str:
        """Return a new token for a project; for the system where that is None."""
        domain = {"domain": {"id": "default"}}
        identity = {
            "methods": ["password"],
            "password": {"user": {"name": name, "password": password, **domain}},
        }
        scope = {"system": {"all": True}} if project is None else {"project": {"name": project, **domain}}
        return self._new_token({"identity": identity, "scope": scope})

    def unscoped_token(self, user: User) -> str:
        """Return a new token that is good for nothing but asking for another one."""
        named = {"name": user.name, "password": user.password, "domain": {"id": "default"}}
        identity = {"methods": ["password"], "password": {"user": named}}
        return self._new_token({"identity": identity, "scope": "unscoped"})

    def credential_token(self, credential: tuple[str, str]) -> str:
        """Return a new token for an application credential's id and secret."""
        named = {"id": credential[0], "secret": credential[1]}
        return self._new_token(
            {"identity": {"methods": ["application_credential"], "application_credential": named}}
        )

    def _new_token(self, auth: Any) -> str:
        answer = requests.post(f"{self.url}/auth/tokens", json={"auth": auth}, timeout=30)
        assert answer.status_code == 201, answer.text
        return answer.headers["X-Subject-Token"]

    def add_project(self, name: str) -> str:
        """Make a project; returns its id."""
        return str(self.request("POST", "/projects", {"project": {"name": name}})["project"]["id"])

    def add_user(self, name: str, project: str, role: str, project_id: str | None = None) -> User:
        """Make a user with a role in a project, which is made unless its id is given."""
        project_id = project_id or self.add_project(project)
        password = f"very-secret-password-of-{name}"
        body = {"user": {"name": name, "password": password}}
        user_id = str(self.request("POST", "/users", body)["user"]["id"])
        role_id = self.request("GET", f"/roles?name={role}")["roles"][0]["id"]
        self.request("PUT", f"/projects/{project_id}/users/{user_id}/roles/{role_id}")
        return User(user_id, name, password, project, project_id)

    def grant_system_role(self, user: User, role: str) -> None:
        """Give a user a role on the system as a whole."""
        role_id = self.request("GET", f"/roles?name={role}")["roles"][0]["id"]
        self.request("PUT", f"/system/users/{user.id}/roles/{role_id}")

    def add_application_credential(self, user: User, name: str, **fields: Any) -> tuple[str, str]:
        """Make an application credential; returns id and secret."""
        token = self.token(user.name, user.password, user.project)
        body = {"application_credential": {"name": name, **fields}}
        path = f"/users/{user.id}/application_credentials"
        found = self.request("POST", path, body, token=token)["application_credential"]
        return str(found["id"]), str(found["secret"])

    def revoke(self, token: str) -> None:
        """Revoke somebody's token."""
        answer = requests.delete(
            f"{self.url}/auth/tokens", headers={"X-Auth-Token": token, "X-Subject-Token": token}, timeout=30
        )
        assert answer.status_code == 204, answer.text

    def add_endpoints(self, service_type: str, urls: dict[str, str], region: str = REGION) -> None:
        """Make a service with one endpoint per interface, or add a region to it."""
        services = self.request("GET", f"/services?type={service_type}")["services"]
        if not services:
            body = {"service": {"type": service_type, "name": service_type}}
            services = [self.request("POST", "/services", body)["service"]]
        if not any(each["id"] == region for each in self.request("GET", "/regions")["regions"]):
            self.request("POST", "/regions", {"region": {"id": region}})
        for interface, url in urls.items():
            endpoint = {
                "service_id": services[0]["id"],
                "interface": interface,
                "region_id": region,
                "url": url,
            }
            self.request("POST", "/endpoints", {"endpoint": endpoint})

    def start(self) -> None:
        """Start the process and return when it answers."""
        python = Path(find_program("keystone-manage", "keystone") or "").with_name("python")
        self.process = ServerProcess(
            [str(python), "-c", _SERVE, str(self.port)],
            self.base,
            environment={"OS_KEYSTONE_CONFIG_FILES": str(self.base / "keystone.conf")},
        )
        self.process.wait_ready(lambda: requests.get(self.url, timeout=5).status_code == 200)

    def stop(self) -> None:
        """Stop the process; what it knows stays."""
        if self.process is not None:
            self.process.stop()
            self.process = None

    def configure(self, token_life: int) -> None:
        """Write the configuration; it counts from the next start on.

        :param token_life: of tokens made from then on, seconds.
        """
        (self.base / "keystone.conf").write_text(_CONFIG.format(base=self.base, token_life=token_life))


def keystone_missing() -> str | None:
    """Say what is missing to run it, or None."""
    names = missing_programs("keystone-manage", environment="keystone")
    return f"not installed: {', '.join(names)} (tests/servers/install.sh keystone)" if names else None


@contextmanager
def keystone(directory: Path, token_life: int = 3600) -> Iterator[Keystone]:
    """Run Keystone in an empty directory.

    :param token_life: of tokens, seconds.
    """
    server = Keystone(directory, free_port())
    server.configure(token_life)
    for name in ("fernet", "credkeys"):
        (directory / name).mkdir(mode=0o700)
    python = Path(find_program("keystone-manage", "keystone") or "").with_name("python")
    done = subprocess.run(
        [python, "-c", _SETUP, str(directory), server.url, ADMIN_PASSWORD],
        capture_output=True, text=True, env={**os.environ}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    try:
        server.start()
        server.service = server.add_user("swift", "service", "service")
        yield server
    finally:
        server.stop()
