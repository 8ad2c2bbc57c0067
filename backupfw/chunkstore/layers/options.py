"""The options of the layers, found beside the driver's in ``[store:NAME]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oslo_config import cfg

from backupfw.chunkstore.base import ChunkStore


def layer_options(driver: type[ChunkStore] | None = None) -> Sequence[cfg.Opt]:
    """Return new option objects for all layers.

    :param driver: the store's driver, whose ``layer_defaults`` replace the general defaults.
    """
    defaults: Mapping[str, object] = driver.layer_defaults if driver is not None else {}

    def default(name: str, value: object) -> object:
        return defaults.get(name, value)

    return (
        cfg.IntOpt(
            "retry_tries",
            default=default("retry_tries", 5),
            min=1,
            max=100,
            help="Most tries of one operation that fails with a temporary error, the first one included; "
            "1 means no retry.",
        ),
        cfg.FloatOpt(
            "retry_seconds",
            default=default("retry_seconds", 120.0),
            min=0,
            help="No new try of an operation begins later than this many seconds after its start. "
            "0 means no bound but the number of tries.",
        ),
        cfg.FloatOpt(
            "retry_base_pause",
            default=default("retry_base_pause", 0.5),
            min=0,
            max=60,
            help="Upper bound in seconds of the random pause after the first failed try; it doubles with "
            "every further one. A store that asks for a longer pause gets it.",
        ),
        cfg.FloatOpt(
            "retry_max_pause",
            default=default("retry_max_pause", 30.0),
            min=0,
            max=3600,
            help="Upper bound in seconds of every random pause between two tries.",
        ),
        cfg.FloatOpt(
            "retry_budget",
            default=default("retry_budget", 100.0),
            min=0,
            help="How many retries the whole store may use before calls must work again; a call that works "
            "gives a fifth of a retry back. Keeps a store that is down from being asked over and over.",
        ),
        cfg.FloatOpt(
            "operation_timeout",
            default=default("operation_timeout", 120.0),
            min=0,
            help="An operation that takes longer, in seconds, fails with a temporary error. One second is "
            "added for each MiB moved; waiting under the limits below does not count. 0 means no timeout.",
        ),
        cfg.IntOpt(
            "max_concurrency",
            default=default("max_concurrency", 0),
            min=0,
            mutable=True,
            help="Most operations that run on this store at once. 0 means no limit.",
        ),
        cfg.FloatOpt(
            "max_bytes_per_second",
            default=default("max_bytes_per_second", 0.0),
            min=0,
            mutable=True,
            help="Most object bytes written to and read from this store per second, on average. "
            "0 means no limit.",
        ),
        cfg.FloatOpt(
            "max_requests_per_second",
            default=default("max_requests_per_second", 0.0),
            min=0,
            mutable=True,
            help="Most operations begun on this store per second, on average. 0 means no limit.",
        ),
        cfg.BoolOpt(
            "verify_puts",
            default=default("verify_puts", False),
            help="Read every object back after it was written and compare it. Costs as many reads as writes; "
            "for stores that are not trusted.",
        ),
    )
