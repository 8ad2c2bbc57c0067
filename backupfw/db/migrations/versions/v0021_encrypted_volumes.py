"""With which key a foreign catalogue encrypts a volume."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column; no encrypted volume was backed up before."""
    op.add_column("volumes", sa.Column("encryption_key_id", sa.String(length=36), nullable=True))
