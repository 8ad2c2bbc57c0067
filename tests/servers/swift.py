"""OpenStack Swift, all in one: proxy, account, container and object server, one replica."""

from __future__ import annotations

import contextlib
import getpass
import http.client
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.directory import server_directory
from tests.servers.keystone import Keystone
from tests.servers.ports import free_port
from tests.servers.process import ServerProcess
from tests.servers.programs import find_program, missing_programs

KINDS = ("account", "container", "object")
PROGRAMS = tuple(f"swift-{kind}-server" for kind in (*KINDS, "proxy"))
#: Entries of one page of a listing: so small that tests need few objects to go beyond.
PAGE = 200

_SWIFT = """\
[swift-hash]
swift_hash_path_prefix = pre
swift_hash_path_suffix = suf
[swift-constraints]
container_listing_limit = {page}
account_listing_limit = {page}
[storage-policy:0]
name = gold
default = yes
[storage-policy:1]
name = silver
"""

_BACKEND = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {base}
devices = {base}/srv
mount_check = false
disable_fallocate = true
log_address =
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

_PROXY = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {base}
log_address =
[pipeline:main]
pipeline = {pipeline}
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
# A server that was down is asked again at once.
error_suppression_interval = 1
"""

_TEMPAUTH = ("tempauth",)
_KEYSTONE = ("authtoken", "keystoneauth")

_RINGS = """\
import sys
from swift.common.ring import RingBuilder
base = sys.argv[1]
for name, port in (word.split("=") for word in sys.argv[2:]):
    ring = RingBuilder(4, 1, 1)
    ring.add_dev(dict(region=1, zone=1, ip="127.0.0.1", port=int(port), device="d1", weight=100.0, meta="",
                      replication_ip="127.0.0.1", replication_port=int(port)))
    ring.rebalance(seed="1")
    ring.get_ring().save(f"{base}/{name}.ring.gz")
