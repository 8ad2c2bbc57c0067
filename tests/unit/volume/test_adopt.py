"""What may become a volume."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from backupfw.errors import InvalidInput
from backupfw.volume.base import VolumeRef
from backupfw.volume.local.adopt import _FORMATS, adopted
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
    assert provider.adopt(str(image)) == (str(image), 999)


def test_links_are_resolved_once(provider: LocalProvider, image: Path, tmp_path: Path) -> None:
    (tmp_path / "dir").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "dir" / "disk.raw")
    assert provider.adopt(str(tmp_path / "dir" / ".." / tmp_path.name / "link")) == (str(image), 999)


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


@pytest.mark.parametrize("magic", _FORMATS)
def test_formats_that_are_not_raw_are_refused(provider: LocalProvider, image: Path, magic: bytes) -> None:
    image.write_bytes(magic + b"rest" * 100)
    with pytest.raises(InvalidInput, match=f"is a {_FORMATS[magic]} image; only raw"):
        provider.adopt(str(image))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_what_cannot_be_written_is_refused(
    provider: LocalProvider, image: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: str, flags: int) -> int:
        assert flags & os.O_ACCMODE == os.O_RDWR
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InvalidInput, match="cannot be read and written"):
        provider.adopt(str(image))


def test_our_own_files_are_refused(provider: LocalProvider, tmp_path: Path) -> None:
    volume = new_volume(provider, "v", 1000)
    os.link(str(volume.location), tmp_path / "hard")
    (tmp_path / "soft").symlink_to(str(volume.location))
    for path in (str(volume.location), str(tmp_path / "hard"), str(tmp_path / "soft")):
        with pytest.raises(InvalidInput, match="own volumes"):
            provider.adopt(path)


def test_a_hard_link_of_somebody_elses_is_fine(provider: LocalProvider, image: Path, tmp_path: Path) -> None:
    os.link(image, tmp_path / "hard")
    assert provider.adopt(str(tmp_path / "hard")) == (str(tmp_path / "hard"), 999)


def test_a_directory_beside_ours_with_a_longer_name_is_not_ours(
    provider: LocalProvider, tmp_path: Path
) -> None:
    (tmp_path / "volumes2").mkdir()
    (tmp_path / "volumes2" / "disk").write_bytes(b"x")
    assert provider.adopt(str(tmp_path / "volumes2" / "disk"))[1] == 1


def test_a_replaced_file_is_refused(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def swap(path: str, flags: int) -> int:
        os.rename(path, f"{path}.old")
        Path(path).write_bytes(b"another")
        return real(path, flags)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(InvalidInput, match="replaced"):
        adopted(str(image), (), True)


def test_an_adopted_image_is_written_in_place_and_never_deleted(tmp_path: Path, image: Path) -> None:
    provider = make_provider(tmp_path)
    location, length = provider.adopt(str(image))
    volume = VolumeRef("v", length, location, adopted=True)
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
