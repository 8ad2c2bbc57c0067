"""Where a backup goes: which store, which container."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupfw import naming
from backupfw.errors import InvalidInput

if TYPE_CHECKING:
    from oslo_config import cfg


@dataclass(frozen=True, slots=True)
class Placement:
    """A store by its configured name, and a container in it."""

    store: str
    container: str


def place(conf: cfg.ConfigOpts, container: str | None, *, exact: bool = False) -> Placement | None:
    """Say where a request's ``container`` is, or None when it names none.

    ``store:container`` chooses a store if the part before the colon is an enabled one (``store:`` its
    default container); any other text is a container's name in the default store.

    :param exact: the text is a container's name, colon or not.
    :raises InvalidInput: no store could take a container of this name.
    """
    if not container:
        return None
    store, colon, name = container.partition(":")
    if exact or not colon or store not in conf.enabled_stores:
        store, name = conf.default_store, container
    name = name or conf.backup.container
    problem = naming.container_problem(name)
    if problem is not None:
        raise InvalidInput(f"The container name cannot be used: {problem}.")
    return Placement(store, name)
