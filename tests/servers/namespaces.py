"""Hosts of their own on one machine: a name, an address, processes and some directories each.

They are namespaces of the kernel, so all of them may listen on the same ports and have the same paths, and a
host that is killed is gone with everything that ran on it.  Nothing outside of them is changed: their network
is a bridge in a namespace of its own.  Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.servers.process import START_SECONDS

Made = TypeVar("Made")

#: Of the network between the hosts: addresses that documentation may use, the first one is the switch's.
NETWORK = "192.0.2"
_CLONE_NEWNET = 0x40000000
_PIECE = 64 << 10


def namespaces_missing() -> str | None:
    """Say what is missing to make hosts, or None."""
    if os.geteuid() != 0:
        return "hosts of their own need root"
    names = [
        name for name in ("ip", "unshare", "nsenter", "setpriv") if shutil.which(name, path=_PATH) is None
    ]
    return f"not installed: {', '.join(names)} (tests/servers/install.sh hosts)" if names else None


_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


class _Namespaces:
    """Namespaces that last as long as their first process, which ends with the tests at the latest."""

    def __init__(self, *kinds: str) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *kinds, "--pid", "--fork", "--kill-child"]
        self._holder = subprocess.Popen([*command, "sleep", "infinity"], env={**os.environ, "PATH": _PATH})
        self.pid = _child(self._holder.pid)

    def end(self) -> None:
        """Kill everything in them at once, and wait until it is gone."""
        # Their first process dies with the holder, and everything else in them with that one.
        self._holder.kill()
        self._holder.wait(30)
        end = time.monotonic() + START_SECONDS
        while Path(f"/proc/{self.pid}").exists():
            assert time.monotonic() < end, "the processes of a host do not end"
            time.sleep(0.01)

    def shell(self, script: str, *kinds: str) -> None:
        """Run a script in some of them."""
        words = ["nsenter", "-t", str(self.pid), *kinds, "sh", "-ec", script]
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PATH": _PATH})
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"

    def in_network(self, make: Callable[[], Made]) -> Made:
        """Call something that opens sockets in their network; the sockets stay there."""
        made: list[Made] = []
        failed: list[OSError] = []

        def run() -> None:
            # Of this thread only.
            library = ctypes.CDLL(None, use_errno=True)
            try:
                with open(f"/proc/{self.pid}/ns/net", "rb") as network:
                    if library.setns(network.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                made.append(make())
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made[0]


def _child(holder: int) -> int:
    """Wait until a process has started the first one of its namespaces; returns that one's id."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        found = Path(f"/proc/{holder}/task/{holder}/children").read_text().split()
        # Before that it is the holder's copy, which may not be in all of them.
        if found and Path(f"/proc/{found[0]}/comm").read_text().strip() == "sleep":
            return int(found[0])
        time.sleep(0.01)
    raise RuntimeError("the namespaces were not made")


class HostProcess:
    """A process that runs on a host.

    :param entering: what entered the host and waits for the process.
    """

    def __init__(self, entering: subprocess.Popen[bytes]) -> None:
        self._entering = entering

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself."""
        children = Path(f"/proc/{self._entering.pid}/task/{self._entering.pid}/children").read_text()
        os.kill(int(children.split()[0]), number)

    def wait(self, seconds: float = START_SECONDS) -> int:
        """Return the exit status, once there is one."""
        return self._entering.wait(seconds)

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self._entering.poll() is not None


class Host:
    """A host that runs.

    :ivar name: its host name.
    :ivar address: on the network.
    :ivar root: has what this host has for itself below ``etc``, ``opt``, ``run``, ``srv`` and ``var/lib``.
    """

    def __init__(self, switch: _Namespaces, name: str, number: int, root: Path) -> None:
        self.name = name
        self.address = f"{NETWORK}.{10 + number}"
        self.root = root
        self._own = _Namespaces("--net", "--uts", "--mount", "--mount-proc")
        # A killed host's port may be there for a moment more, so no name is used again; but an address is,
        # and its neighbours must not go on sending to the old interface.
        port, card = f"port{self._own.pid}", f"02:00:00:00:00:{number:02x}"
        switch.shell(
            f"ip link add {port} type veth peer name eth0 address {card} netns {self._own.pid};"
            f" ip link set {port} master sw up",
            "-n",
        )
        self._own.shell(
            f"hostname {name}; ip link set lo up; ip addr add {self.address}/24 dev eth0;"
            " ip link set eth0 up",
            "-n",
            "-u",
        )

    def mount(self, script: str) -> None:
        """Run a script that mounts something where only this host sees it."""
        self._own.shell(script, "-m")

    def start(self, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> HostProcess:
        """Start a process on the host."""
        with open(log, "ab") as output:
            return HostProcess(
                subprocess.Popen(
                    [*self._enter(), *words],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, "PATH": f"/opt/backupfw/bin{os.pathsep}{_PATH}", **environment},
                )
            )

    def run(self, words: Sequence[str], seconds: float = START_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end."""
        return subprocess.run(
            [*self._enter(), *words],
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, "PATH": f"/opt/backupfw/bin{os.pathsep}{_PATH}"},
        )

    def _enter(self) -> list[str]:
        # The environment is what finds the command, once inside.
        return ["nsenter", "-t", str(self._own.pid), "-n", "-u", "-m", "-p", "--wd=/", "env"]

    def connect(self, port: int) -> socket.socket:
        """Connect to something that listens on the host's loopback interface."""
        return self._own.in_network(lambda: socket.create_connection(("127.0.0.1", port), 10))

    def kill(self) -> None:
        """Lose the host: every process at once, and its network."""
        self._own.end()


