"""``[backup]``: how backups are made, stored and kept alive."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from backupfw.conf.types import Size

GROUP = "backup"
OPTS = (
    cfg.StrOpt(
        "container",
        default="volumebackups",
        max_length=255,
        help="The container of a backup whose request names none, in stores without a default of their own.",
    ),
    cfg.BoolOpt(
        "create_containers",
        default=True,
        help="Create missing containers.  Without it a backup to a missing container ends in error;"
        " the store's credentials then need no permission for it.",
    ),
    cfg.Opt(
        "block_size",
        type=Size(4 << 10, 1 << 20, power_of_two=True),
        default="64 KiB",
        help="The piece that is compared with the base, hashed and compressed.  Smaller blocks store less of"
        " a volume with scattered changes and cost more per byte.  A changed value makes the next"
        " incremental store everything anew.",
    ),
    cfg.Opt(
        "segment_size",
        type=Size(1 << 20, 1 << 30),
        default="256 MiB",
        help="The unit of work, of resume and of sharing; a multiple of block_size, of at most 65536 blocks."
        "  A changed value makes the next incremental store everything anew.",
    ),
    cfg.Opt(
        "pack_size",
        type=Size(1 << 16, 128 << 20),
        default="32 MiB",
        help="About how large the objects are that hold compressed blocks.  Each stream keeps one in memory.",
    ),
    cfg.IntOpt(
        "compression_level",
        default=1,
        min=-7,
        max=19,
        help="zstd's level.  Blocks that do not shrink are stored as they are.",
    ),
    cfg.IntOpt(
        "streams", default=2, min=1, max=64, help="Segments that one backup or restore works on at once."
    ),
    cfg.FloatOpt(
        "verify_unchanged",
        default=1,
        min=0,
        max=100,
        help="Percent of what a volume's storage says is unchanged, or has become zero, that an incremental"
        " backup by changed blocks reads all the same.  If the storage was wrong, everything is compared, by"
        " this backup and by all later ones of the volume, until 'backupfw volume set --trust-changes'.",
    ),
    cfg.IntOpt(
        "full_compare_every",
        default=30,
        min=1,
        help="Of this many incremental backups of a volume in a row, one reads everything, whatever its"
        " storage says is unchanged; 1: each does.",
    ),
    cfg.IntOpt(
        "workers",
        default=2,
        min=1,
        max=256,
        help="Tasks that one worker process runs at once.  Each takes up to streams x (pack_size + 2 MiB) of"
        " memory.",
    ),
    cfg.IntOpt(
        "processes",
        default=1,
        min=1,
        max=64,
        help="Worker processes of 'backupfw worker'; each runs as many tasks as workers says.",
    ),
    cfg.IntOpt(
        "stop_seconds",
        default=60,
        min=1,
        max=3600,
        help="Seconds a process of this service gets to stop; it usually needs a few.  Then it is killed, and"
        " a worker's tasks are taken over when their leases end.",
    ),
    cfg.BoolOpt(
        "refuse_delete_of_parents",
        default=False,
        help="Answer 400 to the deletion of a backup that has incrementals, as Cinder does.  Backups here do"
        " not need their parents, so nothing breaks when it is off.",
    ),
    cfg.FloatOpt(
        "service_wait",
        default=600,
        min=0,
        max=7 * 86400,
        help="Seconds an accepted operation waits for a live worker that can do it before it ends in"
        " error, from its acceptance or the stop of the last such worker; a worker that died counts"
        " as live for service_down_time.  A store may be down for the same time; operations that need it"
        " end after that, unless it answers when it is asked once more.",
    ),
    cfg.FloatOpt(
        "lease_seconds",
        default=60,
        min=2,
        max=3600,
        help="How long a worker owns a task without renewing it.  After that another worker takes it over.",
    ),
    cfg.IntOpt(
        "max_running",
        default=0,
        min=0,
        mutable=True,
        help="How many tasks run at once, over all workers; 0: no limit.  Each store can have a limit of its"
        " own.",
    ),
    cfg.IntOpt(
        "max_running_per_project",
        default=0,
        min=0,
        mutable=True,
        help="How many tasks of one project run at once, over all workers; 0: no limit.  Projects take turns"
        " in any case.",
    ),
    cfg.FloatOpt(
        "poll_seconds",
        default=3,
        min=0.1,
        max=300,
        help="Seconds after which an idle worker looks for tasks without a wake-up.  Without"
        " [DEFAULT] transport_url a task can wait so long for a worker in another process.",
    ),
    cfg.IntOpt(
        "max_attempts",
        default=5,
        min=1,
        max=1000,
        help="Attempts without progress after which a task ends in its error status.",
    ),
    cfg.FloatOpt(
        "delete_retry_seconds",
        default=300,
        min=1,
        max=7 * 86400,
        help="Pause before the deletion of a backup in error_deleting is tried again by itself; it doubles"
        " with each failure, up to a day.",
    ),
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register this group on a private ``conf``."""
    conf.register_opts(OPTS, GROUP)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [(GROUP, OPTS)]
