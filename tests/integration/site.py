"""The three hosts of docs/several-hosts.md as they are described there, with their units and servers.

The configuration, the units' command lines, the policy, and what the servers are told come out of the page.
Only ports of servers, keys, the region and the URL of the API are others, and some waiting is shorter.
"""

from __future__ import annotations

import http.client
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from tests.architecture import operating
from tests.integration.clients.commands import Commands
from tests.integration.service import Client
from tests.integration.traps import Traps
from tests.servers.databases import PostgreSQL
from tests.servers.keystone import ADMIN_PASSWORD, Keystone, User
from tests.servers.namespaces import NETWORK, Host, Network, network
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import PATIENCE, wait_until

EXAMPLE = operating.Section("An example: three hosts")
#: What makes gunicorn serve the API; one of the hosts has it, and the other one ``backupfw api``.
GUNICORN = operating.Section("The API under another WSGI server").only("systemd")
NODES = ("node1", "node2", "node3")
API_NODES = NODES[:2]
API, WORKER = "backupfw-api", "backupfw-worker"
#: Where the API listens on its hosts, and where it says how it is.
API_PORT, API_HEALTH_PORT = 8776, 9775
REGION = "RegionOfThreeHosts"
#: The names that the example gives to servers.
SERVERS = ("bus", "db", "s3", "keystone")
#: What makes the example quicker; and what has to be known of this S3 server.
HASTE = """
[DEFAULT]
service_down_time = 6
[backup]
lease_seconds = 4
poll_seconds = 1
[store:main]
sorted_listing = false
"""


class Unit:
    """A unit that runs on a host: what systemd makes of its file.

    :param text: the file.
    """

    def __init__(self, host: Host, text: str, log: Path, environment: Mapping[str, str]) -> None:
        own = dict(line.split("=", 1) for line in operating.unit_lines(text, "Environment"))
        # An empty one takes back those before it.
        command = operating.unit_lines(text, "ExecStart")[-1]
        self._reload = operating.unit_lines(text, "ExecReload")
        for name in operating.unit_lines(text, "RuntimeDirectory"):
            shutil.rmtree(host.root / "run" / name, ignore_errors=True)
            (host.root / "run" / name).mkdir()
        self._process = host.start(shlex.split(command), log, {**environment, **own})

    def reload(self) -> None:
        """What ``systemctl reload`` makes systemd do."""
        assert self._reload == ["/bin/kill -HUP $MAINPID"]
        self._process.signal(signal.SIGHUP)

    def stop(self) -> int:
        """What ``systemctl stop`` makes systemd do; returns the exit status."""
        self._process.signal(signal.SIGTERM)
        return self._process.wait(PATIENCE)

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self._process.ended


