"""How far copies are, in a column of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column that processes of the release before leave alone: of their rows both columns are read."""
    op.add_column("manifests", sa.Column("copy_step", sa.String(length=8), nullable=True))
