"""Who may do what: rule names as operators know them, and the roles that have them by default.

``Policy`` answers from this table; an enforcer that reads a policy file takes its place by having the
same ``allows``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Protocol

from backupfw import errors
from backupfw.context import RequestContext


class Level(Enum):
    """Roles a rule asks for; each level has the rights of those before it."""

    READER = "reader"
    MEMBER = "member"
    ADMIN = "admin"


#: Rule -> level.
RULES: Mapping[str, Level] = {
    "backup:get_all": Level.READER,
    "backup:get": Level.READER,
    "backup:create": Level.MEMBER,
    "backup:update": Level.MEMBER,
    "backup:delete": Level.MEMBER,
    "backup:restore": Level.MEMBER,
    "backup:export-import": Level.ADMIN,
    "backup:backup-import": Level.ADMIN,
    "backup:backup_project_attribute": Level.ADMIN,
    "volume_extension:backup_admin_actions:reset_status": Level.ADMIN,
    "volume_extension:backup_admin_actions:force_delete": Level.ADMIN,
    "volume:get_all": Level.READER,
    "volume:get": Level.READER,
    "volume:create": Level.MEMBER,
    "volume:update": Level.MEMBER,
    "volume:delete": Level.MEMBER,
    "volume:extend": Level.MEMBER,
    "volume:get_volume_metadata": Level.READER,
    "volume:create_volume_metadata": Level.MEMBER,
    "volume:update_volume_metadata": Level.MEMBER,
    "volume:delete_volume_metadata": Level.MEMBER,
    "volume_extension:volume_actions:attach": Level.MEMBER,
    "volume_extension:volume_actions:detach": Level.MEMBER,
    "volume_extension:volume_admin_actions:reset_status": Level.ADMIN,
    "volume_extension:volume_admin_actions:force_delete": Level.ADMIN,
    "volume_extension:volume_host_attribute": Level.ADMIN,
    "volume_extension:volume_tenant_attribute": Level.READER,
    "volume:get_all_snapshots": Level.READER,
    "volume:get_snapshot": Level.READER,
    "volume:create_snapshot": Level.MEMBER,
    "volume:update_snapshot": Level.MEMBER,
    "volume:delete_snapshot": Level.MEMBER,
    "volume:get_snapshot_metadata": Level.READER,
    "volume:update_snapshot_metadata": Level.MEMBER,
    "volume:delete_snapshot_metadata": Level.MEMBER,
    "volume_extension:snapshot_admin_actions:reset_status": Level.ADMIN,
    "volume_extension:snapshot_admin_actions:force_delete": Level.ADMIN,
    "limits_extension:used_limits": Level.READER,
    "volume_extension:quotas:show": Level.READER,
    "volume_extension:quotas:update": Level.ADMIN,
    "volume_extension:quotas:delete": Level.ADMIN,
    "volume_extension:quota_classes:get": Level.ADMIN,
    "volume_extension:quota_classes:update": Level.ADMIN,
    "volume_extension:services:index": Level.ADMIN,
    "volume_extension:services:update": Level.ADMIN,
    "message:get_all": Level.READER,
    "message:get": Level.READER,
    "message:delete": Level.MEMBER,
    "volume:availability_zone_list": Level.READER,
    "volume_extension:type_get_all": Level.READER,
    "volume_extension:type_get": Level.READER,
    "volume:get_extensions": Level.READER,
}

_ROLES: Mapping[Level, frozenset[str]] = {
    Level.READER: frozenset({"reader", "member", "admin"}),
    Level.MEMBER: frozenset({"member", "admin"}),
    Level.ADMIN: frozenset({"admin"}),
}


class Policy(Protocol):
    """Decides calls.  Thread-safe."""

    def allows(self, context: RequestContext, rule: str, project_id: str) -> bool:
        """Whether the caller may do what ``rule`` names to something of that project."""

    def is_admin(self, context: RequestContext) -> bool:
        """Whether the caller sees every project's resources; the context's own answer does not count."""


class TablePolicy:
    """The default roles of :data:`RULES`, nothing configurable."""

    def allows(self, context: RequestContext, rule: str, project_id: str) -> bool:
        """Whether the caller may do what ``rule`` names to something of that project."""
        level = RULES[rule]
        if context.is_admin:
            return True
        if level is Level.ADMIN or project_id != context.project_id:
            return False
        return bool(context.roles & _ROLES[level])

    def is_admin(self, context: RequestContext) -> bool:
        """Whether the caller has the role ``admin``."""
        return "admin" in context.roles


def enforce(policy: Policy, context: RequestContext, rule: str, project_id: str | None = None) -> None:
    """Refuse the call unless the policy allows it.

    :param project_id: whose thing it is about; the caller's own project where None.
    :raises Forbidden: the caller's roles do not allow it.
    """
    if not policy.allows(context, rule, context.project_id if project_id is None else project_id):
        raise errors.Forbidden(rule)
