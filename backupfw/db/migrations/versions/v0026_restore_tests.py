"""When each backup was last restored to nowhere, how that ended, and the digest of its content."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns that processes of the release before leave alone: null for what was never tested."""
    for column in (
        sa.Column("restore_tested_at", UtcDateTime(), nullable=True),
        sa.Column("restore_test_result", sa.String(16), nullable=True),
        sa.Column("content_digest", sa.String(64), nullable=True),
    ):
        op.add_column("backups", column)
