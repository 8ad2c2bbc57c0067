"""How many runs of a backup policy were missed, or have failed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns that begin at 0: processes of the release before run no policies."""
    for name in ("missed_runs", "failed_runs"):
        op.add_column("backup_policies", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