class Network:
    """The network between hosts; :meth:`close` ends it and all of them.

    :param directory: an empty one, for what hosts have for themselves.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._switch = _Namespaces("--net")
        self._hosts: dict[str, Host] = {}
        self._forwarders: list[_Forwarder] = []
        self._switch.shell(
            f"ip link add sw type bridge; ip addr add {NETWORK}.1/24 dev sw; ip link set sw up",
            "-n",
        )

    def boot(self, name: str, number: int) -> Host:
        """Start a host, or one that was killed anew; what it has for itself stays."""
        root = self._directory / name
        for place in ("etc", "opt", "srv", "run", "var/lib"):
            (root / place).mkdir(parents=True, exist_ok=True)
        self._hosts[name] = Host(self._switch, name, number, root)
        return self._hosts[name]

    def lend(self, port: int) -> None:
        """Let hosts reach a server of this machine's loopback interface at the switch's address."""
        listening = self._switch.in_network(lambda: socket.create_server((f"{NETWORK}.1", port)))
        self._forwarders.append(
            _Forwarder(listening, lambda: socket.create_connection(("127.0.0.1", port), 10))
        )

    def publish(self, connect: Callable[[Callable[[str, int], socket.socket]], socket.socket]) -> int:
        """Let this machine reach hosts at a port of its loopback interface, which is returned.

        :param connect: chooses whom: it is called for each connection, with what connects to an address and
            port of the network.
        """

        def reach(address: str, port: int) -> socket.socket:
            return self._switch.in_network(lambda: socket.create_connection((address, port), 5))

        listening = socket.create_server(("127.0.0.1", 0))
        self._forwarders.append(_Forwarder(listening, lambda: connect(reach)))
        return int(listening.getsockname()[1])

    def close(self) -> None:
        """End everything."""
        for host in self._hosts.values():
            host.kill()
        for forwarder in self._forwarders:
            forwarder.close()
        self._switch.end()


@contextmanager
def network(directory: Path) -> Iterator[Network]:
    """A network without hosts yet."""
    made = Network(directory)
    try:
        yield made
    finally:
        made.close()


class _Forwarder:
    """Hands on what comes to a listening socket, a thread for each connection."""

    def __init__(self, listening: socket.socket, connect: Callable[[], socket.socket]) -> None:
        self._listening = listening
        self._connect = connect
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), self._connect() as server:
            server.settimeout(None)
            with selectors.DefaultSelector() as ready:
                ready.register(client, selectors.EVENT_READ, server)
                ready.register(server, selectors.EVENT_READ, client)
                while True:
                    for key, _ in ready.select():
                        source = key.fileobj
                        assert isinstance(source, socket.socket)
                        data = source.recv(_PIECE)
                        if not data:
                            return
                        key.data.sendall(data)

    def close(self) -> None:
        """Take no more connections."""
        # Closing alone would not wake up who waits in accept.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
