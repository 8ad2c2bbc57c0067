"""``backupfw audit``: compare the database with itself, with volumes and with stores."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from backupfw.cmd import store
from backupfw.cmd.progress import counted

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.cmd.catalogue import UnknownManifests
    from backupfw.db.session import Database
    from backupfw.manager.operators.audit import Finding
    from backupfw.volume.base import VolumeProvider


class Audit(store.OfStores):
    """Compare the database with itself, with this host's volumes and with the stores; changes nothing.

    The exit status is 1 when anything is wrong.  A manifest of this installation that the database does not
    know is wrong; that another installation shares the container is not.
    """

    columns = ("check", "subject", "problem")
    default_format = "text"
    json_text = "print one JSON document: the findings and unknown manifests"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        super().add_arguments(parser)
        parser.add_argument(
            "--no-stores", action="store_true", help="look at the database only: not at stores and volumes"
        )

    def records(self, args: argparse.Namespace) -> Iterable[Mapping[str, Any]]:
        """Return what is wrong."""
        from backupfw.cmd import catalogue

        self._unknown = catalogue.UnknownManifests()
        conf, db = self.database(args)
        found = findings(conf, db, None if args.no_stores else self._unknown, args.store)
        self.status = 1 if found else 0
        return map(asdict, found)

    def lines(self, args: argparse.Namespace, records: Iterator[Mapping[str, Any]]) -> Iterable[str]:
        """Return a line for each finding, and what else is worth telling."""
        found = list(records)
        if args.json:
            unknown = {
                "unknown_manifests": self._unknown.ours,
                "foreign_manifests": dict(sorted(self._unknown.foreign.items())),
            }
            return [json.dumps({"findings": found, **unknown}, indent=2)]
        return [
            *(f"{one['check']}: {one['subject']}: {one['problem']}" for one in found),
            *self._unknown.lines(),
            counted(len(found), "finding") if found else "nothing wrong",
        ]


def findings(
    conf: cfg.ConfigOpts, db: Database, unknown: UnknownManifests | None, stores: list[str] | None = None
) -> list[Finding]:
    """Return what is wrong.

    :param unknown: counts manifests that the database does not know; None: only the database is looked at.
    :param stores: only these; None for all that are enabled.
    """
    from backupfw.manager.operators import audit

    found = audit.run(db, conf.backup.lease_seconds)
    if unknown is not None:
        found += sorted(audit.first(_volumes(db, conf)))
        found += sorted(_stores(db, conf, stores, unknown))
    return found


def _volumes(db: Database, conf: cfg.ConfigOpts) -> Iterator[Finding]:
    """Compare every volume of this host with its storage."""
    from backupfw.cmd import catalogue
    from backupfw.errors import BackupfwError, StorageChanged
    from backupfw.manager.operators.audit import Finding
    from backupfw.worker.backends import open_backend
    from backupfw.worker.handlers.base import volume_ref

    providers: dict[str, VolumeProvider] = {}
    not_enabled = Counter[str]()
    for name in conf.volumes.enabled:
        try:
            providers[name] = open_backend(conf, name)
        except (BackupfwError, OSError) as error:
            problem = f"could not be opened, its volumes were not looked at: {error}"
            yield Finding("volume", f"volume back end {name}", problem)
    elsewhere = catalogue.other_services(db, conf)
    for volume in catalogue.volumes_of(db, conf.host):
        name = volume.backend
        if name not in conf.volumes.enabled:
            # Those of this host need a service that opens volumes of other hosts, too.
            has = (one.backends.get(name) for one in elsewhere)
            not_enabled[name] += not any(can if volume.host else can is not None for can in has)
        if name not in providers:
            continue
        try:
            storage = providers[name].look(volume_ref(volume))
        except StorageChanged as error:
            yield Finding("volume", f"volume {volume.id}", f"its storage {error.problem}. {error.hint}")
        except OSError as error:
            yield Finding("volume", f"volume {volume.id}", f"could not be looked at: {error}")
        else:
            if storage.length > volume.length:
                yield Finding(
                    "volume",
                    f"volume {volume.id}",
                    f"has {storage.length} bytes, the catalogue says {volume.length}: the next backup of it"
                    " takes all of it and corrects the catalogue",
                )
    for name, count in not_enabled.items():
        if count:
            problem = f"has {counted(count, 'volume')}, but is not enabled here: not looked at"
            yield Finding("volume", f"volume back end {name}", problem)


def _stores(
    db: Database, conf: cfg.ConfigOpts, wanted: list[str] | None, unknown: UnknownManifests
) -> Iterator[Finding]:
    """Compare every container with the manifests in it."""
    from backupfw.chunkstore.errors import ChunkStoreError
    from backupfw.cmd import catalogue
    from backupfw.engine import audit
    from backupfw.errors import ConfigError
    from backupfw.manager.operators.audit import Finding

    if wanted is None:
        elsewhere = {name for one in catalogue.other_services(db, conf) for name in one.stores}
        for name in sorted(catalogue.stores_not_enabled(db, conf) - elsewhere):
            yield Finding("store", f"store {name}", "holds backups, but is not enabled here: not looked at")
    with store.places(conf, db, wanted) as places:
        for place in places:
            try:
                with place.looked_at("auditing") as (container, control):
                    report = audit.run(place.prefix, container, place.catalogue, control)
            except (ChunkStoreError, ConfigError) as error:
                yield Finding("store", str(place), f"could not be looked at: {error}")
                continue
            unknown.add(report.unknown, report.foreign)
            if report.locked:
                text = f"{counted(len(report.locked), 'object')} of deleted or failed backups"
                first = f"the first: {report.locked[0].key} ({report.locked[0].problem})"
                print(
                    f"note: {place}: {text} are locked, a later sweep deletes them; {first}", file=sys.stderr
                )
            for one in report.discrepancies:
                problem = f"{one.kind}: {one.problem}" if one.problem else one.kind
                yield Finding("store", f"{place.store}/{place.container}/{one.key}", problem)
            if report.more:
                problem = f"{report.more} more findings, beside the first {audit.MOST_OF_ALL}"
                yield Finding("store", f"{place.store}/{place.container}", problem)
