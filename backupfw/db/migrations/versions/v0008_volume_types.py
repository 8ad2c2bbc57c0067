"""Volume types, what is known of a volume's image, and transfers of volumes."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

from backupfw.db.types import UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TABLE: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
}

#: The one type that was shown before there were any; as it was shown.
_DEFAULT_ID = str(uuid.uuid5(uuid.NAMESPACE_URL, "backupfw:volume-type:default"))
_DEFAULT = "__DEFAULT__"


def upgrade() -> None:
    """Add tables and columns; a word that volumes carry as their type becomes a public type."""
    op.create_table(
        "volume_types",
        sa.Column("id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_volume_types"),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.String(255), nullable=True),
        sa.Column("is_public", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=True),
        sa.UniqueConstraint("name", name="uq_volume_types_name"),
        **_TABLE,
    )
    op.create_table(
        "volume_type_extra_specs",
        sa.Column("volume_type_id", sa.String(36), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("volume_type_id", "key", name="pk_volume_type_extra_specs"),
        _of_type("volume_type_extra_specs", "CASCADE"),
        **_TABLE,
    )
    op.create_table(
        "volume_type_projects",
        sa.Column("volume_type_id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("volume_type_id", "project_id", name="pk_volume_type_projects"),
        _of_type("volume_type_projects", "CASCADE"),
        **_TABLE,
    )
    op.create_table(
        "default_volume_types",
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("project_id", name="pk_default_volume_types"),
        sa.Column("volume_type_id", sa.String(36), nullable=False),
        _of_type("default_volume_types", None),
        sa.Index("ix_default_volume_types_volume_type_id", "volume_type_id"),
        **_TABLE,
    )
    op.create_table(
        "volume_image_metadata",
        sa.Column("volume_id", sa.String(36), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("volume_id", "key", name="pk_volume_image_metadata"),
        sa.ForeignKeyConstraint(
            ["volume_id"],
            ["volumes.id"],
            name="fk_volume_image_metadata_volume_id",
            ondelete="CASCADE",
        ),
        **_TABLE,
    )
    op.create_table(
        "transfers",
        sa.Column("id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_transfers"),
        sa.Column("volume_id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("display_name", sa.String(255), nullable=True),
        sa.Column("key_digest", sa.String(64), nullable=False),
        sa.Column("no_snapshots", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.UniqueConstraint("volume_id", name="uq_transfers_volume_id"),
        sa.ForeignKeyConstraint(["volume_id"], ["volumes.id"], name="fk_transfers_volume_id"),
        sa.Index("ix_transfers_project_id", "project_id"),
        **_TABLE,
    )
    op.add_column("backups", sa.Column("volume_record", sa.JSON(), nullable=True))
    op.add_column("snapshots", sa.Column("progress", sa.String(16), nullable=True))
    _types_of_words()


def _of_type(table: str, ondelete: str | None) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["volume_type_id"], ["volume_types.id"], name=f"fk_{table}_volume_type_id", ondelete=ondelete
    )


def _types_of_words() -> None:
    connection = op.get_bind()
    volumes = sa.table("volumes", sa.column("volume_type", sa.String))
    types = sa.table(
        "volume_types",
        sa.column("id", sa.String),
        sa.column("name", sa.String),
        sa.column("description", sa.String),
        sa.column("is_public", sa.Boolean),
        sa.column("created_at", UtcDateTime()),
    )
    kind = volumes.c.volume_type
    words = connection.scalars(sa.select(kind).where(kind.is_not(None)).distinct()).all()
    # Volumes that were deleted count too: their backups are restored to new ones.
    for word in words:
        name: str | None = word.strip() or None
        if word == _DEFAULT_ID:
            name = _DEFAULT
        if name != word:
            connection.execute(sa.update(volumes).where(kind == word).values(volume_type=name))
    # A database without transactions for changes of tables may have some already.
    there = set(connection.scalars(sa.select(types.c.name)))
    names = {word.strip() for word in words} - {"", _DEFAULT, _DEFAULT_ID}
    shared = {"is_public": True, "created_at": datetime.now(UTC).replace(tzinfo=None)}
    made = [
        {"id": _DEFAULT_ID, "name": _DEFAULT, "description": "Default Volume Type", **shared},
        *({"id": str(uuid.uuid4()), "name": name, "description": None, **shared} for name in sorted(names)),
    ]
    if missing := [row for row in made if row["name"] not in there]:
        connection.execute(sa.insert(types), missing)
