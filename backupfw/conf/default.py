"""``[DEFAULT]``: the identity of this installation, and its stores."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from oslo_config import cfg

from backupfw.conf.types import NAME

OPTS = (
    cfg.ListOpt(
        "enabled_stores",
        default=["main"],
        item_type=NAME,
        bounds=False,
        help="Names of the stores this service opens.  Each has a section [store:NAME].  Backups of every"
        " enabled store can be restored, verified, deleted and exported, whichever store is the default.",
    ),
    cfg.StrOpt(
        "default_store",
        default="main",
        help="The store that new backups go to unless a request or a placement rule names another.  One of"
        " enabled_stores; where only one is enabled, that one.",
    ),
    cfg.ListOpt(
        "placement_rules",
        default=[],
        item_type=NAME,
        bounds=False,
        help="Names of the rules that choose the store of a new backup, in the order they are tried; the"
        " first that matches decides.  Each has a section [placement:NAME].  A request that names a store is"
        " not subject to them.",
    ),
    cfg.ListOpt(
        "quiesce_commands",
        default=[],
        item_type=NAME,
        bounds=False,
        help="Names of the commands that let programs rest while a point of a volume is taken; members choose"
        " one for a backup policy.  Each has a section [quiesce:NAME], which the API and all workers need.",
    ),
    cfg.StrOpt(
        "host",
        default=socket.gethostname(),
        sample_default="<this host's name>",
        max_length=255,
        help="The name of this host in backups and in os-services.  Keep it: tasks that were interrupted"
        " by a restart are continued at once by the worker with the same name.",
    ),
    cfg.StrOpt(
        "availability_zone",
        default="nova",
        max_length=255,
        help="The availability zone of this worker and of the volumes it serves.",
    ),
    cfg.StrOpt(
        "default_volume_type",
        default="__DEFAULT__",
        max_length=255,
        help="Name of the volume type that new volumes get where none is asked for and their project has no"
        " default of its own.",
    ),
    cfg.FloatOpt(
        "service_down_time",
        default=60,
        min=2,
        max=86400,
        help="Seconds without a heartbeat after which a worker counts as down.",
    ),
    cfg.IntOpt(
        "message_ttl",
        default=2592000,
        min=60,
        max=3153600000,
        help="Seconds for which user messages about failed operations are kept and shown; the default is 30"
        " days.",
    ),
    cfg.IntOpt(
        "action_ttl",
        default=7776000,
        min=60,
        max=3153600000,
        help="Seconds for which the records are kept and shown of who had what done to backups, volumes,"
        " snapshots and backup policies; the default is 90 days.",
    ),
    cfg.StrOpt(
        "state_dir",
        default="/var/lib/backupfw",
        help="Directory for data that must survive a restart: spool files and, embedded, the database, the"
        " volumes and the store.",
    ),
    cfg.StrOpt(
        "installation_id",
        regex=r"^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$",
        help="The first part of every object key.  Made with the database; set it only to make a new database"
        " the owner of objects that an older one of the same installation wrote.",
    ),
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register this group on a private ``conf``."""
    conf.register_opts(OPTS)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [("DEFAULT", OPTS)]
