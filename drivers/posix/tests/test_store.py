"""What the POSIX driver promises beyond the conformance suite."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from backupfw_posix import deleting, temporary
from backupfw_posix import store as store_module
from backupfw_posix.errors import translate
from backupfw_posix.store import PosixStore

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.errors import (
    ChunkStoreError,
    DeleteFailed,
    IntegrityError,
    InvalidName,
    NoSpace,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.options import option_values
from backupfw.errors import ConfigError

X = Body.from_bytes(b"x")


def make(path: Path, **values: object) -> PosixStore:
    return PosixStore(
        "posix", option_values(PosixStore.options(), path=str(path), **{"fsync": False, **values})
    )


#: Puts, gets, lists and deletes a key of 500 parts with few descriptors.
FEW_DESCRIPTORS = """
import os, resource, sys
from backupfw_posix.store import PosixStore
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.options import option_values

store = PosixStore("posix", option_values(PosixStore.options(), path=sys.argv[1], fsync=False))
key = "/".join("a" * 500)
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 24, used + 24))
store.put("c", key, Body.from_bytes(b"x"))
assert store.get("c", key) == b"x"
assert [info.key for info in store.list("c")] == [key]
store.delete("c", [key])
store.close()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> Iterator[PosixStore]:
    store = make(root)
    store.ensure_container("c")
    yield store
    store.close()


def path_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def everything(path: Path) -> set[str]:
    return {str(each.relative_to(path)) for each in path.rglob("*")}


