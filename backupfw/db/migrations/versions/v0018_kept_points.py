"""In which volumes' storages something may be kept for the points of backups."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column that processes of the release before leave alone: their providers keep nothing."""
    op.add_column(
        "volumes", sa.Column("keeps_points", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
