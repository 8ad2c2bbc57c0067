"""The processes of each service, with what each of them can do."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column that workers of the release before do not miss: those write what they alone can do."""
    op.add_column("services", sa.Column("processes", sa.JSON(), nullable=True))
