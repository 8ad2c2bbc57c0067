"""An index for the newest good backup of each volume."""

from __future__ import annotations

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change nothing that processes of the release before look at."""
    op.create_index("ix_backups_newest", "backups", ["volume_id", "deleted", "status", "data_timestamp"])
