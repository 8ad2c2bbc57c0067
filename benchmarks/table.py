"""One table of results: what was measured, what it is measured against, whether the aim is reached."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Table:
    """Collects rows and prints them as they come."""

    failed: list[str] = field(default_factory=list)

    def head(self, title: str) -> None:
        """Print a heading."""
        print(f"\n{title}\n{'-' * len(title)}", flush=True)

    def row(self, what: str, value: str, aim: str = "", reached: bool | None = None) -> None:
        """Print a row; an aim that is not reached makes the run fail."""
        mark = "" if reached is None else ("ok" if reached else "MISSED")
        print(f"{what:<58} {value:>24}   {aim:<22} {mark}", flush=True)
        if reached is False:
            self.failed.append(what)


def rate(size: int, seconds: float) -> str:
    """Return bytes per second in MB/s."""
    return f"{size / seconds / 1e6:.0f} MB/s"
