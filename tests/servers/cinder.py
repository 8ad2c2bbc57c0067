"""OpenStack Cinder in one process: scheduler, volume services and API; rows in SQLite.

Volumes are in Ceph, or, if their type is ``files``, files of a driver of the tests (``cinder_files.py``).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import requests

from tests.servers.ceph import Ceph, run_ceph_tool
from tests.servers.keystone import ADMIN_PASSWORD, Keystone, User
from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.servers.programs import find_program, missing_programs
from tests.waiting import wait_until

#: The pool of the volumes.
POOL = "volumes"
#: Microversion of the requests that tests send.
VERSION = "3.71"
#: How long a volume may take, seconds.
PATIENCE = 90.0
#: Where the system's packages have librbd.
BINDINGS = Path("/usr/lib/python3/dist-packages")
#: The types of volumes; each has a back end of its name.
BACK_ENDS = ("ceph", "files")

#: What each Cinder of the tests is configured with; more follows it.
CONFIG = """\
[DEFAULT]
# At once, not after a minute.
scheduler_driver_init_wait_time = 3
periodic_interval = 4
# All services of a process write their reports, and their zones, into the row of the last: nobody reports.
report_interval = 0
service_down_time = 86400
log_file = {base}/cinder.log
use_stderr = false
state_path = {base}/state
api_paste_config = {base}/etc/api-paste.ini
resource_query_filters_file = {base}/etc/resource_filters.json
rootwrap_config = {base}/etc/rootwrap.conf
transport_url = fake://
host = peer
my_ip = 127.0.0.1
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = {port}
osapi_volume_workers = 1
quota_volumes = 100
[files]
volume_driver = cinder_files.FilesDriver
volume_backend_name = files
files_dir = {base}/files
[privsep_osbrick]
helper_command = {bin}/privsep-helper
[database]
connection = sqlite:///{base}/cinder.sqlite
[oslo_concurrency]
lock_path = {base}/lock
[coordination]
backend_url = file://{base}/state
"""

_CONFIG = """\
[DEFAULT]
auth_strategy = keystone
enabled_backends = ceph,files
default_volume_type = ceph
quota_snapshots = 100
[ceph]
volume_driver = cinder.volume.drivers.rbd.RBDDriver
volume_backend_name = ceph
rbd_pool = {pool}
rbd_user = admin
rbd_ceph_conf = {ceph}
rbd_secret_uuid = 11111111-2222-3333-4444-555555555555
rbd_flatten_volume_from_snapshot = false
[key_manager]
backend = cinder_keys.KeysInFiles
files_dir = {base}/keys
[oslo_policy]
enforce_scope = true
enforce_new_defaults = true
[keystone_authtoken]
{authtoken}
service_token_roles = service
service_token_roles_required = true
"""

# What Cinder and Nova make of a volume of an encrypted type.
_LUKS = {
    "provider": "luks",
    "cipher": "aes-xts-plain64",
    "key_size": 256,
    "control_location": "front-end",
}

#: The begin of a program that serves Cinder: its arguments are the directory, and where to look for modules.
START = """\
import eventlet
eventlet.monkey_patch()
import os, sys
base, *places = sys.argv[1:]
sys.path += places
from oslo_config import cfg
from oslo_log import log
from cinder import objects, rpc, service, version
objects.register_all()
from cinder.common import config
from cinder.db import migration
import os_brick
log.register_options(cfg.CONF)
cfg.CONF(["--config-file", base + "/cinder.conf"], project="cinder", version=version.version_string())
log.setup(cfg.CONF, "cinder")
os_brick.setup(cfg.CONF)
migration.db_sync()
rpc.init(cfg.CONF)
service.Service.create(binary="cinder-scheduler").start()
for name in cfg.CONF.enabled_backends:
    volumes = {"host": "peer@" + name, "service_name": name, "binary": "cinder-volume"}
    service.Service.create(coordination=True, **volumes).start()
"""
#: The end of it.
SERVE = """\
service.WSGIService("osapi_volume").start()
while True:
    eventlet.sleep(1)
"""

# A copy of an encrypted volume is attached; the keyring would have to be in /etc/ceph.
_KEYRING = """\
from os_brick.initiator.connectors.rbd import RBDConnector
keyring = open(os.path.join(os.path.dirname(os.environ["CEPH_CONF"]), "keyring")).read()
RBDConnector._check_or_get_keyring_contents = staticmethod(lambda *names: keyring)
"""

# How Cinder makes an encrypted image.  Its key need not be hard to guess: that takes a processor seconds,
# and each use of the key, too.  On a busy machine QEMU cannot find out how quick it is, and gives up.
_QEMU_IMG = """\
#!/bin/sh
[ "$1" = create ] || exec {qemu_img} "$@"
shift
until said=$({qemu_img} create -o iter-time=10 "$@" 2>&1); do
    case $said in
        *"Unable to get accurate CPU usage"*) ;;
        *) echo "$said" >&2; exit 1 ;;
    esac
