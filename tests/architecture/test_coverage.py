"""The table that ``make coverage`` writes."""

from __future__ import annotations

from tests.coverage_table import COUNTS, page


def test_the_counts_of_a_package_are_those_of_its_files() -> None:
    def said(*counts: int) -> dict[str, dict[str, int]]:
        return {"summary": dict(zip(COUNTS, counts, strict=True))}

    text = page(
        {
            "backupfw/errors.py": said(10, 0, 0, 0),
            "backupfw/engine/sweep.py": said(60, 5, 20, 5),
            "backupfw/engine/format/keys.py": said(20, 0, 0, 0),
            "drivers/s3/src/backupfw_s3/store.py": said(8, 1, 2, 1),
        }
    )
    assert [line for line in text.splitlines() if line.startswith(("| `", "| **"))] == [
        "| `backupfw` | 10 | 0 | 0 | 0 | 100.0% |",
        "| `backupfw.engine` | 80 | 5 | 20 | 5 | 90.0% |",
        "| `backupfw_s3` | 8 | 1 | 2 | 1 | 80.0% |",
        "| **all** | 98 | 6 | 22 | 6 | 90.0% |",
    ]
