"""The installed key stores; the ``file`` one is found like all others."""

from __future__ import annotations

from typing import Any

from backupfw.errors import ConfigError
from backupfw.keys.base import KeyStore
from backupfw.plugins import Plugins

KEY_STORES = Plugins("backupfw.keys", "key store", KeyStore)  # type: ignore[type-abstract]

#: Return the class of the key store that ``driver = …`` of the section ``[keys]`` names.
load_key_store = KEY_STORES.load


def open_key_store(driver: str | None, options: Any) -> KeyStore:
    """Make the configured key store; nothing is asked yet.

    :param driver: its name; None: none is configured.
    :param options: values of its options by name.
    :raises ConfigError: there is none, it cannot be loaded, or refuses its options.
    """
    if driver is None:
        raise ConfigError(
            "section [keys], option driver: needs a value; without a key store nothing is encrypted"
        )
    key_store = load_key_store(driver)
    try:
        return key_store(options)
    except ConfigError as error:
        raise ConfigError(f"section [keys]: {error}") from error
