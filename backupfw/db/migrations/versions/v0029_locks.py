"""Locks of objects in stores."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two columns that processes of the release before leave alone: they lock nothing."""
    op.add_column("manifests", sa.Column("locked_until", UtcDateTime(), nullable=True))
    op.add_column("tasks", sa.Column("locked", sa.Boolean(), server_default=sa.false(), nullable=False))
