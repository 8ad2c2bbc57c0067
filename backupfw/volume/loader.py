"""The installed volume providers; the ``local`` one is found like all others."""

from __future__ import annotations

from backupfw.plugins import Plugins
from backupfw.volume.base import VolumeProvider

PROVIDERS = Plugins("backupfw.volume", "volume provider", VolumeProvider)  # type: ignore[type-abstract]

#: Returns the class of the provider that ``[volumes] provider`` names; the caller registers its options.
load_provider = PROVIDERS.load
