"""Databases of every kind, for tests that race."""

from tests.unit.db.conftest import db as any_db
from tests.unit.db.conftest import mariadb_url, postgresql_url

__all__ = ["any_db", "mariadb_url", "postgresql_url"]
