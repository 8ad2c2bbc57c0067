"""PostgreSQL behind a pooler in transaction mode: each transaction has its settings, none has another's."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text

from backupfw.db.session import IDLE_SECONDS, Database
from tests.servers import databases
from tests.servers.directory import server_directory

pytestmark = pytest.mark.server


def test_every_transaction_has_its_settings_behind_pgbouncer(postgresql_url: str) -> None:
    if databases.pgbouncer_program() is None:
        pytest.skip("pgbouncer is not installed")
    with server_directory() as directory, databases.pgbouncer(directory, postgresql_url) as url:
        other = create_engine(url, isolation_level="AUTOCOMMIT")
        db = Database(url)
        try:
            for transaction in (db.read, db.write, db.snapshot, db.read):
                # The server's session is shared: this is what a reconnect, or another program, leaves there.
                with other.connect() as connection:
                    connection.execute(text("SET SESSION idle_in_transaction_session_timeout = 0"))
                    connection.execute(text("SET SESSION default_transaction_isolation = 'serializable'"))
                with transaction() as session:
                    level = session.scalar(text("SHOW transaction_isolation"))
                    idle = session.scalar(text("SHOW idle_in_transaction_session_timeout"))
                assert level == ("repeatable read" if transaction == db.snapshot else "read committed")
                assert idle == f"{IDLE_SECONDS}s"
                with other.connect() as connection:
                    left = connection.scalar(text("SHOW idle_in_transaction_session_timeout"))
                assert left == "0"
        finally:
            db.close()
            other.dispose()
