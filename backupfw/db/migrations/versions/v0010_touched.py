"""A column to change in every row under which decisions are made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_TABLES = (
    "queue", "projects", "volumes", "snapshots", "backups", "tasks", "notices", "services", "volume_types",
)  # fmt: skip


def upgrade() -> None:
    """Add the column that manifests have already; what the release before writes has its default."""
    for table in _TABLES:
        op.add_column(table, sa.Column("touched", sa.BigInteger(), server_default="0", nullable=False))
