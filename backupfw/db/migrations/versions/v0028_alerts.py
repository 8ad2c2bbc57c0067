"""Alerts wait beside the events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column; what waits, and what processes of the release before add, goes to the bus."""
    op.add_column("notices", sa.Column("way", sa.String(length=16), nullable=True))
    op.create_index("ix_notices_way_id", "notices", ["way", "id"])
