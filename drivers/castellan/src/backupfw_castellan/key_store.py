"""The key store ``castellan``: each project key is an opaque object of a key manager.

Castellan gets and stores; the key itself wraps here, as that of the key store ``file`` does.  An object has
the record of :mod:`backupfw.keys.record`, which binds the project's id to the key.  Castellan does not
separate projects in Vault, and in Barbican all keys belong to the service's user: they are found by id only.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from castellan import key_manager
from castellan.common import exception
from castellan.common.objects.opaque_data import OpaqueData
from keystoneauth1.identity import Password
from oslo_config import cfg
from oslo_context.context import RequestContext

from backupfw.keys import record, wrapping
from backupfw.keys.base import KeyStore
from backupfw.keys.errors import KeyStoreUnavailable, ProjectKeyMissing
from backupfw_castellan.options import BARBICAN, OPTIONS, castellan_conf, check

#: Ids of Castellan are UUIDs, in both forms; nothing else may get into a URL.
_KEY_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = "backupfw project key"
# They log as an error what they raise as well, and a destroyed key that is not there any more is a success.
for _logger in ("barbicanclient", "castellan.key_manager"):
    logging.getLogger(_logger).setLevel(logging.CRITICAL)


class _SignedIn(RequestContext):
    """The service's user, whose token is kept until it ends.

    Given a user's credentials, Castellan gets a new token for each call.
    """

    def __init__(self, options: Any) -> None:
        super().__init__()
        self._plugin = Password(
            options.auth_url,
            username=options.username,
            password=options.password,
            user_domain_name=options.user_domain_name,
            project_name=options.project_name,
            project_domain_name=options.project_domain_name,
        )

    def update_store(self) -> None:
        """Do nothing: oslo.context's store would make it the caller in this thread's log lines."""

    def get_auth_plugin(self) -> Password:
        """Return what Castellan signs its calls with.  Thread-safe."""
        return self._plugin


class CastellanKeyStore(KeyStore):
    """Project keys in a key manager."""

    API_VERSION = 1

    def __init__(self, options: Any) -> None:
        check(options)
        self._manager = key_manager.API(castellan_conf(options))
        self._context = _SignedIn(options) if options.backend == BARBICAN else None

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the options."""
        return OPTIONS

    def create(self, project_id: str) -> str:
        """Store a new key, and read it back: Castellan does not look at every answer of Vault."""
        key = wrapping.new_key()
        key_id = self._store(record.encoded(key, "", project_id))
        if self._load(key_id) != key:
            raise KeyStoreUnavailable("a new key is not there after it was stored")
        return key_id

    def wrap(self, key_id: str, secret: bytes, context: bytes) -> bytes:
        """Wrap with AES-256-GCM; see :mod:`backupfw.keys.wrapping`."""
        return wrapping.wrap(self._key(key_id), key_id, secret, context)

    def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Unwrap what :meth:`wrap` made."""
        return wrapping.unwrap(self._key(key_id), key_id, wrapped, context)

    def destroy(self, key_id: str) -> None:
        """Delete the object, and make sure that it is gone."""
        if not _KEY_ID.fullmatch(key_id):
            return
        with _translated():
            with contextlib.suppress(exception.ManagedObjectNotFoundError):
                self._manager.delete(self._context, key_id)
            try:
                self._manager.get(self._context, key_id, metadata_only=True)
            except exception.ManagedObjectNotFoundError:
                # A place that is not there is answered in the same way.
                self._prove()
                return
        raise KeyStoreUnavailable("is still there after it was deleted", key_id=key_id)

    def check(self) -> None:
        """Store an object, read and delete it."""
        with _translated():
            self._prove()

    def _key(self, key_id: str) -> bytes:
        if not _KEY_ID.fullmatch(key_id):
            raise ProjectKeyMissing(key_id)
        key = self._load(key_id)
        if key is None:
            # A place that is not there is answered in the same way.
            self.check()
            raise ProjectKeyMissing(key_id)
        return key

    def _load(self, key_id: str) -> bytes | None:
        """Return a key; None: the key manager does not find it."""
        with _translated():
            try:
                data = self._manager.get(self._context, key_id).get_encoded()
            except exception.ManagedObjectNotFoundError:
                return None
        return record.decoded(data or b"", key_id)

    def _store(self, data: bytes) -> str:
        with _translated():
            return str(self._manager.store(self._context, OpaqueData(data, name=_NAME)))

    def _prove(self) -> None:
        key_id = self._manager.store(self._context, OpaqueData(b"check", name=_NAME))
        self._manager.get(self._context, key_id)
        self._manager.delete(self._context, key_id)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn whatever Castellan and its libraries raise into errors of key stores."""
    try:
        yield
    except exception.Forbidden as error:
        raise KeyStoreUnavailable(
            "the key manager refuses the service's credentials or permissions"
        ) from error
    except Exception as error:
        # Castellan lets errors of requests, of Barbican's client and of JSON through.
        raise KeyStoreUnavailable(f"the key manager failed ({type(error).__name__})") from error
