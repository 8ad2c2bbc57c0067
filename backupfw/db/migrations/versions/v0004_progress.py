"""How far each task is, and how fast."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns that workers of the release before do not miss."""
    for name in ("progress_done", "progress_total", "progress_rate"):
        op.add_column("tasks", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))

    op.add_column("tasks", sa.Column("progress_at", UtcDateTime(), nullable=True))
