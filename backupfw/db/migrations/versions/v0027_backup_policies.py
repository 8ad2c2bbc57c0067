"""Backup policies and their runs."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

_TABLE: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
}


def upgrade() -> None:
    """Add two tables and a column that processes of the release before leave alone: they run no policy."""
    op.add_column("backups", sa.Column("policy_id", sa.String(36), nullable=True))
    op.create_index("ix_backups_policy_id", "backups", ["policy_id", "volume_id"])
    op.create_table(
        "backup_policies",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("user_id", sa.String(255), nullable=True),
        sa.Column("updated_by", sa.String(255), nullable=True),
        sa.Column("display_name", sa.String(255), nullable=True),
        sa.Column("display_description", sa.String(255), nullable=True),
        sa.Column("enabled", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("max_concurrent", sa.Integer(), nullable=True),
        sa.Column("next_run_at", UtcDateTime(), nullable=True),
        sa.Column("planned_at", UtcDateTime(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=True),
        sa.Column("touched", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_backup_policies"),
        sa.Index("ix_backup_policies_project_listing", "project_id", "created_at", "id"),
        sa.Index("ix_backup_policies_listing", "created_at", "id"),
        sa.Index("ix_backup_policies_next_run_at", "next_run_at"),
        **_TABLE,
    )
    op.create_table(
        "policy_runs",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("policy_id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("volume_id", sa.String(36), nullable=False),
        sa.Column("scheduled_at", UtcDateTime(), nullable=False),
        sa.Column("begin_at", UtcDateTime(), nullable=False),
        sa.Column("begin_before", UtcDateTime(), nullable=False),
        sa.Column("end_before", UtcDateTime(), nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(255), nullable=True),
        sa.Column("backup_id", sa.String(36), nullable=True),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("taken_until", UtcDateTime(), nullable=True),
        sa.Column("tidied", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("touched", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_policy_runs"),
        sa.ForeignKeyConstraint(
            ["policy_id"],
            ["backup_policies.id"],
            name="fk_policy_runs_policy_id_backup_policies",
            ondelete="CASCADE",
        ),
        sa.Index("ix_policy_runs_scheduled", "policy_id", "volume_id", "scheduled_at", unique=True),
        sa.Index("ix_policy_runs_status", "status", "begin_at"),
        sa.Index("ix_policy_runs_tidied", "tidied", "status"),
        sa.Index("ix_policy_runs_listing", "policy_id", "created_at", "id"),
        sa.Index("ix_policy_runs_created_at", "created_at"),
        **_TABLE,
    )
