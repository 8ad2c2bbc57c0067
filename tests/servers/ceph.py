"""Ceph: one monitor, one OSD in memory, pools of images, and a RADOS gateway (S3 and Swift API)."""

from __future__ import annotations

import base64
import http.client
import os
import signal
import struct
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.servers.programs import find_program, missing_programs

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
#: What the OSD keeps at most, bytes; it is memory.
CAPACITY = 4 << 30

_CONFIG = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon}/0]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
mon_data = {base}/mon
osd_data = {base}/osd
run_dir = {base}/run
admin_socket = {base}/run/$name.asok
pid_file = {base}/run/$name.pid
log_file = {base}/$name.log
keyring = {base}/keyring
crash_dir = {base}/run
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 2
osd_pool_default_pgp_num = 2
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
mon_data_avail_crit = 1
ms_bind_msgr1 = false
paxos_propose_interval = 0.05
[mon]
mon_cluster_log_file = {base}/cluster.log
[osd]
osd_objectstore = memstore
# Seconds until a client that was killed is forgotten; half a minute would be long for tests.  Clients say
# each second that they live, below.
osd_client_watch_timeout = 6
memstore_device_bytes = {capacity}
osd_class_load_list = *
osd_class_default_list = *
[client]
objecter_tick_interval = 1
rgw_thread_pool_size = 64
rgw_run_sync_thread = false
rgw_swift_account_in_url = true
rgw_crypt_require_ssl = false
rgw_crypt_s3_kms_backend = testing
rgw_crypt_s3_kms_encryption_keys = testkey-1=YmluCmJvb3N0CmJvb3N0LWJ1aWxkCmNlcGguY29uZgo=
{extra}
"""


@dataclass(frozen=True)
class Ceph:
    """A running cluster.

    :ivar base: its directory.
    :ivar port: of the gateway, on 127.0.0.1.
    :ivar osd: the server of all data, without which nothing answers.
    :ivar access_key, secret_key: S3 credentials of the user ``tester``, who owns what tests make.
    """

    base: Path
    port: int
    access_key: str = "AKIDTESTER0000000001"
    secret_key: str = "very-secret-key-of-the-tester"
    osd: ServerProcess = field(kw_only=True)
    _start_monitor: Callable[[], ServerProcess] = field(kw_only=True)
    _start_gateway: Callable[[], ServerProcess] = field(kw_only=True)
    _monitors: list[ServerProcess] = field(default_factory=list)
    _gateways: list[ServerProcess] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        """The S3 endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        """The configuration for clients."""
        return self.base / "ceph.conf"

    @property
    def monitor(self) -> ServerProcess:
        """The monitor that runs."""
        return self._monitors[-1]

    def start_monitor(self) -> None:
        """Start the monitor and return when it answers."""
        self._monitors.append(self._start_monitor())
        self.monitor.wait_ready(lambda: "quorum" in run_ceph_tool("ceph", self.base, "mon", "stat"))

    def restart_monitor(self) -> None:
        """End the monitor and start it again; what it knows is on disk."""
        self.monitor.stop()
        self.start_monitor()

    def make_pool(self, name: str) -> None:
        """Make a pool of images."""
        run_ceph_tool("ceph", self.base, "osd", "pool", "create", name, "4")
        run_ceph_tool("ceph", self.base, "osd", "pool", "application", "enable", name, "rbd")

    def make_user(self, name: str, *caps: str) -> Path:
        """Make a user with capabilities, e.g. ``mon``, ``profile rbd``; return its keyring."""
        keyring = self.base / f"keyring.{name}"
        keyring.write_text(run_ceph_tool("ceph", self.base, "auth", "get-or-create", f"client.{name}", *caps))
        return keyring

    def start_gateway(self) -> None:
        """Start the gateway and return when it answers."""
        self._gateways.append(self._start_gateway())
        self._gateways[-1].wait_ready(lambda: _healthy(self.port))

    def restart_gateway(self) -> None:
        """End the gateway and start it again; the objects are not its.

        It does not wait for what is under way.  Not SIGKILL: the cluster would wait half a minute for the
        watches of the dead one.
        """
        self._gateways[-1].stop()
        self.start_gateway()

    @contextmanager
    def quota(self, container: str, size: int) -> Iterator[None]:
        """For the time of a block, let a bucket take no more than so many bytes."""
        self.admin("quota", "set", "--quota-scope=bucket", f"--bucket={container}", f"--max-size={size}")
        self.admin("quota", "enable", "--quota-scope=bucket", f"--bucket={container}")
        try:
            yield
        finally:
            self.admin("quota", "disable", "--quota-scope=bucket", f"--bucket={container}")

    def admin(self, *words: str) -> str:
        """Run ``radosgw-admin``; returns what it prints."""
        return run_ceph_tool("radosgw-admin", self.base, *words)


