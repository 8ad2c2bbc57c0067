"""What tasks need of a worker, whose turn they are, and what workers can do."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns that workers of the release before do not miss; rows that stand need nothing special."""
    op.create_table(
        "queue",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_queue"),
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.add_column("tasks", sa.Column("zone", sa.String(length=255), nullable=True))
    op.add_column("tasks", sa.Column("store", sa.String(length=255), nullable=True))
    op.add_column("tasks", sa.Column("volume_host", sa.String(length=255), nullable=True))
    op.add_column("tasks", sa.Column("turn", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index("ix_tasks_queue", "tasks", ["state", "turn", "id"], unique=False)
    op.create_index("ix_tasks_project", "tasks", ["project_id", "turn"], unique=False)
    op.add_column("volumes", sa.Column("host", sa.String(length=255), nullable=True))
    op.add_column("services", sa.Column("frozen", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column(
        "services", sa.Column("every_volume", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
