"""A column to change in the installation's row: so it is found out whether the database takes writes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what every row has that decisions are made under."""
    op.add_column("installation", sa.Column("touched", sa.BigInteger(), server_default="0", nullable=False))
