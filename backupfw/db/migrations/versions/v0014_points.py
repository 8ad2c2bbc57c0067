"""How each backup found what changed, and which volumes' storages said that wrongly."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns that are null for what was before."""
    op.add_column("backups", sa.Column("comparison", sa.String(255), nullable=True))
    op.add_column("backups", sa.Column("read_bytes", sa.BigInteger(), nullable=True))
    op.add_column("volumes", sa.Column("changes_distrusted_at", UtcDateTime(), nullable=True))
