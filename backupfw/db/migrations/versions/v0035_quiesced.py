"""Whether volumes were frozen when the points of backups were taken."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns that are null: nobody could ask for it before."""
    op.add_column("backups", sa.Column("quiesced", sa.Boolean(), nullable=True))
    op.add_column("backups", sa.Column("quiesce_reason", sa.String(255), nullable=True))
    op.add_column("policy_runs", sa.Column("quiesced", sa.Boolean(), nullable=True))
