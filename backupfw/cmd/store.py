"""``backupfw store list`` and ``store check``: the drivers that are installed, the stores that are used."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backupfw.cmd import base
from backupfw.cmd.configure import load_conf
from backupfw.cmd.progress import Progress, counted
from backupfw.errors import ConfigError

if TYPE_CHECKING:
    from datetime import datetime

    from oslo_config import cfg

    from backupfw.chunkstore.base import ChunkStore
    from backupfw.chunkstore.container import Container
    from backupfw.cmd.catalogue import DatabaseCatalogue
    from backupfw.cmd.progress import Control
    from backupfw.db.session import Database
    from backupfw.plugins import PluginInfo
    from backupfw.worker.stores import Stores


class List(base.Lister):
    """List the installed drivers and the stores that use them."""

    columns = ("driver", "distribution", "version", "api", "stores", "state")
    scripts_read_text = True

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, str]]:
        """Yield one for each driver."""
        return drivers(load_conf(args))


class Check(base.Verdicts):
    """Prove a configured store's guarantees with objects of its own; cleans up.

    The exit status is 1 when a guarantee does not hold.
    """

    columns = ("guarantee", "title", "result", "detail")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("name", metavar="NAME", help="the store's name in enabled_stores")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Yield a verdict per guarantee, as they are found."""
        return self.reported(verdicts(load_conf(args), args.name))


class Undelete(base.Lister):
    """Bring back objects of backups that somebody deleted or overwrote, in a store that keeps older versions.

    Packs, maps, manifests and data keys are as they were at that moment then.  What was made since stays.
    """

    columns = ("key",)
    default_format = "text"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("name", metavar="NAME", help="the store's name in enabled_stores")
        parser.add_argument(
            "--before",
            metavar="MOMENT",
            type=base.moment,
            required=True,
            help="the day or time (ISO 8601, UTC), e.g. 2026-01-31T18:00",
        )
        parser.add_argument("--container", metavar="C", help="this container; else that of [store:NAME]")
        parser.add_argument("--dry-run", action="store_true", help="only say what would be brought back")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, str]]:
        """Yield each object as it is brought back."""
        return brought_back(load_conf(args), args.name, args.container, args.before, dry_run=args.dry_run)

    def lines(self, args: argparse.Namespace, records: Iterator[Mapping[str, str]]) -> Iterator[str]:
        """Yield the keys, and their number."""
        count = 0
        for one in records:
            yield one["key"]
            count += 1
        yield f"{counted(count, 'object')} {'would be ' if args.dry_run else ''}brought back"


def brought_back(
    conf: cfg.ConfigOpts, name: str, container: str | None, before: datetime, *, dry_run: bool
) -> Iterator[Mapping[str, str]]:
    """Bring back objects of backups in a store as they were at a moment (naive UTC), and yield their keys.

    :param container: None: the store's own.
    """
    from backupfw import moments
    from backupfw.conf.stores import default_container
    from backupfw.engine.format import keys

    with opened(conf, name) as store:
        found = store.bring_back(
            container or default_container(conf, name),
            moments.aware(before),
            keys.is_of_backups,
            dry_run=dry_run,
        )
        yield from ({"key": key} for key in found)


class OfStores(base.Lister):
    """A command that looks at all enabled stores, or at some."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--store", metavar="NAME", action="append", help="only this store; any number of times"
        )

    def database(self, args: argparse.Namespace, make: bool = False) -> tuple[cfg.ConfigOpts, Database]:
        """Open the database, as any command, once it is sure that the stores are enabled.

        :raises ConfigError: one is not.
        """
        conf = load_conf(args)
        for name in args.store or ():
            require_enabled(conf, name)
        return super().database(args, make)


def require_enabled(conf: cfg.ConfigOpts, name: str) -> None:
    """Refuse the name of a store that is not enabled.

    :raises ConfigError: it is not.
    """
    if name not in conf.enabled_stores:
        raise ConfigError(f"store {name!r} is not enabled; enabled: {', '.join(conf.enabled_stores)}")


def container_patterns(conf: cfg.ConfigOpts) -> Mapping[str, str]:
    """Return what the names of new containers must match, by store; opens none."""
    from backupfw.chunkstore.loader import load_driver
    from backupfw.conf.stores import group_of

    return {name: load_driver(conf[group_of(name)].driver).container_pattern for name in conf.enabled_stores}


@contextmanager
def opened(conf: cfg.ConfigOpts, name: str) -> Iterator[ChunkStore]:
    """Open a configured store with all its layers for a ``with`` block.

    :raises ConfigError: it is not enabled, or its driver refuses its options.
    """
    from backupfw.chunkstore.loader import open_store
    from backupfw.conf.stores import group_of

    require_enabled(conf, name)
    group = conf[group_of(name)]
    store = open_store(name, group.driver, group)
    try:
        yield store
    finally:
        store.close()


def report_settings(container: Container) -> None:
    """Print to standard error the effects of a container's settings on deletes, if they are unusual."""
    for item in container.inspect():
        if item.warning:
            place = f"container {container.name} of store {container.store.name}"
            print(f"note: {place}: {item.name}: {item.detail}", file=sys.stderr)