class TestNothingLeavesTheRoot:
    @pytest.mark.parametrize(
        "container", ["..", ".", "", "../out", "/etc", "c/../../out", ".tmp", ".check-1", "a/b", "c\0d"]
    )
    def test_containers(self, tmp_path: Path, store: PosixStore, container: str) -> None:
        before = everything(tmp_path)
        for use in (
            lambda: store.ensure_container(container),
            lambda: store.put(container, "key", X),
            lambda: store.get(container, "key"),
            lambda: list(store.list(container)),
            lambda: store.delete(container, ["key"]),
        ):
            with pytest.raises(InvalidName):
                use()
            with pytest.raises(InvalidName):
                stack(store).put(container, "key", X)
        assert everything(tmp_path) == before

    @pytest.mark.parametrize("key", ["../../out", "a/../../../out", "..", ".", "/etc/passwd", "a//b"])
    def test_keys(self, tmp_path: Path, store: PosixStore, key: str) -> None:
        with pytest.raises(InvalidName):
            stack(store).put("c", key, X)
        # Without core's layer, too, such a key is only a strange name within the container.
        store.put("c", key, X)
        outside = [name for name in everything(tmp_path) if not name.startswith("root")]
        assert outside == []
        assert [name for name in everything(tmp_path / "root") if not name.startswith("c")] == []

    def test_links_to_directories(self, tmp_path: Path, root: Path, store: PosixStore) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret.o").write_bytes(b"secret")
        (root / "c" / "link.d").symlink_to(outside)
        (root / "linked").symlink_to(outside)
        for use in (
            lambda: store.put("c", "link/new", X),
            lambda: store.get("c", "link/secret"),
            lambda: store.delete("c", ["link/secret"]),
            lambda: store.put("linked", "new", X),
            lambda: store.get("linked", "secret"),
            lambda: list(store.list("linked")),
            lambda: store.ensure_container("linked"),
        ):
            with pytest.raises(ChunkStoreError) as caught:
                use()
            assert not caught.value.temporary
        assert list(store.list("c")) == []
        assert list(store.list_containers()) == ["c"]
        assert everything(outside) == {"secret.o"}
        assert (outside / "secret.o").read_bytes() == b"secret"

    def test_links_to_files(self, tmp_path: Path, root: Path, store: PosixStore) -> None:
        outside = tmp_path / "secret"
        outside.write_bytes(b"secret")
        (root / "c" / "link.o").symlink_to(outside)
        with pytest.raises(ChunkStoreError):
            store.get("c", "link")
        assert list(store.list("c")) == []
        # A put replaces the link, not what it points to; a delete removes the link.
        store.put("c", "link", X)
        assert outside.read_bytes() == b"secret"
        (root / "c" / "again.o").symlink_to(outside)
        store.delete("c", ["again"])
        assert outside.read_bytes() == b"secret"

    def test_a_linked_temporary_directory(self, tmp_path: Path, root: Path, store: PosixStore) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_bytes(b"x")
        (root / "c" / ".tmp").symlink_to(outside)
        with pytest.raises(ChunkStoreError):
            store.put("c", "key", X)
        with pytest.raises(ChunkStoreError):
            store.ensure_container("c")
        assert everything(outside) == {"file"}

    def test_the_root_itself_may_be_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        store = make(tmp_path / "link")
        store.ensure_container("c")
        store.put("c", "key", X)
        assert (tmp_path / "real" / "c" / "key.o").read_bytes() == b"x"

    def test_what_is_no_file_does_not_hang(self, root: Path, store: PosixStore) -> None:
        os.mkfifo(root / "c" / "pipe.o")
        (root / "c" / "folder.o").mkdir()
        for key in ("pipe", "folder"):
            with pytest.raises(ChunkStoreError) as caught:
                store.get("c", key)
            assert not caught.value.temporary
        assert list(store.list("c")) == []

    @pytest.mark.parametrize("what", ["directory", "symbolic link", "no directory"])
    def test_what_took_an_objects_place_is_named(
        self, tmp_path: Path, root: Path, store: PosixStore, what: str
    ) -> None:
        store.put("c", "a/key", X)
        place = root / "c" / "a.d" / "key.o"
        place.rename(tmp_path / "moved")
        if what == "directory":
            place.mkdir()
        elif what == "symbolic link":
            place.symlink_to(tmp_path / "moved")
        else:
            place.parent.rmdir()
            place.parent.write_bytes(b"x")
        for part in ((), (0, 1)):
            # As damage of this object: who reads many tells which it is and goes on with the others.
            with pytest.raises(IntegrityError, match=what) as caught:
                store.get("c", "a/key", *part)
            assert not caught.value.temporary
            assert (caught.value.container, caught.value.key) == ("c", "a/key")
            assert str(tmp_path) not in str(caught.value)
        if what != "symbolic link":
            with pytest.raises(ChunkStoreError, match=what):
                store.put("c", "a/key", X)
            with pytest.raises(DeleteFailed, match=what):
                store.delete("c", ["a/key"])
        assert list(store.list("c")) == []

    def test_a_container_that_is_a_link_is_no_damage_of_an_object(
        self, tmp_path: Path, root: Path, store: PosixStore
    ) -> None:
        (root / "c").rename(tmp_path / "c")
        (root / "c").symlink_to(tmp_path / "c")
        with pytest.raises(ChunkStoreError, match="no directory") as caught:
            store.get("c", "a/key")
        assert not isinstance(caught.value, IntegrityError)


