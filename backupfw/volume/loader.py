"""Finds the installed volume providers.

A provider is an entry point of group ``backupfw.volume``; the ``local`` one is found like anybody
else's.  Nothing here knows a provider's name.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from stevedore import named

from backupfw.errors import ConfigError
from backupfw.volume.base import API_VERSION, VolumeProvider

#: The entry point group of volume providers.
GROUP = "backupfw.volume"


def provider_names() -> list[str]:
    """Return the names of all installed providers, sorted."""
    return sorted({point.name for point in _entry_points()})


def load_provider(name: str) -> type[VolumeProvider]:
    """Return a provider's class; the caller registers its options and makes the instance.

    :param name: the entry point's name, what deployers write as ``[volumes] provider = …``.
    :raises ConfigError: there is no such provider, two distributions bring one of that name, it cannot
        be imported, is no VolumeProvider, or was not written for this version of the contract.
    """
    points = [point for point in _entry_points() if point.name == name]
    if not points:
        installed = ", ".join(provider_names()) or "none"
        raise ConfigError(f"there is no volume provider {name!r}; installed: {installed}")
    # One distribution may be found twice (an editable install beside its own metadata): that is no doubt
    # about whose code runs, two distributions or two values are.
    if len({(_distribution(point), point.value) for point in points}) > 1:
        owners = " and ".join(sorted(f"{_distribution(point)} ({point.value})" for point in points))
        raise ConfigError(f"volume provider {name!r} is brought by {owners}; uninstall one of them")
    return _checked(name, _load(name))


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    # Asked here, not at stevedore, whose cache does not keep which distribution an entry point is from.
    return list(importlib.metadata.entry_points(group=GROUP))


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"


def _load(name: str) -> Any:
    try:
        manager: Any = named.NamedExtensionManager(
            GROUP, [name], on_load_failure_callback=_raise, on_missing_entrypoints_callback=None
        )
        return manager.extensions[0].plugin
    except Exception as error:  # whatever importing it may raise
        raise ConfigError(f"volume provider {name!r} cannot be loaded: {error}") from error


def _checked(name: str, loaded: Any) -> type[VolumeProvider]:
    if not (isinstance(loaded, type) and issubclass(loaded, VolumeProvider)):
        raise ConfigError(f"volume provider {name!r} is not a VolumeProvider: {loaded!r}")
    # What is only inherited from the boundary says nothing about the version it was written for.
    declared = next(
        (
            vars(cls)["API_VERSION"]
            for cls in loaded.__mro__
            if cls is not VolumeProvider and "API_VERSION" in vars(cls)
        ),
        None,
    )
    if declared != API_VERSION:
        written_for = "no declared version" if declared is None else f"version {declared}"
        raise ConfigError(
            f"volume provider {name!r} was written for {written_for} of the provider contract, "
            f"this release has version {API_VERSION}"
        )
    return loaded


def _raise(manager: object, point: importlib.metadata.EntryPoint, error: BaseException) -> None:  # noqa: ARG001
    raise error
