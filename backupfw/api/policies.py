"""The rules of the policy, and whom each of them allows by default.

A default is a check of oslo.policy; the operator's policy file can replace it.  :mod:`enforcer` evaluates the
rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from backupfw import errors
from backupfw.context import RequestContext


class Level(Enum):
    """Whom a rule allows by default; the value is the check."""

    #: Readers of the project, readers of the system, administrators.
    READER = "rule:project_reader or rule:system_reader or rule:admin_api"
    #: Members of the project, administrators.
    MEMBER = "rule:project_member or rule:admin_api"
    #: Readers of the system, administrators.
    AUDITOR = "rule:system_reader or rule:admin_api"
    #: Administrators.
    ADMIN = "rule:admin_api"


#: The rules that the levels use, and who is an administrator: name, check, description.
BASE_RULES = (
    ("admin_api", "role:admin", "Administrators, of a project or of the system."),
    ("system_reader", "role:reader and system_scope:all", "Readers of the whole installation."),
    ("project_reader", "role:reader and project_id:%(project_id)s", "Readers of the resource's project."),
    ("project_member", "role:member and project_id:%(project_id)s", "Members of the resource's project."),
    (
        "context_is_admin",
        "rule:admin_api or rule:system_reader",
        (
            "Callers who see the resources of all projects.  Other callers get 404 for resources of another"
            " project, whatever the rules below allow.  The rules below decide what a caller may do with a"
            " resource."
        ),
    ),
)
IS_ADMIN = "context_is_admin"

#: Role -> the roles that it implies, even if the identity service does not say so.
IMPLIED: Mapping[str, frozenset[str]] = {
    "admin": frozenset({"member", "reader"}),
    "member": frozenset({"reader"}),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    :ivar text: what it allows, for the sample file.
    :ivar operations: the calls that ask it, as ``METHOD path``.
    :ivar needs_project: whether the call makes a resource, which needs a project: a caller without one is
        refused, whatever the check says.
    """

    name: str
    level: Level
    text: str
    operations: tuple[str, ...]
    needs_project: bool = False


