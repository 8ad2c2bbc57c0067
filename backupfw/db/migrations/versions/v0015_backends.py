"""The volume back ends: which one a volume is in, a task needs, a worker has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns that processes of the release before leave alone: all they know is ``local``."""
    op.add_column("volumes", sa.Column("backend", sa.String(255), server_default="local", nullable=False))
    op.add_column("tasks", sa.Column("backend", sa.String(255), nullable=True))
    op.add_column("services", sa.Column("backends", sa.JSON(), nullable=True))
