"""OpenStack Barbican in one process: rows in SQLite, secrets encrypted by its simple plug-in."""

from __future__ import annotations

import base64
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.servers.keystone import Keystone, User
from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.servers.programs import find_program, missing_programs

_CONFIG = """\
[DEFAULT]
log_file = {base}/barbican.log
use_stderr = false
host_href = {url}
db_auto_create = true
[database]
connection = sqlite:///{base}/barbican.sqlite
[secretstore]
enabled_secretstore_plugins = store_crypto
[crypto]
enabled_crypto_plugins = simple_crypto
[simple_crypto_plugin]
kek = {kek}
[oslo_policy]
enforce_scope = true
enforce_new_defaults = true
[keystone_authtoken]
{authtoken}
service_token_roles_required = true
"""

# One thread, because of SQLite.
_SERVE = """\
import sys
port, paste = int(sys.argv[1]), sys.argv[2]
sys.argv = ["barbican"]
import waitress
from paste import deploy
waitress.serve(deploy.loadapp("config:" + paste), host="127.0.0.1", port=port, threads=1)
"""


@dataclass
class Barbican:
    """A running Barbican.

    :ivar user: who may have secrets.
    """

    base: Path
    port: int
    keystone: Keystone
    process: ServerProcess | None = None
    user: User = field(init=False)
    #: A new one costs more than what is asked with it.
    _token: str = field(default="", init=False, repr=False)
    _session: requests.Session = field(default_factory=requests.Session, init=False, repr=False)

    @property
    def url(self) -> str:
        """Its URL, without a version."""
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, accept: str = "application/json") -> requests.Response:
        """Send a request as the user; returns the answer."""
        if not self._token:
            self._token = self.keystone.token(self.user.name, self.user.password, self.user.project)
        headers = {"X-Auth-Token": self._token, "Accept": accept}
        return self._session.request(method, f"{self.url}/v1/{path}", headers=headers, timeout=60)

    def secrets(self) -> dict[str, bytes]:
        """Return the user's secrets by id."""
        found = {}
        answer = self.request("GET", "secrets?limit=1000")
        assert answer.ok, answer.text
        for one in answer.json()["secrets"]:
            name = one["secret_ref"].rsplit("/", 1)[1]
            found[name] = self.request("GET", f"secrets/{name}/payload", "application/octet-stream").content
        return found

    def kept(self) -> set[str]:
        """Return the ids of the secrets that the database has, deleted ones too."""
        with closing(sqlite3.connect(self.base / "barbican.sqlite")) as file:
            found = file.execute("SELECT secret_id FROM encrypted_data WHERE cypher_text IS NOT NULL")
            return {str(row[0]) for row in found}

    def clean(self) -> None:
        """Remove for good what was deleted, as an administrator does."""
        program = find_program("barbican-manage", "barbican")
        url = f"sqlite:///{self.base}/barbican.sqlite"
        subprocess.run(
            [str(program), "db", "clean", "--min-days", "0", "--db-url", url],
            check=True,
            capture_output=True,
            env={**os.environ, "HOME": str(self.base)},
            timeout=120,
        )

    def start(self) -> None:
        """Start the process and return when it answers."""
        python = Path(find_program("barbican-manage", "barbican") or "").with_name("python")
        paste = python.parent.parent / "etc" / "barbican" / "barbican-api-paste.ini"
        command = [str(python), "-c", _SERVE, str(self.port), str(paste)]
        # It looks for its configuration there.
        self.process = ServerProcess(command, self.base, environment={"HOME": str(self.base)})
        self.process.wait_ready(lambda: requests.get(self.url, timeout=5).status_code in (200, 300))

    def stop(self) -> None:
        """Stop the process; what it has stays."""
        if self.process is not None:
            self.process.stop()
            self.process = None


def barbican_missing() -> str | None:
    """Say what is missing to run Barbican, or None."""
    names = missing_programs("barbican-manage", environment="barbican")
    return f"not installed: {', '.join(names)} (tests/servers/install.sh barbican)" if names else None


@contextmanager
def barbican(directory: Path, keystone: Keystone) -> Iterator[Barbican]:
    """Run Barbican, whose users are Keystone's."""
    server = Barbican(directory, free_port(), keystone)
    (directory / ".barbican").mkdir()
    (directory / ".barbican" / "barbican.conf").write_text(
        _CONFIG.format(
            base=directory,
            url=server.url,
            kek=base64.b64encode(bytes(range(32))).decode(),
            authtoken="\n".join(keystone.authtoken(keystone.service)),
        )
    )
    server.user = keystone.add_user("keeper", "keys", "member")
    try:
        server.start()
        yield server
    finally:
        server.stop()
