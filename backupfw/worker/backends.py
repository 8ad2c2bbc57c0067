"""The enabled volume back ends of a process, each with its provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupfw.conf import volumes
from backupfw.errors import ConfigError, InvalidInput
from backupfw.volume.base import VolumeProvider
from backupfw.volume.catalogue import Catalogue
from backupfw.volume.loader import load_provider, open_provider

if TYPE_CHECKING:
    from oslo_config import cfg


def open_backend(conf: cfg.ConfigOpts, name: str) -> VolumeProvider:
    """Make the provider of an enabled back end.

    :raises ConfigError: it cannot be loaded, or refuses its options.
    """
    section = volumes.group_of(name)
    return open_provider(section, conf[section].driver, conf[section])


def foreign_catalogues(conf: cfg.ConfigOpts) -> dict[str, Catalogue]:
    """Return the foreign catalogues of the enabled back ends that have one, by name; no back end is opened.

    :raises ConfigError: one of them cannot be used as the configuration says.
    """
    found = {}
    for name in conf.volumes.enabled:
        section = volumes.group_of(name)
        try:
            catalogue = load_provider(conf[section].driver).catalogue(conf[section])
        except ConfigError as error:
            raise ConfigError(f"section [{section}]: {error}") from error
        if catalogue is not None:
            found[name] = catalogue
    return found


class Backends:
    """The providers of all enabled volume back ends.  Thread-safe.

    :param conf: has ``[volumes]`` and a section for each enabled back end.
    :raises ConfigError: one of them cannot be loaded, or refuses its options.
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._providers = {name: open_backend(conf, name) for name in conf.volumes.enabled}

    def provider(self, name: str) -> VolumeProvider:
        """Return the provider of a back end.

        :raises InvalidInput: it is not enabled (any more).
        """
        found = self._providers.get(name)
        if found is None:
            raise InvalidInput(f"The volume back end {name} is not enabled.")
        return found

    def has(self, name: str) -> bool:
        """Return whether a back end is enabled."""
        return name in self._providers

    def host_of_new(self, name: str) -> str | None:
        """Return the host whose workers alone can open the volumes that are made here; None: all can.

        :param name: an enabled back end.
        """
        return volumes.host_of_new(self._conf, name)

    def reach(self) -> dict[str, bool]:
        """Return, by back end, whether volumes of other hosts can be opened, too."""
        return {name: volumes.is_shared(self._conf, name) for name in self._providers}