"""


# Policies and limits are read from swift.conf at import, from /etc/swift unless told before.
_SERVE = """\
import sys
from swift.common import utils
utils.SWIFT_CONF_FILE = sys.argv.pop(1) + "/swift.conf"
from swift.{package}.server import main
sys.exit(main())
"""


@dataclass
class Swift:
    """A running cluster.

    :ivar base: its directory.
    :ivar port: of the proxy, on 127.0.0.1.
    :ivar servers: its processes by name, e.g. ``object``; tests stop and start them.
    """

    base: Path
    port: int
    user: str = "test:tester"
    key: str = "very-secret-key-of-the-tester"
    #: A user of the same account without any right.
    outsider: str = "test:outsider"
    outsider_key: str = "outsiders-key"
    servers: dict[str, ServerProcess] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    #: Of memcached, which keeps tempauth's tokens.
    cache_port: int = 0

    @property
    def url(self) -> str:
        """The proxy."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def auth_url(self) -> str:
        """Where tempauth gives tokens."""
        return f"{self.url}/auth/v1.0"

    def start(self, kind: str) -> None:
        """Start one of the servers and return when it answers.

        Not from a thread that ends before it: the kernel would then end the server.
        """
        place = self.base / f"log-{kind}"
        place.mkdir(exist_ok=True)
        code = _SERVE.format(package="obj" if kind == "object" else kind)
        words = [_python(), "-c", code, str(self.base), str(self.base / f"{kind}.conf"), "-v"]
        process = ServerProcess(words, place)
        self.servers[kind] = process
        if kind == "proxy":
            process.wait_ready(lambda: _healthy(self.port))
        else:
            process.wait_ready(lambda: _accepts(self.ports[kind]))

    def stop(self, kind: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop one of the servers."""
        self.servers.pop(kind).stop(how)

    def restart_proxy(self) -> None:
        """End the proxy server at once and start it again."""
        self.stop("proxy", signal.SIGKILL)
        self.start("proxy")

    def expire_tokens(self) -> None:
        """Make every token of tempauth invalid."""
        with socket.create_connection(("127.0.0.1", self.cache_port), 10) as cache:
            cache.sendall(b"flush_all\r\n")
            assert cache.recv(100) == b"OK\r\n"


def swift_missing() -> str | None:
    """Say what is missing to run it, or None."""
    names = missing_programs(*PROGRAMS, environment="swift") + missing_programs("memcached")
    return f"not installed: {', '.join(names)} (tests/servers/install.sh swift)" if names else None


def _python() -> str:
    program = find_program(PROGRAMS[0], "swift")
    assert program is not None
    return str(Path(program).with_name("python"))


def _accepts(port: int) -> bool:
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 5)):
        return True


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthcheck")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def _filters(
    cluster: Swift, memcached: int, token_life: int, keystone: Keystone | None
) -> dict[str, Sequence[str]]:
    """Return each filter of the proxy's pipeline with its settings."""
    found: dict[str, Sequence[str]] = {
        "catch_errors": (),
        "gatekeeper": (),
        "healthcheck": (),
        "cache": ("use = egg:swift#memcache", f"memcache_servers = 127.0.0.1:{memcached}"),
        "bulk": (),
        "tempauth": (
            f"token_life = {token_life}",
            f"user_{cluster.user.replace(':', '_')} = {cluster.key} .admin",
            f"user_{cluster.outsider.replace(':', '_')} = {cluster.outsider_key}",
        ),
        "container_quotas": (),
        "account_quotas": (),
        "copy": (),
        "slo": (),
        "dlo": (),
        "keystoneauth": ("operator_roles = admin, member",),
        "versioned_writes": ("allow_object_versioning = true",),
        "symlink": (),
    }
    if keystone is not None:
        found["authtoken"] = (
            "paste.filter_factory = keystonemiddleware.auth_token:filter_factory",
            *keystone.authtoken(keystone.service),
            "delay_auth_decision = True",
            # A revoked token is noticed after this many seconds.
            "token_cache_time = 1",
        )
    return found


@contextmanager
def swift(
    keystone: Keystone | None = None, *, token_life: int = 86400, without: Sequence[str] = ()
) -> Iterator[Swift]:
    """Run a cluster; its data are in memory where that is possible.

    :param keystone: who authenticates; None for tempauth.
    :param token_life: of tempauth's tokens, seconds.
    :param without: filters to leave out of the proxy's pipeline, e.g. ``bulk``.
    """
    # ext4 holds too few bytes of extended attributes per file.
    memory = "/dev/shm"
    place = memory if os.access(memory, os.W_OK) else None
    with server_directory(place) as base, ExitStack() as stack:
        yield _started(base, stack, keystone, token_life, without)


def _started(
    base: Path, stack: ExitStack, keystone: Keystone | None, token_life: int, without: Sequence[str]
) -> Swift:
    user = getpass.getuser()
    (base / "srv" / "d1").mkdir(parents=True)
    (base / "swift.conf").write_text(_SWIFT.format(page=PAGE))
    cluster = Swift(base, free_port(), ports={kind: free_port() for kind in KINDS})
    for kind, port in cluster.ports.items():
        text = _BACKEND.format(kind=kind, port=port, user=user, base=base)
        (base / f"{kind}.conf").write_text(text)
    rings = {**cluster.ports, "object-1": cluster.ports["object"]}
    words = [f"{name}={port}" for name, port in rings.items()]
    subprocess.run([_python(), "-c", _RINGS, str(base), *words], check=True, capture_output=True, cwd=base)

    memcached = cluster.cache_port = free_port()
    program = find_program("memcached")
    assert program is not None
    (base / "log-memcached").mkdir()
    cache = ServerProcess(
        [program, "-u", user, "-l", "127.0.0.1", "-p", str(memcached), "-U", "0", "-m", "32"],
        base / "log-memcached",
    )
    stack.callback(cache.stop)
    cache.wait_ready(lambda: _accepts(memcached))

    auth = _KEYSTONE if keystone is not None else _TEMPAUTH
    wanted = ("catch_errors", "gatekeeper", "healthcheck", "cache", "bulk", *auth,
              "container_quotas", "account_quotas", "copy", "slo", "dlo",
              "versioned_writes", "symlink")  # fmt: skip
    wanted = tuple(name for name in wanted if name not in without)
    text = _PROXY.format(
        port=cluster.port, user=user, base=base, pipeline=" ".join((*wanted, "proxy-server"))
    )
    filters = _filters(cluster, memcached, token_life, keystone)
    for name in wanted:
        settings = filters[name]
        if not any("=" in line and line.split()[0] in ("use", "paste.filter_factory") for line in settings):
            settings = (f"use = egg:swift#{name}", *settings)
        text += "\n".join((f"[filter:{name}]", *settings, ""))
    (base / "proxy.conf").write_text(text)
    stack.callback(lambda: [cluster.stop(kind) for kind in list(cluster.servers)])
    for kind in (*KINDS, "proxy"):
        cluster.start(kind)
    return cluster
