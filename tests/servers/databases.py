"""PostgreSQL and MariaDB, real ones, for tests of schema and transactions."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from tests.servers.ports import free_port
from tests.servers.process import ServerProcess, hand_over, unprivileged_user
from tests.waiting import wait_until


def _answers(url: str) -> bool:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return bool(connection.scalar(text("SELECT 1")) == 1)
    finally:
        engine.dispose()


def postgresql_programs() -> Path | None:
    """The directory of PostgreSQL's programs, the newest one installed."""
    places = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    return Path(places[-1]).parent if places else None


class PostgreSQL:
    """A server that a test may stop and start again.

    :param durable: whether what was committed is there after a crash of the server.
    :ivar url: the SQLAlchemy URL of its first database.
    """

    def __init__(self, directory: Path, durable: bool = False) -> None:
        programs = postgresql_programs()
        assert programs is not None
        self._directory = directory
        self._user = user = unprivileged_user()
        hand_over(directory, user)
        data = directory / "data"
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-E", "UTF8",
             "--locale=C.UTF-8", "--no-sync", "--no-instructions"],
            check=True, capture_output=True, user=user, extra_groups=[] if user else None, cwd=directory,
        )  # fmt: skip
        port = free_port()
        settings = ["listen_addresses=127.0.0.1", "dynamic_shared_memory_type=mmap", "fsync=off",
                    f"synchronous_commit={'on' if durable else 'off'}", "full_page_writes=off",
                    "shared_buffers=32MB", "max_connections=100"]  # fmt: skip
        command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", str(directory)]
        self._command = [*command, *(word for item in settings for word in ("-c", item))]
        self._base = f"postgresql+psycopg2://tester@127.0.0.1:{port}"
        self.url = f"{self._base}/postgres"
        self._server: ServerProcess | None = None
        self._made = 0

    def start(self) -> None:
        """Start the server and return when clients can come."""
        self._server = ServerProcess(self._command, self._directory, self._user)
        self._server.wait_ready(lambda: _answers(self.url))

    def close(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server; clients' connections break.  SIGQUIT makes it crash."""
        if self._server is not None:
            self._server.stop(how)
            self._server = None

    def create_database(self) -> str:
        """Make an empty database and return its URL."""
        self._made += 1
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE made{self._made}"))
        engine.dispose()
        return f"{self._base}/made{self._made}"

    def dump(self, url: str, path: Path) -> None:
        """Write a database's rows to a file, as statements."""
        programs = postgresql_programs()
        assert programs is not None
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        subprocess.run([programs / "pg_dump", "-f", path, plain], check=True, capture_output=True)


@contextmanager
def postgresql(directory: Path) -> Iterator[str]:
    """Run PostgreSQL on an empty database; yields its SQLAlchemy URL."""
    server = PostgreSQL(directory)
    try:
        server.start()
        yield server.url
    finally:
        server.close()


def pgbouncer_program() -> str | None:
    """The program of the pooler, where it is installed."""
    return shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")


@contextmanager
def pgbouncer(directory: Path, url: str) -> Iterator[str]:
    """Run pgbouncer in transaction mode before a database, on one connection; yields the URL to use."""
    program, behind = pgbouncer_program(), make_url(url)
    assert program is not None
    user, port = unprivileged_user(), free_port()
    hand_over(directory, user)
    config = directory / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n{behind.database} = host={behind.host} port={behind.port} user={behind.username}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\ndefault_pool_size = 1\n"
    )
    server = ServerProcess([program, str(config)], directory, user)
    pooled = behind.set(port=port).render_as_string(hide_password=False)
    try:
        server.wait_ready(lambda: _answers(pooled))
        yield pooled
    finally:
        server.stop()


def mariadb_programs() -> bool:
    """Whether MariaDB's server is installed."""
    return shutil.which("mariadbd") is not None or Path("/usr/sbin/mariadbd").exists()


#: The services' user has its databases, as in the field; whoever may administer the server is not bound by
#: ``read_only``.  PROCESS is for tests that look who waits.
_MAKE_TESTER = (
    "CREATE USER tester@'127.0.0.1' IDENTIFIED BY 'testing'",
    "GRANT ALL ON `made%`.* TO tester@'127.0.0.1'",
    "GRANT PROCESS ON *.* TO tester@'127.0.0.1'",
)


def _install_mariadb(directory: Path, user: str | None) -> None:
    subprocess.run(
        [shutil.which("mariadb-install-db") or "/usr/bin/mariadb-install-db", "--no-defaults",
         f"--datadir={directory}/data", "--auth-root-authentication-method=normal", "--skip-test-db",
         "--skip-name-resolve"],
        check=True, capture_output=True, user=user, extra_groups=[] if user else None, cwd=directory,
    )  # fmt: skip