_TABLE = (
    Rule(
        "backup:get_all",
        Level.READER,
        "List backups.",
        (
            "GET /backups",
            "GET /backups/detail",
        ),
    ),
    Rule(
        "backup:get",
        Level.READER,
        "Show a backup.",
        (
            "GET /backups/{backup_id}",
            "GET /backups/{backup_id}/metadata",
        ),
    ),
    Rule(
        "backup:get_progress",
        Level.READER,
        "Show how far the operation on a backup is.",
        ("GET /backups/{backup_id}/progress",),
    ),
    Rule(
        "backup:get_copies",
        Level.READER,
        "Show a backup's copies in other stores.",
        ("GET /backups/{backup_id}/copies",),
    ),
    Rule("backup:create", Level.MEMBER, "Make a backup.", ("POST /backups",), needs_project=True),
    Rule(
        "backup:update",
        Level.MEMBER,
        "Change a backup's name, description or metadata.",
        (
            "PUT /backups/{backup_id}",
            "POST /backups/{backup_id}/metadata",
        ),
    ),
    Rule("backup:delete", Level.MEMBER, "Delete a backup.", ("DELETE /backups/{backup_id}",)),
    Rule(
        "backup:cancel",
        Level.MEMBER,
        "Cancel a backup that is being made, or the restore or the verification of one.",
        ("POST /backups/{backup_id}/action (os-backupfw-cancel)",),
    ),
    Rule(
        "backup:verify",
        Level.MEMBER,
        "Read everything of a backup, and compare it with its digests.",
        ("POST /backups/{backup_id}/action (os-backupfw-verify)",),
    ),
    Rule(
        "backup:copy",
        Level.MEMBER,
        "Copy a backup to another store, or remove such a copy.",
        (
            "POST /backups/{backup_id}/action (os-backupfw-copy)",
            "POST /backups/{backup_id}/action (os-backupfw-remove_copy)",
        ),
    ),
    Rule(
        "backup:restore",
        Level.MEMBER,
        "Restore a backup.",
        (
            "POST /backups/{backup_id}/restore",
            "POST /volumes",
        ),
        needs_project=True,
    ),
    Rule(
        "backup:export-import",
        Level.ADMIN,
        "Export a backup's record.",
        ("GET /backups/{backup_id}/export_record",),
    ),
    Rule(
        "backup:backup-import",
        Level.ADMIN,
        "Import a backup's record.",
        ("POST /backups/import_record", "POST /backups/{backup_id}/import_record"),
        needs_project=True,
    ),
    Rule(
        "backup:backup_project_attribute",
        Level.AUDITOR,
        "See project and user of backups.",
        (
            "GET /backups/{backup_id}",
            "GET /backups/detail",
        ),
    ),
    Rule(
        "backup_policy:get_all",
        Level.READER,
        "List backup policies.",
        ("GET /backup-policies", "GET /backup-policies/detail"),
    ),
    Rule(
        "backup_policy:get",
        Level.READER,
        "Show a backup policy, its runs, or what it will do.",
        (
            "GET /backup-policies/{policy_id}",
            "GET /backup-policies/{policy_id}/runs",
            "POST /backup-policies/{policy_id}/action (preview)",
        ),
    ),
    Rule(
        "backup_policy:create",
        Level.MEMBER,
        "Make a backup policy; backup:create and backup:delete are asked, too.",
        ("POST /backup-policies",),
        needs_project=True,
    ),
    Rule(
        "backup_policy:update",
        Level.MEMBER,
        "Change a backup policy, which backup:create and backup:delete are asked for, too, or pause it.",
        (
            "PUT /backup-policies/{policy_id}",
            "POST /backup-policies/{policy_id}/action (pause)",
            "POST /backup-policies/{policy_id}/action (resume)",
        ),
    ),
    Rule(
        "backup_policy:delete",
        Level.MEMBER,
        "Delete a backup policy; its backups stay.",
        ("DELETE /backup-policies/{policy_id}",),
    ),
    Rule(
        "backup_policy:run",
        Level.MEMBER,
        "Run a backup policy now; backup:create is asked, too.",
        ("POST /backup-policies/{policy_id}/action (run)",),
    ),
    Rule(
        "volume_extension:backup_admin_actions:reset_status",
        Level.ADMIN,
        "Reset a backup's status.",
        ("POST /backups/{backup_id}/action (os-reset_status)",),
    ),
    Rule(
        "volume_extension:backup_admin_actions:force_delete",
        Level.ADMIN,
        "Delete a backup in any status.",
        ("POST /backups/{backup_id}/action (os-force_delete)",),
    ),
    Rule(
        "volume:get_all",
        Level.READER,
        "List volumes.",
        (
            "GET /volumes",
            "GET /volumes/detail",
            "GET /volumes/summary",
        ),
    ),
    Rule("volume:get", Level.READER, "Show a volume.", ("GET /volumes/{volume_id}",)),
    Rule("volume:create", Level.MEMBER, "Make a volume.", ("POST /volumes",), needs_project=True),
    Rule(
        "volume:update",
        Level.MEMBER,
        "Change a volume's name, description or metadata.",
        ("PUT /volumes/{volume_id}",),
    ),
    Rule("volume:delete", Level.MEMBER, "Delete a volume.", ("DELETE /volumes/{volume_id}",)),
    Rule(
        "volume:force_delete",
        Level.ADMIN,
        "Delete a volume of any status (force=True).",
        ("DELETE /volumes/{volume_id}",),
    ),
    Rule(
        "volume:extend", Level.MEMBER, "Extend a volume.", ("POST /volumes/{volume_id}/action (os-extend)",)
    ),
    Rule(
        "volume:get_volume_metadata",
        Level.READER,
        "Show a volume's metadata.",
        (
            "GET /volumes/{volume_id}/metadata",
            "GET /volumes/{volume_id}/metadata/{key}",
        ),
    ),
    Rule(
        "volume:create_volume_metadata",
        Level.MEMBER,
        "Add to a volume's metadata.",
        ("POST /volumes/{volume_id}/metadata",),
    ),
    Rule(
        "volume:update_volume_metadata",
        Level.MEMBER,
        "Change a volume's metadata.",
        (
            "PUT /volumes/{volume_id}/metadata",
            "PUT /volumes/{volume_id}/metadata/{key}",
        ),
    ),
    Rule(
        "volume:delete_volume_metadata",
        Level.MEMBER,
        "Delete a key of a volume's metadata.",
        ("DELETE /volumes/{volume_id}/metadata/{key}",),
    ),
    Rule(
        "volume_extension:volume_actions:attach",
        Level.MEMBER,
        "Attach a volume.",
        ("POST /volumes/{volume_id}/action (os-attach)",),
    ),
    Rule(
        "volume_extension:volume_actions:detach",
        Level.MEMBER,
        "Detach a volume.",
        ("POST /volumes/{volume_id}/action (os-detach)",),
    ),
    Rule(
        "volume:retype",
        Level.MEMBER,
        "Give a volume another type.",
        ("POST /volumes/{volume_id}/action (os-retype)",),
    ),
    Rule(
        "volume_extension:volume_actions:set_bootable",
        Level.MEMBER,
        "Say whether a volume is bootable.",
        ("POST /volumes/{volume_id}/action (os-set_bootable)",),
    ),
    Rule(
        "volume_extension:volume_image_metadata:show",
        Level.READER,
        "Show what is known of a volume's image.",
        (
            "POST /volumes/{volume_id}/action (os-show_image_metadata)",
            "GET /volumes/detail",
            "GET /volumes/{volume_id}",
        ),
    ),
    Rule(
        "volume_extension:volume_image_metadata:set",
        Level.MEMBER,
        "Say what is known of a volume's image.",
        ("POST /volumes/{volume_id}/action (os-set_image_metadata)",),
    ),
    Rule(
        "volume_extension:volume_image_metadata:remove",
        Level.MEMBER,
        "Forget what is known of a volume's image.",
        ("POST /volumes/{volume_id}/action (os-unset_image_metadata)",),
    ),
    Rule(
        "volume_extension:volume_admin_actions:reset_status",
        Level.ADMIN,
        "Reset a volume's status.",
        ("POST /volumes/{volume_id}/action (os-reset_status)",),
    ),
    Rule(
        "volume_extension:volume_admin_actions:force_delete",
        Level.ADMIN,
        "Delete a volume in any status.",
        ("POST /volumes/{volume_id}/action (os-force_delete)",),
    ),
    Rule(
        "volume:get_all_snapshots",
        Level.READER,
        "List snapshots.",
        (
            "GET /snapshots",
            "GET /snapshots/detail",
        ),
    ),
    Rule("volume:get_snapshot", Level.READER, "Show a snapshot.", ("GET /snapshots/{snapshot_id}",)),
    Rule(
        "volume:create_snapshot", Level.MEMBER, "Make a snapshot.", ("POST /snapshots",), needs_project=True
    ),
    Rule(
        "volume:update_snapshot",
        Level.MEMBER,
        "Change a snapshot's name or description.",
        ("PUT /snapshots/{snapshot_id}",),
    ),
    Rule("volume:delete_snapshot", Level.MEMBER, "Delete a snapshot.", ("DELETE /snapshots/{snapshot_id}",)),
    Rule(
        "volume:get_snapshot_metadata",
        Level.READER,
        "Show a snapshot's metadata.",
        (
            "GET /snapshots/{snapshot_id}/metadata",
            "GET /snapshots/{snapshot_id}/metadata/{key}",
        ),
    ),
    Rule(
        "volume:update_snapshot_metadata",
        Level.MEMBER,
        "Change a snapshot's metadata.",
        (
            "POST /snapshots/{snapshot_id}/metadata",
            "PUT /snapshots/{snapshot_id}/metadata",
            "PUT /snapshots/{snapshot_id}/metadata/{key}",
        ),
    ),
    Rule(
        "volume:delete_snapshot_metadata",
        Level.MEMBER,
        "Delete a key of a snapshot's metadata.",
        ("DELETE /snapshots/{snapshot_id}/metadata/{key}",),
    ),
    Rule(
        "snapshot_extension:snapshot_actions:update_snapshot_status",
        Level.MEMBER,
        "Say how far a snapshot is that is being made or removed.",
        ("POST /snapshots/{snapshot_id}/action (os-update_snapshot_status)",),
    ),
    Rule(
        "volume_extension:snapshot_admin_actions:reset_status",
        Level.ADMIN,
        "Reset a snapshot's status.",
        ("POST /snapshots/{snapshot_id}/action (os-reset_status)",),
    ),
    Rule(
        "volume_extension:snapshot_admin_actions:force_delete",
        Level.ADMIN,
        "Delete a snapshot in any status.",
        ("POST /snapshots/{snapshot_id}/action (os-force_delete)",),
    ),
    Rule(
        "limits_extension:used_limits",
        Level.READER,
        "Show a project's limits and what it uses.",
        ("GET /limits",),
    ),
    Rule(
        "volume_extension:quotas:show",
        Level.READER,
        "Show a project's quotas.",
        (
            "GET /os-quota-sets/{project_id}",
            "GET /os-quota-sets/{project_id}/defaults",
        ),
    ),
    Rule(
        "volume_extension:quotas:update",
        Level.ADMIN,
        "Set a project's quotas.",
        ("PUT /os-quota-sets/{project_id}",),
    ),
    Rule(
        "volume_extension:quotas:delete",
        Level.ADMIN,
        "Give a project the default quotas again.",
        ("DELETE /os-quota-sets/{project_id}",),
    ),
    Rule(
        "volume_extension:quota_classes:get",
        Level.AUDITOR,
        "Show a quota class.",
        ("GET /os-quota-class-sets/{name}",),
    ),
    Rule(
        "volume_extension:quota_classes:update",
        Level.ADMIN,
        "Set a quota class.",
        ("PUT /os-quota-class-sets/{name}",),
    ),
    Rule("volume_extension:services:index", Level.AUDITOR, "List workers.", ("GET /os-services",)),
    Rule(
        "volume_extension:services:update",
        Level.ADMIN,
        "Enable or disable a worker.",
        (
            "PUT /os-services/enable",
            "PUT /os-services/disable",
            "PUT /os-services/disable-log-reason",
        ),
    ),
    Rule(
        "volume_extension:hosts",
        Level.ADMIN,
        "List hosts, and what is on them.",
        (
            "GET /os-hosts",
            "GET /os-hosts/{host}",
        ),
    ),
    Rule("volume:freeze_host", Level.ADMIN, "Drain a host's worker.", ("PUT /os-services/freeze",)),
    Rule(
        "volume:thaw_host", Level.ADMIN, "Let a drained worker take tasks again.", ("PUT /os-services/thaw",)
    ),
    Rule("message:get_all", Level.READER, "List user messages.", ("GET /messages",)),
    Rule("message:get", Level.READER, "Show a user message.", ("GET /messages/{message_id}",)),
    Rule("message:delete", Level.MEMBER, "Delete a user message.", ("DELETE /messages/{message_id}",)),
    Rule(
        "volume:availability_zone_list",
        Level.READER,
        "List availability zones.",
        ("GET /os-availability-zone",),
    ),
    Rule("volume_extension:type_get_all", Level.READER, "List volume types.", ("GET /types",)),
    Rule(
        "volume_extension:type_get",
        Level.READER,
        "Show a volume type.",
        (
            "GET /types/{type_id}",
            "GET /types/default",
        ),
    ),
    Rule(
        "volume_extension:type_create",
        Level.ADMIN,
        "Make a volume type.",
        ("POST /types",),
    ),
    Rule(
        "volume_extension:type_update",
        Level.ADMIN,
        "Change a volume type.",
        ("PUT /types/{type_id}",),
    ),
    Rule(
        "volume_extension:type_delete",
        Level.ADMIN,
        "Delete a volume type.",
        ("DELETE /types/{type_id}",),
    ),
    Rule(
        "volume_extension:types_extra_specs:index",
        Level.READER,
        "List a volume type's extra specs.",
        ("GET /types/{type_id}/extra_specs",),
    ),
    Rule(
        "volume_extension:types_extra_specs:show",
        Level.READER,
        "Show one of a volume type's extra specs.",
        ("GET /types/{type_id}/extra_specs/{key}",),
    ),
    Rule(
        "volume_extension:types_extra_specs:create",
        Level.ADMIN,
        "Add to a volume type's extra specs.",
        ("POST /types/{type_id}/extra_specs",),
    ),
    Rule(
        "volume_extension:types_extra_specs:update",
        Level.ADMIN,
        "Change one of a volume type's extra specs.",
        ("PUT /types/{type_id}/extra_specs/{key}",),
    ),
    Rule(
        "volume_extension:types_extra_specs:delete",
        Level.ADMIN,
        "Delete one of a volume type's extra specs.",
        ("DELETE /types/{type_id}/extra_specs/{key}",),
    ),
    Rule(
        "volume_extension:types_extra_specs:read_sensitive",
        Level.ADMIN,
        "See all extra specs of volume types, not only those that are for everybody.",
        (
            "GET /types",
            "GET /types/{type_id}",
            "GET /types/{type_id}/extra_specs",
            "GET /types/{type_id}/extra_specs/{key}",
        ),
    ),
    Rule(
        "volume_extension:volume_type_access:get_all_for_type",
        Level.ADMIN,
        "List the projects that may use a private volume type.",
        ("GET /types/{type_id}/os-volume-type-access",),
    ),
    Rule(
        "volume_extension:volume_type_access:addProjectAccess",
        Level.ADMIN,
        "Let a project use a private volume type.",
        ("POST /types/{type_id}/action (addProjectAccess)",),
    ),
    Rule(
        "volume_extension:volume_type_access:removeProjectAccess",
        Level.ADMIN,
        "Let a project use a private volume type no longer.",
        ("POST /types/{type_id}/action (removeProjectAccess)",),
    ),
    Rule(
        "volume_extension:volume_type_encryption:get",
        Level.ADMIN,
        "Show how a volume type is encrypted: it is not.",
        ("GET /types/{type_id}/encryption",),
    ),
    Rule(
        "volume_extension:qos_specs_manage:get_all",
        Level.ADMIN,
        "List qualities of service: none.",
        ("GET /qos-specs",),
    ),
    Rule(
        "volume_extension:default_get_all",
        Level.ADMIN,
        "List the projects' default volume types.",
        ("GET /default-types",),
    ),
    Rule(
        "volume_extension:default_get",
        Level.ADMIN,
        "Show a project's default volume type.",
        ("GET /default-types/{target}",),
    ),
    Rule(
        "volume_extension:default_set_or_update",
        Level.ADMIN,
        "Choose a project's default volume type.",
        ("PUT /default-types/{target}",),
    ),
    Rule(
        "volume_extension:default_unset",
        Level.ADMIN,
        "Let everybody's default volume type hold for a project.",
        ("DELETE /default-types/{target}",),
    ),
    Rule(
        "volume:create_transfer",
        Level.MEMBER,
        "Offer a volume to another project.",
        ("POST /os-volume-transfer", "POST /volume-transfers"),
        needs_project=True,
    ),
    Rule(
        "volume:accept_transfer",
        Level.MEMBER,
        "Take a volume that is offered.",
        ("POST /os-volume-transfer/{transfer_id}/accept", "POST /volume-transfers/{transfer_id}/accept"),
        needs_project=True,
    ),
    Rule(
        "volume:delete_transfer",
        Level.MEMBER,
        "Take an offer of a volume back.",
        ("DELETE /os-volume-transfer/{transfer_id}", "DELETE /volume-transfers/{transfer_id}"),
    ),
    Rule(
        "volume:get_transfer",
        Level.READER,
        "Show an offer of a volume.",
        ("GET /os-volume-transfer/{transfer_id}", "GET /volume-transfers/{transfer_id}"),
    ),
    Rule(
        "volume:get_all_transfers",
        Level.READER,
        "List offers of volumes.",
        tuple(
            f"GET /{path}{detail}"
            for path in ("os-volume-transfer", "volume-transfers")
            for detail in ("", "/detail")
        ),
    ),
    Rule("group:get_all", Level.READER, "List volume groups: none.", ("GET /groups", "GET /groups/detail")),
    Rule(
        "group:get_all_group_snapshots",
        Level.READER,
        "List snapshots of volume groups: none.",
        ("GET /group_snapshots", "GET /group_snapshots/detail"),
    ),
    Rule(
        "volume:get_extensions",
        Level.READER,
        "List extensions.",
        (
            "GET /extensions",
            "GET /extensions/{alias}",
        ),
    ),
)

#: By name.
RULES: Mapping[str, Rule] = {rule.name: rule for rule in _TABLE}


class Policy(Protocol):
    """Decides what callers may do.  Thread-safe."""

    def allows(self, context: RequestContext, rule: str, project_id: str) -> bool:
        """Whether a rule allows the caller an operation on a resource of a project."""

    def is_admin(self, context: RequestContext) -> bool:
        """Whether the caller sees the resources of every project; ``context.is_admin`` is not used."""


def enforce(policy: Policy, context: RequestContext, rule: str, project_id: str | None = None) -> None:
    """Refuse the call unless the policy allows it.

    :param project_id: the project of the resource; None: the caller's own project.
    :raises Forbidden: the caller's roles do not allow it.
    """
    if not policy.allows(context, rule, context.project_id if project_id is None else project_id):
        raise errors.Forbidden(rule)
