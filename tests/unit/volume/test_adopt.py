"""What may become a volume."""

from __future__ import annotations

import errno
import os
import re
import stat
import tarfile
from pathlib import Path

import pytest

from backupfw.errors import InvalidInput
from backupfw.volume.base import VolumeRef
from backupfw.volume.local import opening
from backupfw.volume.local.adopt import adopted
from backupfw.volume.local.formats import _AT_END, _AT_START
from backupfw.volume.local.provider import LocalProvider
from tests.unit.volume.helpers import make_provider, new_volume, read_all


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"raw" * 333)
    return path


def test_a_raw_image_is_adopted_as_it_is(provider: LocalProvider, image: Path) -> None:
    found = provider.adopt(str(image))
    assert (found.location, found.length) == (str(image), 999)
    assert provider.look(VolumeRef("v", 999, found.location, True, found.storage_id)) == found


def test_links_are_resolved_once(provider: LocalProvider, image: Path, tmp_path: Path) -> None:
    (tmp_path / "dir").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "dir" / "disk.raw")
    found = provider.adopt(str(tmp_path / "dir" / ".." / tmp_path.name / "link"))
    assert (found.location, found.length) == (str(image), 999)


@pytest.mark.parametrize("path", ["", "disk.raw", "./disk.raw", "../x", "/tmp/a\0b", "/no/such/file"])
def test_a_path_that_names_nothing_for_sure_is_refused(provider: LocalProvider, path: str) -> None:
    with pytest.raises(InvalidInput):
        provider.adopt(path)


@pytest.mark.parametrize("path", ["/", "/dev", "/dev/null", "/dev/zero", "/proc/version"])
def test_what_is_no_storage_is_refused(provider: LocalProvider, path: str) -> None:
    with pytest.raises(InvalidInput):
        provider.adopt(path)


def test_a_fifo_and_a_socket_are_refused_without_waiting(provider: LocalProvider, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    for name in ("fifo", "socket"):
        with pytest.raises(InvalidInput, match="neither an image file nor a block device"):
            provider.adopt(str(tmp_path / name))


def test_a_loop_of_links_is_refused(provider: LocalProvider, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InvalidInput):
        provider.adopt(str(tmp_path / "a"))


def test_an_empty_file_is_refused(provider: LocalProvider, image: Path) -> None:
    os.truncate(image, 0)
    with pytest.raises(InvalidInput, match="empty"):
        provider.adopt(str(image))


@pytest.mark.parametrize(("offset", "magic", "what"), [*_AT_START, *_AT_END])
def test_formats_that_are_not_raw_are_refused(
    provider: LocalProvider, image: Path, offset: int, magic: bytes, what: str
) -> None:
    content = bytearray(4096)
    start = offset % len(content)
    content[start : start + len(magic)] = magic
    image.write_bytes(content)
    advice = f"is a {re.escape(what)}; (unpack|convert) it first.*--as-raw"
    # What looks like an image that is read through QEMU must be one.
    broken = "image" if re.search("qcow2|vmdk|vhd", what) else advice
    with pytest.raises(InvalidInput, match=broken):
        provider.adopt(str(image))
    assert provider.adopt(str(image), any_format=True).length == len(content)


@pytest.mark.parametrize("packed", ["w:gz", "w:xz", "w:bz2", "w"])
def test_real_archives_are_refused(provider: LocalProvider, image: Path, packed: str) -> None:
    with tarfile.open(image, packed) as archive:  # type: ignore[call-overload]
        archive.add(__file__)
    with pytest.raises(InvalidInput, match="unpack it first"):
        provider.adopt(str(image))


def test_a_luks_container_is_a_disk_like_any_other(provider: LocalProvider, image: Path) -> None:
    image.write_bytes(b"LUKS\xba\xbe\0\x02" + os.urandom(4096))
    assert provider.adopt(str(image)).length == 4104


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_what_cannot_be_written_is_refused(
    provider: LocalProvider, image: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = opening.again

    def refuse(fd: int, flags: int) -> int:
        if flags & os.O_ACCMODE == os.O_RDWR:
            raise OSError(number, os.strerror(number))
        return real(fd, flags)

    monkeypatch.setattr(opening, "again", refuse)
    with pytest.raises(InvalidInput, match="cannot be opened"):
        provider.adopt(str(image))
    # What is only copied needs no more than to be read.
    assert provider.adopt(str(image), to_copy=True).length == 999


def test_our_own_files_are_refused(provider: LocalProvider, tmp_path: Path) -> None:
    volume = new_volume(provider, "v", 1000)
    os.link(provider.where(volume), tmp_path / "hard")
    (tmp_path / "soft").symlink_to(provider.where(volume))
    for path in (provider.where(volume), str(tmp_path / "hard"), str(tmp_path / "soft")):
        with pytest.raises(InvalidInput, match="own files"):
            provider.adopt(path)


def test_a_hard_link_of_somebody_elses_is_fine(provider: LocalProvider, image: Path, tmp_path: Path) -> None:
    os.link(image, tmp_path / "hard")
    found = provider.adopt(str(tmp_path / "hard"))
    assert (found.location, found.length) == (str(tmp_path / "hard"), 999)
    assert found.storage_id == provider.adopt(str(image)).storage_id


def test_a_directory_beside_ours_with_a_longer_name_is_not_ours(
    provider: LocalProvider, tmp_path: Path
) -> None:
    (tmp_path / "volumes2").mkdir()
    (tmp_path / "volumes2" / "disk").write_bytes(b"x")
    assert provider.adopt(str(tmp_path / "volumes2" / "disk")).length == 1


def test_a_file_that_is_replaced_by_a_link_meanwhile_is_refused(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").write_bytes(b"another")
    real = opening.hold

    def swap(path: str) -> int:
        os.unlink(path)
        Path(path).symlink_to(tmp_path / "other")
        return real(path)

    monkeypatch.setattr(opening, "hold", swap)
    with pytest.raises(InvalidInput, match="symbolic link"):
        adopted(str(image), ())


def test_an_adopted_image_is_written_in_place_and_never_deleted(tmp_path: Path, image: Path) -> None:
    provider = make_provider(tmp_path)
    found = provider.adopt(str(image))
    length = found.length
    volume = VolumeRef("v", length, found.location, True, found.storage_id)
    with provider.open_target(volume, 1) as target:
        target.write(100, [b"new"])
    assert image.read_bytes()[99:104] == b"rnewa"
    provider.delete(volume)
    assert read_all(provider, volume) == image.read_bytes()
    # Not even one that has the name of our own files.
    ours = tmp_path / "volume-v.img"
    os.rename(image, ours)
    provider.delete(VolumeRef("v", length, str(ours), adopted=True))
    assert ours.exists()


def test_the_service_s_own_files_are_refused_by_any_name(provider: LocalProvider, tmp_path: Path) -> None:
    (tmp_path / "store" / "deep").mkdir(parents=True)
    own = [tmp_path / "db.sqlite", tmp_path / "store" / "deep" / "pack"]
    for path in own:
        path.write_bytes(b"service")
        os.link(path, tmp_path / f"{path.name}.hard")
        (tmp_path / f"{path.name}.soft").symlink_to(path)
    places = [str(own[0]), str(tmp_path / "store"), str(tmp_path / "not-made-yet")]
    for path in (*own, *tmp_path.glob("*.hard"), *tmp_path.glob("*.soft")):
        with pytest.raises(InvalidInput, match="own files"):
            provider.adopt(str(path), own=places)
