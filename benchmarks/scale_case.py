"""What an operator reads or removes in a large database: one case in this process, its peak as JSON.

The database is made by set-based statements; the audit finds nothing wrong with it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from itertools import islice

from backupfw.cmd.catalogue import DatabaseCatalogue
from backupfw.cmd.meters import Meters
from backupfw.db import migrate
from backupfw.db.digest import object_digest
from backupfw.db.installation import installation_id
from backupfw.db.session import Database
from backupfw.manager.operators import audit, purge
from backupfw.manager.rules import quota
from benchmarks.memory_case import peak_mib

PROJECTS = 100
#: Backups of each volume, each upon the one before.
BACKUPS = 10
PLACE = ("main", "volumebackups")

#: One row for each number from 0; ids in its order.
_NUMBERS = "WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :rows)"
_ID = "printf('%s-0000-4000-8000-%012x', {kind}, {number})"


def _id(kind: str, number: str) -> str:
    return _ID.format(kind=f"'{kind:0<8}'", number=number)


_MANIFEST, _BACKUP = _id("d", "n"), _id("b", "n")
_MOMENT = "strftime('%Y-%m-%d %H:%M:%S', 1700000000 + n, 'unixepoch') || '.000000'"


def _rows(projects: int, backups: int) -> tuple[str, ...]:
    """Return what fills the tables, with so many backups of each volume, each upon the one before."""
    volume, project = _id("a", f"n / {backups}"), f"'project-' || (n / {backups} % {projects})"
    base = f"CASE WHEN n % {backups} = 0 THEN NULL ELSE {_id('d', 'n - 1')} END"
    key = f"({project}) || '/' || ({volume}) || '/' || ({_BACKUP}) || '/1.1-0000000000000000/manifest'"
    return (
        f"""INSERT INTO volumes (id, project_id, status, size, length, location, created_at)
        {_NUMBERS} SELECT {volume}, {project}, 'available', 1, 1073741824, '/v', {_MOMENT} FROM numbers
        WHERE n % {backups} = 0""",
        f"""INSERT INTO manifests (id, store, container, key, key_digest, installation_id, project_id,
        volume_id, backup_id, base_id, in_tree, detached, state, epoch, block_size, segment_size, hash_mode,
        length, touched, created_at, updated_at)
        {_NUMBERS} SELECT {_MANIFEST}, 'main', 'volumebackups', {key}, digest({key}),
        (SELECT uuid FROM installation), {project}, {volume}, {_BACKUP}, {base}, true, false, 'live', 1,
        65536, 268435456, 'blake3', 1073741824, 0, {_MOMENT}, {_MOMENT} FROM numbers""",
        f"""INSERT INTO backups (id, user_id, project_id, volume_id, container, store, service,
        is_incremental, completed, status, size, length, service_metadata, object_count, stored_bytes,
        referenced_bytes,
        progress_done, progress_total, data_timestamp, manifest_id, created_at, updated_at, deleted)
        {_NUMBERS} SELECT {_BACKUP}, 'user', {project}, {volume}, 'volumebackups', 'main', 'service',
        n % {backups} > 0, true, 'available', 1, 1073741824, {key}, 5, 1000000, 2000000, 1073741824,
        1073741824, {_MOMENT}, {_MANIFEST}, {_MOMENT}, {_MOMENT}, false FROM numbers""",
    )


#: Every second volume's backups are deleted.
_DELETE = (
    f"""UPDATE backups SET deleted = true, status = 'deleted', manifest_id = NULL,
    deleted_at = '2026-02-01 00:00:00.000000' WHERE (rowid - 1) / {BACKUPS} % 2""",
    f"""UPDATE manifests SET state = 'gone', in_tree = false, base_id = NULL,
    updated_at = '2026-02-01 00:00:00.000000' WHERE (rowid - 1) / {BACKUPS} % 2""",
)


def backup_id(number: int) -> str:
    """Return the id of a backup by its number, from 0."""
    return f"{'b':0<8}-0000-4000-8000-{number:012x}"


def project(number: int) -> str:
    """Return whose backup it is."""
    return f"project-{number // BACKUPS % PROJECTS}"


def fill(file: str, rows: int, *, projects: int = PROJECTS, backups: int = BACKUPS) -> None:
    """Make a database with so many backups that can be restored.

    :param projects: as many projects have the volumes, in turn.
    :param backups: of each volume.
    """
    with closing(Database(f"sqlite:///{file}")) as db:
        migrate.sync(db)
        raw = db.engine.raw_connection()
        try:
            connection = raw.driver_connection
            assert connection is not None
            connection.create_function(
                "digest", 1, lambda key: object_digest(*PLACE, key), deterministic=True
            )
            for statement in _rows(projects, backups):
                connection.execute(statement, {"rows": rows})
            connection.commit()
        finally:
            raw.close()
        db.renew_statistics()


def _audit(db: Database) -> int:
    found = audit.run(db, 60)
    if found:
        raise ValueError(f"the audit found {len(found)}, first: {found[0]}")
    return 0


def _usage(db: Database) -> int:
    with db.read() as session:
        return sum(quota.usage_of(session, f"project-{number}")["backups"] for number in range(PROJECTS))


def _rows_of_volumes(db: Database) -> int:
    """Read what a sweep and an audit of the store read: all volumes, and the rows of every tenth."""
    with db.read() as session:
        ours = installation_id(session)
    catalogue = DatabaseCatalogue(db, *PLACE, ours)
    tenth = islice(catalogue.volumes(), 0, None, 10)
    return sum(len(catalogue.volume(project, volume).live) for project, volume in tenth)


def _metrics(db: Database) -> int:
    return len(Meters(db).text())


def _purge(db: Database) -> int:
    with db.engine.begin() as connection:
        for statement in _DELETE:
            connection.exec_driver_sql(statement)
    db.renew_statistics()
    return sum(purge.run(db, datetime(2026, 3, 1)).values())


CASES: dict[str, Callable[[Database], int]] = {
    "audit": _audit,
    "usage": _usage,
    "volumes": _rows_of_volumes,
    "metrics": _metrics,
    "purge": _purge,
}


def main() -> None:
    """Run the case that the command line names, on a database that is there."""
    name, file = sys.argv[1:]
    with closing(Database(f"sqlite:///{file}")) as db:
        begin = time.perf_counter()
        result = CASES[name](db)
        seconds = time.perf_counter() - begin
    print(json.dumps({"result": result, "seconds": seconds, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
