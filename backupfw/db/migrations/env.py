"""What alembic runs: the steps, on the connection that :mod:`backupfw.db.migrate` hands over."""

from __future__ import annotations

from alembic import context

from backupfw.db.migrations import repeatable as repeatable
from backupfw.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite cannot alter most of a table: there it is copied.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