@dataclass(frozen=True)
class Place:
    """A container that objects of this installation are, or were, in.

    :ivar prefix: what the keys of this installation begin with.
    :ivar catalogue: what the database knows of the container.
    """

    store: str
    container: str
    prefix: str
    catalogue: DatabaseCatalogue
    _stores: Stores

    def __str__(self) -> str:
        """Return what messages call it."""
        return f"container {self.container} of store {self.store}"

    @contextmanager
    def looked_at(self, doing: str) -> Iterator[tuple[Container, Control]]:
        """Open it for a ``with`` block that shows how far it is.

        :param doing: what is done with it, e.g. ``sweeping``.
        :raises ChunkStoreError: it cannot be opened.
        """
        progress = Progress(f"{doing} {self}", unit="objects")
        try:
            opened = self._stores.container(self.store, self.container)
            report_settings(opened)
            yield opened, progress.control()
        finally:
            progress.abandon()


@contextmanager
def places(conf: cfg.ConfigOpts, db: Database, wanted: list[str] | None) -> Iterator[Iterator[Place]]:
    """Give the places where objects of this installation are, for a ``with`` block.

    :param wanted: only of these stores; None for all that are enabled.
    """
    from backupfw.cmd import catalogue
    from backupfw.engine.format import keys
    from backupfw.manager.outcomes.backups import BackupTasks
    from backupfw.worker.stores import Stores

    installation = BackupTasks(db, conf).installation_id()
    with contextlib.closing(Stores(conf)) as stores:
        yield (
            Place(
                store,
                container,
                keys.installation_prefix(installation),
                catalogue.DatabaseCatalogue(db, store, container, installation),
                stores,
            )
            for store, container in catalogue.containers(db, conf, wanted)
        )


def drivers(conf: cfg.ConfigOpts) -> Iterator[Mapping[str, str]]:
    """Yield what is known of each installed driver, and the enabled stores that use it."""
    from backupfw.chunkstore.loader import installed_drivers
    from backupfw.conf.stores import group_of

    users = {
        f"{name} (default)" if name == conf.default_store else name: conf[group_of(name)].driver
        for name in conf.enabled_stores
    }
    return plugins(installed_drivers(), "stores", users)


def plugins(
    installed: Iterable[PluginInfo], column: str, users: Mapping[str, str]
) -> Iterator[Mapping[str, str]]:
    """Yield what is known of each installed plug-in.

    :param column: what those that use plug-ins are called.
    :param users: the plug-in of each of them.
    """
    for info in installed:
        yield {
            "driver": info.name,
            "distribution": info.distribution,
            "version": info.version,
            "api": "-" if info.api_version is None else str(info.api_version),
            column: ", ".join(user for user, name in users.items() if name == info.name) or "-",
            "state": info.problem or "ok",
        }


def verdicts(conf: cfg.ConfigOpts, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield a verdict per guarantee of one store, as each is found, and one on them all.

    A warning is no failure.  Each has its ``line`` for people.

    :raises ConfigError: the store is not enabled, or its driver refuses its options.
    """
    from backupfw.conf.stores import default_container, group_of
    from backupfw.testing import operator

    results: Counter[str] = Counter()
    with (
        opened(conf, name) as store,
        # Closed, so that an interrupted check cleans up before the store is.
        contextlib.closing(
            operator.check(store, default_container(conf, name), locks=conf[group_of(name)].lock_days > 0)
        ) as found,
    ):
        for one in found:
            results[one.result] += 1
            yield {
                "guarantee": one.guarantee,
                "title": one.title,
                "result": one.result,
                "detail": one.detail,
                "line": one.line,
            }
    good = not results["failed"]
    noted = counted(results["warning"], "warning") if results["warning"] else ""
    yield {
        "guarantee": "all",
        "title": f"store {name}",
        "result": "ok" if good else "failed",
        "detail": noted,
        "line": f"store {name}: {'ok' if good else 'NOT ok'}{noted and f', {noted}'}",
    }
