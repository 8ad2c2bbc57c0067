"""Images of other formats than raw, adopted as disks: on the real qemu-nbd."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from backupfw.errors import (
    InvalidInput,
    OperationNotSupported,
    SourceMoved,
    StorageChanged,
    TargetError,
    TaskLost,
)
from backupfw.volume.base import Kind, SnapshotRef, VolumeRef
from backupfw.volume.local import image_chain, qemu
from backupfw.volume.local import provider as provider_module
from backupfw.volume.local.provider import LocalProvider
from tests.servers.programs import missing_programs
from tests.unit.volume.helpers import make_provider, read_all
from tests.waiting import wait_until

pytestmark = pytest.mark.server

LENGTH = 3 << 20
FORMATS = {"qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx"}


@pytest.fixture(autouse=True)
def _qemu() -> None:
    if missing := missing_programs("qemu-nbd", "qemu-img"):
        pytest.skip(missing)


@pytest.fixture
def provider(tmp_path: Path) -> LocalProvider:
    return make_provider(tmp_path, fence_wait=1.0)


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


def content() -> bytes:
    """A disk with data at its ends and a hole."""
    return os.urandom(70_000) + bytes(LENGTH - 70_000 - 1000) + os.urandom(1000)


def make_image(place: Path, data: bytes, format_: str = "qcow2", options: str = "") -> Path:
    raw = place.with_suffix(".raw")
    raw.write_bytes(data)
    more = ("-o", options) if options else ()
    qemu_img("convert", "-f", "raw", "-O", FORMATS[format_], *more, raw, place)
    raw.unlink()
    return place


def adopted(provider: LocalProvider, image: Path, **how: bool) -> VolumeRef:
    found = provider.adopt(str(image), **how)
    return VolumeRef("v", found.length, found.location, adopted=True, storage_id=found.storage_id)


def running(directory: Path) -> list[str]:
    """Return the processes that a provider started for images in a directory, and that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
                files = [str(file.readlink()) for file in (entry / "fd").iterdir()]
            except OSError:
                continue
            if b"qemu-nbd" in words and any(file.startswith(f"{directory}/") for file in files):
                found.append(entry.name)
    return found


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("qcow2", ""),
        ("qcow2", "compat=0.10"),
        ("vmdk", ""),
        ("vmdk", "subformat=streamOptimized"),
        ("vhd", "subformat=dynamic,force_size=on"),
        ("vhd", "subformat=fixed,force_size=on"),
        ("vhdx", ""),
    ],
)
def test_an_image_is_read_as_the_disk_in_it(
    provider: LocalProvider, tmp_path: Path, format_: str, options: str
) -> None:
    data = content()
    image = make_image(tmp_path / "disk", data, format_, options)
    volume = adopted(provider, image)
    assert volume.length == LENGTH
    assert str(volume.storage_id).endswith(f" {format_}")
    assert read_all(provider, volume) == data
    assert provider.look(volume).storage_id == volume.storage_id
    with provider.open_point(volume, "p") as point:
        kinds = {extent.kind for extent in point.extents(0, LENGTH)}
    # The blocks of the two other formats are about as large as this disk.
    assert Kind.ZERO in kinds or format_ in ("vhd", "vhdx")
    # The same bytes as they are, where that is said.
    raw = VolumeRef("r", image.stat().st_size, str(image), adopted=True)
    assert provider.adopt(str(image), any_format=True).length == raw.length
    assert read_all(provider, raw) == image.read_bytes()


