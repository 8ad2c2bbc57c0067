"""The chunk store on a directory, of a local disk or a mounted share."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar

from blake3 import blake3

from backupfw.chunkstore.base import Body, Capabilities, CheckReport, ChunkStore, ObjectInfo
from backupfw.chunkstore.checks import round_trip, try_item
from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    DeleteFailed,
    IntegrityError,
    InvalidName,
    NoSpace,
    NotSupported,
    RangeError,
    Unavailable,
)
from backupfw_posix import options as posix_options
from backupfw_posix.deleting import delete_objects
from backupfw_posix.directories import READ, STEP, descend, opened
from backupfw_posix.errors import reading, translate, translated
from backupfw_posix.listing import walk
from backupfw_posix.names import TEMPORARY, location
from backupfw_posix.temporary import TemporaryFile, remove_leftovers, temporary_file

if TYPE_CHECKING:
    from oslo_config import cfg

#: How often a put makes its directory again when a delete has just removed it.  Each time, a delete of
#: another object succeeded; so many in a row are no coincidence but a fault.
_PUBLISH_TRIES = 1000
#: Directories remembered as durable; forgotten all at once when there are more.
_REMEMBERED = 1 << 16
#: What ``link`` says on file systems without hard links.
_NO_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK))


class PosixStore(ChunkStore):
    """Objects as files below ``path``, one directory per container; names.py has the form.

    Every operation opens the root anew, so that a share mounted, or mounted again, later is seen and
    no stale handle of it is kept.
    """

    wire_name = "cinder.backup.drivers.posix.PosixBackupDriver"
    # A leading dot is the driver's own; file systems keep lost+found in their root.
    container_pattern = r"(?!\.)(?!lost\+found$).+"
    # System calls on a local disk return, so a thread that watches each of them would be a waste.
    layer_defaults: ClassVar[Mapping[str, object]] = {"operation_timeout": 0.0}

    def __init__(self, name: str, options: Any) -> None:
        super().__init__(name, options)
        self._root: str = options.path
        self._fsync: bool = options.fsync
        self._file_mode = int(options.file_mode, 8)
        self._directory_mode = int(options.directory_mode, 8)
        self._min_free: int = options.min_free_bytes
        self._require_mount: bool = options.require_mount
        self._plain: bool = options.names == posix_options.PLAIN
        self._closed = False
        # Names of a directory from the root -> inode whose entry in its parent this process has synced.
        # A put that finds a directory cannot know whether the process that made it has synced it.
        self._durable: dict[tuple[bytes, ...], int] = {}
        # Containers of checks under way: their names are refused to everybody else.
        self._check_containers: set[str] = set()

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the driver's options."""
        return posix_options.options()

    @property
    def capabilities(self) -> Capabilities:
        """Conditional puts; a delete of many keys costs each directory one fsync."""
        return Capabilities(if_absent=True, bulk_delete=1000, join_gap=128 << 10)

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Write a temporary file, verify, sync and move it (see :meth:`ChunkStore.put`).

        :raises Unavailable: also when the temporary file was taken away meanwhile.
        """
        path, name = location(key, plain=self._plain)
        with translated(self.name, container, key), self._container(container) as directory:
            self._require_space(directory, body.length, container, key)
            with temporary_file(directory, self._file_mode, self._directory_mode) as file:
                self._write(file, body, container, key)
                try:
                    self._publish(directory, container, file, path, name, if_absent)
                except FileExistsError as error:
                    raise AlreadyExists(
                        "an object is there", store=self.name, container=container, key=key
                    ) from error

    def _write(self, file: TemporaryFile, body: Body, container: str, key: str) -> None:
        """Write the body, refuse it if it is not what it declares, and make it durable."""
        hasher = blake3()
        length = 0
        pieces = iter(body.pieces())
        while True:
            try:
                piece = next(pieces, None)
            except OSError as error:
                # An error of the source, not of the store: it is not translated, and not tried again.
                raise ChunkStoreError(
                    f"the body cannot be read: {error.strerror}",
                    store=self.name,
                    container=container,
                    key=key,
                ) from error
            if piece is None:
                break
            length += len(piece)
            if length > body.length:
                break
            # A copy, so that what is hashed is what is written: the caller fills its buffer anew when it
            # has given this put up because a write hangs, and the write goes on after that.
            copy = memoryview(bytes(piece))
            hasher.update(copy)
            while copy:
                copy = copy[os.write(file.descriptor, copy) :]
        problem = None
        if length > body.length:
            problem = f"the body has more than the {body.length} bytes declared"
        elif length < body.length:
            problem = f"the body has {length} bytes, {body.length} were declared"
        elif hasher.digest() != body.checksum:
            problem = "the body's bytes do not match the declared checksum"
        if problem:
            raise IntegrityError(problem, store=self.name, container=container, key=key)
        if self._fsync:
            os.fsync(file.descriptor)
            # The object is rarely read soon, so other files get its pages in the page cache.
            os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            # A network file system reports failed writes at close, which must come before the rename.
            os.close(os.dup(file.descriptor))

    def _publish(
        self,
        container: int,
        container_name: str,
        file: TemporaryFile,
        path: tuple[bytes, ...],
        name: bytes,
        if_absent: bool,
    ) -> None:
        """Give the finished file its name, making its directories."""
        for _ in range(_PUBLISH_TRIES):
            if not file.is_there():
                break
            try:
                with self._made(container, container_name, path) as directory:
                    if if_absent:
                        os.link(
                            file.name,
                            name,
                            src_dir_fd=file.directory,
                            dst_dir_fd=directory,
                            follow_symlinks=False,
                        )
                    else:
                        os.rename(file.name, name, src_dir_fd=file.directory, dst_dir_fd=directory)
                    if self._fsync:
                        os.fsync(directory)
                    return
            except FileNotFoundError:
                # A delete has removed a directory that was empty until now.
                continue
            except OSError as error:
                if if_absent and error.errno in _NO_LINKS:
                    raise NotSupported(
                        "this file system has no hard links, which if_absent needs", store=self.name
                    ) from error
                raise
        raise Unavailable("the file being written was removed by somebody else", store=self.name)

    @contextmanager
    def _made(self, container: int, container_name: str, path: tuple[bytes, ...]) -> Iterator[int]:
        """Open a directory below a container, making what is missing durably."""
        full = (container_name.encode(), *path)
        here = os.open(b".", READ, dir_fd=container)
        try:
            for depth, name in enumerate(path, start=2):
                try:
                    below = os.open(name, READ, dir_fd=here)
                except FileNotFoundError:
                    with suppress(FileExistsError):
                        os.mkdir(name, self._directory_mode, dir_fd=here)
                    below = os.open(name, READ, dir_fd=here)
                # A key may have hundreds of parts: two descriptors at a time are enough.
                parent, here = here, below
                try:
                    if self._fsync:
                        self._make_durable(full[:depth], parent, below)
                finally:
                    os.close(parent)
            yield here
        finally:
            os.close(here)

    def _make_durable(self, path: tuple[bytes, ...], parent: int, directory: int) -> None:
        """Sync a directory's entry in its parent, unless this process has done so before.

        If another process removed the directory, and a new one got the same inode number, this does not
        notice it; but the process that made the new one syncs its entry.
        """
        inode = os.fstat(directory).st_ino
        if self._durable.get(path) == inode:
            return
        os.fsync(parent)
        if len(self._durable) >= _REMEMBERED:
            self._durable.clear()
        self._durable[path] = inode

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Read the file or a range of it (see :meth:`ChunkStore.get`)."""
        path, name = location(key, plain=self._plain)
        with (
            translated(self.name, container, key),
            self._container(container) as directory,
            reading(self.name, container, key),
            descend(directory, path) as parent,
            # NONBLOCK: an open must not hang, even if somebody has put a pipe here.
            opened(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, parent) as descriptor,
        ):
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, "")
            if not stat.S_ISREG(status.st_mode):
                raise IntegrityError(
                    "what stands there is no file", store=self.name, container=container, key=key
                )
            if offset is None or length is None:
                offset, length = 0, status.st_size
            elif offset + length > status.st_size:
                raise RangeError(
                    f"bytes {offset}+{length} of {status.st_size}",
                    store=self.name,
                    container=container,
                    key=key,
                )
            data = _read(descriptor, offset, length)
        if len(data) != length:
            raise IntegrityError(
                f"the file ended after {len(data)} of {length} bytes",
                store=self.name,
                container=container,
                key=key,
                temporary=True,
            )
        return data

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Walk the directories the prefix leads to (see :meth:`ChunkStore.list`)."""
        with translated(self.name, container):
            yield from walk(lambda: self._container(container), prefix, start_after, plain=self._plain)

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Unlink the files and remove empty directories (see :meth:`ChunkStore.delete`)."""
        self._require_open()
        with translated(self.name, container), ExitStack() as stack:
            try:
                directory = stack.enter_context(self._opened_container(container))
            except FileNotFoundError:
                return
            prefix = container.encode()
            errors = delete_objects(
                directory,
                keys,
                lambda path: self._forget((prefix, *path)),
                fsync=self._fsync,
                plain=self._plain,
            )
        if errors:
            raise DeleteFailed(
                {key: translate(error, self.name, container, key) for key, error in errors.items()},
                store=self.name,
                container=container,
            )

    def _forget(self, path: tuple[bytes, ...]) -> None:
        self._durable.pop(path, None)

    def ensure_container(self, container: str) -> None:
        """Make the container's directory; clear away what killed writers left in it."""
        self._require_open()
        self._judge(container)
        with translated(self.name, container):
            # With require_mount, a missing directory is a share that is not mounted: do not make it.
            if not self._require_mount:
                os.makedirs(self._root, self._directory_mode, exist_ok=True)
            with self._opened_root(READ) as root:
                with suppress(FileExistsError):
                    os.mkdir(container.encode(), self._directory_mode, dir_fd=root)
                if self._fsync:
                    os.fsync(root)
                with opened(container.encode(), STEP, root) as directory:
                    remove_leftovers(directory)

    def remove_container(self, container: str) -> bool:
        """Remove the directory unless it holds something (see :meth:`ChunkStore.remove_container`).

        While a put is under way its file is in the directory, so the directory stays.
        """
        self._require_open()
        with translated(self.name, container):
            self._judge(container)
            try:
                with self._opened_root(READ) as root:
                    with opened(container.encode(), STEP, root) as directory:
                        remove_leftovers(directory)
                        with suppress(FileNotFoundError):
                            os.rmdir(TEMPORARY, dir_fd=directory)
                    os.rmdir(container.encode(), dir_fd=root)
                    if self._fsync:
                        os.fsync(root)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                    return False
                raise
        return True

    def list_containers(self) -> Iterator[str]:
        """Yield the directories in the root, sorted."""
        self._require_open()
        with translated(self.name):
            try:
                names = self._directories()
            except FileNotFoundError:
                names = []
        yield from names

    def _directories(self) -> Sequence[str]:
        with self._opened_root(READ) as root, os.scandir(root) as entries:
            names = [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
        return sorted(name.decode() for name in names if _names_container(name))

    def check(self) -> CheckReport:
        """Try the directory, a round trip and the free space; clear away leftovers."""
        container = f".check-{secrets.token_hex(16)}"
        items = [try_item("directory", lambda: self._check_directory(container))]
        if items[0].ok:
            try:
                items += round_trip(self, container)
                items.append(try_item("space", self._check_space))
                items.append(try_item("leftovers", self._check_leftovers))
            finally:
                self._remove_check_container(container)
        return CheckReport(tuple(items))

    def _check_directory(self, container: str) -> str | None:
        self._check_containers.add(container)
        self.ensure_container(container)
        return self._root

    def _check_space(self) -> str | None:
        with translated(self.name), self._opened_root(STEP) as root:
            self._require_space(root, 0, "", "")
            status = os.fstatvfs(root)
        return f"{status.f_bavail * status.f_frsize >> 20} MiB free"

    def _check_leftovers(self) -> str | None:
        removed = 0
        with translated(self.name):
            for container in self._directories():
                with self._opened_container(container) as directory:
                    removed += remove_leftovers(directory)
        return f"{removed} unfinished files of killed writers removed" if removed else None

    def _remove_check_container(self, container: str) -> None:
        with suppress(OSError), self._opened_root(STEP) as root:
            with suppress(OSError), opened(container.encode(), STEP, root) as directory:
                os.rmdir(TEMPORARY, dir_fd=directory)
            os.rmdir(container.encode(), dir_fd=root)
        self._check_containers.discard(container)

    def close(self) -> None:
        """Refuse further calls; nothing is held open between calls."""
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise ChunkStoreError("the store is closed", store=self.name)

    def _judge(self, container: str) -> None:
        """Refuse a name that is no directory in the root; core has checked names before."""
        if container in self._check_containers:
            return
        if not container or container.startswith(".") or "/" in container or "\0" in container:
            raise InvalidName("no container can have this name", store=self.name, container=ascii(container))

    @contextmanager
    def _opened_root(self, flags: int) -> Iterator[int]:
        # The root itself may be a symbolic link, because the deployer chose it and no user can.
        try:
            descriptor = os.open(self._root, flags & ~os.O_NOFOLLOW)
        except FileNotFoundError:
            if self._require_mount:
                raise Unavailable("the store's directory is not there", store=self.name) from None
            raise
        try:
            if self._require_mount and not _is_mount_point(descriptor):
                raise Unavailable("the store's directory is not mounted", store=self.name)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _opened_container(self, container: str) -> Iterator[int]:
        self._judge(container)
        with self._opened_root(STEP) as root, opened(container.encode(), STEP, root) as directory:
            yield directory

    @contextmanager
    def _container(self, container: str) -> Iterator[int]:
        """Open a container's directory; NotFound that says so if there is none."""
        self._require_open()
        with ExitStack() as stack:
            with translated(self.name, container):
                directory = stack.enter_context(self._opened_container(container))
            yield directory

    def _require_space(self, directory: int, size: int, container: str, key: str) -> None:
        if not self._min_free:
            return
        status = os.fstatvfs(directory)
        free = status.f_bavail * status.f_frsize
        if free - size < self._min_free:
            raise NoSpace(
                f"{free} bytes are free; {self._min_free} must remain after writing {size}",
                store=self.name,
                container=container,
                key=key,
            )


def _read(descriptor: int, offset: int, length: int) -> bytes:
    """Read up to ``length`` bytes; less only if the file ends before."""
    data = os.pread(descriptor, length, offset)
    if len(data) == length:
        return data
    # One call returns 2 GiB at most.
    pieces = [data]
    done = len(data)
    while done < length and pieces[-1]:
        pieces.append(os.pread(descriptor, length - done, offset + done))
        done += len(pieces[-1])
    return b"".join(pieces)


def _is_mount_point(directory: int) -> bool:
    here, above = os.fstat(directory), os.stat(b"..", dir_fd=directory)
    # The second condition holds for ``/``.
    return here.st_dev != above.st_dev or here.st_ino == above.st_ino


def _names_container(name: bytes) -> bool:
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return False
    return not text.startswith(".") and text != "lost+found"
