"""A key manager of a Cinder of the tests: keys are files, each with an id of its own, as Barbican's have.

Cinder's own for tests gives the same key to all volumes, so with it every restore would look right.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from castellan.common import exception
from castellan.common.objects import symmetric_key
from castellan.key_manager import key_manager
from oslo_config import cfg

_OPTIONS = [cfg.StrOpt("files_dir")]


class KeysInFiles(key_manager.KeyManager):
    """Symmetric keys; everybody may use each."""

    def __init__(self, configuration):
        super().__init__(configuration)
        configuration.register_opts(_OPTIONS, group="key_manager")
        self._directory = Path(configuration.key_manager.files_dir)

    def create_key(self, context, algorithm, length, **kwargs):
        """Make a key of ``length`` bits."""
        return self.store(context, symmetric_key.SymmetricKey(algorithm, length, os.urandom(length // 8)))

    def store(self, context, managed_object, **kwargs):
        """Keep a key under a new id."""
        made = str(uuid.uuid4())
        (self._directory / made).write_bytes(managed_object.get_encoded())
        return made

    def get(self, context, managed_object_id, **kwargs):
        """Return a key."""
        try:
            content = (self._directory / managed_object_id).read_bytes()
        except FileNotFoundError:
            raise exception.ManagedObjectNotFoundError(uuid=managed_object_id) from None
        return symmetric_key.SymmetricKey("AES", len(content) * 8, content)

    def delete(self, context, managed_object_id, **kwargs):
        """Remove a key."""
        (self._directory / managed_object_id).unlink(missing_ok=True)

    def create_key_pair(self, context, algorithm, length, **kwargs):
        """Refuse it: Cinder asks for none."""
        raise NotImplementedError

    def list(self, context, object_type=None, metadata_only=False):
        """Return nothing: Cinder does not ask."""
        return []

    def add_consumer(self, context, managed_object_id, consumer_data):
        """Do nothing: consumers are for people."""

    remove_consumer = add_consumer