@pytest.mark.parametrize("format_", FORMATS)
def test_an_image_is_written_as_the_disk_in_it(provider: LocalProvider, tmp_path: Path, format_: str) -> None:
    options = "force_size=on" if format_ == "vhd" else ""
    volume = adopted(provider, make_image(tmp_path / "disk", content(), format_, options))
    data = bytearray(os.urandom(LENGTH))
    with provider.open_target(volume, 1) as target:
        assert target.length == LENGTH
        target.write(0, [data[:1000], memoryview(data)[1000:]])
        target.zero(100_001, 1_500_003)
        data[100_001:1_600_004] = bytes(1_500_003)
        target.write(5, [b"abc"])
        data[5:8] = b"abc"
        target.flush()
    assert read_all(provider, volume) == data
    qemu_img("convert", "-f", FORMATS[format_], "-O", "raw", tmp_path / "disk", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data


def test_stream_optimized_images_are_not_written(provider: LocalProvider, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk", content(), "vmdk", "subformat=streamOptimized")
    with pytest.raises(StorageChanged, match="can only be read"):
        provider.open_target(adopted(provider, image), 1)


def test_images_that_name_other_files_are_refused(provider: LocalProvider, tmp_path: Path) -> None:
    """No image shows a file of the host, whatever its header names."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"root:x:" + bytes(LENGTH))
    cases = {
        "backing": ("-F", "raw", "-b", secret),
        "json": ("-u", "-F", "raw", "-b", f'json:{{"driver":"raw","file":{{"filename":"{secret}"}}}}'),
        "protocol": ("-u", "-F", "raw", "-b", "nbd://localhost/x"),
        "data_file": ("-o", f"data_file={tmp_path / 'data'},data_file_raw=on"),
    }
    for name, words in cases.items():
        image = tmp_path / name
        qemu_img("create", "-f", "qcow2", *words, image, str(LENGTH))
        with pytest.raises(InvalidInput, match=r"backing file|data file"):
            provider.adopt(str(image))
        with pytest.raises(InvalidInput):
            provider.adopt(str(image), to_copy=True)
    undeclared = tmp_path / "undeclared"
    qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", secret, undeclared, str(LENGTH))
    extension = struct.pack(">I", 0xE2792ACA)
    assert extension in undeclared.read_bytes()
    undeclared.write_bytes(undeclared.read_bytes().replace(extension, b"\1\2\3\4"))
    with pytest.raises(InvalidInput, match="not declared"):
        provider.adopt(str(undeclared))
    for kind in ("monolithicFlat", "twoGbMaxExtentSparse"):
        qemu_img("create", "-f", "vmdk", "-o", f"subformat={kind}", tmp_path / f"{kind}.vmdk", str(LENGTH))
        with pytest.raises(InvalidInput, match="several files"):
            provider.adopt(str(tmp_path / f"{kind}.vmdk"))
    (tmp_path / "child.vmdk").write_bytes(_descriptor(secret))
    with pytest.raises(InvalidInput, match="several files"):
        provider.adopt(str(tmp_path / "child.vmdk"))


def test_a_parent_behind_the_end_of_the_descriptor_is_refused_and_never_opened(
    provider: LocalProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "disk.vmdk"
    qemu_img("create", "-f", "vmdk", image, str(LENGTH))
    data = bytearray(image.read_bytes())
    offset, size = struct.unpack_from("<QQ", data, 28)
    text = bytes(data[offset * 512 : (offset + size) * 512]).rstrip(b"\0").replace(b"parentCID=ffffffff", b"")
    sectors = len(text) // 512 + 1
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        hint = f'parentFileNameHint="nbd://127.0.0.1:{server.getsockname()[1]}/x"\n'.encode()
        text = text.ljust(sectors * 512, b"\n") + b"parentCID=12345678\n" + hint
        data[offset * 512 : offset * 512 + len(text)] = text
        struct.pack_into("<Q", data, 36, sectors)
        image.write_bytes(data)
        with pytest.raises(InvalidInput, match="depends on another one"):
            provider.adopt(str(image))
        # As if it had changed since it was judged.
        monkeypatch.setattr(image_chain, "_vmdk", lambda *_: None)
        assert provider.adopt(str(image)).length == LENGTH
        with pytest.raises(TimeoutError):
            server.accept()


def _descriptor(secret: Path) -> bytes:
    text = (
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW {LENGTH // 512} FLAT "{secret}" 0\n'
    )
    return text.encode()


def test_an_image_that_names_another_file_since_it_was_adopted_is_refused(
    provider: LocalProvider, tmp_path: Path
) -> None:
    """Also when the header changes after it was judged, and before QEMU reads it."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"root:x:" + bytes(LENGTH))
    image = make_image(tmp_path / "disk", content())
    volume = adopted(provider, image)
    evil = tmp_path / "evil"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on", evil, str(LENGTH))
    secret.write_bytes(b"root:x:" + bytes(LENGTH))
    innocent = image.read_bytes()
    image.write_bytes(evil.read_bytes())
    with pytest.raises(StorageChanged, match="data file"):
        provider.open_point(volume, "p")
    real = image_chain.Chain

    def judged_before(*args: object, **more: object) -> image_chain.Chain:
        image.write_bytes(innocent)
        chain = real(*args, **more)  # type: ignore[arg-type]
        image.write_bytes(evil.read_bytes())
        return chain

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provider_module, "Chain", judged_before)
        with pytest.raises(StorageChanged, match="names other files"):
            provider.open_point(volume, "p")
    wait_until("the end of qemu-nbd", lambda: not running(tmp_path))


def test_a_backing_chain_in_a_named_directory_is_read(tmp_path: Path) -> None:
    bases, data = tmp_path / "bases", content()
    bases.mkdir()
    (bases / "bottom.raw").write_bytes(data)
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", "bottom.raw", bases / "middle.qcow2")
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", bases / "middle.qcow2", image)
    with pytest.raises(InvalidInput, match="backing_dirs"):
        make_provider(tmp_path).adopt(str(image))
    provider = make_provider(tmp_path, backing_dirs=[str(bases)])
    volume = adopted(provider, image)
    assert read_all(provider, volume) == data
    before = (bases / "bottom.raw").read_bytes(), (bases / "middle.qcow2").read_bytes()
    with provider.open_target(volume, 1) as target:
        target.write(0, [b"new"])
        target.zero(1000, LENGTH - 1000)
        target.flush()
    assert read_all(provider, volume) == b"new" + data[3:1000] + bytes(LENGTH - 1000)
    assert ((bases / "bottom.raw").read_bytes(), (bases / "middle.qcow2").read_bytes()) == before
    (bases / "out").symlink_to("/etc/passwd")
    evil = tmp_path / "evil.qcow2"
    qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", bases / "out", evil, str(LENGTH))
    with pytest.raises(InvalidInput, match="backing_dirs"):
        provider.adopt(str(evil))


def test_an_image_that_a_machine_uses_is_in_use(provider: LocalProvider, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk", content())
    volume = adopted(provider, image)
    place = tmp_path / "machine.sock"
    machine = subprocess.Popen(["qemu-nbd", "-t", "-f", "qcow2", "-k", str(place), str(image)])
    try:
        wait_until("the socket", place.exists)
        with pytest.raises(InvalidInput, match="--in-use"):
            provider.adopt(str(image))
        assert provider.adopt(str(image), in_use=True).length == LENGTH
        assert provider.look(volume).length == LENGTH
        with pytest.raises(SourceMoved, match="running machine"):
            provider.open_point(volume, "p")
        with pytest.raises(SourceMoved, match="running machine"):
            provider.create_snapshot(SnapshotRef("s", volume, LENGTH), True)
        with pytest.raises(TargetError, match="running machine"):
            provider.open_target(volume, 1)
    finally:
        machine.kill()
        machine.wait()
    assert not list((tmp_path / "volumes").glob("*snapshot*"))
    with provider.open_point(volume, "p"):
        started = subprocess.run(
            ["qemu-nbd", "-f", "qcow2", "-k", str(place), str(image)], capture_output=True
        )
    assert b"lock" in started.stderr


def test_another_writer_is_noticed(provider: LocalProvider, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk", content())
    with provider.open_point(adopted(provider, image), "p") as point:
        point.check_still()
        with image.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(b"more")
        with pytest.raises(SourceMoved):
            point.check_still()


def test_snapshots_and_copies_of_images_are_raw(provider: LocalProvider, tmp_path: Path) -> None:
    data = content()
    volume = adopted(provider, make_image(tmp_path / "disk", data))
    snapshot = SnapshotRef("s", volume, LENGTH)
    snapshot = SnapshotRef("s", volume, LENGTH, provider.create_snapshot(snapshot, True))
    copy = VolumeRef("c", LENGTH + 1000)
    copy = VolumeRef("c", copy.length, provider.create(copy, volume))
    with provider.open_target(volume, 1) as target:
        target.zero(0, LENGTH)
        target.flush()
    assert read_all(provider, snapshot) == data
    assert read_all(provider, copy) == data + bytes(1000)
    assert os.stat(provider.where(copy)).st_blocks * 512 < LENGTH // 2


def test_images_grow_where_their_format_can(provider: LocalProvider, tmp_path: Path) -> None:
    data = content()
    volume = adopted(provider, make_image(tmp_path / "disk", data))
    provider.extend(volume, 2 * LENGTH - 100)
    assert provider.look(volume).length == 2 * LENGTH
    assert read_all(provider, volume) == data + bytes(LENGTH)
    grown = VolumeRef("v", 3 * LENGTH, volume.location, True, volume.storage_id)
    with pytest.raises(StorageChanged, match="shorter"):
        provider.open_point(grown, "p")
    with pytest.raises(StorageChanged, match="shorter"):
        provider.open_target(grown, 1)
    other = adopted(provider, make_image(tmp_path / "other", data, "vhdx"))
    with pytest.raises(OperationNotSupported, match="vhdx"):
        provider.extend(other, 2 * LENGTH)


def test_an_image_with_a_backing_file_grows_by_zeros(tmp_path: Path) -> None:
    """Whatever the backing file has behind the image's old end, and wherever its name leads to."""
    bases, data = tmp_path / "bases", os.urandom(2 * LENGTH)
    bases.mkdir()
    (bases / "bottom.raw").write_bytes(data)
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", "bases/bottom.raw", image, str(LENGTH))
    provider = make_provider(tmp_path, backing_dirs=[str(bases)])
    volume = adopted(provider, image)
    provider.extend(volume, 2 * LENGTH)
    assert read_all(provider, volume) == data[:LENGTH] + bytes(LENGTH)


def test_a_replaced_or_converted_image_is_refused(provider: LocalProvider, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk", content())
    volume = adopted(provider, image)
    with image.open("r+b") as file:
        file.write(bytes(512))
    with pytest.raises(StorageChanged, match="no valid qcow2 image"):
        provider.open_point(volume, "p")
    with image.open("r+b") as file:
        file.write(b"QFI\xfb" + struct.pack(">I", 3) + os.urandom(496))
    with pytest.raises(StorageChanged):
        provider.open_point(volume, "p")
    image.rename(tmp_path / "away")
    make_image(image, content())
    with pytest.raises(StorageChanged, match="another one"):
        provider.open_point(volume, "p")


def test_without_qemu_the_package_is_named(
    provider: LocalProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(tmp_path / "disk", content())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidInput, match="package qemu-utils"):
        provider.adopt(str(image))


def test_a_later_attempt_ends_the_earlier_ones_process(provider: LocalProvider, tmp_path: Path) -> None:
    volume = adopted(provider, make_image(tmp_path / "disk", content()))
    with provider.open_target(volume, 1) as early:
        early.write(0, [b"early"])
        with provider.open_target(volume, 2) as late:
            late.write(0, [b"late "])
            late.flush()
            for call in (lambda: early.write(0, [b"early"]), lambda: early.zero(0, 9), early.flush):
                with pytest.raises(TaskLost):
                    call()
            with pytest.raises(TargetError, match="later"):
                provider.open_target(volume, 1)
    assert read_all(provider, volume)[:5] == b"late "
    wait_until("the end of qemu-nbd", lambda: not running(tmp_path))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_killed_workers_process_writes_no_more(
    provider: LocalProvider, tmp_path: Path, frozen: bool
) -> None:
    volume = adopted(provider, make_image(tmp_path / "disk", content()))
    words = [volume.id, str(volume.length), str(volume.location), str(volume.storage_id)]
    script = Path(__file__).with_name("image_writer.py")
    child = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), *words],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        assert running(tmp_path)
        child.send_signal(signal.SIGSTOP if frozen else signal.SIGKILL)
        with provider.open_target(volume, 2) as late:
            late.zero(0, LENGTH)
            late.flush()
            child.kill()
            child.wait()
            assert len(running(tmp_path)) == 1
        assert read_all(provider, volume) == bytes(LENGTH)
    finally:
        child.kill()
        child.wait()
    wait_until("the end of qemu-nbd", lambda: not running(tmp_path))


def test_a_stopped_process_ends_in_an_error(
    provider: LocalProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "_TIMEOUT", 0.5)
    monkeypatch.setattr(qemu, "_END", 0.2)
    volume = adopted(provider, make_image(tmp_path / "disk", content()))
    point = provider.open_point(volume, "p")
    (pid,) = running(tmp_path)
    os.kill(int(pid), signal.SIGSTOP)
    with pytest.raises(Exception, match="did not answer"):
        point.read_into(0, memoryview(bytearray(1000)))
    point.close()
    wait_until("the end of qemu-nbd", lambda: not running(tmp_path))
