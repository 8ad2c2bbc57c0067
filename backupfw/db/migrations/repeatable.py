"""Steps that can be repeated: each checks whether it was done before.

MariaDB commits each change of a table at once.  A killed migration leaves some of a version's changes done
and the version number unchanged, and runs again from that version's start.  This module replaces alembic's
own operations, so every step of every version can be repeated.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations, ops, toimpl


def _names(operations: Operations, what: str, table: str) -> set[Any]:
    found = getattr(sa.inspect(operations.get_bind()), what)(table)
    return {one["name"] for one in found}


@Operations.implementation_for(ops.CreateTableOp, replace=True)
def _create_table(operations: Operations, operation: ops.CreateTableOp) -> sa.Table:
    if not sa.inspect(operations.get_bind()).has_table(operation.table_name):
        return toimpl.create_table(operations, operation)
    table = operation.to_table(operations.migration_context)
    # A table's indexes are made after it.
    there = _names(operations, "get_indexes", table.name)
    for index in table.indexes:
        if index.name not in there:
            operations.impl.create_index(index)
    return table


@Operations.implementation_for(ops.CreateIndexOp, replace=True)
def _create_index(operations: Operations, operation: ops.CreateIndexOp) -> None:
    if operation.index_name not in _names(operations, "get_indexes", operation.table_name):
        toimpl.create_index(operations, operation)


@Operations.implementation_for(ops.DropIndexOp, replace=True)
def _drop_index(operations: Operations, operation: ops.DropIndexOp) -> None:
    assert operation.table_name is not None
    if operation.index_name in _names(operations, "get_indexes", operation.table_name):
        toimpl.drop_index(operations, operation)


@Operations.implementation_for(ops.AddColumnOp, replace=True)
def _add_column(operations: Operations, operation: ops.AddColumnOp) -> None:
    if operation.column.name not in _names(operations, "get_columns", operation.table_name):
        toimpl.add_column(operations, operation)


def _unknown(_operations: Operations, operation: ops.MigrateOperation) -> None:
    raise NotImplementedError(f"{type(operation).__name__}: say in {__name__} how it is repeated")


# A second ALTER of a column changes nothing.  Operations that no step uses yet are refused, until somebody
# makes them repeatable here.
for _kind in (
    ops.AddConstraintOp,
    ops.DropConstraintOp,
    ops.DropColumnOp,
    ops.DropTableOp,
    ops.RenameTableOp,
):
    Operations.implementation_for(_kind, replace=True)(_unknown)
