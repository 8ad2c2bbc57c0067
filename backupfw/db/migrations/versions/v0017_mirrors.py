"""Volumes and snapshots of a foreign catalogue, as rows that mirror them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns that processes of the release before leave alone: they have no such back end."""
    op.add_column("volumes", sa.Column("mirrored_at", UtcDateTime(), nullable=True))
    op.add_column("snapshots", sa.Column("mirrored_at", UtcDateTime(), nullable=True))
