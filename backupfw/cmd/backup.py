"""``backupfw backup``: look at a backup's record, and read everything it is made of."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from backupfw.cmd.configure import add_command, add_group, load_conf
from backupfw.cmd.progress import Progress, human_size
from backupfw.context import RequestContext
from backupfw.errors import InvalidBackup

if TYPE_CHECKING:
    from oslo_config.cfg import ConfigOpts

    from backupfw.chunkstore.container import Container
    from backupfw.db.session import Database
    from backupfw.manager.backup_tasks import BackupTasks

OPERATOR = RequestContext("", "backupfw", frozenset({"admin"}), is_admin=True)


def add_parser(commands: Any) -> None:
    """Add the subcommands."""
    group = add_group(commands, "backup", "Look at backups.")
    show_parser = add_command(group, "show", show, "Print all that is known of a backup, as JSON.")
    verify_parser = add_command(
        group,
        "verify",
        verify,
        "Read a backup's objects and compare every block; damage is remembered, so that the next"
        " incremental stores it anew.",
    )
    verify_parser.add_argument(
        "--quick", action="store_true", help="read maps whole and only the end of each pack"
    )
    for parser in (show_parser, verify_parser):
        parser.add_argument("id", metavar="ID", help="the backup's id")


def _manifest_key(db: Database, manifest_id: str | None) -> str | None:
    from backupfw.db import models

    if manifest_id is None:
        return None
    with db.read() as session:
        manifest = session.get(models.Manifest, manifest_id)
        return None if manifest is None else manifest.key


def show(args: argparse.Namespace) -> int:
    """Print the record, with figures the API does not show."""
    from backupfw.cmd import database
    from backupfw.manager.backups import BackupManager

    conf = load_conf(args)
    with database.opened(conf) as db:
        row = BackupManager(db, conf).get(OPERATOR, args.id)
        record = {
            **database.plain(row),
            "manifest": _manifest_key(db, row.manifest_id),
            "holdings": None if row.manifest_id is None else _holdings(conf, db, row.id, row.manifest_id),
        }
    json.dump(record, sys.stdout, indent=2, sort_keys=True)
    print()
    return 0


def _holdings(conf: ConfigOpts, db: Database, backup_id: str, manifest_id: str) -> dict[str, Any] | None:
    """Say what of the store is this backup's own, what it shares, and what deleting it would free now.

    :return: None while its manifest is not in use; only the reason if the store does not tell.
    """
    from backupfw.chunkstore.container import Container
    from backupfw.chunkstore.errors import ChunkStoreError
    from backupfw.cmd import store
    from backupfw.cmd.terminal_control import TerminalControl
    from backupfw.db import models
    from backupfw.db.installation import installation_id
    from backupfw.engine import release
    from backupfw.engine.format.keys import installation_prefix
    from backupfw.engine.ports import KnownManifests
    from backupfw.errors import Damaged, UnsupportedFormat
    from backupfw.manager import lineage

    with db.snapshot() as session:
        manifest = session.get(models.Manifest, manifest_id)
        if manifest is None:
            return None
        live = lineage.live_backups(session, manifest_id)
        known = frozenset(lineage.volume_keys(session, manifest_id))
        ours = manifest.installation_id == installation_id(session)
        in_use = lineage.is_base_of_running(session, manifest_id)
    key = manifest.key
    if key is None or key not in live:
        return None
    twins = [one for one in live.pop(key) if one != backup_id]
    progress = Progress(f"reading the manifests of volume {manifest.volume_id}")
    try:
        with store.opened(conf, manifest.store) as opened:
            found = release.look(
                key,
                KnownManifests(tuple(live), known),
                installation_prefix(manifest.installation_id),
                Container(opened, manifest.container),
                TerminalControl(progress),
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
    stays = bool(twins) or in_use or not ours
    return {
        "own": _figures(found.own),
        "shared": _figures(found.shared),
        "shared_with": shared_with,
        "same_manifest": twins,
        "deleting_frees": _figures((0, 0) if stays else found.own),
    }


def _figures(much: tuple[int, int]) -> dict[str, int]:
    return {"objects": much[0], "bytes": much[1]}


def _forget_healed(tasks: BackupTasks, container: Container, key: str) -> None:
    """Take objects off the list of damaged ones that were just found whole (a store can be mended)."""
    from backupfw.engine.format.manifest import ManifestReader

    store = container.store.name
    listed = tasks.damaged_keys(store, container.name)
    if not listed:
        return
    named = (
        object_key
        for entry in ManifestReader(container, key).segments()
        for object_key in entry.object_keys()
    )
    for healed in [key, *named]:
        if healed in listed:
            tasks.clear_damage(store, container.name, healed)


def verify(args: argparse.Namespace) -> int:
    """Verify one backup; exit status 1 when anything is damaged."""
    from backupfw.cmd import database
    from backupfw.cmd.terminal_control import TerminalControl
    from backupfw.engine import verify as engine
    from backupfw.manager.backup_tasks import BackupTasks
    from backupfw.manager.backups import BackupManager
    from backupfw.worker.stores import Stores

    conf = load_conf(args)
    progress = Progress(f"verifying {args.id}")
    stores = Stores(conf)
    with database.opened(conf) as db:
        row = BackupManager(db, conf).get(OPERATOR, args.id)
        key = _manifest_key(db, row.manifest_id)
        if key is None or row.store is None or row.container is None:
            raise InvalidBackup(f"backup {args.id} has no manifest to verify (status {row.status})")
        store, container = row.store, row.container
        tasks = BackupTasks(db, conf)

        def damaged(bad: str, reason: str) -> None:
            tasks.record_damage(store, container, bad, reason)
            print(f"damaged: {bad}: {reason}")

        try:
            opened = stores.container(store, container)
            report = engine.run(
                key,
                opened,
                TerminalControl(progress),
                damaged,
                quick=args.quick,
                streams=conf.backup.streams,
            )
            if report.ok and not args.quick:
                _forget_healed(tasks, opened, key)
        except BaseException:
            progress.abandon()
            raise
        finally:
            stores.close()
    progress.finish(human_size(report.bytes))
    verdict = "ok" if report.ok else f"DAMAGED, {report.damaged} objects"
    print(
        f"backup {args.id}: {verdict} ({report.objects} objects, {report.blocks} blocks,"
        f" {human_size(report.bytes)} read)"
    )
    return 0 if report.ok else 1