class TestWriting:
    def test_a_kill_in_mid_put_leaves_nothing_visible(self, root: Path, store: PosixStore) -> None:
        store.put("c", "old", Body.from_bytes(b"old"))
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(root)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        other = make(root)
        # While it lives its file is nobody's to remove.
        other.ensure_container("c")
        assert len(list((root / "c" / ".tmp").iterdir())) == 1
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        writer.stdin.close()
        assert [info.key for info in store.list("c")] == ["old"]
        assert store.get("c", "old") == b"old"
        with pytest.raises(NotFound):
            store.get("c", "new")
        assert len(list((root / "c" / ".tmp").iterdir())) == 1
        report = store.check()
        assert report.ok
        assert "1 unfinished" in report.items[-1].detail
        assert list((root / "c" / ".tmp").iterdir()) == []

    def test_the_next_backup_clears_leftovers(self, root: Path, store: PosixStore) -> None:
        store.put("c", "key", X)
        (root / "c" / ".tmp" / "left").write_bytes(b"half")
        store.ensure_container("c")
        assert list((root / "c" / ".tmp").iterdir()) == []

    def test_a_clean_up_between_making_and_locking_is_survived(
        self, root: Path, store: PosixStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.put("c", "first", X)
        real = temporary.fcntl.flock
        cleaned = []

        def flock(descriptor: int, how: int) -> None:
            if not cleaned:
                cleaned.append(True)
                make(root).ensure_container("c")
            real(descriptor, how)

        monkeypatch.setattr(temporary.fcntl, "flock", flock)
        store.put("c", "second", X)
        assert store.get("c", "second") == b"x"

    def test_a_lost_temporary_file_is_an_error_for_a_time(
        self, root: Path, store: PosixStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def write(self: PosixStore, file: temporary.TemporaryFile, *rest: object) -> None:
            for each in (root / "c" / ".tmp").iterdir():
                each.unlink()

        monkeypatch.setattr(PosixStore, "_write", write)
        with pytest.raises(Unavailable) as caught:
            store.put("c", "key", X)
        assert caught.value.temporary
        assert list(store.list("c")) == []

    @pytest.mark.parametrize("size", [1000, (1 << 20) + 1000])
    def test_bytes_that_change_during_the_write_are_not_stored(
        self, store: PosixStore, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        # The caller has given the put up while the last write hung, and fills its buffer anew.
        store.put("c", "key", Body.from_bytes(b"old"))
        buffer = bytearray(b"a" * size)
        body = Body.from_bytes(memoryview(buffer))
        real = os.write
        done = 0

        def write(descriptor: int, data: bytes | memoryview) -> int:
            nonlocal done
            if done + len(data) == size:
                buffer[:] = b"b" * size
            written = real(descriptor, data[:700])
            done += written
            return written

        monkeypatch.setattr(store_module.os, "write", write)
        store.put("c", "key", body)
        assert done == size
        assert buffer == b"b" * size
        stored = store.get("c", "key")
        equal = stored == b"a" * size
        assert equal

    def test_bytes_that_change_before_they_are_read_are_refused(
        self, store: PosixStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.put("c", "key", Body.from_bytes(b"old"))
        buffer = bytearray(b"a" * (2 << 20))
        body = Body.from_bytes(memoryview(buffer))
        real = os.write

        def write(descriptor: int, data: bytes | memoryview) -> int:
            buffer[:] = b"b" * len(buffer)
            return real(descriptor, data)

        monkeypatch.setattr(store_module.os, "write", write)
        with pytest.raises(IntegrityError):
            store.put("c", "key", body)
        assert store.get("c", "key") == b"old"

    def test_order_of_syncs(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = make(root, fsync=True)
        store.ensure_container("c")
        events: list[str] = []

        def name_of(descriptor: int) -> str:
            path = path_of(descriptor)
            return "file" if "/.tmp/" in path else os.path.relpath(path, root)

        real_sync, real_rename = os.fsync, os.rename
        monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync " + name_of(fd)), real_sync(fd)))
        monkeypatch.setattr(os, "rename", lambda *a, **k: (events.append("rename"), real_rename(*a, **k)))
        store.put("c", "x/y/key", X)
        assert events == ["sync file", "sync c", "sync c/x.d", "rename", "sync c/x.d/y.d"]
        events.clear()
        store.put("c", "x/y/key2", X)
        assert events == ["sync file", "rename", "sync c/x.d/y.d"]
        events.clear()
        # Another process does not know who made the directories, nor how far that one came.
        make(root, fsync=True).put("c", "x/y/key3", X)
        assert events == ["sync file", "sync c", "sync c/x.d", "rename", "sync c/x.d/y.d"]
        events.clear()
        store.delete("c", ["x/y/key", "x/y/key2", "x/y/key3"])
        assert events == ["sync c"]
        events.clear()
        # The same path, made anew, is synced anew.
        store.put("c", "x/y/key", X)
        assert events == ["sync file", "sync c", "sync c/x.d", "rename", "sync c/x.d/y.d"]

    def test_a_failed_sync_shows_nothing(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = make(root, fsync=True)
        store.ensure_container("c")

        def fail(_: int) -> None:
            raise OSError(errno.EIO, "no disk")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(Unavailable):
            store.put("c", "key", X)
        assert list(store.list("c")) == []

    def test_modes(self, root: Path) -> None:
        old = os.umask(0)
        try:
            store = make(root, file_mode="0604", directory_mode="0705")
            store.ensure_container("c")
            store.put("c", "a/b", X)
        finally:
            os.umask(old)
        assert (root / "c" / "a.d" / "b.o").stat().st_mode & 0o7777 == 0o604
        assert (root / "c" / "a.d").stat().st_mode & 0o7777 == 0o705


class TestSpace:
    def test_min_free_bytes(self, root: Path, store: PosixStore) -> None:
        status = os.statvfs(root)
        free = status.f_bavail * status.f_frsize
        full = make(root, min_free_bytes=free * 2)
        with pytest.raises(NoSpace):
            full.put("c", "key", X)
        assert list(store.list("c")) == []
        report = full.check()
        assert not report.ok

    def test_a_full_disk(self, store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def write(_: int, __: object) -> int:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(store_module.os, "write", write)
        with pytest.raises(NoSpace) as caught:
            store.put("c", "key", X)
        assert not caught.value.temporary
        assert list(store.list("c")) == []


class TestDirectories:
    def test_empty_ones_go_with_the_last_object(self, root: Path, store: PosixStore) -> None:
        store.put("c", "a/b/c/one", X)
        store.put("c", "a/b/two", X)
        store.delete("c", ["a/b/c/one"])
        assert everything(root / "c") == {".tmp", "a.d", "a.d/b.d", "a.d/b.d/two.o"}
        store.delete("c", ["a/b/two"])
        assert everything(root / "c") == {".tmp"}

    def test_a_put_makes_a_vanished_directory_again(
        self, store: PosixStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.rename
        lost = []

        def rename(source: bytes, target: bytes, **where: int) -> None:
            # What a delete of the last object in there does at the worst moment.
            if len(lost) < 3:
                lost.append(True)
                os.rmdir(path_of(where["dst_dir_fd"]))
            real(source, target, **where)

        monkeypatch.setattr(store_module.os, "rename", rename)
        store.put("c", "a/b/key", X)
        assert len(lost) == 3
        assert store.get("c", "a/b/key") == b"x"

    def test_sixteen_threads_and_two_instances(self, root: Path, store: PosixStore) -> None:
        stores = [store, make(root)]
        errors: list[BaseException] = []
        start = threading.Barrier(16)

        def work(number: int) -> None:
            mine = stores[number % 2]
            start.wait()
            try:
                for turn in range(60):
                    key = f"one/deep/path/{number}"
                    mine.put("c", key, Body.from_bytes(b"%d" % turn))
                    assert stores[turn % 2].get("c", key) == b"%d" % turn
                    mine.delete("c", [key])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert everything(root / "c") == {".tmp"}

    def test_a_key_of_many_parts_needs_few_descriptors(self, store: PosixStore, root: Path) -> None:
        # In a process of its own: what other tests hold open in this one is nobody's to count.
        done = subprocess.run(
            [sys.executable, "-c", FEW_DESCRIPTORS, str(root)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert list(store.list("c")) == []

    def test_no_descriptor_is_left_open(self, store: PosixStore) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(30):
            store.put("c", f"a/{number}", X)
            store.get("c", f"a/{number}")
            with pytest.raises(NotFound):
                store.get("c", f"b/{number}")
            with pytest.raises(ChunkStoreError):
                store.put("c", "bad", Body(b"x", 1, b"0" * 32))
        next(store.list("c"))
        store.delete("c", [f"a/{number}" for number in range(30)])
        assert store.check().ok
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_listing_visits_only_what_the_prefix_leads_to(
        self, store: PosixStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for first in "abc":
            for second in "xyz":
                store.put("c", f"{first}/{second}/key", X)
        from backupfw_posix import listing

        read = []
        real = os.listdir
        monkeypatch.setattr(listing.os, "listdir", lambda fd: (read.append(path_of(fd)), real(fd))[1])
        assert [info.key for info in store.list("c", "b/y")] == ["b/y/key"]
        assert [Path(path).name for path in read] == ["b.d", "y.d"]
        read.clear()
        assert [info.key for info in store.list("c", "", "b/z")] == [
            "b/z/key",
            "c/x/key",
            "c/y/key",
            "c/z/key",
        ]
        assert "a.d" not in [Path(path).name for path in read]


class TestErrors:
    @pytest.mark.parametrize(
        ("number", "kind", "temporary"),
        [
            (errno.ENOENT, NotFound, False),
            (errno.ENOSPC, NoSpace, False),
            (errno.EDQUOT, NoSpace, False),
            (errno.EACCES, PermissionDenied, False),
            (errno.EPERM, PermissionDenied, False),
            (errno.EROFS, PermissionDenied, False),
            (errno.ESTALE, Unavailable, True),
            (errno.EIO, Unavailable, True),
            (errno.ETIMEDOUT, Unavailable, True),
            (errno.EMFILE, Unavailable, True),
            (errno.ENAMETOOLONG, InvalidName, False),
            (errno.EXDEV, ChunkStoreError, False),
        ],
    )
    def test_table(self, number: int, kind: type[ChunkStoreError], temporary: bool) -> None:
        error = translate(OSError(number, "text", "/srv/secret/path"), "main", "c", "key")
        assert type(error) is kind
        assert error.temporary is temporary
        assert "/srv/secret/path" not in str(error)

    def test_a_read_only_directory(self) -> None:
        # Not below pytest's own directory: that one is closed to the user this test becomes.
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            store = make(root)
            store.ensure_container("c")
            store.put("c", "key", X)
            for path in (root / "c" / ".tmp", root / "c", root):
                path.chmod(0o555)
            result = subprocess.run(
                [sys.executable, "-c", _READ_ONLY, name], capture_output=True, text=True, check=False
            )
            for path in (root, root / "c", root / "c" / ".tmp"):
                path.chmod(0o755)
        assert result.stdout.split() == ["PermissionDenied", "DeleteFailed", "PermissionDenied", "False"], (
            result.stderr
        )

    def test_a_source_that_fails_is_not_the_stores_fault(self, store: PosixStore) -> None:
        class Gone(Body):
            def pieces(self) -> Iterator[memoryview]:
                raise FileNotFoundError(errno.ENOENT, "gone")
                yield

        with pytest.raises(ChunkStoreError) as caught:
            store.put("c", "key", Gone(b"x", 1, b""))
        assert not isinstance(caught.value, NotFound)
        assert not caught.value.temporary

    def test_a_delete_that_partly_fails_names_the_rest(
        self, store: PosixStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key in ("a/1", "a/2", "b/3"):
            store.put("c", key, X)
        real = os.unlink

        def unlink(name: bytes, **where: int) -> None:
            if name == b"1.o":
                raise OSError(errno.EIO, "bad sector")
            real(name, **where)

        monkeypatch.setattr(deleting.os, "unlink", unlink)
        with pytest.raises(DeleteFailed) as caught:
            store.delete("c", ["a/1", "a/2", "b/3"])
        assert set(caught.value.errors) == {"a/1"}
        assert isinstance(caught.value.errors["a/1"], Unavailable)
        assert caught.value.temporary
        assert [info.key for info in store.list("c")] == ["a/1"]

    def test_require_mount(self, root: Path, store: PosixStore) -> None:
        shared = make(root, require_mount=True)
        with pytest.raises(Unavailable):
            shared.put("c", "key", X)
        with pytest.raises(Unavailable):
            shared.ensure_container("new")
        assert not shared.check().ok
        missing = make(root / "missing", require_mount=True)
        with pytest.raises(Unavailable):
            missing.ensure_container("c")
        assert not (root / "missing").exists()
        assert make(Path("/proc"), require_mount=True).get is not None
        with pytest.raises(NotFound):
            make(Path("/proc"), require_mount=True).get("no-such-container", "key")

    def test_nothing_is_written_when_the_root_is_gone(self, root: Path) -> None:
        with pytest.raises(NotFound):
            make(root).put("c", "key", X)
        assert not root.exists()
        assert list(make(root).list_containers()) == []

    @pytest.mark.parametrize(
        "values", [{"path": "relative"}, {"file_mode": "rw"}, {"directory_mode": "9"}, {"min_free_bytes": -1}]
    )
    def test_wrong_options(self, root: Path, values: dict[str, object]) -> None:
        with pytest.raises(ConfigError):
            option_values(PosixStore.options(), **{"path": str(root), **values})


_WRITER = """
import sys, os
from pathlib import Path
from backupfw_posix.store import PosixStore
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.options import option_values

class Half(Body):
    def pieces(self):
        yield memoryview(b"half of it")
        print("half", flush=True)
        sys.stdin.read()

store = PosixStore("posix", option_values(PosixStore.options(), path=sys.argv[1]))
store.put("c", "new", Half(b"", 100, b"0" * 32))
"""

_READ_ONLY = """
import os, sys
from backupfw_posix.store import PosixStore
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.chunkstore.options import option_values

store = PosixStore("posix", option_values(PosixStore.options(), path=sys.argv[1]))
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for use in (
    lambda: store.put("c", "new", Body.from_bytes(b"x")),
    lambda: store.delete("c", ["key"]),
    lambda: store.ensure_container("new"),
):
    try:
        use()
    except ChunkStoreError as error:
        print(type(error).__name__)
print(store.check().ok)
"""


class TestPlainNames:
    """Directories that another program writes, and reads."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> PosixStore:
        (tmp_path / "f3/80/id").mkdir(parents=True)
        (tmp_path / "f3/80/id/volume-00001").write_bytes(b"theirs")
        return make(tmp_path, names="plain")

    def test_what_is_there_is_seen(self, store: PosixStore) -> None:
        assert list(store.list_containers()) == ["f3"]
        assert [(one.key, one.size) for one in store.list("f3")] == [("80/id/volume-00001", 6)]
        assert store.get("f3", "80/id/volume-00001", 1, 2) == b"he"

    def test_what_is_put_is_seen_by_others(self, store: PosixStore, tmp_path: Path) -> None:
        store.put("f3", "80/id/volume_metadata", X)
        assert (tmp_path / "f3/80/id/volume_metadata").read_bytes() == b"x"
        assert [one.key for one in store.list("f3", "80/id/volume_")] == ["80/id/volume_metadata"]
        assert [one.key for one in store.list("f3", "", "80/id/volume-00001")] == ["80/id/volume_metadata"]

    def test_what_is_deleted_takes_its_empty_directories_along(
        self, store: PosixStore, tmp_path: Path
    ) -> None:
        store.delete("f3", ["80/id/volume-00001"])
        assert list(store.list("f3")) == []
        assert not (tmp_path / "f3/80").exists()

    def test_order(self, store: PosixStore) -> None:
        keys = ["a", "a-b", "a.d", "ab/c", "b.o", "b/a", "b/a.d/x", "z"]
        store.ensure_container("c")
        for key in keys:
            store.put("c", key, X)
        assert [one.key for one in store.list("c")] == sorted(keys, key=str.encode)

    def test_no_key_is_an_object_and_the_beginning_of_others(self, store: PosixStore) -> None:
        for key in ("80/id", "80/id/volume-00001/x"):
            with pytest.raises(ChunkStoreError):
                store.put("f3", key, X)
        with pytest.raises(IntegrityError):
            store.get("f3", "80/id")

    def test_links_lead_nowhere(self, store: PosixStore, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"?")
        (tmp_path / "f3/link").symlink_to(tmp_path / "secret")
        assert [one.key for one in store.list("f3", "l")] == []
        with pytest.raises(ChunkStoreError):
            store.get("f3", "link")
