"""The three hosts of docs/several-hosts.md: the main job, a host that is taken out, a host that is lost."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.clients.commands import clients_missing
from tests.integration.content import MIB, digest, write_image
from tests.integration.service import Client
from tests.integration.site import API, API_NODES, EXAMPLE, NODES, WORKER, Site, site
from tests.servers.databases import PostgreSQL
from tests.servers.keystone import Keystone
from tests.servers.namespaces import namespaces_missing
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.seaweedfs import seaweedfs, seaweedfs_missing

pytestmark = [pytest.mark.root, pytest.mark.server]

GIB = 1 << 30
#: What the API makes, in the segments that a backup works on.
SEGMENTS = 4


@pytest.fixture(scope="module")
def hosts(
    broker: RabbitMQ,
    postgresql: PostgreSQL,
    identity: Keystone,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    missing = namespaces_missing() or clients_missing() or seaweedfs_missing()
    if missing:
        pytest.skip(missing)
    with (
        seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as store,
        site(tmp_path_factory.mktemp("site"), broker, postgresql, store, identity) as made,
    ):
        yield made


class Volume:
    """A volume of one GiB with something in each segment that a backup works on."""

    def __init__(self, hosts: Site, client: Client, tmp_path: Path) -> None:
        self._hosts = hosts
        self._scratch = tmp_path / "content"
        self.id = client.create_volume(1)
        self.write(1, SEGMENTS)

    def content(self, volume_id: str | None = None) -> str:
        """A digest of every byte of the volume, or of another one."""
        path = self._path(volume_id or self.id)
        assert path.stat().st_size == GIB
        return digest(path)

    def write(self, seed: int, segments: int) -> None:
        """Write something into the first segments."""
        write_image(self._scratch, MIB, seed)
        with open(self._path(self.id), "r+b") as image:
            for number in range(segments):
                image.seek(number * (GIB // SEGMENTS) + number * MIB)
                image.write(self._scratch.read_bytes())

    def _path(self, volume_id: str) -> Path:
        """Where a volume's bytes are."""
        (path,) = self._hosts.volumes.glob(f"*{volume_id}*")
        return path


def states(hosts: Site) -> dict[str, tuple[str, str]]:
    """Status and state of each host's worker."""
    listed = hosts.client().expect(200, "GET", "/os-services?binary=cinder-backup")["services"]
    return {row["host"]: (row["status"], row["state"]) for row in listed}


def host_of(hosts: Site, backup: str) -> str:
    """The host that made a backup."""
    return str(json.loads(hosts.command("backup", "show", backup).stdout)["host"])


def test_the_main_job(hosts: Site, tmp_path: Path) -> None:
    """A client that uses one API host, then the other, then the real command through the load balancer."""
    one, two = (hosts.client(name) for name in API_NODES)
    volume = Volume(hosts, one, tmp_path)
    before = volume.content()
    full = two.backup(volume.id)
    volume.write(2, 1)
    after = volume.content()
    assert after != before
    typing = hosts.typing()
    made = typing.openstack("volume", "backup", "create", "--incremental", "--name", "changed", volume.id)
    one.wait_status("backup", made["id"], "available")
    assert two.expect(200, "GET", f"/backups/{made['id']}")["backup"]["is_incremental"]
    assert volume.content(one.restore(made["id"])) == after
    two.restore(full, volume.id)
    assert volume.content() == before
    assert states(hosts) == dict.fromkeys(NODES, ("enabled", "up"))
    # The links that clients follow are the load balancer's, whichever host answers.
    links = one.expect(200, "GET", f"/backups/{full}")["backup"]["links"]
    assert all(link["href"].startswith(f"{hosts.url}/") for link in links)


def test_a_host_is_taken_out(hosts: Site, tmp_path: Path) -> None:
    client = hosts.client()
    volume = Volume(hosts, client, tmp_path)
    typing = hosts.typing()
    (words,) = [words for words in EXAMPLE.commands("openstack") if "--disable" in words]
    typing.run(*words)
    out = words[words.index("cinder-backup") - 1]
    others = [name for name in NODES if name != out]
    try:
        assert states(hosts)[out] == ("disabled", "up")
        for name in others:
            client.expect(200, "PUT", "/os-services/freeze", {"host": name})
        # Nobody takes it until one of the others may.
        made = client.backup(volume.id, wait=False)
        client.expect(200, "PUT", "/os-services/thaw", {"host": others[0]})
        client.wait_status("backup", made, "available")
        assert host_of(hosts, made) == others[0]
    finally:
        for name in others:
            client.expect(200, "PUT", "/os-services/thaw", {"host": name})
        typing.run("openstack", "volume", "service", "set", "--enable", out, "cinder-backup")


def test_the_policy_counts(hosts: Site) -> None:
    """Operators of backups, who are nothing else, see what administrators see."""
    assert hosts.client(user=hosts.operator).request("GET", "/os-services")[0] == 200


@pytest.mark.parametrize("kind", [API, WORKER])
def test_a_unit_reads_again_and_stops(hosts: Site, kind: str) -> None:
    name = API_NODES[0]
    unit, log = hosts.unit(name, kind), hosts.log(name, kind)
    before = log.read_text().count("Read the configuration again")
    unit.reload()
    hosts.wait(f"{kind} to read", lambda: log.read_text().count("Read the configuration again") > before)
    assert unit.stop() == 0, hosts.log_tail()
    hosts.start_unit(name, kind)
    hosts.wait_ready(name)


def test_a_host_dies_in_the_middle_of_a_backup(hosts: Site, tmp_path: Path) -> None:
    """It had an API, too: what clients ask for next is answered by the other one."""
    lost, left = API_NODES[1], API_NODES[0]
    client = hosts.client(left)
    volume = Volume(hosts, client, tmp_path)
    content = volume.content()
    others = [name for name in NODES if name != lost]
    for name in others:
        client.expect(200, "PUT", "/os-services/freeze", {"host": name})
    traps = hosts.traps(lost)
    traps.set("backup.map-put", signal.SIGSTOP)
    made = hosts.client(lost).backup(volume.id, wait=False)
    hosts.wait("the backup to begin", lambda: not traps.is_set("backup.map-put"))
    hosts.kill(lost)
    for name in others:
        client.expect(200, "PUT", "/os-services/thaw", {"host": name})
    client.wait_status("backup", made, "available")
    assert host_of(hosts, made) in others
    hosts.wait(f"{lost} to be down", lambda: states(hosts)[lost] == ("enabled", "down"))
    shown = hosts.typing().openstack("volume", "service", "list", "--service", "cinder-backup")
    assert {row["Host"]: row["State"] for row in shown} == {**dict.fromkeys(others, "up"), lost: "down"}
    volume.write(3, 2)
    changed = hosts.client().backup(volume.id, incremental=True)
    assert volume.content(client.restore(made)) == content
    assert volume.content(client.restore(changed)) == volume.content()
    hosts.audit()
    hosts.boot(lost)
    hosts.start(lost)
    hosts.wait_ready(lost)
    assert states(hosts)[lost] == ("enabled", "up")
    assert hosts.client(lost).status("backup", made) == "available"
