"""The key store of a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupfw.conf import keys
from backupfw.keys.base import KeyStore
from backupfw.keys.loader import open_key_store

if TYPE_CHECKING:
    from oslo_config import cfg


def open_keys(conf: cfg.ConfigOpts) -> KeyStore:
    """Make the key store of the configuration, without asking it; the caller closes it.

    :raises ConfigError: there is none, it cannot be loaded, or refuses its options.
    """
    return open_key_store(conf[keys.GROUP].driver, conf[keys.GROUP])
