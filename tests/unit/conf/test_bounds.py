"""What the configuration lets pass, the engine takes."""

from __future__ import annotations

import itertools

from oslo_config import cfg

from backupfw.conf import backup
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.ports import BackupJob


def bounds(name: str) -> tuple[int, int]:
    """The least and the greatest value of a size option."""
    (opt,) = [opt for opt in backup.OPTS if opt.dest == name]
    return opt.type.min, opt.type.max


def test_every_corner_of_the_sizes_makes_a_job() -> None:
    conf = cfg.ConfigOpts()
    backup.register_opts(conf)
    for block, segment, pack in itertools.product(*map(bounds, ("block_size", "segment_size", "pack_size"))):
        if segment // block > 1 << 16 or segment % block:
            # Refused by the configuration as a whole.
            continue
        geometry = Geometry(1 << 40, block, segment)
        job = BackupJob("i", "p", "v", "b", 1, 1, "0" * 16, geometry, pack_size=pack)
        assert job.problem() is None, (block, segment, pack)
