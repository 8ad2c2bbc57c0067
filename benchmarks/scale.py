"""A large database: operators read it with no more memory than a small one, users in no more time."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import scale_case
from benchmarks.api_world import Client, api_process, in_turn, median
from benchmarks.memory import LIMIT_MIB
from benchmarks.table import Table

#: Backups in the databases whose backups are shown.
SMALL, LARGE = 100, 100_000
#: Projects of an audit that has more of them than any cloud.
MANY = 10_000
#: What one costs in the large one, beside the small one.
AIM_SHOW = 1.5


def run(table: Table, directory: str, rows: int, rounds: int) -> None:
    """Measure and print."""
    place = Path(directory)
    table.head(f"Shown of {LARGE} backups beside {SMALL} on SQLite, median of {rounds * 40}")
    _show(table, place, rounds)
    table.head(f"Operators' readers at {rows} backups on SQLite, peak of a process of their own")
    file = str(place / "scale.sqlite")
    scale_case.fill(file, rows)
    for case in scale_case.CASES:
        _read(table, case, file, case)
    # What memory might grow with, beside the number of backups.
    shapes = {
        f"audit of {MANY} projects": {"rows": MANY, "projects": MANY, "backups": 1},
        f"audit of a volume with {LARGE} backups": {"rows": LARGE, "backups": LARGE},
    }
    for name, shape in shapes.items():
        file = str(place / "shape.sqlite")
        scale_case.fill(file, **shape)
        _read(table, "audit", file, name)
        Path(file).unlink()


def _read(table: Table, case: str, file: str, name: str) -> None:
    """Measure one case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale_case", case, file]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    value = f"{found['seconds']:.0f} s, {found['peak_mib']:.0f} MiB"
    table.row(name, value, f"at most {LIMIT_MIB} MiB", found["peak_mib"] <= LIMIT_MIB)


def _show(table: Table, place: Path, rounds: int) -> None:
    with ExitStack() as stack:
        asks = []
        for rows in (LARGE, SMALL):
            file = str(place / f"show-{rows}.sqlite")
            scale_case.fill(file, rows)
            number = rows // 2
            client = Client(
                stack.enter_context(api_process(place, f"sqlite:///{file}")), scale_case.project(number)
            )
            stack.callback(client.close)
            asks.append(partial(client.get, f"/backups/{scale_case.backup_id(number)}"))
        large, small = in_turn(rounds * 40, *asks)
    ratio = median(large) / median(small)
    value = f"{median(large) * 1e3:.1f} / {median(small) * 1e3:.1f} ms = {ratio:.2f}"
    table.row("GET /backups/{id}", value, f"at most {AIM_SHOW}", ratio <= AIM_SHOW)
