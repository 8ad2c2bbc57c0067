"""Indexes for what large installations read, ids that do not run out, and when manifests went."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change nothing that processes of the release before look at."""
    op.create_index("ix_manifests_volume_id_in_tree", "manifests", ["volume_id", "in_tree"])
    op.drop_index("ix_manifests_volume_id", "manifests")
    op.create_index("ix_backups_temp_snapshot_id", "backups", ["temp_snapshot_id"])
    op.create_index("ix_volumes_host", "volumes", ["host"])
    op.create_index("ix_transfers_project_listing", "transfers", ["project_id", "created_at", "id"])
    op.drop_index("ix_transfers_project_id", "transfers")
    op.create_index("ix_transfers_created_at", "transfers", ["created_at", "id"])
    op.create_index("ix_volume_types_created_at", "volume_types", ["created_at", "id"])
    backend = op.get_bind().dialect.name
    # An id of SQLite's has 64 bits.
    if backend != "sqlite":
        for table in ("tasks", "notices"):
            op.alter_column(
                table,
                "id",
                type_=sa.BigInteger(),
                existing_type=sa.Integer(),
                existing_nullable=False,
                autoincrement=None if backend == "postgresql" else True,
            )
            if backend == "postgresql":
                # It was made for the narrower column.
                op.execute(f"ALTER SEQUENCE {table}_id_seq AS bigint")
    # A purge asks when a manifest went, which nobody noted: it counts as gone from the end of today.
    tonight = datetime.combine(datetime.now(UTC).date() + timedelta(days=1), time())
    manifests = sa.table("manifests", sa.column("state"), sa.column("updated_at", UtcDateTime()))
    op.execute(manifests.update().where(manifests.c.state == "gone").values(updated_at=tonight))
