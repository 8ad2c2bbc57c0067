"""Databases of every kind, for tests that race."""

from tests.unit.db.conftest import any_db, mariadb_url, postgresql_url

__all__ = ["any_db", "mariadb_url", "postgresql_url"]
