"""What stores hold, day by day; and what keeps backups from being good is found by an index."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a table and indexes that processes of the release before leave alone."""
    op.create_table(
        "store_usage",
        sa.Column("store", sa.String(255), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("backups", sa.BigInteger(), nullable=False),
        sa.Column("objects", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("recorded_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("store", "project_id", "day", name="pk_store_usage"),
        sa.Index("ix_store_usage_day", "day"),
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index("ix_backups_restore_test", "backups", ["restore_test_result", "deleted"])
    op.create_index("ix_backups_status", "backups", ["status", "deleted"])
    op.create_index("ix_backup_copies_status", "backup_copies", ["status"])
