"""PostgreSQL and MariaDB, real ones, for tests of schema and transactions."""

from __future__ import annotations

import glob
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from tests.servers.ports import free_port
from tests.servers.process import ServerProcess, hand_over, unprivileged_user


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


class MariaDB:
    """A server that a test may stop and start again.

    :ivar url: the SQLAlchemy URL of its first database.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._user = user = unprivileged_user()
        (directory / "tmp").mkdir()
        hand_over(directory, user)
        data, sock = directory / "data", directory / "s"
        subprocess.run(
            [shutil.which("mariadb-install-db") or "/usr/bin/mariadb-install-db", "--no-defaults",
             f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db",
             "--skip-name-resolve"],
            check=True, capture_output=True, user=user, extra_groups=[] if user else None, cwd=directory,
        )  # fmt: skip
        port = free_port()
        self._command = [
            shutil.which("mariadbd") or "/usr/sbin/mariadbd", "--no-defaults", f"--datadir={data}",
            f"--socket={sock}", f"--port={port}", "--bind-address=127.0.0.1", f"--pid-file={directory}/pid",
            f"--tmpdir={directory}/tmp", "--skip-name-resolve", "--skip-log-bin",
            "--innodb-flush-log-at-trx-commit=0", "--sync-frm=0", "--innodb-flush-method=nosync",
            "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--performance-schema=off",
            "--max-connections=100", "--character-set-server=utf8mb4",
        ]  # fmt: skip
        self._root = f"mysql+pymysql://root@localhost/mysql?unix_socket={sock}"
        self._base = f"mysql+pymysql://tester:testing@127.0.0.1:{port}"
        self.url = f"{self._base}/made0?charset=utf8mb4"
        self._server: ServerProcess | None = None
        self._made = 0

    def start(self) -> None:
        """Start the server and return when clients can come."""
        first = not self._made
        self._server = ServerProcess(self._command, self._directory, self._user)
        self._server.wait_ready(lambda: _answers(self._root))
        if first:
            self._execute(
                "CREATE USER tester@'127.0.0.1' IDENTIFIED BY 'testing'",
                "GRANT ALL ON *.* TO tester@'127.0.0.1'",
            )
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
        self._execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return f"{self._base}/{name}?charset=utf8mb4"

    def _execute(self, *statements: str) -> None:
        engine = create_engine(self._root)
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()


@contextmanager
def mariadb(directory: Path) -> Iterator[str]:
    """Run MariaDB on an empty database; yields its SQLAlchemy URL."""
    server = MariaDB(directory)
    try:
        server.start()
        yield server.url
    finally:
        server.close()
