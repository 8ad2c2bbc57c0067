"""Which key the digests of a manifest's blocks are made with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column; nothing was encrypted before."""
    op.add_column("manifests", sa.Column("mac_id", sa.String(length=32), nullable=True))
