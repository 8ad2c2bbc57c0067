"""Finds plug-ins: classes that installed distributions bring as entry points, each written for a contract.

In-tree plug-ins are found like all others: this module contains no name of a plug-in.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

from stevedore import driver as stevedore_driver

from backupfw.errors import ConfigError

T = TypeVar("T")


#: Everything that installed distributions bring, as it was at the first call.  A search opens a file of each
#: distribution, 15 to 40 ms of processor time, whatever it is for.
_search = cache(importlib.metadata.entry_points)


@cache
def entry_points(group: str) -> importlib.metadata.EntryPoints:
    """Return what installed distributions bring of a group, as it was at the first call for any group."""
    return _search().select(group=group)


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """An installed plug-in.

    :ivar name: what deployers write.
    :ivar class_path: ``module:class``.
    :ivar distribution: the distribution that brings it.
    :ivar version: that distribution's version.
    :ivar api_version: the contract version it was written for; None if it cannot be used.
    :ivar problem: why it cannot be used, or None.
    """

    name: str
    class_path: str
    distribution: str
    version: str
    api_version: int | None
    problem: str | None


class Plugins(Generic[T]):
    """The plug-ins of one group.  Thread-safe.

    :param group: the entry point group.
    :param noun: what messages call one of them, e.g. ``volume provider``.
    :param base: the class that each is a subclass of; its ``API_VERSION`` is the version of the contract.
    :param declares_version: whether a plug-in has to state its ``API_VERSION`` itself; what is only inherited
        from ``base`` says nothing about the version it was written for.
    :param problem: says what else is wrong with a class, or None.
    """

    def __init__(
        self,
        group: str,
        noun: str,
        base: type[T],
        *,
        declares_version: bool = True,
        problem: Callable[[type[T]], str | None] = lambda _: None,
    ) -> None:
        self.group = group
        self._noun = noun
        self._base = base
        self._declares_version = declares_version
        self._problem = problem

    def names(self) -> list[str]:
        """Return the names of all that are installed, sorted."""
        return sorted({point.name for point in self._points()})

    def installed(self) -> list[PluginInfo]:
        """Return all that are installed, sorted by name; those that cannot be used say why."""
        found = sorted(self._points(), key=lambda point: (point.name, _distribution(point)))
        return [self._info(point) for point in found]

    def load(self, name: str) -> type[T]:
        """Return a plug-in's class.

        :param name: the entry point's name.
        :raises ConfigError: there is none of that name, two distributions bring one, it cannot be imported,
            is no subclass of the contract's class, or was not written for this version of the contract.
        """
        points = [point for point in self._points() if point.name == name]
        if not points:
            installed = ", ".join(self.names()) or "none"
            raise ConfigError(f"there is no {self._noun} {name!r}; installed: {installed}")
        if problem := self._duplicate_problem(points):
            raise ConfigError(problem)
        # Several equal ones (an editable install has its metadata twice) lead to the same class.
        return self._checked(name, self._imported(points[0]))

    def _points(self) -> list[importlib.metadata.EntryPoint]:
        # Not from stevedore: its cache does not keep which distribution an entry point is from.
        return list(entry_points(self.group))

    def _duplicate_problem(self, points: list[importlib.metadata.EntryPoint]) -> str | None:
        if len(points) < 2 or len({(_distribution(point)[0], point.value) for point in points}) < 2:
            return None
        owners = " and ".join(sorted(f"{_distribution(point)[0]} ({point.value})" for point in points))
        return f"{self._noun} {points[0].name!r} is brought by {owners}; uninstall one of them"

    def _imported(self, point: importlib.metadata.EntryPoint) -> Any:
        try:
            # A plug-in that cannot be imported raises its own error: DriverManager's default swallows it.
            return stevedore_driver.DriverManager(
                self.group, point.name, on_load_failure_callback=_raise
            ).driver
        except Exception as error:  # whatever importing it may raise
            raise ConfigError(
                f"{self._noun} {point.name!r} of distribution {_distribution(point)[0]} cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _checked(self, name: str, loaded: Any) -> type[T]:
        if not (isinstance(loaded, type) and issubclass(loaded, self._base)):
            raise ConfigError(f"{self._noun} {name!r} is not a {self._base.__name__}: {loaded!r}")
        version, written_for = self._version(self._base), self._version(loaded)
        if written_for != version:
            which = "no declared version" if written_for is None else f"version {written_for}"
            raise ConfigError(
                f"{self._noun} {name!r} was written for {which} of the contract, "
                f"this release has version {version}"
            )
        if problem := self._problem(loaded):
            raise ConfigError(f"{self._noun} {name!r} {problem}")
        return loaded

    def _version(self, cls: type) -> int | None:
        """Return the version of the contract that a class states, or inherits where that counts."""
        for parent in cls.__mro__:
            counts = parent is not self._base or cls is self._base or not self._declares_version
            if counts and "API_VERSION" in vars(parent):
                version: int = vars(parent)["API_VERSION"]
                return version
        return None

    def _info(self, point: importlib.metadata.EntryPoint) -> PluginInfo:
        api_version = problem = None
        try:
            api_version = self._version(self.load(point.name))
        except ConfigError as error:
            problem = str(error)
        return PluginInfo(point.name, point.value, *_distribution(point), api_version, problem)


def _distribution(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    return _named(point.dist) if point.dist is not None else ("unknown", "unknown")


@cache
def _named(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Return name and version; each is a pass over the whole metadata, ms of processor time."""
    return distribution.name, distribution.version


def _raise(manager: object, point: importlib.metadata.EntryPoint, error: BaseException) -> None:  # noqa: ARG001
    raise error