def _mariadb_command(directory: Path, port: int) -> list[str]:
    return [
        shutil.which("mariadbd") or "/usr/sbin/mariadbd", "--no-defaults", f"--datadir={directory}/data",
        f"--socket={directory}/s", f"--port={port}", "--bind-address=127.0.0.1",
        f"--pid-file={directory}/pid", f"--tmpdir={directory}/tmp", "--skip-name-resolve",
        # What was written is there as long as the machine lives, also when the server is killed.
        "--debug-no-sync", "--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync",
        "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--performance-schema=off",
        "--max-connections=100", "--character-set-server=utf8mb4",
    ]  # fmt: skip


def _administer(directory: Path, *statements: str) -> Any:
    """Have a server's administrator execute statements; returns the last one's rows.

    A node that is cut off from its cluster takes none but SHOW and SET, so SQLAlchemy cannot connect to it.
    """
    with (
        pymysql.connect(user="root", unix_socket=f"{directory}/s", autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall()


class MariaDB:
    """A server that a test may stop and start again.

    :ivar url: the SQLAlchemy URL of its first database.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._user = user = unprivileged_user()
        (directory / "tmp").mkdir()
        hand_over(directory, user)
        _install_mariadb(directory, user)
        port = free_port()
        self._command = [*_mariadb_command(directory, port), "--skip-log-bin"]
        self._base = f"mysql+pymysql://tester:testing@127.0.0.1:{port}"
        self.url = f"{self._base}/made0?charset=utf8mb4"
        self._server: ServerProcess | None = None
        self._made = 0

    def start(self) -> None:
        """Start the server and return when clients can come."""
        first = not self._made
        self._server = ServerProcess(self._command, self._directory, self._user)
        self._server.wait_ready(lambda: _administer(self._directory, "SELECT 1") == ((1,),))
        if first:
            _administer(self._directory, *_MAKE_TESTER)
            self.create_database()

    def close(self) -> None:
        """Stop the server; clients' connections break."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def create_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"made{self._made}"
        self._made += 1
        _administer(self._directory, f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return f"{self._base}/{name}?charset=utf8mb4"

    def set_read_only(self, on: bool) -> None:
        """Refuse changes, as a server does from which another one takes over, or take them again."""
        _administer(self._directory, f"SET GLOBAL read_only = {int(on)}")


@contextmanager
def mariadb(directory: Path) -> Iterator[str]:
    """Run MariaDB on an empty database; yields its SQLAlchemy URL."""
    server = MariaDB(directory)
    try:
        server.start()
        yield server.url
    finally:
        server.close()


#: Galera's library.
_GALERA = Path("/usr/lib/galera/libgalera_smm.so")

#: How soon a member is found to be lost; one that is only slow, on a busy machine, is not.
_TIMES = "evs.keepalive_period=PT0.5S;evs.suspect_timeout=PT5S;evs.inactive_timeout=PT10S"

#: How a node gets another one's state, as MariaDB calls it: ``wsrep_sst_files``.  Both are on this host, so
#: one copies the other one's files; what is missing since a time that both know, the nodes send themselves
#: (``--bypass``).
_SEND_STATE = """#!/bin/bash
while (($#)); do
    case $1 in
    --role) role=$2 ;;
    --address) address=$2 ;;
    --datadir) data=$2 ;;
    --gtid) position=$2 ;;
    --bypass) bypass=yes ;;
    esac
    shift
done
await() { until [[ -e $1 ]]; do sleep 0.05; done; }
if [[ $role == joiner ]]; then
    rm -f "$data/received"
    echo "ready $address/$data"
    await "$data/received"
    cat "$data/received"
else
    to=/${address#*/}
    if [[ ! $bypass ]]; then
        echo "flush tables"
        await "$data/tables_flushed"
        own=(--exclude={grastate.dat,gvwstate.dat,galera.cache,tables_flushed})
        tar -C "$data" -c --sparse "${own[@]}" . | tar -C "$to" -x
        rm "$data/tables_flushed"
    fi
    echo continue
    echo "$position 0" >"$to/received.new"
    mv "$to/received.new" "$to/received"
    echo "done $position"
fi
"""


def galera_programs() -> bool:
    """Whether MariaDB's server, Galera and its arbitrator are installed."""
    return mariadb_programs() and _GALERA.exists() and shutil.which("garbd") is not None


class Galera:
    """Two MariaDB nodes of one cluster, both of which take writes, and the arbitrator.

    The arbitrator has a vote and no data: whichever node is lost, the other one goes on.

    :ivar ports: where the nodes listen for clients.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._user = unprivileged_user()
        self._made = 0
        self.ports = [free_port() for _ in range(2)]
        self._group = [free_port() for _ in range(2)]
        self._nodes: list[ServerProcess | None] = [None, None]
        self._arbitrator: ServerProcess | None = None
        for number in range(2):
            (self._place(number) / "tmp").mkdir(parents=True)
        (directory / "arbitrator").mkdir()
        script = directory / "wsrep_sst_files"
        script.write_text(_SEND_STATE)
        script.chmod(0o755)
        hand_over(directory, self._user)
        for number in range(2):
            _install_mariadb(self._place(number), self._user)

    def _place(self, number: int) -> Path:
        return self._directory / f"node{number}"

    def start(self) -> None:
        """Start all members and return when each node takes writes."""
        self.start_node(0, first=True)
        self.execute(0, *_MAKE_TESTER)
        self.start_node(1)
        self._start_arbitrator()

    def _start_arbitrator(self) -> None:
        nodes = ",".join(f"127.0.0.1:{port}" for port in self._group)
        options = f"gmcast.listen_addr=tcp://127.0.0.1:{free_port()};{_TIMES}"
        command = ["garbd", "--address", f"gcomm://{nodes}", "--group", "tests", "--options", options]
        self._arbitrator = ServerProcess(command, self._directory / "arbitrator", self._user)
        members = (("wsrep_cluster_size", "3"),)
        self._arbitrator.wait_ready(
            lambda: self.execute(0, "SHOW STATUS LIKE 'wsrep_cluster_size'") == members
        )

    def start_node(self, number: int, first: bool = False) -> None:
        """Start a node, and return when it has the cluster's state.

        :param first: it makes the cluster, instead of joining it.
        """
        place = self._place(number)
        others = "" if first else f"127.0.0.1:{self._group[1 - number]}"
        options = ";".join(
            (
                f"gmcast.listen_addr=tcp://127.0.0.1:{self._group[number]}",
                f"ist.recv_addr=127.0.0.1:{free_port()}", "gcache.size=16M", _TIMES,
            )
        )  # fmt: skip
        command = [
            *_mariadb_command(place, self.ports[number]),
            "--binlog-format=ROW", "--innodb-autoinc-lock-mode=2", "--wsrep-on=ON",
            f"--wsrep-provider={_GALERA}", "--wsrep-cluster-name=tests", f"--wsrep-node-name=n{number}",
            f"--wsrep-cluster-address=gcomm://{others}", f"--wsrep-provider-options={options}",
            "--wsrep-node-address=127.0.0.1", "--wsrep-sst-method=files",
            *(["--wsrep-new-cluster"] if first else []),
        ]  # fmt: skip
        path = {"PATH": f"{self._directory}:{os.environ['PATH']}"}
        self._nodes[number] = server = ServerProcess(command, place, self._user, path)
        server.wait_ready(lambda: self.is_ready(number))

    def is_ready(self, number: int) -> bool:
        """Whether a node belongs to the cluster and takes writes."""
        found = self.execute(number, "SHOW STATUS LIKE 'wsrep_ready'")
        return found == (("wsrep_ready", "ON"),)

    def stop_node(self, number: int, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop a node, in order or not."""
        node, self._nodes[number] = self._nodes[number], None
        if node is not None:
            node.stop(how)

    def isolate(self, number: int, apart: bool) -> None:
        """Cut a node off from the other members, or join them again; clients still reach both nodes."""
        self.execute(number, f"SET GLOBAL wsrep_provider_options = 'gmcast.isolate={int(apart)}'")

    def close(self) -> None:
        """Stop all members."""
        if self._arbitrator is not None:
            self._arbitrator.stop()
        for number in (1, 0):
            self.stop_node(number)

    def create_database(self) -> list[str]:
        """Make an empty database; return its URLs."""
        name = f"made{self._made}"
        self._made += 1
        wait_until("both nodes to be in the cluster", lambda: all(map(self.is_ready, range(2))))
        self.execute(0, f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return [
            f"mysql+pymysql://tester:testing@127.0.0.1:{port}/{name}?charset=utf8mb4" for port in self.ports
        ]

    def execute(self, number: int, *statements: str) -> Any:
        """Have a node's administrator execute statements; returns the last one's rows."""
        return _administer(self._place(number), *statements)
