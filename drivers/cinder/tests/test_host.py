"""What this host makes of connections: os-brick is real, its connections are those of the type ``local``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from backupfw_cinder.host import Host
from backupfw_cinder.options import cinder_options

from backupfw.errors import ConfigError, InvalidVolume
from backupfw.volume.base import VolumeRef
from tests.servers.programs import missing_programs

SECRET = "chap-secret"


def values(directory: Path, **given: Any) -> Any:
    options = {opt.dest: opt.default for opt in cinder_options()}
    return SimpleNamespace(**{**options, "attach_dir": str(directory / "attached"), **given})


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(values(tmp_path))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(4096))
    os.truncate(path, 1 << 20)
    return path


def connection(path: Path, **more: Any) -> dict[str, Any]:
    return {"driver_volume_type": "local", "device_path": str(path), **more}


def volume(length: int = 1 << 20) -> VolumeRef:
    return VolumeRef("6ba7b810-9dad-11d1-80b4-00c04fd430c8", length)


def content(host: Host, info: dict[str, Any]) -> bytes:
    """Return what a backup would read."""
    connected = host.connect(info)
    local = host.local(connected)
    try:
        with local.open_point(host.reference(volume(), connected, local), "p") as point:
            buffer = bytearray(point.length)
            point.read_into(0, memoryview(buffer))
            return bytes(buffer)
    finally:
        host.disconnect(info, connected.device)


def test_a_host_that_lacks_what_only_some_volumes_need_is_no_news(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from os_brick.initiator.connectors import iscsi, nvmeof
    from oslo_concurrency.processutils import ProcessExecutionError

    def missing(*_words: str, **_options: Any) -> None:
        raise ProcessExecutionError("no such file")

    assert iscsi.ISCSIConnector("", execute=missing).get_initiator() is None
    monkeypatch.setattr(nvmeof, "open", missing, raising=False)
    assert nvmeof.NVMeOFConnector._is_native_multipath_supported() is False
    assert caplog.records == []
    nvmeof.LOG.warning("anything else")
    assert [record.getMessage() for record in caplog.records] == ["anything else"]


def test_a_file_is_read_and_written(host: Host, disk: Path) -> None:
    info = connection(disk)
    assert content(host, info) == disk.read_bytes()
    connected = host.connect(info)
    local = host.local(connected)
    with local.open_target(host.reference(volume(), connected, local), 1) as target:
        target.write(5000, [b"restored"])
        target.flush()
    assert disk.read_bytes()[5000:5008] == b"restored"


def test_bytes_that_look_like_an_image_are_bytes(host: Host, disk: Path, tmp_path: Path) -> None:
    """A tenant can write the header of an image, which names a file of the host."""
    if missing := missing_programs("qemu-img"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * (1 << 20))
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(disk)]
    subprocess.run(command, check=True)
    os.truncate(disk, 1 << 20)
    for format_ in ({}, {"format": "raw"}, {"format": None}):
        assert content(host, connection(disk, **format_)) == disk.read_bytes()


@pytest.mark.server
def test_an_image_is_read_as_a_disk_with_its_snapshots(host: Host, tmp_path: Path) -> None:
    if missing := missing_programs("qemu-img", "qemu-nbd"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    base, top = tmp_path / "volume", tmp_path / "volume.snapshot"
    base.write_bytes(b"b" * (1 << 20))
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base.name, "-F", "raw", str(top)]
    subprocess.run(command, check=True)
    assert content(host, connection(top, format="qcow2")) == b"b" * (1 << 20)


def test_other_formats_and_kinds_are_refused(host: Host, disk: Path) -> None:
    with pytest.raises(InvalidVolume, match="vmdk"):
        host.connect(connection(disk, format="vmdk"))
    with pytest.raises(InvalidVolume, match="unheard-of"):
        host.connect({"driver_volume_type": "unheard-of"})


def test_what_cannot_be_connected_is_an_error_on_the_way(
    host: Host, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for info in (
        {"driver_volume_type": "local"},
        {
            "driver_volume_type": "nfs",
            "export": "127.0.0.1:/none",
            "name": "volume-1",
            "options": "-o x",
            "auth_password": SECRET,
        },
    ):
        with pytest.raises(OSError, match="cannot be connected") as failed:
            host.connect(info)
        assert "127.0.0.1" not in str(failed.value)
    assert SECRET not in caplog.text


@pytest.mark.root
def test_it_says_what_this_host_can_reach(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    found = Host(values(tmp_path, connector_ip="192.0.2.7")).connector()
    assert found["ip"] == "192.0.2.7"
    assert found["host"]
    assert found["nqn"]


def test_the_directory_must_be_absolute(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="attach_dir"):
        Host(values(tmp_path, attach_dir="attached"))
