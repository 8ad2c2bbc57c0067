"""The errors of key stores, as one tree.

::

    KeyStoreError              final unless told otherwise
     +- KeyStoreUnavailable    the key store does not answer, or cannot be used now: temporary
     +- ProjectKeyMissing      the key was destroyed, or was never here
     +- UnwrapRefused          the bytes are not those that were wrapped under this key and context

``temporary`` is set where the error is made; it decides whether the task is tried again later (``may_pass``).
A driver has one function that turns its library's errors into these, always with ``raise … from cause``.  A
message may name key ids, which are no secrets; it never holds a key, a credential or what was wrapped.
Users read ``for_user``.
"""

from __future__ import annotations

from backupfw.errors import BackupfwError


class KeyStoreError(BackupfwError):
    """An operation on the key store failed.

    :param reason: what went wrong, without credentials and keys.
    :param key_id: the project key, if one is concerned.
    :param temporary: whether the same call may work later; None takes the class's default.
    """

    default_temporary = False
    #: What users read: no host, path or endpoint.
    for_user = "The key store of this service failed."

    def __init__(self, reason: str, *, key_id: str = "", temporary: bool | None = None) -> None:
        super().__init__(f"project key {key_id}: {reason}" if key_id else f"key store: {reason}")
        self.reason = reason
        self.key_id = key_id
        self.temporary = self.default_temporary if temporary is None else temporary
        self.may_pass = self.temporary


class KeyStoreUnavailable(KeyStoreError):
    """The key store does not answer, is not mounted, or refuses this service: an operator can repair that."""

    default_temporary = True
    for_user = "The key store of this service does not answer."


class ProjectKeyMissing(KeyStoreError):
    """The key store answers, and does not have the key: it was destroyed, or was never here."""

    for_user = "The key of the backup's data was destroyed, or is not in the key store of this service."

    def __init__(self, key_id: str, reason: str = "was destroyed, or is not in this key store") -> None:
        super().__init__(reason, key_id=key_id)


class UnwrapRefused(KeyStoreError):
    """The bytes are not those that were wrapped under this key and context: changed, or of another place."""

    for_user = "The stored key of the backup's data is damaged."

    def __init__(self, key_id: str) -> None:
        super().__init__("these are not the bytes that were wrapped under it for this use", key_id=key_id)
