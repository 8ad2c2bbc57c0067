"""When the objects of each manifest were last verified, and which task does that now."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns that processes of the release before leave alone; take over what backups recorded."""
    for column in (
        sa.Column("fully_verified_at", UtcDateTime(), nullable=True),
        sa.Column("scrub_task_id", sa.BigInteger(), nullable=True),
        sa.Column("scrub_after", UtcDateTime(), nullable=True),
    ):
        op.add_column("manifests", column)
    op.create_index("ix_manifests_scrub_task_id", "manifests", ["scrub_task_id"], unique=False)
    op.execute(
        "UPDATE manifests SET fully_verified_at = (SELECT max(backups.fully_verified_at) FROM backups"
        " WHERE backups.manifest_id = manifests.id)"
    )
