"""The published tempest tests of backups, unmodified: volumes in a Cinder, backups here, behind one proxy."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.architecture import operating
from tests.integration.cinder.world import World
from tests.integration.clients import tempest as clients
from tests.integration.clients.tempest import Tempest, security_groups, tempest_missing
from tests.integration.clients.world import World as Registered
from tests.servers.keystone import Keystone
from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.servers.programs import find_program

pytestmark = pytest.mark.server

REGION = "RegionOfBoth"
KNOWN = tomllib.loads(Path(clients.__file__).with_name("tempest_tests.toml").read_text())
#: Of what passes with this service alone, the classes that make backups.
CLASSES = (
    "cinder_tempest_plugin.api.volume.admin.test_volume_backup.VolumesBackupsTest",
    "cinder_tempest_plugin.api.volume.test_volume_backup.VolumesBackupsTest",
    "cinder_tempest_plugin.rbac.v3.test_backups.ProjectMemberTests33",
    "cinder_tempest_plugin.scenario.test_volume_concurrency.ConcurrentVolumeActionsTest",
    "tempest.api.volume.admin.test_volumes_backup.VolumesBackupsAdminTest",
    "tempest.api.volume.test_volumes_backup.VolumesBackupsTest",
    "tempest.api.volume.test_volumes_backup.VolumesBackupsV39Test",
    "tempest.api.volume.test_volumes_snapshots.VolumesSnapshotTestJSON",
)


@pytest.fixture(scope="module")
def tempest(there: World, identity: Keystone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tempest]:
    nginx = find_program("nginx")
    if (reason := tempest_missing()) or nginx is None:
        pytest.skip(reason or "not installed: nginx")
    folder = tmp_path_factory.mktemp("tempest")
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    text = operating.replaced(
        operating.Section("Beside an existing Cinder").only("nginx"),
        {
            "listen 8776": f"listen 127.0.0.1:{port}",
            "127.0.0.1:8777": f"127.0.0.1:{there.service.port}",
            "127.0.0.1:8778": f"127.0.0.1:{there.server.port}",
            # Where it may write as whoever runs the test.
            "http {": "\n".join(
                ["http {", "access_log off;", *(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)]
            ),
        },
    )
    (folder / "nginx.conf").write_text(text)
    log = f"pid {folder}/nginx.pid; error_log stderr; daemon off; user root;"
    command = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr", "-g", log]
    proxy = ServerProcess(command, folder)
    try:
        url = f"http://127.0.0.1:{port}"
        proxy.wait_ready(lambda: requests.get(url, timeout=5).status_code == 300)
        identity.add_endpoints("identity", {"public": identity.url.removesuffix("/v3")}, REGION)
        for kind in ("block-storage", "volumev3"):
            identity.add_endpoints(kind, {"public": f"{url}/v3/%(project_id)s"}, REGION)
        registered = Registered(there.service, identity, REGION)
        (folder / "run").mkdir()
        with security_groups(registered):
            yield Tempest(folder / "run", registered)
    finally:
        proxy.stop()


def test_the_published_tests_of_backups(tempest: Tempest, there: World) -> None:
    wanted = [f"{group}.{name}" for group in CLASSES for name in KNOWN["passed"][group]]
    results = tempest.run(sorted(wanted))
    strange = {name: got for name, got in results.items() if got.status != "success"}
    assert not strange, "\n\n".join(f"{name}: {got.status}\n{got.why}" for name, got in strange.items())
    assert results.keys() == set(wanted)
    assert there.left() == []