def run_ceph_tool(name: str, base: Path, *words: str) -> str:
    """Run one of Ceph's tools on the cluster in ``base``; returns what it prints."""
    program = find_program(name)
    assert program is not None
    done = subprocess.run(
        [program, "-c", str(base / "ceph.conf"), *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{name} {words}: {done.stdout}\n{done.stderr}"
    return done.stdout


def ceph_missing() -> str | None:
    """Say what is missing to run it, or None."""
    names = missing_programs(*PROGRAMS)
    return f"not installed: {', '.join(names)} (tests/servers/install.sh ceph)" if names else None


def _keyring() -> str:
    text = ""
    for name in ("mon.", "client.admin", "client.rgw", "osd.0"):
        key = base64.b64encode(struct.pack("<hiih", 1, int(time.time()), 0, 16) + os.urandom(16)).decode()
        allowed = "allow profile osd" if name == "osd.0" else "allow *"
        text += f'[{name}]\n\tkey = {key}\n\tcaps mon = "{allowed}"\n\tcaps osd = "allow *"\n'
    return text


def _accepts(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.connect()
        return True
    finally:
        connection.close()


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/swift/healthcheck")
        return connection.getresponse().status == 200
    finally:
        connection.close()


@contextmanager
def ceph(directory: Path, extra: str = "", gateway: bool = True) -> Iterator[Ceph]:
    """Run a cluster in an empty directory; all its data are in memory.

    :param extra: further lines of the ``[client]`` section, e.g. Keystone's.
    :param gateway: whether it has one.
    """
    mon, rgw, fsid = free_port(), free_port(), str(uuid.uuid4())
    config = directory / "ceph.conf"
    config.write_text(_CONFIG.format(fsid=fsid, mon=mon, base=directory, capacity=CAPACITY, extra=extra))
    (directory / "keyring").write_text(_keyring())
    for name in ("mon", "osd", "run", "log-mon", "log-osd", "log-rgw"):
        (directory / name).mkdir()
    common = ["-c", str(config)]
    programs = {name: find_program(name) or name for name in PROGRAMS}

    def once(*words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"

    once(
        programs["monmaptool"], "--create", "--clobber", "--fsid", fsid,
        "--addv", "a", f"[v2:127.0.0.1:{mon}]", "--set-min-mon-release", "pacific", f"{directory}/monmap",
    )  # fmt: skip
    once(
        programs["ceph-mon"], *common, "--mkfs", "-i", "a",
        "--monmap", f"{directory}/monmap", "--keyring", f"{directory}/keyring",
    )  # fmt: skip
    with ExitStack() as stack:

        def start(program: str, place: str, *words: str) -> ServerProcess:
            process = ServerProcess([programs[program], *common, *words, "-f"], directory / f"log-{place}")
            # At the end nobody needs what it has.  A gateway takes up to ten seconds to end in order.
            stack.callback(process.stop, signal.SIGKILL)
            return process

        first = start("ceph-mon", "mon", "-i", "a")
        first.wait_ready(lambda: _accepts(mon))
        osd = str(uuid.uuid4())
        run_ceph_tool("ceph", directory, "osd", "new", osd)
        once(programs["ceph-osd"], *common, "-i", "0", "--mkfs", "--osd-uuid", osd)
        server = start("ceph-osd", "osd", "-i", "0")
        words = ("-n", "client.rgw", "--rgw-frontends", f"beast endpoint=127.0.0.1:{rgw}")
        cluster = Ceph(
            directory,
            rgw,
            osd=server,
            _monitors=[first],
            _start_monitor=lambda: start("ceph-mon", "mon", "-i", "a"),
            _start_gateway=lambda: start("radosgw", "rgw", *words),
        )
        if gateway:
            cluster.start_gateway()
            cluster.admin(
                "user", "create", "--uid=tester", "--display-name=Tester",
                f"--access-key={cluster.access_key}", f"--secret-key={cluster.secret_key}",
            )  # fmt: skip
        yield cluster
