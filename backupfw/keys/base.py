"""The interface of key stores, which keep the keys of projects.

A *project key* wraps *data keys*: the random keys with which the engine encrypts the backups of a volume.
The key store never sees a backup, and nobody else sees a project key.  Wrapped data keys are kept by others,
in the database and beside the data; a driver does not know where.  An installation has one key store.

Every key store guarantees the following.  Each has tests of its name in the conformance suite
(``backupfw.testing.keys``):

* K1  What was wrapped is unwrapped as it was, and two wraps of the same bytes differ.
* K2  Another context is refused.
* K3  Bytes that were changed, cut or lengthened are refused.
* K4  Each call of ``create`` makes another key with its own id; no key unwraps what another one wrapped.
* K5  ``rotate`` makes another key, and the old one stays.
* K6  A destroyed key stays destroyed, and its destruction can be repeated.
* K7  Keys outlive the process: what ``create`` has returned is there after a restart.
* K8  A process that is killed leaves nothing half: every key that it returned works, and later calls do.
* K9  Many threads, processes and instances may use the key store at once.
* K10 A key store that cannot be used says so, in time, by an error that may pass; so does ``check``.
* K11 No secret is shown: not in errors, logs or ``repr``.  Success is silent.

A key store is an entry point of group ``backupfw.keys``.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from oslo_config import cfg

#: Version of this contract; the loader refuses a key store with another one.
API_VERSION = 1

#: Longest id of a project key, in characters; all of them are printable ASCII, without spaces.
MAX_KEY_ID = 255

#: Longest secret that is wrapped, and longest context, in bytes.
MAX_SECRET = 4096
MAX_CONTEXT = 65536


class KeyStore(abc.ABC):
    """A place for project keys.  Thread-safe.

    The constructor takes the values of :meth:`options` by name, and only checks them: it makes nothing and
    asks nobody, so that a service starts while the key store is down.

    Every method but ``close`` raises :class:`~backupfw.keys.errors.KeyStoreUnavailable` if the key store
    cannot do it now.  Nothing is kept between calls that would let a destroyed key work on.
    """

    API_VERSION: ClassVar[int] = API_VERSION

    @abc.abstractmethod
    def __init__(self, options: Any) -> None:
        """Take the options.

        :raises ConfigError: they do not fit together, or one is missing.
        """

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the key store's options; core registers them in ``[keys]``."""
        return ()

    @abc.abstractmethod
    def create(self, project_id: str) -> str:
        """Make a new random key for a project; when it returns, the key is durable.

        :param project_id: recorded with the key, for people; 1 to 255 characters.
        :returns: the key's id: at most :data:`MAX_KEY_ID` characters, printable ASCII without spaces.  It is
            no secret, and no key ever gets the id of another one, destroyed or not.
        """

    def rotate(self, project_id: str) -> str:
        """Make the key that a project uses from now on; the earlier ones stay until :meth:`destroy`.

        :returns: its id.
        """
        return self.create(project_id)

    @abc.abstractmethod
    def wrap(self, key_id: str, secret: bytes, context: bytes) -> bytes:
        """Encrypt a secret under a project key.

        :param secret: 1 to :data:`MAX_SECRET` bytes.
        :param context: what the secret is for, up to :data:`MAX_CONTEXT` bytes: :meth:`unwrap` wants the
            same.  It is authenticated, and not in the result.
        :returns: at most 1024 bytes more than the secret has.
        :raises ProjectKeyMissing: there is no such key.
        """

    @abc.abstractmethod
    def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Return a secret.

        :raises ProjectKeyMissing: there is no such key.
        :raises UnwrapRefused: these are not bytes that :meth:`wrap` returned for this key and context.
        """

    @abc.abstractmethod
    def destroy(self, key_id: str) -> None:
        """Destroy a key for ever: nobody can unwrap what it wrapped.  A key that is not there is no error."""

    @abc.abstractmethod
    def check(self) -> None:
        """Prove that the key store can be used, without making a key of a project; leave nothing behind."""

    def close(self) -> None:  # noqa: B027
        """Close what is open.  No other call runs or follows."""
