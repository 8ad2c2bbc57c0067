"""RabbitMQ: one node, which a test may stop, start again and empty."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.ports import free_port
from tests.servers.process import ServerProcess, hand_over, unprivileged_user


def _script() -> str | None:
    # Not the one in /usr/sbin: that one changes to a user of its own.
    places = sorted(glob.glob("/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"))
    return places[-1] if places else None


def rabbitmq_missing() -> str | None:
    """Say what is missing to run it, or None."""
    if _script() is None or shutil.which("epmd") is None:
        return "not installed: rabbitmq-server (tests/servers/install.sh rabbitmq)"
    return None


class RabbitMQ:
    """A node on ports and data of its own.

    :ivar url: the transport URL for oslo.messaging.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._user = unprivileged_user()
        self.port, distribution, self._mapper_port = free_port(), free_port(), free_port()
        self.url = f"rabbit://tester:testing@127.0.0.1:{self.port}//"
        (directory / ".erlang.cookie").write_text("cookieofthetests")
        (directory / ".erlang.cookie").chmod(0o400)
        (directory / "enabled_plugins").write_text("[].")
        (directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "default_user = tester\ndefault_pass = testing\nloopback_users = none\n"
            "log.console = true\nlog.file = false\n"
            "disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.absolute = 1GB\n"
        )
        (directory / "mapper").mkdir()
        hand_over(directory, self._user)
        self._environment = {
            "HOME": str(directory),
            "RABBITMQ_NODENAME": f"t{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONFIG_FILE": f"{directory}/rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{directory}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{directory}/mnesia",
            "RABBITMQ_LOG_BASE": f"{directory}/log",
            "RABBITMQ_PID_FILE": f"{directory}/pid",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{directory}/gen",
            "RABBITMQ_FEATURE_FLAGS_FILE": f"{directory}/ff",
            # The script replaces itself by the node, so that its process is the broker.
            "RUNNING_UNDER_SYSTEMD": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none"
            ),
        }
        self._mapper = ServerProcess(
            [str(shutil.which("epmd")), "-port", str(self._mapper_port), "-address", "127.0.0.1"],
            directory / "mapper",
            self._user,
        )
        self._node: ServerProcess | None = None

    def start(self) -> None:
        """Start the node and return when clients can come."""
        script = _script()
        assert script is not None
        self._node = ServerProcess([script], self._directory, self._user, self._environment)
        self._node.wait_ready(self._answers)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the node; what is not durable is gone."""
        if self._node is not None:
            self._node.stop(how)
            self._node = None

    def close(self) -> None:
        """Stop everything."""
        self.stop(signal.SIGKILL)
        self._mapper.stop(signal.SIGKILL)

    def control(self, *words: str) -> str:
        """Run ``rabbitmqctl`` on the node and return what it prints."""
        script = str(Path(str(_script())).parent / "rabbitmqctl")
        done = subprocess.run(
            [script, "-q", "-n", self._environment["RABBITMQ_NODENAME"], *words],
            check=True, capture_output=True, text=True, timeout=60, cwd=self._directory, user=self._user,
            extra_groups=[] if self._user else None, env={**os.environ, **self._environment},
        )  # fmt: skip
        return done.stdout

    def purge(self) -> None:
        """Empty every queue."""
        for name in self.control("list_queues", "name", "--no-table-headers").split():
            self.control("purge_queue", name)

    def _answers(self) -> bool:
        # The header of the protocol; the node answers with its first frame when it takes clients.
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.settimeout(5)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"


@contextmanager
def rabbitmq(directory: Path) -> Iterator[RabbitMQ]:
    """Run a node on an empty directory."""
    broker = RabbitMQ(directory)
    try:
        broker.start()
        yield broker
    finally:
        broker.close()
