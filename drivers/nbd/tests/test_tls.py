"""Encrypted connections to a real server: who it is, and who we are."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from backupfw_nbd.exports import NbdProvider

from backupfw.chunkstore.options import option_values
from backupfw.errors import ConfigError, InvalidInput, SourceUnreadable
from backupfw.testing.volume import adopted
from backupfw.volume.base import VolumeRef
from tests.servers.ports import free_port
from tests.servers.qemu import qemu_missing
from tests.servers.tls import Authority, tls_missing
from tests.waiting import wait_until

pytestmark = pytest.mark.server

CONTENT = b"encrypted on the way" * 1000
KEY, OTHER_KEY = "0123456789abcdef" * 2, "fedcba9876543210" * 2
#: What the messages say.
NOT_THE_SERVER = "certificate is not of the authority"
NOT_US = "does not accept our key or certificate"


@dataclass
class Site:
    """An authority, another one, and servers of one image."""

    directory: Path
    good: Authority
    other: Authority
    processes: list[subprocess.Popen[bytes]]

    def certificates(
        self, name: str, authority: Authority | None, of: Authority | None = None, **how: Any
    ) -> Path:
        """Make a directory with the certificate of an authority, and one that an authority issued."""
        place = self.directory / name
        place.mkdir()
        if authority is not None:
            shutil.copy(authority.file, place / "ca-cert.pem")
        if of is not None:
            certificate, key = of.issue(name, **how)
            for side in ("server", "client"):
                shutil.copy(certificate, place / f"{side}-cert.pem")
                shutil.copy(key, place / f"{side}-key.pem")
        return place

    def keys(self, name: str, *lines: str) -> Path:
        place = self.directory / name
        place.mkdir()
        (place / "keys.psk").write_text("".join(f"{line}\n" for line in lines))
        (place / "keys.psk").chmod(0o600)
        return place

    def serve(self, credentials: str = "", socket: Path | None = None) -> str:
        """Start a server; return what is behind ``nbds`` in a location of its export."""
        image = self.directory / "disk.raw"
        image.write_bytes(CONTENT)
        port = free_port()
        where = ["-k", str(socket)] if socket else ["-b", "127.0.0.1", "-p", str(port)]
        secure = (
            ["--object", f"{credentials},id=tls,endpoint=server", "--tls-creds", "tls"] if credentials else []
        )
        words = ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-x", "disk", *secure, *where, str(image)]
        self.processes.append(subprocess.Popen(words, stderr=subprocess.DEVNULL))
        return f"+unix:///disk?socket={socket}" if socket else f"://localhost:{port}/disk"

    def x509(self, place: Path, *, verify: bool) -> str:
        # QEMU would not start with a certificate that has expired.
        return f"tls-creds-x509,dir={place},verify-peer={'yes' if verify else 'no'},sanity-check=no"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if missing := qemu_missing() or tls_missing():
        pytest.skip(missing)
    for name in ("good", "other"):
        (tmp_path / name).mkdir()
    made = Site(tmp_path, Authority(tmp_path / "good"), Authority(tmp_path / "other"), [])
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def provider(**options: object) -> NbdProvider:
    return NbdProvider(option_values(NbdProvider.options(), timeout="20", **options))


def adopt(where: str, **options: object) -> VolumeRef:
    """Adopt an export; wait for its server to start."""

    def reached() -> VolumeRef | None:
        try:
            return adopted(provider(**options), f"nbds{where}")
        except InvalidInput as error:
            if "cannot be reached" not in str(error):
                raise
            return None

    found = wait_until(f"the server of {where}", reached)
    assert found is not None
    return found


def refused(where: str, why: str, **options: object) -> None:
    """Fail unless a server is refused for this reason, and nothing of the files is told."""
    with pytest.raises(InvalidInput, match=why) as caught:
        adopt(where, **options)
    for value in options.values():
        assert str(value) not in str(caught.value)
    assert KEY not in str(caught.value)


def check(volume: VolumeRef, **options: object) -> None:
    with provider(**options).open_point(volume, "a") as point:
        found = bytearray(len(CONTENT))
        point.read_into(0, memoryview(found))
        assert found == CONTENT


def test_certificates_of_both_sides(site: Site) -> None:
    where = site.serve(site.x509(site.certificates("server", site.good, site.good), verify=True))
    ours = site.certificates("ours", site.good, site.good)
    volume = adopt(where, tls_certificates=ours)
    check(volume, tls_certificates=ours)
    # The address is among the names of the certificate, too.
    adopt(where.replace("localhost", "127.0.0.1"), tls_certificates=ours)
    refused(where, NOT_US, tls_certificates=site.certificates("nobody", site.good))
    refused(where, NOT_US, tls_certificates=site.certificates("strangers", site.good, site.other))
    refused(where, NOT_US, tls_certificates=site.certificates("old", site.good, site.good, days=-1))
    # A connection that is not encrypted.
    with pytest.raises(InvalidInput, match="perhaps it wants TLS"):
        adopted(provider(), f"nbd{where}")
    # Whoever opens the volume later is told the same.
    with pytest.raises(ConfigError, match=NOT_US):
        check(volume, tls_certificates=site.directory / "nobody")


def test_a_server_that_is_somebody_else(site: Site) -> None:
    ours = site.certificates("ours", site.good, site.good)
    right = site.certificates("right", site.good, site.good)
    old = site.certificates("old", site.good, site.good, days=-1)
    elsewhere = site.certificates("elsewhere", site.good, site.good, names="DNS:nas.example.org")
    for place in (old, elsewhere):
        refused(site.serve(site.x509(place, verify=False)), NOT_THE_SERVER, tls_certificates=ours)
    where = site.serve(site.x509(right, verify=False))
    adopt(where, tls_certificates=site.certificates("only-the-authority", site.good))
    refused(where, NOT_THE_SERVER, tls_certificates=site.certificates("wrong", site.other))
    # No authority to ask: libnbd would believe any server.
    refused(where, "there is no ca-cert.pem", tls_certificates=site.certificates("none", None))
    refused(where, "TLS needs tls_certificates or tls_psk_file")
    empty = site.certificates("empty", None)
    (empty / "ca-cert.pem").write_text("")
    refused(where, "certificate", tls_certificates=empty)


def test_a_server_that_does_not_encrypt(site: Site) -> None:
    refused(
        site.serve(), "does not encrypt", tls_certificates=site.certificates("ours", site.good, site.good)
    )


def test_keys(site: Site) -> None:
    keys = site.keys("keys", f"alice:{KEY}") / "keys.psk"
    where = site.serve(f"tls-creds-psk,dir={keys.parent}")
    ours = {"tls_psk_file": keys, "tls_username": "alice"}
    check(adopt(where, **ours), **ours)
    other = site.keys("other-keys", f"alice:{OTHER_KEY}", f"bob:{KEY}") / "keys.psk"
    for user in ("alice", "bob"):
        refused(where, NOT_US, tls_psk_file=other, tls_username=user)
    refused(where, "no key of the user", tls_psk_file=keys, tls_username="carol")
    refused(where, NOT_US, tls_certificates=site.certificates("ours", site.good, site.good))


def test_a_unix_socket_has_no_host_to_compare_with(site: Site) -> None:
    """libnbd would believe any server there, too."""
    place = site.certificates("server", site.good, site.good)
    where = site.serve(site.x509(place, verify=False), site.directory / "s.sock")
    refused(where, "a certificate is of a host", tls_certificates=place)
    keys = site.keys("keys", f"alice:{KEY}") / "keys.psk"
    secret = site.serve(f"tls-creds-psk,dir={keys.parent}", site.directory / "k.sock")
    ours = {"tls_psk_file": keys, "tls_username": "alice"}
    check(adopt(secret, **ours), **ours)


def test_a_server_that_is_away_may_be_back(site: Site) -> None:
    volume = VolumeRef("a", 1, f"nbds://localhost:{free_port()}/disk", adopted=True)
    with pytest.raises(SourceUnreadable) as caught:
        check(volume, tls_certificates=site.certificates("ours", site.good))
    assert caught.value.may_pass