done
"""

# librbd's bindings are the system's, for its own Python.
_IMAGE = """\
import sys, rados, rbd
config, pool, name, what, offset, length = sys.argv[1:]
cluster = rados.Rados(conffile=config)
cluster.connect()
with rbd.Image(cluster.open_ioctx(pool), name) as image:
    if what == "write":
        image.write(sys.stdin.buffer.read(), int(offset))
    else:
        sys.stdout.buffer.write(image.read(int(offset), int(length)))
"""


@dataclass
class Cinder:
    """A running Cinder.

    :ivar cluster: has its volumes.
    :ivar identity: its Keystone.
    """

    base: Path
    cluster: Ceph
    port: int
    identity: Keystone

    @property
    def endpoint(self) -> str:
        """The API's root, without a version."""
        return f"http://127.0.0.1:{self.port}"

    def tenant(self, user: User) -> Tenant:
        """Return a user's client, in his project."""
        return Tenant(self, user.project_id, self.identity.token(user.name, user.password, user.project))

    def file(self, volume_id: str) -> Path:
        """Return the file of a volume of the type ``files``."""
        return self.base / "files" / f"volume-{volume_id}"

    def administrator(self) -> Tenant:
        """Return a client of the administrator, in his project."""
        (project,) = self.identity.request("GET", "/projects?name=admin")["projects"]
        return self.tenant(User("", "admin", ADMIN_PASSWORD, "admin", project["id"]))

    def write(self, volume_id: str, offset: int, content: bytes) -> None:
        """Write into a volume, as a machine would that has the volume."""
        if self.file(volume_id).exists():
            with open(self.file(volume_id), "r+b") as file:
                # As the driver does: a snapshot is of one moment.
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(offset)
                file.write(content)
                file.flush()
        else:
            self._librbd("write", volume_id, offset, 0, content)

    def read(self, volume_id: str, offset: int, length: int) -> bytes:
        """Read from a volume."""
        if self.file(volume_id).exists():
            with open(self.file(volume_id), "rb") as file:
                file.seek(offset)
                return file.read(length)
        return self._librbd("read", volume_id, offset, length, b"")

    def _librbd(self, what: str, volume_id: str, offset: int, length: int, content: bytes) -> bytes:
        words = [str(self.cluster.config), POOL, f"volume-{volume_id}", what, str(offset), str(length)]
        done = subprocess.run(
            ["/usr/bin/python3", "-c", _IMAGE, *words], input=content, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def snapshots(self, volume_id: str) -> list[str]:
        """Return the names of the snapshots of a volume's image."""
        listed = run_ceph_tool(
            "rbd", self.cluster.base, "snap", "ls", "--format=json", f"{POOL}/volume-{volume_id}"
        )
        return [one["name"] for one in json.loads(listed)]

    def images(self) -> list[str]:
        """Return the names of all images in the pool, those of deleted volumes in the trash left out."""
        return run_ceph_tool("rbd", self.cluster.base, "ls", POOL).split()


class Served(Protocol):
    """A Cinder that runs."""

    @property
    def endpoint(self) -> str: ...


@dataclass
class Tenant:
    """A client of one project."""

    server: Served
    project: str
    token: str

    def request(self, method: str, path: str, body: Any = None) -> requests.Response:
        """Send a request to a path of the project."""
        return requests.request(
            method,
            f"{self.server.endpoint}/v3/{self.project}{path}",
            json=body,
            headers={"X-Auth-Token": self.token, "OpenStack-API-Version": f"volume {VERSION}"},
            timeout=60,
        )

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request that must succeed; returns the decoded answer."""
        answer = self.request(method, path, body)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def status(self, kind: str, resource_id: str) -> str | None:
        """Return the status of a volume, snapshot or attachment; None: it is gone."""
        answer = self.request("GET", f"/{kind}s/{resource_id}")
        if answer.status_code == 404:
            return None
        assert answer.ok, answer.text
        return str(answer.json()[kind]["status"])

    def wait(self, kind: str, resource_id: str, *wanted: str | None) -> None:
        """Wait until something has one of these statuses."""
        status: str | None = None

        def reached() -> bool:
            nonlocal status
            status = self.status(kind, resource_id)
            return status in wanted

        wait_until(f"{kind} {resource_id} to be {wanted}", reached, lambda: f"it is {status}", pause=0.1)

    def create_volume(self, size: int = 1, **fields: Any) -> str:
        """Make a volume; returns its id when it is available."""
        made = self.call("POST", "/volumes", {"volume": {"size": size, **fields}})["volume"]["id"]
        self.wait("volume", made, "available")
        return str(made)

    def create_snapshot(self, volume_id: str, **fields: Any) -> str:
        """Make a snapshot; returns its id when it is available."""
        body = {"snapshot": {"volume_id": volume_id, **fields}}
        made = self.call("POST", "/snapshots", body)["snapshot"]["id"]
        self.wait("snapshot", made, "available")
        return str(made)

    def attach(self, volume_id: str) -> str:
        """Attach a volume to a machine that is not there: it is in use; returns the attachment's id."""
        connector = {"host": "nova", "ip": "127.0.0.1", "platform": "x86_64", "os_type": "linux"}
        body = {"attachment": {"volume_uuid": volume_id, "connector": {**connector, "multipath": False}}}
        made = str(self.call("POST", "/attachments", body)["attachment"]["id"])
        self.call("POST", f"/attachments/{made}/action", {"os-complete": {}})
        self.wait("volume", volume_id, "in-use")
        return made


def cinder_missing() -> str | None:
    """Say what is missing to run it, or None."""
    names = missing_programs("cinder-manage", environment="cinder") + missing_programs("rbd")
    if not list(BINDINGS.glob("rbd*.so")):
        names.append("python3-rbd")
    return f"not installed: {', '.join(names)} (tests/servers/install.sh cinder)" if names else None


@contextmanager
def cinder(directory: Path, cluster: Ceph, identity: Keystone) -> Iterator[Cinder]:
    """Run Cinder in an empty directory.

    :param cluster: a running one; its pool of volumes is made.
    :param identity: whose users it serves, by its default policies.
    """
    server = Cinder(directory, cluster, free_port(), identity)
    service = identity.add_user(f"cinder-{server.port}", f"cinder-{server.port}", "service")
    authtoken = "\n".join(identity.authtoken(service))
    command = prepare(
        directory, CONFIG + _CONFIG, port=server.port, ceph=cluster.config, pool=POOL, authtoken=authtoken
    )
    cluster.make_pool(POOL)
    programs = directory / "bin"
    programs.mkdir()
    (programs / "qemu-img").write_text(_QEMU_IMG.format(qemu_img=shutil.which("qemu-img")))
    (programs / "qemu-img").chmod(0o755)
    process = ServerProcess(
        [*command(START + _KEYRING + SERVE), str(BINDINGS)],
        directory,
        environment={
            "CEPH_CONF": str(cluster.config),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        },
    )
    try:
        process.wait_ready(lambda: requests.get(server.endpoint, timeout=5).status_code == 300)
        url = f"{server.endpoint}/v3"
        identity.add_endpoints("block-storage", {"public": url, "internal": url})
        administrator = server.administrator()
        for name in BACK_ENDS:
            kind = {"name": name, "extra_specs": {"volume_backend_name": name}}
            administrator.call("POST", "/types", {"volume_type": kind})
            kind["name"] = f"{name}-luks"
            made = administrator.call("POST", "/types", {"volume_type": kind})["volume_type"]["id"]
            administrator.call("POST", f"/types/{made}/encryption", {"encryption": _LUKS})
        wait_scheduler(administrator, len(BACK_ENDS))
        yield server
    finally:
        process.stop()


def prepare(directory: Path, config: str, **values: object) -> Callable[[str], list[str]]:
    """Make what a Cinder needs in an empty directory.

    :param config: :data:`CONFIG` and more.
    :param values: what is filled into it.
    :returns: makes the command of a program, :data:`START` to :data:`SERVE`.
    """
    python = Path(find_program("cinder-manage", "cinder") or "").with_name("python")
    shutil.copytree(python.parent.parent / "etc/cinder", directory / "etc")
    for name in ("state", "lock", "files", "drivers", "keys"):
        (directory / name).mkdir()
    for module in ("cinder_files.py", "cinder_keys.py"):
        shutil.copy(Path(__file__).with_name(module), directory / "drivers")
    (directory / "cinder.conf").write_text(config.format(base=directory, bin=python.parent, **values))
    return lambda program: [str(python), "-c", program, str(directory), str(directory / "drivers")]


def wait_scheduler(administrator: Tenant, back_ends: int) -> None:
    """Wait until the scheduler knows the volume services: before, every volume ends in an error."""
    end = time.monotonic() + PATIENCE
    while len(administrator.call("GET", "/scheduler-stats/get_pools")["pools"]) < back_ends:
        assert time.monotonic() < end, "the scheduler does not know the volume services"
        time.sleep(0.2)
