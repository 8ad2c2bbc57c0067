"""``python -m benchmarks [PART …] [OPTION …]``"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile

from benchmarks import (
    changed,
    changed_rbd,
    cinder,
    console,
    encryption,
    fragmented,
    listing,
    machines,
    memory,
    policies,
    recovery,
    requests,
    scale,
    stores,
    throughput,
    workers,
)
from benchmarks.table import Table

PARTS = (
    "throughput",
    "encryption",
    "fragmented",
    "changed",
    "cinder",
    "console",
    "machines",
    "memory",
    "large",
    "listing",
    "policies",
    "recovery",
    "requests",
    "scale",
    "stores",
    "workers",
)


def main() -> int:
    """Run the parts asked for; the exit status says whether every aim was reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--size", type=int, default=1024, help="MiB of the images (1024)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each time (5)")
    parser.add_argument(
        "--segments", type=int, default=memory.SEGMENTS_64_TIB, help="segments of the large volume (64 TiB)"
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="backups in listings and scale (1000000)")
    parser.add_argument(
        "--backups",
        type=int,
        default=1000,
        help="small backups on many workers; recovery has ten times as many (1000)",
    )
    parser.add_argument("--found", type=int, default=10_000, help="backups in recovery (10000)")
    parser.add_argument("--directory", default="/dev/shm", help="a memory file system (/dev/shm)")
    options = parser.parse_args()
    wanted = options.parts or PARTS
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    table = Table()
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, in {options.directory}")
    for part in wanted:
        directory = tempfile.mkdtemp(prefix="backupfw-bench-", dir=options.directory)
        try:
            size = options.size << 20
            if part == "throughput":
                throughput.run(table, directory, size, options.rounds)
            elif part == "encryption":
                encryption.run(table, directory, size, options.rounds)
            elif part == "fragmented":
                fragmented.run(table, directory, size, options.rounds)
            elif part == "changed":
                changed.run(table, directory, options.rounds)
                changed_rbd.run(table, directory, options.rounds)
            elif part == "cinder":
                cinder.run(table, directory, size, options.rounds)
            elif part == "console":
                console.run(table, directory, min(options.rows, 100_000), options.rounds)
            elif part == "machines":
                machines.run(table, directory, options.rounds)
            elif part == "stores":
                stores.run(table, directory, size // 2, options.rounds)
            elif part == "memory":
                memory.run(table, directory, size, options.rounds)
            elif part == "listing":
                listing.run(table, directory, options.rows, options.rounds)
            elif part == "scale":
                scale.run(table, directory, options.rows, options.rounds)
            elif part == "workers":
                workers.run(table, directory, options.backups, options.rounds)
            elif part == "policies":
                policies.run(table, directory, options.rounds)
            elif part == "recovery":
                recovery.run(table, directory, options.found)
            elif part == "requests":
                requests.run(table, directory, options.rounds)
            else:
                memory.run_large(table, directory, options.segments)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    if table.failed:
        print(f"\nMissed: {'; '.join(table.failed)}")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
