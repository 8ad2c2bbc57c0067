"""The installed volume providers; the ``local`` one is found like all others."""

from __future__ import annotations

from typing import Any

from backupfw.errors import ConfigError
from backupfw.plugins import Plugins
from backupfw.volume.base import VolumeProvider

PROVIDERS = Plugins("backupfw.volume", "volume provider", VolumeProvider)  # type: ignore[type-abstract]

#: Return the class of the provider that ``driver = …`` of a section ``[volumes:NAME]`` names.
load_provider = PROVIDERS.load


def open_provider(section: str, driver: str, options: Any) -> VolumeProvider:
    """Make the provider of a configured volume back end.

    :param section: the back end's section, for errors.
    :param driver: the provider's name.
    :param options: values of the provider's options by name.
    :raises ConfigError: it cannot be loaded, or refuses its options.
    """
    provider = load_provider(driver)
    try:
        return provider(options)
    except ConfigError as error:
        raise ConfigError(f"section [{section}]: {error}") from error
