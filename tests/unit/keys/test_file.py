"""The key store 'file': modes, owners, links, other directories, and what killed processes leave."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backupfw.chunkstore.options import option_values
from backupfw.errors import ConfigError
from backupfw.keys.errors import KeyStoreError, KeyStoreUnavailable, ProjectKeyMissing
from backupfw.keys.file import MARKER, FileKeyStore
from tests.unit.keys.support import opened


@pytest.fixture
def keys(tmp_path: Path) -> FileKeyStore:
    return opened(tmp_path)


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    old = os.umask(request.param)
    yield
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_nothing_is_made_before_the_first_key(tmp_path: Path, keys: FileKeyStore) -> None:
    keys.check()
    with pytest.raises(KeyStoreUnavailable):
        keys.wrap("0" * 32, b"s", b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("umask")
def test_nobody_else_may_read_whatever_the_umask(tmp_path: Path, keys: FileKeyStore) -> None:
    key_id = keys.create("project")
    assert mode(tmp_path / "keys") == 0o700
    assert mode(tmp_path / "keys" / key_id) == 0o600
    assert mode(tmp_path / "keys" / MARKER) == 0o600
    assert sorted(os.listdir(tmp_path / "keys")) == sorted([key_id, MARKER])
    assert os.listdir(tmp_path) == ["keys"]


def test_a_key_is_durable_when_create_returns(
    tmp_path: Path, keys: FileKeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File and directories are synchronised after the last change of each."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()).removeprefix(str(tmp_path)))
        fsync(descriptor)

    def renamed(old: str, new: str, **where: int) -> None:
        done.append(f"{old} -> {new}")
        rename(old, new, **where)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    key_id = keys.create("project")
    assert done == [
        f"/.keys.new/{MARKER}",
        "/.keys.new",
        ".keys.new -> keys",
        "",
        f"/keys/{key_id}.new",
        f"{key_id}.new -> {key_id}",
        "/keys",
    ]


def test_a_destroyed_key_is_overwritten_before_it_is_removed(
    tmp_path: Path, keys: FileKeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id = keys.create("project")
    other = tmp_path / "another-name"
    os.link(tmp_path / "keys" / key_id, other)
    done: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd))[1]
    )
    keys.destroy(key_id)
    assert not other.read_bytes().strip(b"\0")
    assert done == [str(tmp_path / "keys" / key_id), str(tmp_path / "keys")]


def test_a_key_whose_destruction_was_interrupted_is_gone(tmp_path: Path, keys: FileKeyStore) -> None:
    key_id = keys.create("project")
    path = tmp_path / "keys" / key_id
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ProjectKeyMissing):
        keys.wrap(key_id, b"s", b"")
    keys.check()
    keys.destroy(key_id)
    assert not path.exists()


def test_what_a_killed_process_left_is_removed(tmp_path: Path, keys: FileKeyStore) -> None:
    (tmp_path / ".keys.new").mkdir()
    (tmp_path / ".keys.new" / MARKER).write_text("ha")
    first = keys.create("project")
    assert os.listdir(tmp_path) == ["keys"]
    assert (tmp_path / "keys" / MARKER).stat().st_size > 100
    (tmp_path / "keys" / f"{'0' * 32}.new").write_text("{")
    second = keys.create("project")
    assert sorted(os.listdir(tmp_path / "keys")) == sorted([first, second, MARKER])


def test_the_first_keys_of_many_threads(tmp_path: Path) -> None:
    for number in range(20):
        place = tmp_path / str(number)
        place.mkdir()
        each = [opened(place) for _ in range(6)]
        with ThreadPoolExecutor(6) as pool:
            ids = list(pool.map(lambda keys: keys.create("project"), each))
        assert sorted(os.listdir(place)) == ["keys"]
        assert sorted(os.listdir(place / "keys")) == sorted([*ids, MARKER])


@pytest.mark.parametrize("use", ["create", "wrap", "unwrap", "destroy", "check"])
def test_an_unmounted_directory_is_not_used(tmp_path: Path, keys: FileKeyStore, use: str) -> None:
    key_id = keys.create("project")
    wrapped = keys.wrap(key_id, b"s", b"")
    (tmp_path / "keys").rename(tmp_path / "elsewhere")
    (tmp_path / "keys").mkdir(0o700)
    calls = {
        "create": lambda: keys.create("project"),
        "wrap": lambda: keys.wrap(key_id, b"s", b""),
        "unwrap": lambda: keys.unwrap(key_id, wrapped, b""),
        "destroy": lambda: keys.destroy(key_id),
        "check": keys.check,
    }
    with pytest.raises(KeyStoreUnavailable, match=f"is it mounted.*make an empty file {MARKER} in it"):
        calls[use]()
    assert os.listdir(tmp_path / "keys") == []


def test_a_directory_that_the_operator_made(tmp_path: Path, keys: FileKeyStore) -> None:
    (tmp_path / "keys").mkdir(0o700)
    (tmp_path / "keys" / MARKER).touch()
    key_id = keys.create("project")
    assert keys.unwrap(key_id, keys.wrap(key_id, b"s", b""), b"") == b"s"


def test_a_directory_or_file_that_others_may_read_is_refused(tmp_path: Path, keys: FileKeyStore) -> None:
    key_id = keys.create("project")
    (tmp_path / "keys" / key_id).chmod(0o640)
    with pytest.raises(KeyStoreUnavailable, match="its mode must be 600"):
        keys.wrap(key_id, b"s", b"")
    with pytest.raises(KeyStoreUnavailable, match="its mode must be 600"):
        keys.check()
    (tmp_path / "keys" / key_id).chmod(0o600)
    (tmp_path / "keys").chmod(0o750)
    with pytest.raises(KeyStoreUnavailable, match="its mode must be 700"):
        keys.wrap(key_id, b"s", b"")
    (tmp_path / "keys").chmod(0o700)
    assert keys.wrap(key_id, b"s", b"")


def test_links_are_not_followed(tmp_path: Path, keys: FileKeyStore) -> None:
    key_id = keys.create("project")
    (tmp_path / "keys").rename(tmp_path / "real")
    (tmp_path / "keys").symlink_to("real")
    for use in (lambda: keys.create("project"), lambda: keys.wrap(key_id, b"s", b""), keys.check):
        with pytest.raises(KeyStoreUnavailable):
            use()
    (tmp_path / "keys").unlink()
    (tmp_path / "real").rename(tmp_path / "keys")
    (tmp_path / "keys" / key_id).rename(tmp_path / "key")
    (tmp_path / "keys" / key_id).symlink_to(tmp_path / "key")
    for use in (lambda: keys.wrap(key_id, b"s", b""), lambda: keys.destroy(key_id), keys.check):
        with pytest.raises(KeyStoreError, match="a link or no file"):
            use()
    assert (tmp_path / "key").read_bytes().strip(b"\0"), "the link's target was overwritten"


@pytest.mark.parametrize("thing", ["directory", "fifo"])
def test_a_key_must_be_a_file(tmp_path: Path, keys: FileKeyStore, thing: str) -> None:
    keys.create("project")
    path = tmp_path / "keys" / ("0" * 32)
    path.mkdir() if thing == "directory" else os.mkfifo(path, 0o600)
    with pytest.raises(KeyStoreError, match="no file"):
        keys.wrap("0" * 32, b"s", b"")
    with pytest.raises(KeyStoreError):
        keys.destroy("0" * 32)
    assert path.exists()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users' files")


@pytest.mark.root
@needs_root
def test_files_of_another_user_are_refused(tmp_path: Path, keys: FileKeyStore) -> None:
    key_id = keys.create("project")
    os.chown(tmp_path / "keys" / key_id, 4711, 4711)
    with pytest.raises(KeyStoreError, match="not of the directory's owner"):
        keys.wrap(key_id, b"s", b"")


@pytest.mark.root
@needs_root
def test_what_root_makes_is_given_to_the_service(tmp_path: Path) -> None:
    place = tmp_path / "state"
    place.mkdir()
    os.chown(place, 4711, 4712)
    keys = opened(place)
    key_id = keys.create("project")
    for path in (place / "keys", place / "keys" / MARKER, place / "keys" / key_id):
        assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712), path


@pytest.mark.root
@needs_root
def test_a_directory_of_another_user_is_refused(tmp_path: Path, keys: FileKeyStore) -> None:
    keys.create("project")
    tmp_path.chmod(0o755)
    os.chown(tmp_path / "keys", 4711, 4711)
    child = os.fork()
    if child == 0:
        try:
            for parent in tmp_path.parents:
                if parent.stat().st_mode & 0o001 == 0:
                    parent.chmod(0o711)
            os.seteuid(4712)
            keys.check()
        except KeyStoreUnavailable as error:
            os._exit(0 if re.search("belongs to user 4711|Permission denied", str(error)) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_missing_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").touch()
    deep = FileKeyStore(option_values(FileKeyStore.options(), directory=f"{tmp_path}/keys/below/keys"))
    for use in (deep.check, opened(tmp_path).check, lambda: deep.create("project")):
        with pytest.raises(KeyStoreUnavailable, match="Not a directory"):
            use()
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path))
    with pytest.raises(KeyStoreUnavailable, match=f"is missing, and cannot be made in {tmp_path}$"):
        FileKeyStore(option_values(FileKeyStore.options(), directory=f"{tmp_path}/a/b")).check()


def test_the_directory_must_be_an_absolute_path() -> None:
    with pytest.raises(ConfigError, match="option directory: 'keys' is not an absolute path"):
        FileKeyStore(option_values(FileKeyStore.options(), directory="keys"))


def test_a_master_key_of_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "backupfw-keys").write_bytes(b"k" * 32)
    # Systemd's are readable for a group where an access control list names the user.
    (tmp_path / "credentials" / "backupfw-keys").chmod(0o440)
    options = {"directory": str(tmp_path / "keys"), "master_key_file": "backupfw-keys"}
    keys = FileKeyStore(option_values(FileKeyStore.options(), **options))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(KeyStoreUnavailable, match="a credential of systemd, and this process was given none"):
        keys.create("project")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    key_id = keys.create("project")
    assert keys.unwrap(key_id, keys.wrap(key_id, b"s", b""), b"") == b"s"
    (tmp_path / "credentials" / "backupfw-keys").chmod(0o444)
    with pytest.raises(KeyStoreUnavailable, match="everybody may use the master key"):
        keys.wrap(key_id, b"s", b"")


def test_check_reads_every_key(tmp_path: Path, keys: FileKeyStore) -> None:
    for _ in range(3):
        key_id = keys.create("project")
    path = tmp_path / "keys" / key_id
    path.write_bytes(path.read_bytes().replace(b'"key": "', b'"key": "A'))
    with pytest.raises(KeyStoreError, match=f"{key_id}: its record is damaged"):
        keys.check()


def test_a_full_disk_may_pass(tmp_path: Path, keys: FileKeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = keys.create("project")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(KeyStoreUnavailable, match="No space left") as caught:
        keys.create("project")
    assert caught.value.may_pass
    monkeypatch.undo()
    second = keys.create("project")
    assert sorted(os.listdir(tmp_path / "keys")) == sorted([first, second, MARKER])
