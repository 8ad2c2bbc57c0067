"""Copies of backups in other stores."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_TABLE: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
}


def upgrade() -> None:
    """Add a table and two columns that processes of the release before leave alone: they copy nothing."""
    op.add_column("manifests", sa.Column("copied", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("tasks", sa.Column("from_store", sa.String(length=255), nullable=True))
    op.create_table(
        "backup_copies",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("backup_id", sa.String(36), nullable=False),
        sa.Column("store", sa.String(255), nullable=False),
        sa.Column("container", sa.String(255), nullable=False),
        sa.Column("status", sa.String(64), nullable=False),
        sa.Column("fail_reason", sa.String(255), nullable=True),
        sa.Column("manifest_id", sa.String(36), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=True),
        sa.Column("touched", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_backup_copies"),
        sa.ForeignKeyConstraint(
            ["backup_id"], ["backups.id"], name="fk_backup_copies_backup_id_backups", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["manifest_id"], ["manifests.id"], name="fk_backup_copies_manifest_id_manifests"
        ),
        sa.Index("ix_backup_copies_backup_id_store", "backup_id", "store", unique=True),
        sa.Index("ix_backup_copies_manifest_id", "manifest_id"),
        **_TABLE,
    )
