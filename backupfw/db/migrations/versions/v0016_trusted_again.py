"""Since when a volume's storage is trusted again to say what is unchanged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column that is null for volumes whose storage was never distrusted, or still is."""
    op.add_column("volumes", sa.Column("changes_trusted_at", UtcDateTime(), nullable=True))
