"""Which tasks were given back because their store does not answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column that workers of the release before do not miss."""
    op.add_column("tasks", sa.Column("store_down", sa.Boolean(), server_default=sa.false(), nullable=False))
