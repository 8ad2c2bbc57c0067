"""Placement: the store and the container of a new backup, whether it is encrypted, and where it is copied.

The store is the one that the request names, else that of the first placement rule that matches, else that of
an incremental backup's parent, else the default.  The container is the one that the request names, else the
parent's if the backup goes to the parent's store, else the rule's, else the store's own default.  So an
incremental backup stays beside its parent and shares its data, unless a request or a rule sends it elsewhere:
then it stores everything again, and still shows its parent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backupfw import naming
from backupfw.conf import placement as rules
from backupfw.conf import stores
from backupfw.errors import InvalidInput

if TYPE_CHECKING:
    from oslo_config import cfg


@dataclass(frozen=True, slots=True)
class Placement:
    """A store by its configured name, and a container in it."""

    store: str
    container: str


@dataclass(frozen=True, slots=True)
class Wish:
    """The content of a request's ``container``: a store, a container, both or nothing."""

    store: str | None = None
    container: str | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """The values that rules compare.

    :ivar zone: the requested availability zone, else the volume's.
    """

    project: str
    zone: str | None
    volume_type: str | None


class Placer:
    """Decides about stores and containers of new backups.  Thread-safe.

    :param conf: the configuration: stores and placement rules.
    :param patterns: the pattern of container names, by store; a store without one accepts any name.
    """

    def __init__(self, conf: cfg.ConfigOpts, patterns: Mapping[str, str]) -> None:
        self._conf = conf
        self._patterns = patterns

    def wish(self, container: str | None) -> Wish:
        """Read a request's ``container``.

        ``store:container`` chooses an enabled store (``store:`` its default container); a text without a
        colon is a container's name.

        :raises InvalidInput: there is no such enabled store, or no store accepts this container name.
        """
        if not container:
            return Wish()
        store, colon, name = container.partition(":")
        if not colon:
            wish = Wish(container=container)
        elif store in self._conf.enabled_stores:
            wish = Wish(store, name or stores.default_container(self._conf, store))
        else:
            # Not a container of that name in another store: users would not look for the backup there.
            raise InvalidInput(
                "The container name cannot be used: the part before its colon names no store that is enabled."
            )
        _refuse(naming.container_problem(wish.container or ""))
        return wish

    def place(self, wish: Wish, subject: Subject, parent: Placement | None) -> Placement:
        """Return the place of a new backup.

        :param parent: the place of an incremental backup's parent, if its store is enabled.
        :raises InvalidInput: the store does not accept the requested container name.
        """
        rule = self._rule(subject)
        store = wish.store
        if store is None and rule is not None:
            store = rule.store
        if store is None:
            store = self._conf.default_store if parent is None else parent.store
        if wish.container is not None:
            pattern = self._patterns.get(store, ".+")
            if not re.fullmatch(pattern, wish.container):
                _refuse(f"the store takes names that match {pattern}")
            return Placement(store, wish.container)
        if parent is not None and parent.store == store:
            return parent
        container = rule.container if rule is not None else None
        return Placement(store, container or stores.default_container(self._conf, store))

    def encrypts(self, store: str, subject: Subject) -> bool:
        """Return whether a new backup in a store is encrypted: as its rule says, else as the store does."""
        rule = self._rule(subject)
        said = None if rule is None else rule.encryption
        if said is None:
            said = self._conf[stores.group_of(store)].encryption
        return bool(said == stores.PROJECT)

    def copies(self, store: str, subject: Subject, wanted: Sequence[str] = ()) -> list[str]:
        """Return the stores to which a new backup in a store is copied when it is available.

        A request, or the parent, may have sent it to one of them; it needs no copy there.

        :param wanted: by its policy, besides those of its rule.
        """
        rule = self._rule(subject)
        named = dict.fromkeys((*(() if rule is None else rule.copies), *wanted))
        return [one for one in named if one != store]

    def _rule(self, subject: Subject) -> Any:
        """Return the values of the first rule that matches, or None."""
        for name in self._conf.placement_rules:
            rule = self._conf[rules.group_of(name)]
            if all(
                not allowed or value in allowed
                for allowed, value in (
                    (rule.projects, subject.project),
                    (rule.availability_zones, subject.zone),
                    (rule.volume_types, subject.volume_type),
                )
            ):
                return rule
        return None


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise InvalidInput(f"The container name cannot be used: {problem}.")
