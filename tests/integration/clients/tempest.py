"""Runs published tempest tests, unmodified, and reads their results."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.clients.results import Result
from tests.integration.clients.world import World
from tests.servers.keystone import ADMIN_PASSWORD, REGION
from tests.servers.programs import find_program, missing_programs

#: How long all of them together may take, seconds.
PATIENCE = 1200.0
#: Test processes at once.
CONCURRENCY = 2

_CONFIG = """\
[DEFAULT]
log_dir = {base}
[oslo_concurrency]
lock_path = {base}
[auth]
use_dynamic_credentials = true
create_isolated_networks = false
admin_username = admin
admin_password = {password}
admin_project_name = admin
admin_domain_name = Default
[identity]
uri_v3 = {identity}
region = {identity_region}
[identity-feature-enabled]
api_v2 = false
[service_available]
cinder = true
# The class of the main backup tests is skipped without it; see SecurityGroups.
neutron = true
nova = false
glance = false
swift = false
horizon = false
[network]
region = {region}
[volume]
region = {region}
# The highest; the default runs no test that needs more than 3.0.
max_microversion = latest
backup_driver = posix
build_interval = 1
# For slow machines.
build_timeout = 120
# Without this the tests of roles are skipped.
[enforce_scope]
cinder = true
# Its test of backups made at once is skipped without it.
[volume-feature-enabled]
backup = true
concurrency_tests = true
"""

_STESTR = """\
[DEFAULT]
test_path={test_path}
top_dir={top_dir}
group_regex=([^\\.]*\\.)*
"""

# Runs in tempest's environment, which has the libraries.  Reads a subunit stream; one JSON line per test.
_READ = """\
import json, sys
import subunit, testtools

def told(test):
    details = {name: content.as_text() for name, content in test["details"].items()}
    print(json.dumps({"id": test["id"], "status": test["status"], "details": details}))

result = testtools.StreamToDict(told)
result.startTestRun()
subunit.ByteStreamToStreamResult(sys.stdin.buffer, non_subunit_name="stdout").run(result)
result.stopTestRun()
"""


class SecurityGroups(http.server.BaseHTTPRequestHandler):
    """A stand-in for the network service, which backupfw does not need.

    Tempest deletes the security groups of every project it made and asks the network service for them; this
    is the one request of these tests that goes there, and the answer is that there are none.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer the one request."""
        known = self.path.startswith("/v2.0/security-groups")
        body = json.dumps({"security_groups": []} if known else {"NeutronError": "not here"}).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


@contextmanager
def security_groups(world: World) -> Iterator[None]:
    """Run the stand-in, with an entry in the catalogue."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SecurityGroups) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            world.keystone.add_endpoints("network", {"public": url}, world.region)
            yield
        finally:
            server.shutdown()
            thread.join()


def tempest_missing() -> str | None:
    """Say what is missing to run it, or None."""
    names = missing_programs("tempest", "stestr", environment="tempest")
    return f"not installed: {', '.join(names)} (tests/servers/install.sh tempest)" if names else None


class Tempest:
    """Tempest, configured for an instance.

    :param directory: for its configuration, results and log.
    """

    def __init__(self, directory: Path, world: World) -> None:
        self._directory = directory
        self._program = find_program("tempest", "tempest") or ""
        self._python = Path(self._program).with_name("python")
        found = self._inside("import os, tempest; print(os.path.dirname(tempest.__file__))")
        package = Path(found.strip())
        (directory / ".stestr.conf").write_text(
            _STESTR.format(test_path=package / "test_discover", top_dir=package.parent)
        )
        (directory / "etc").mkdir()
        (directory / "etc" / "tempest.conf").write_text(
            _CONFIG.format(
                base=directory,
                password=ADMIN_PASSWORD,
                identity=world.keystone.url,
                identity_region=REGION,
                region=world.region,
            )
        )
        stestr = Path(self._program).with_name("stestr")
        subprocess.run([stestr, "init"], cwd=directory, check=True, timeout=120)

    def _inside(self, code: str, stdin: bytes = b"") -> str:
        done = subprocess.run([self._python, "-c", code], input=stdin, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def _run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._program, "run", *words],
            cwd=self._directory,
            # Its runner starts the interpreter that PYTHON names; ours may name another one.
            env={
                **os.environ,
                "PYTHON": str(self._python),
                "TEMPEST_CONFIG_DIR": str(self._directory / "etc"),
            },
            capture_output=True,
            timeout=PATIENCE,
        )

    def names(self, find: str, but_not: str) -> set[str]:
        """The names (ids without tags) of the tests whose ids match the first pattern and not the second."""
        done = self._run("--list-tests")
        assert done.returncode == 0, f"{done.stdout.decode()}\n{done.stderr.decode()}"
        found = {line.strip() for line in done.stdout.decode().splitlines()}
        return {_name(line) for line in found if re.search(find, line) and not re.search(but_not, line)}

    def run(self, names: Iterable[str]) -> dict[str, Result]:
        """Run tests; returns their results by name."""
        chosen = self._directory / "chosen"
        chosen.write_text("".join(f"^{re.escape(name)}\\[\n" for name in names))
        done = self._run("--include-list", str(chosen), "--concurrency", str(CONCURRENCY), "--subunit")
        results = dict(_results(self._inside(_READ, done.stdout).splitlines()))
        assert results, f"{done.returncode}\n{done.stdout.decode(errors='replace')}\n{done.stderr.decode()}"
        return results


def _name(test_id: str) -> str:
    return test_id.partition("[")[0]


def _results(lines: Iterable[str]) -> Iterator[tuple[str, Result]]:
    for line in lines:
        told = json.loads(line)
        why = told["details"].get("reason") or told["details"].get("traceback") or ""
        yield _name(told["id"]), Result(told["status"], why.strip())
