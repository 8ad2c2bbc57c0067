"""``backupfw backup``: look at backups' records; :mod:`backupfw.cmd.verify` reads what they are made of."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from backupfw.cmd import base
from backupfw.cmd.progress import Progress, counted

if TYPE_CHECKING:
    from oslo_config.cfg import ConfigOpts

    from backupfw.db.session import Database


class List(base.Lister):
    """List backups with what their verifications found, oldest first."""

    columns = (
        "id",
        "project_id",
        "volume_id",
        "status",
        "created_at",
        "verified_at",
        "verified_how",
        "verified_result",
        "fully_verified_at",
        "damaged_objects",
    )
    default_format = "text"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add which backups."""
        parser.add_argument("--volume", metavar="ID", help="only those of this volume")
        parser.add_argument("--project", metavar="ID", help="only those of this project")
        parser.add_argument("--damaged", action="store_true", help="only those that name damaged objects")
        parser.add_argument("--json", action="store_true", help="print one JSON object per line")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Return them page by page."""
        from backupfw.cmd import catalogue, database

        _conf, db = self.database(args)
        return map(database.plain, catalogue.backups(db, args.volume, args.project, damaged=args.damaged))

    def lines(self, args: argparse.Namespace, records: Iterator[Mapping[str, Any]]) -> Iterable[str]:
        """Return a line for each backup."""
        return (json.dumps(one, sort_keys=True) if args.json else _line(one) for one in records)


class Show(base.ShowOne):
    """Print all that is known of a backup, with figures the API does not show."""

    default_format = "json"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add which backup."""
        parser.add_argument("id", metavar="ID", help="the backup's id")

    def record(self, args: argparse.Namespace) -> Mapping[str, Any]:
        """Return it."""
        return record(*self.database(args), args.id)


def record(conf: ConfigOpts, db: Database, backup_id: str) -> Mapping[str, Any]:
    """Return all that is known of a backup, by the names of its parts.

    :raises BackupNotFound: there is none.
    """
    from backupfw.cmd import database
    from backupfw.manager.outcomes.backups import BackupTasks
    from backupfw.manager.usecases.backups import BackupManager

    row = BackupManager(db, conf).get(base.operator(), backup_id)
    known = {
        **database.plain(row),
        "damaged_objects": []
        if row.manifest_id is None
        else [database.plain(one) for one in BackupTasks(db, conf).damaged_objects.of(row.manifest_id)],
        "manifest": _manifest_key(db, row.manifest_id),
        "holdings": None if row.manifest_id is None else _holdings(conf, db, row.id, row.manifest_id),
    }
    # What it put, once, is not what it holds.
    known["put_bytes"] = known.pop("stored_bytes")
    return dict(sorted(known.items()))


def _manifest_key(db: Database, manifest_id: str | None) -> str | None:
    from backupfw.db import models

    if manifest_id is None:
        return None
    with db.read() as session:
        manifest = session.get(models.Manifest, manifest_id)
        return None if manifest is None else manifest.key


def _line(backup: Mapping[str, Any]) -> str:
    verified = "never verified"
    if backup["verified_at"] is not None:
        at = f"{backup['verified_at'][:19]}Z"
        verified = f"{backup['verified_how']} verification of {at}: {backup['verified_result']}"
    damaged = backup["damaged_objects"]
    damage = f", DAMAGED, {counted(damaged, 'object')}" if damaged else ""
    return f"{backup['id']} of volume {backup['volume_id']}: {backup['status']}, {verified}{damage}"


def _holdings(conf: ConfigOpts, db: Database, backup_id: str, manifest_id: str) -> dict[str, Any] | None:
    """Say what of the store is this backup's own, what it shares, and what deleting it would free now.

    :return: None while its manifest is not in use; only the reason if the store does not tell.
    """
    from backupfw.chunkstore.container import Container
    from backupfw.chunkstore.errors import ChunkStoreError
    from backupfw.cmd import store
    from backupfw.db import models
    from backupfw.db.installation import installation_id
    from backupfw.engine import release
    from backupfw.engine.format.keys import installation_prefix
    from backupfw.engine.ports import KnownManifests
    from backupfw.errors import Damaged, UnsupportedFormat
    from backupfw.manager.lineage import manifests

    with db.snapshot() as session:
        manifest = session.get(models.Manifest, manifest_id)
        if manifest is None:
            return None
        live = manifests.live_backups(session, manifest_id)
        known = frozenset(manifests.volume_keys(session, manifest_id))
        ours = manifest.installation_id == installation_id(session)
        in_use = manifests.is_base_of_running(session, manifest_id)
    key = manifest.key
    if key is None or key not in live:
        return None
    duplicates = [one for one in live.pop(key) if one != backup_id]
    progress = Progress(f"reading the manifests of volume {manifest.volume_id}")
    try:
        with store.opened(conf, manifest.store) as opened:
            found = release.look(
                key,
                KnownManifests(tuple(live), known),
                installation_prefix(manifest.installation_id),
                Container(opened, manifest.container),
                progress.control(),
            )
    except (ChunkStoreError, Damaged, UnsupportedFormat) as error:
        return {"problem": str(error)}
    finally:
        progress.abandon()
    shared_with = [
        {"manifest": other, "backups": live[other], **_figures(much)}
        for other, much in found.shared_with.items()
    ]
    # A release waits for whoever names the manifest itself; what another installation made is never deleted.
    stays = bool(duplicates) or in_use or not ours
    return {
        "own": _figures(found.own),
        "shared": _figures(found.shared),
        "shared_with": shared_with,
        "same_manifest": duplicates,
        "deleting_frees": _figures((0, 0) if stays else found.own),
    }


def _figures(much: tuple[int, int]) -> dict[str, int]:
    return {"objects": much[0], "bytes": much[1]}
