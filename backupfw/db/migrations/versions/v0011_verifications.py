"""When each backup was verified and how that ended, and which manifests name a damaged object."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns that are null for what was never verified since; a table that verifications fill."""
    for column in (
        sa.Column("verified_at", UtcDateTime(), nullable=True),
        sa.Column("verified_how", sa.String(16), nullable=True),
        sa.Column("verified_result", sa.String(16), nullable=True),
        sa.Column("fully_verified_at", UtcDateTime(), nullable=True),
    ):
        op.add_column("backups", column)
    op.create_table(
        "damage_marks",
        sa.Column("manifest_id", sa.String(36), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["manifest_id"], ["manifests.id"], name="fk_damage_marks_manifest_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["digest"], ["damaged_objects.digest"], name="fk_damage_marks_digest", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("manifest_id", "digest", name="pk_damage_marks"),
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index("ix_damage_marks_digest", "damage_marks", ["digest"], unique=False)
