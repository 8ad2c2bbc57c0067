"""The installation's id: the first part of every object key this database's backups put."""

from __future__ import annotations

import hashlib
import uuid

from sqlalchemy.orm import Session

from backupfw.db.locks import insert_if_absent, lock
from backupfw.db.models import Installation
from backupfw.db.session import now
from backupfw.errors import ConfigError

_ROW = 1


def installation_id(session: Session) -> str:
    """Return the installation's id.

    :raises ConfigError: the database was never set up (``backupfw db sync``).
    """
    row = session.get(Installation, _ROW)
    if row is None:
        raise ConfigError("the database has no installation id; run backupfw db sync")
    return row.uuid


def database_id(session: Session) -> str:
    """Return an id of the database itself, 32 hexadecimal digits; a copy of it has the same.

    It stays when the database takes over another installation.
    """
    made = session.get_one(Installation, _ROW).created_at
    return hashlib.blake2b(made.isoformat().encode("ascii"), digest_size=16).hexdigest()


def ensure_installation(session: Session, wanted: str | None = None) -> str:
    """Make the installation's id once, and return it.

    :param wanted: the id a deployer chose (``[DEFAULT] installation_id``); random if there is none.
    :raises ConfigError: the database has another id already, which is part of all its object keys.
    """
    new = {"id": _ROW, "uuid": wanted or str(uuid.uuid4()), "created_at": now(session)}
    session.execute(insert_if_absent(session, Installation), new)
    row = session.get_one(Installation, _ROW)
    if wanted and wanted != row.uuid:
        raise ConfigError(
            f"[DEFAULT] installation_id is {wanted}, but the database was made with {row.uuid}; "
            "remove the option or set it to the database's id"
        )
    return row.uuid


def take_over_installation(session: Session, wanted: str) -> None:
    """Give this database the id of an installation whose database was lost.

    The caller makes sure that nothing of the id before is in use.
    """
    (row_id,) = lock(session, Installation, Installation.id == _ROW)
    session.get_one(Installation, row_id).uuid = wanted
