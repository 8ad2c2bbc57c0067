"""The key store ``file``: a directory with one file for each project key.

The directory has the file :data:`MARKER`, so that it is not mistaken for the empty place of a directory that
is not mounted.  It is made with it, in one step, when the first key is made.  A key's file has the key's id
as its name, and :mod:`backupfw.keys.record` as its content.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from typing import Any

from oslo_config import cfg

from backupfw.errors import ConfigError
from backupfw.keys import record, wrapping
from backupfw.keys.base import KeyStore
from backupfw.keys.errors import KeyStoreError, KeyStoreUnavailable, ProjectKeyMissing

#: The file that every directory of keys has.
MARKER = "backupfw-keys"

_MARKER_TEXT = (
    b"These files are the keys of encrypted backups. Whoever has them can read the backups; without them"
    b" nobody can.\nKeep a copy, away from the backups, and let nobody else read it.\n"
)

_KEY_ID = re.compile(r"[0-9a-f]{32}")
#: Of a file that is not complete: its writer may have been killed.
_UNFINISHED = ".new"


class FileKeyStore(KeyStore):
    """Project keys in files."""

    API_VERSION = 1

    def __init__(self, options: Any) -> None:
        self._directory: str = options.directory
        if not os.path.isabs(self._directory):
            raise ConfigError(f"option directory: {self._directory!r} is not an absolute path")
        self._master_file: str | None = options.master_key_file

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the options."""
        return (
            cfg.StrOpt(
                "directory",
                required=True,
                help="The directory of the key files (driver file).  Without them encrypted backups cannot be"
                " read: keep a copy, away from the backups.  All workers need the same directory.  It is made"
                " with the first key; a directory that exists needs a file 'backupfw-keys'.",
            ),
            cfg.StrOpt(
                "master_key_file",
                help="A file of 32 bytes, the master key that wraps the keys in the directory (driver file)."
                "  A name without a slash is a credential of systemd, in $CREDENTIALS_DIRECTORY.",
            ),
        )

    def create(self, project_id: str) -> str:
        """Make a key in a file of its own, which appears when it is complete and durable."""
        master = self._master()
        key_id = secrets.token_hex(16)
        content = record.encoded(wrapping.new_key(), key_id, project_id, master)
        with self._opened(make=True) as directory:
            # One process at a time, so that what is unfinished here was left by a killed one.
            fcntl.flock(directory, fcntl.LOCK_EX)
            for name in os.listdir(directory):
                if name.endswith(_UNFINISHED):
                    os.unlink(name, dir_fd=directory)
            self._write(directory, key_id + _UNFINISHED, content)
            os.rename(key_id + _UNFINISHED, key_id, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
        return key_id

    def wrap(self, key_id: str, secret: bytes, context: bytes) -> bytes:
        """Wrap with AES-256-GCM; see :mod:`backupfw.keys.wrapping`."""
        return wrapping.wrap(self._key(key_id), key_id, secret, context)

    def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Unwrap what :meth:`wrap` made."""
        return wrapping.unwrap(self._key(key_id), key_id, wrapped, context)

    def destroy(self, key_id: str) -> None:
        """Overwrite the key's file with zeros, and remove it."""
        with self._opened() as directory:
            try:
                file = self._open_key(directory, key_id, os.O_WRONLY)
            except ProjectKeyMissing:
                return
            try:
                os.pwrite(file, bytes(os.fstat(file).st_size), 0)
                os.fsync(file)
            finally:
                os.close(file)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(key_id, dir_fd=directory)
            os.fsync(directory)

    def check(self) -> None:
        """Read every key, and write a file; if there is no directory yet, see whether it can be made."""
        master = self._master()
        try:
            with self._opened() as directory:
                for name in sorted(os.listdir(directory)):
                    if _KEY_ID.fullmatch(name):
                        # Another process may have destroyed it since.
                        with contextlib.suppress(ProjectKeyMissing):
                            self._read(directory, name, master)
                name = f"check-{secrets.token_hex(8)}"
                self._write(directory, name, b"")
                os.unlink(name, dir_fd=directory)
        except KeyStoreUnavailable as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            place = os.path.dirname(self._directory)
            while not os.path.exists(place):
                place = os.path.dirname(place)
            if not os.access(place, os.W_OK | os.X_OK):
                problem = f"the directory {self._directory} is missing, and cannot be made in {place}"
                raise KeyStoreUnavailable(problem) from error

    def _key(self, key_id: str) -> bytes:
        master = self._master()
        with self._opened() as directory:
            return self._read(directory, key_id, master)

    def _read(self, directory: int, key_id: str, master: bytes | None) -> bytes:
        file = self._open_key(directory, key_id, os.O_RDONLY)
        try:
            if os.fstat(file).st_mode & 0o077:
                path = os.path.join(self._directory, key_id)
                raise KeyStoreUnavailable(
                    f"others may use the file {path}: its mode must be 600", key_id=key_id
                )
            data = os.pread(file, record.MAX_BYTES, 0)
        finally:
            os.close(file)
        if not data.strip(b"\0"):
            # Its destruction was interrupted.
            raise ProjectKeyMissing(key_id)
        return record.decoded(data, key_id, master)

    def _open_key(self, directory: int, key_id: str, flags: int) -> int:
        """Open the file of a key, which must be a file of the directory's owner.

        :raises ProjectKeyMissing: there is none.
        """
        if not _KEY_ID.fullmatch(key_id):
            raise ProjectKeyMissing(key_id)
        try:
            file = os.open(
                key_id, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=directory
            )
        except FileNotFoundError as error:
            raise ProjectKeyMissing(key_id) from error
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            raise KeyStoreError("its file is a link or no file", key_id=key_id) from error
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.fstat(directory).st_uid:
            return file
        os.close(file)
        raise KeyStoreError("its file is no file, or not of the directory's owner", key_id=key_id)

    def _write(self, directory: int, name: str, content: bytes) -> None:
        """Make a file of mode 600 for the directory's owner, durably."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            os.fchmod(file, 0o600)
            self._give(file, os.fstat(directory))
            while content:
                content = content[os.write(file, content) :]
            os.fsync(file)
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _opened(self, make: bool = False) -> Iterator[int]:
        """Open the directory of the keys.

        :param make: make it if there is none.
        :raises KeyStoreUnavailable: it is missing, not ours, open to others, or the file system fails.
        """
        try:
            directory = self._open_directory(make)
            try:
                self._check_directory(directory)
                yield directory
            finally:
                os.close(directory)
        except OSError as error:
            problem = f"the directory {self._directory}: {error.strerror or type(error).__name__}"
            raise KeyStoreUnavailable(problem) from error

    def _open_directory(self, make: bool) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(self._directory, flags)
        except FileNotFoundError:
            if not make:
                raise
        self._make_directory()
        return os.open(self._directory, flags)

    def _make_directory(self) -> None:
        """Make the directory with its marker, in one step; another process may do the same."""
        parent, name = os.path.split(os.path.normpath(self._directory))
        above = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(above, fcntl.LOCK_EX)
            unfinished = f".{name}{_UNFINISHED}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(unfinished, 0o700, dir_fd=above)
            os.chmod(unfinished, 0o700, dir_fd=above)
            directory = os.open(
                unfinished, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above
            )
            try:
                self._give(directory, os.fstat(above))
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(MARKER, dir_fd=directory)
                self._write(directory, MARKER, _MARKER_TEXT)
                os.fsync(directory)
            finally:
                os.close(directory)
            try:
                os.rename(unfinished, name, src_dir_fd=above, dst_dir_fd=above)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # Another process was first.
                os.unlink(f"{unfinished}/{MARKER}", dir_fd=above)
                os.rmdir(unfinished, dir_fd=above)
            os.fsync(above)
        finally:
            os.close(above)

    def _check_directory(self, directory: int) -> None:
        found = os.fstat(directory)
        if os.geteuid() not in (0, found.st_uid):
            raise KeyStoreUnavailable(
                f"the directory {self._directory} belongs to user {found.st_uid}, not to this service's,"
                f" {os.geteuid()}"
            )
        if found.st_mode & 0o077:
            raise KeyStoreUnavailable(f"others may use the directory {self._directory}: its mode must be 700")
        try:
            os.stat(MARKER, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            raise KeyStoreUnavailable(
                f"the directory {self._directory} is no directory of keys; is it mounted?  If it is the right"
                f" one, make an empty file {MARKER} in it"
            ) from None

    @staticmethod
    def _give(descriptor: int, owner: os.stat_result) -> None:
        """Give what root has made to the owner of the directory around it: the service must read it."""
        if os.geteuid() == 0 and owner.st_uid != 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)

    def _master(self) -> bytes | None:
        """Return the master key; None: none is configured.

        :raises KeyStoreUnavailable: it cannot be read, others may change or read it, or it is no key.
        """
        if self._master_file is None:
            return None
        path = self._master_file
        if "/" not in path:
            credentials = os.environ.get("CREDENTIALS_DIRECTORY")
            if credentials is None:
                problem = f"the master key {path} is a credential of systemd, and this process was given none"
                raise KeyStoreUnavailable(problem)
            path = os.path.join(credentials, path)
        try:
            # Links are followed: credentials may be links.
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                key = file.read(wrapping.KEY_BYTES + 1)
        except OSError as error:
            raise KeyStoreUnavailable(f"the master key {path}: {error.strerror}") from error
        if mode & 0o007:
            raise KeyStoreUnavailable(f"everybody may use the master key {path}: its mode must be 600")
        if len(key) != wrapping.KEY_BYTES:
            raise KeyStoreUnavailable(f"the master key {path}: it must have {wrapping.KEY_BYTES} bytes")
        return key