class Site:
    """The hosts, and their people.

    :ivar admin: an administrator, in a project of their own.
    :ivar operator: somebody with the role that the example's policy knows, in the same project.
    :ivar url: of the API, behind what the example calls a load balancer.
    :ivar volumes: the file system that all hosts see.
    """

    def __init__(self, net: Network, folder: Path, keystone: Keystone) -> None:
        self._net = net
        self._folder = folder
        self._keystone = keystone
        self._config = ""
        self._hosts: dict[str, Host] = {}
        self._units: dict[tuple[str, str], Unit] = {}
        self.url = f"http://127.0.0.1:{net.publish(self._balanced)}"
        self._urls = {name: f"http://127.0.0.1:{net.publish(self._direct(name))}" for name in API_NODES}
        self.admin = keystone.add_user("admin-of-three-hosts", "three-hosts", "admin")
        keystone.request("POST", "/roles", {"role": {"name": "backup_admin"}})
        self.operator = keystone.add_user(
            "operator-of-three-hosts", self.admin.project, "backup_admin", self.admin.project_id
        )
        self.volumes = folder / "volumes"
        self.volumes.mkdir()
        (folder / "home").mkdir()

    # -- what the servers are told

    def prepare(self, broker: RabbitMQ, database: PostgreSQL, store: SeaweedFS) -> None:
        """Tell the servers what the example says they must know, and write its configuration."""
        for words in EXAMPLE.commands("rabbitmqctl"):
            broker.control(*words[1:])
        engine = create_engine(database.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in EXAMPLE.only("sql").split(";"):
                if statement.strip():
                    connection.execute(text(statement))
        engine.dispose()
        identity = {"public": self._keystone.url.removesuffix("/v3")}
        identity["internal"] = f"http://keystone.example.org:{self._keystone.port}"
        self._keystone.add_endpoints("identity", identity, REGION)
        owner = self._typing("admin", ADMIN_PASSWORD, "admin")
        mine = {"RegionOne": REGION, "https://backup.example.org": self.url}
        for words in EXAMPLE.commands("openstack"):
            if "cinder-backup" not in words:
                owner.run("openstack", *(operating.substituted(word, mine) for word in words[1:]))
        ports = [broker.port, make_url(database.url).port, store.port, self._keystone.port]
        for port in ports:
            assert port is not None
            self._net.lend(port)
        example = {
            "bus.example.org:5672": f"bus.example.org:{broker.port}",
            "db.example.org:5432": f"db.example.org:{ports[1]}",
            "https://s3.example.org": f"http://s3.example.org:{store.port}",
            "https://keystone.example.org": f"http://keystone.example.org:{self._keystone.port}",
            "= KEY": f"= {store.access_key}",
            "= SECRET": f"= {store.secret_key}",
            **mine,
        }
        self._config = operating.replaced(EXAMPLE.only("ini"), example) + HASTE

    # -- hosts

    def boot(self, name: str) -> None:
        """Start a host, without its units; what it has on disk stays as it was."""
        host = self._net.boot(name, NODES.index(name) + 1)
        self._hosts[name] = host
        etc, opt = host.root / "etc", host.root / "opt"
        if not (etc / "backupfw").exists():
            self._install(name, etc)
        # All of /opt that is there, and what the example installs.
        parts = [entry for entry in Path("/opt").iterdir() if entry.is_dir() and entry.name != "backupfw"]
        for place in (*(opt / entry.name for entry in parts), opt / "backupfw", host.root / "srv/volumes"):
            place.mkdir(exist_ok=True)
        host.mount(
            "\n".join(
                [
                    *(f"mount --rbind '{entry}' '{opt / entry.name}'" for entry in parts),
                    f"mount --bind '{sys.prefix}' '{opt}/backupfw'",
                    f"mount --bind '{self.volumes}' '{host.root}/srv/volumes'",
                    *(f"mount --rbind '{host.root}{place}' {place}" for place in ("/opt", "/srv", "/etc")),
                    f"mount --bind '{host.root}/var/lib' /var/lib",
                    f"mount --bind '{host.root}/run' /run",
                ]
            )
        )

    def _install(self, name: str, etc: Path) -> None:
        subprocess.run(["cp", "-a", "/etc/.", str(etc)], check=True)
        names = " ".join(f"{server}.example.org" for server in SERVERS)
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n{NETWORK}.1 {names}\n")
        shutil.rmtree(etc / "backupfw", ignore_errors=True)
        (etc / "backupfw").mkdir()
        (etc / "backupfw" / "backupfw.conf").write_text(self._config)
        if name in API_NODES:
            (etc / "backupfw" / "policy.yaml").write_text(EXAMPLE.only("yaml"))

    def start(self, name: str) -> None:
        """Start what the example starts on a host."""
        kinds = (API, WORKER) if name in API_NODES else (WORKER,)
        for kind in kinds:
            self.start_unit(name, kind)

    def start_unit(self, name: str, kind: str) -> None:
        """Start a unit."""
        unit = (operating.UNITS / f"{kind}.service").read_text()
        if (name, kind) == (API_NODES[1], API):
            unit += GUNICORN
        environment = self.traps(name).environment
        self._units[name, kind] = Unit(self._hosts[name], unit, self.log(name, kind), environment)

    def wait_ready(self, name: str) -> None:
        """Ask what the example asks, until everything on the host is ready."""
        for *_, url in EXAMPLE.commands("curl"):
            port, path = url.removeprefix("http://127.0.0.1:").split("/", 1)
            if (name, API) in self._units or int(port) != API_HEALTH_PORT:
                self.wait(
                    f"{url} on {name}", lambda at=int(port), path=path: self._ready(name, at, f"/{path}")
                )

    def _ready(self, name: str, port: int, path: str) -> bool:
        ended = [kind for (host, kind), unit in self._units.items() if host == name and unit.ended]
        assert not ended, f"{name}: {ended} ended\n{self.log_tail()}"
        try:
            if port == API_HEALTH_PORT:
                # As the load balancer does: some servers begin when they are asked.
                status_of(self._hosts[name].connect(API_PORT), "/healthcheck")
            return status_of(self._hosts[name].connect(port), path) == 200
        except OSError:
            return False

    def unit(self, name: str, kind: str) -> Unit:
        """A unit that was started."""
        return self._units[name, kind]

    def kill(self, name: str) -> None:
        """Lose a host and everything on it."""
        self._hosts[name].kill()
        self._units = {place: unit for place, unit in self._units.items() if place[0] != name}

    def traps(self, name: str) -> Traps:
        """Return the signals that wait for the processes of a host."""
        return Traps(self._folder / f"crash-points-{name}")

    def log(self, name: str, kind: str) -> Path:
        """What a unit wrote, since the first time it ran."""
        return self._folder / f"{name}-{kind}.log"

    def log_tail(self, lines: int = 15) -> str:
        """The ends of all logs, for messages of failed tests."""
        logs = sorted(self._folder.glob("*.log"))
        return "\n".join(
            line for log in logs for line in (f"--- {log.name}", *log.read_text().splitlines()[-lines:])
        )

    # -- people

    def command(
        self, *words: str, check: bool = True, on: str = NODES[0]
    ) -> subprocess.CompletedProcess[str]:
        """Run a ``backupfw`` command on a host."""
        done = self._hosts[on].run(["backupfw", *words], PATIENCE)
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def typing(self) -> Commands:
        """The clients' commands as the administrator types them."""
        return self._typing(self.admin.name, self.admin.password, self.admin.project)

    def _typing(self, user: str, password: str, project: str) -> Commands:
        variables = {
            "OS_AUTH_URL": self._keystone.url,
            "OS_USERNAME": user,
            "OS_PASSWORD": password,
            "OS_PROJECT_NAME": project,
            "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default",
            "OS_REGION_NAME": REGION,
            "OS_IDENTITY_API_VERSION": "3",
        }
        return Commands(variables, self._folder / "home")

    def client(self, name: str | None = None, user: User | None = None) -> Client:
        """A raw client with a new token: of one host's API, or behind the load balancer."""
        user = user or self.admin
        token = self._keystone.token(user.name, user.password, user.project)
        url = self.url if name is None else self._urls[name]
        return Client(f"{url}/v3/{user.project_id}", token, self)  # type: ignore[arg-type]

    def audit(self) -> None:
        """Once everything is at rest, database and store say the same."""
        told = ""

        def at_rest() -> bool:
            nonlocal told
            done = self.command("audit", check=False)
            told = done.stdout + done.stderr
            return (done.returncode, done.stdout.strip()) == (0, "nothing wrong")

        wait_until("the audit", at_rest, lambda: f"{told}\n{self.log_tail()}")

    def wait(self, what: str, done: Callable[[], Any]) -> Any:
        """Poll until ``done()`` is true; returns its value."""
        return wait_until(what, done, self.log_tail, pause=0.1)

    # -- the load balancer

    def _balanced(self, reach: Callable[[str, int], socket.socket]) -> socket.socket:
        """Connect to an API host that answers that it is well."""
        for name in API_NODES:
            address = self._hosts[name].address
            try:
                if status_of(reach(address, API_PORT), "/healthcheck") == 200:
                    return reach(address, API_PORT)
            except OSError:
                continue
        raise ConnectionRefusedError("no API host answers")

    def _direct(self, name: str) -> Callable[[Callable[[str, int], socket.socket]], socket.socket]:
        return lambda reach: reach(self._hosts[name].address, API_PORT)


def status_of(connection: socket.socket, path: str) -> int:
    """Ask for a path over a connection that was made already, and close it; returns the status."""
    asking = http.client.HTTPConnection("localhost", timeout=30)
    asking.sock = connection
    connection.settimeout(30)
    try:
        asking.request("GET", path, headers={"Connection": "close"})
        return asking.getresponse().status
    except http.client.HTTPException as error:
        raise OSError("no answer") from error
    finally:
        asking.close()


@contextmanager
def site(
    folder: Path, broker: RabbitMQ, database: PostgreSQL, store: SeaweedFS, keystone: Keystone
) -> Iterator[Site]:
    """The example, installed as its text says, everything running."""
    (folder / "hosts").mkdir()
    with network(folder / "hosts") as net:
        made = Site(net, folder, keystone)
        made.prepare(broker, database, store)
        for name in NODES:
            made.boot(name)
        for words in EXAMPLE.commands("backupfw"):
            made.command(*words[1:])
        for name in NODES:
            made.start(name)
        for name in NODES:
            made.wait_ready(name)
        yield made
