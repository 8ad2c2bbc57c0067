"""Encrypted volumes of a real Cinder: their bytes are backed up as they are, and their own key opens them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import requests

from tests.integration.cinder.world import MIB, World
from tests.servers.cinder import BACK_ENDS

pytestmark = pytest.mark.server

#: Bytes at the beginning of a volume: its header of LUKS, and what follows.
HEAD = 4 * MIB


@pytest.fixture(params=BACK_ENDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The type of the volumes: in Ceph, or what stands for all that is attached."""
    return f"{request.param}-luks"


class Machine:
    """Reads and writes volumes as a hypervisor does, with the keys that the Cinder names.

    :param directory: for copies of the beginnings of volumes.
    """

    def __init__(self, there: World, directory: Path) -> None:
        self._there = there
        self._disk, self._secret, self._plain = directory / "disk", directory / "secret", directory / "plain"

    def key_of(self, volume: str) -> str:
        """Return the id of a volume's key."""
        return str(self._there.volumes.call("GET", f"/volumes/{volume}")["volume"]["encryption_key_id"])

    def format(self, volume: str) -> None:
        """Make the header, as the first use of a volume does if the Cinder did not."""
        self._fetch(volume)
        if not self._disk.read_bytes().startswith(b"LUKS"):
            # Its key need not be hard to guess.
            options = "key-secret=s,iter-time=10"
            self._run("qemu-img", "create", "-q", "-f", "luks", "-o", options, str(self._disk), "1M")
            self._there.server.write(volume, 0, self._disk.read_bytes()[:HEAD].ljust(HEAD, b"\0"))

    def write(self, volume: str, letter: str) -> None:
        """Fill the first MiB of the disk in the volume."""
        self._fetch(volume)
        self._run("qemu-io", "-c", f"write -q -P {ord(letter)} 0 1M", "--image-opts", self._image())
        self._there.server.write(volume, 0, self._disk.read_bytes()[:HEAD])

    def read(self, volume: str) -> str:
        """Return what the first MiB is filled with; fails if the volume's key does not open it."""
        self._fetch(volume)
        self._run("qemu-img", "convert", "-O", "raw", "--image-opts", self._image(), str(self._plain))
        (letter,) = set(self._plain.read_bytes()[:MIB])
        return chr(letter)

    def _fetch(self, volume: str) -> None:
        self._disk.write_bytes(self._there.server.read(volume, 0, HEAD))
        key = self._there.server.base / "keys" / self.key_of(volume)
        self._secret.write_text(key.read_bytes().hex())

    def _image(self) -> str:
        return f"driver=luks,key-secret=s,file.driver=file,file.filename={self._disk}"

    def _run(self, program: str, *words: str) -> None:
        secret = ["--object", f"secret,id=s,file={self._secret}"]
        first, rest = ([words[0]], list(words[1:])) if program == "qemu-img" else ([], list(words))
        command = [program, *first, *secret, *rest]
        while (done := subprocess.run(command, capture_output=True, text=True, timeout=300)).returncode:
            # On a busy machine QEMU cannot find out how quick the machine is, and gives up.
            assert "Unable to get accurate CPU usage" in done.stderr, done.stderr


@pytest.fixture
def machine(there: World, tmp_path: Path) -> Machine:
    """A hypervisor."""
    return Machine(there, tmp_path)


def test_it_is_backed_up_as_it_is(there: World, machine: Machine, kind: str) -> None:
    volume = there.volumes.create_volume(volume_type=kind, name="secret")
    machine.format(volume)
    machine.write(volume, "a")
    full = there.backup(volume)
    machine.write(volume, "b")
    second = there.backup(volume, incremental=True)
    assert (full["size"], second["size"]) == (1, 1)
    key = machine.key_of(volume)
    headers = {"X-Auth-Token": there.backups.token, "OpenStack-API-Version": "volume 3.64"}
    answer = requests.get(f"{there.backups.base}/backups/{second['id']}", headers=headers, timeout=60)
    assert answer.json()["backup"]["encryption_key_id"] == key

    # To the volume itself, even if nothing of its header is left.
    there.server.write(volume, 0, bytes(HEAD))
    there.restore(full["id"], volume)
    assert (machine.read(volume), machine.key_of(volume)) == ("a", key)

    # To a new one: the Cinder gives it a copy of the key.
    made = there.restore(second["id"], name="again")
    assert (machine.read(made), machine.read(volume)) == ("b", "a")
    shown = there.volumes.call("GET", f"/volumes/{made}")["volume"]
    assert (shown["volume_type"], shown["size"], shown["name"]) == (kind, 1, "again")
    assert shown["encryption_key_id"] != key
    # Once it has its key, it needs the other one no more.
    there.volumes.call("DELETE", f"/volumes/{volume}")
    there.volumes.wait("volume", volume, None)
    assert machine.read(made) == "b"
    refused = there.backups.expect(400, "POST", f"/backups/{full['id']}/restore", {"restore": {}})
    assert "only a copy of volume" in refused["badRequest"]["message"]
    there.volumes.call("DELETE", f"/volumes/{made}")
    there.backups.wait("the end of what was made", lambda: not there.left())


# It is refused by what the Cinder says of the volumes, wherever they are.
@pytest.mark.parametrize("kind", ["files-luks"])
def test_no_restore_makes_a_volume_that_no_key_opens(there: World, machine: Machine, kind: str) -> None:
    volume = there.volumes.create_volume(volume_type=kind)
    machine.format(volume)
    machine.write(volume, "a")
    backup = there.backup(volume)
    other = there.volumes.create_volume(volume_type=kind)
    machine.format(other)
    machine.write(other, "b")
    clear = there.volumes.create_volume(volume_type=kind.removesuffix("-luks"))
    clear_backup = there.backup(clear)
    for of, target, reason in (
        (backup, other, "another key"),
        (backup, clear, "of an encrypted volume"),
        (clear_backup, other, "is encrypted"),
    ):
        body = {"restore": {"volume_id": target}}
        refused = there.backups.expect(400, "POST", f"/backups/{of['id']}/restore", body)
        assert reason in refused["badRequest"]["message"]
        assert there.volumes.status("volume", target) == "available"
    assert machine.read(other) == "b"
