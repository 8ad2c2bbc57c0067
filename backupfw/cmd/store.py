"""``backupfw store list`` and ``store check``: the drivers that are installed, the stores that are used."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from backupfw.cmd.configure import add_command, add_group, load_conf
from backupfw.cmd.progress import counted
from backupfw.conf.stores import default_container, group_of
from backupfw.errors import ConfigError

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.chunkstore.base import ChunkStore
    from backupfw.chunkstore.container import Container


def add_parser(commands: Any) -> None:
    """Add the subcommands."""
    group = add_group(commands, "store", "Look at stores and their drivers.")
    add_command(group, "list", list_stores, "List the installed drivers and the stores that use them.")
    check_parser = add_command(
        group, "check", check, "Prove a configured store's guarantees with objects of its own; cleans up."
    )
    check_parser.add_argument("name", metavar="NAME", help="the store's name in enabled_stores")


def require_enabled(conf: cfg.ConfigOpts, name: str) -> None:
    """Refuse the name of a store that is not enabled.

    :raises ConfigError: it is not.
    """
    if name not in conf.enabled_stores:
        raise ConfigError(f"store {name!r} is not enabled; enabled: {', '.join(conf.enabled_stores)}")


@contextmanager
def opened(conf: cfg.ConfigOpts, name: str) -> Iterator[ChunkStore]:
    """Open a configured store with all its layers for a ``with`` block.

    :raises ConfigError: it is not enabled, or its driver refuses its options.
    """
    from backupfw.chunkstore.loader import open_store

    require_enabled(conf, name)
    group = conf[group_of(name)]
    store = open_store(name, group.driver, group)
    try:
        yield store
    finally:
        store.close()


def report_settings(container: Container) -> None:
    """Print what a container's settings do to deletes, to standard error, where few people want it."""
    for item in container.inspect():
        if item.warning:
            place = f"container {container.name} of store {container.store.name}"
            print(f"note: {place}: {item.name}: {item.detail}", file=sys.stderr)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text: columns as wide as their widest cell, two blanks apart."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    lines = []
    for row in (heads, *rows):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return "\n".join(lines) + "\n"


def list_stores(args: argparse.Namespace) -> int:
    """Print one line per installed driver."""
    from backupfw.chunkstore.loader import installed_drivers

    conf = load_conf(args)
    users: dict[str, list[str]] = {}
    for name in conf.enabled_stores:
        mark = f"{name} (default)" if name == conf.default_store else name
        users.setdefault(conf[group_of(name)].driver, []).append(mark)
    rows = [
        (
            info.name,
            info.distribution,
            info.version,
            "-" if info.api_version is None else str(info.api_version),
            ", ".join(users.get(info.name, ())) or "-",
            info.problem or "ok",
        )
        for info in installed_drivers()
    ]
    sys.stdout.write(table(("driver", "distribution", "version", "api", "stores", "state"), rows))
    return 0


def check(args: argparse.Namespace) -> int:
    """Check one store; exit status 1 when a guarantee does not hold."""
    return 0 if check_one(load_conf(args), args.name) else 1


def check_one(conf: cfg.ConfigOpts, name: str) -> bool:
    """Print a verdict per guarantee of one store; returns whether all hold, warnings or not."""
    require_enabled(conf, name)
    from backupfw.testing import operator

    good, warnings = True, 0
    with (
        opened(conf, name) as store,
        # Closed, so that an interrupted check cleans up before the store is.
        contextlib.closing(operator.check(store, default_container(conf, name))) as verdicts,
    ):
        for verdict in verdicts:
            good = good and verdict.ok
            warnings += verdict.ok and verdict.warning
            print(verdict.line, flush=True)
    told = f", {counted(warnings, 'warning')}" if warnings else ""
    print(f"store {name}: {'ok' if good else 'NOT ok'}{told}")
    return good
