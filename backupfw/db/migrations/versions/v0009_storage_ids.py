"""What tells the storage of an adopted volume from any other at its location."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column that is null for volumes of before: their first good open fills it."""
    op.add_column("volumes", sa.Column("storage_id", sa.String(255), nullable=True))
