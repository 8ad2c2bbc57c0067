"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from backupfw.cmd import progress
from backupfw.cmd.progress import Progress, human_size


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only the test moves: ``clock[0]`` is the time."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminals_line_is_redrawn(clock: list[float]) -> None:
    out = Terminal()
    shown = Progress("copying", out)
    shown.update(0, 4 << 20)
    shown.update(1 << 20, 4 << 20)  # too early to draw again
    clock[0] = 2.0
    shown.update(3 << 20, 4 << 20)
    clock[0] = 3.0
    shown.finish("done")
    lines = out.getvalue().split("\r")[1:]
    assert lines[0] == "copying: 0 B of 4 MiB (0 %)"
    assert lines[1].rstrip() == "copying: 3 MiB of 4 MiB (75 %), 1.5 MiB/s"
    assert lines[2].startswith("copying: done (3.0 s)")
    assert lines[2].endswith("\n")
    assert len(lines) == 3
    # What a longer line left is wiped.
    assert len(lines[2].rstrip("\n")) == len(lines[1])


def test_plain_lines_come_now_and_then(clock: list[float]) -> None:
    out = io.StringIO()
    shown = Progress("verifying", out, unit="objects")
    for second in range(35):
        clock[0] = float(second)
        shown.update(second, 35)
    shown.finish("ok")
    assert out.getvalue().splitlines() == [
        "verifying: 10 objects of 35 objects (28 %)",
        "verifying: 20 objects of 35 objects (57 %)",
        "verifying: 30 objects of 35 objects (85 %)",
        "verifying: ok (34.0 s)",
    ]


def test_a_short_work_writes_nothing_but_its_end(clock: list[float]) -> None:
    out = io.StringIO()
    shown = Progress("sweeping", out)
    shown.beat()
    shown.update(5)
    shown.abandon()
    assert out.getvalue() == ""
    clock[0] = 99.0
    shown.update(6)
    assert out.getvalue() == "", "an abandoned progress is silent"


def test_beat_shows_time(clock: list[float]) -> None:
    out = io.StringIO()
    shown = Progress("copying", out)
    clock[0] = 12.0
    shown.beat()
    assert out.getvalue() == "copying: 12 s\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (5 << 20, "5 MiB"),
        ((1 << 30) + 1, "1.0 GiB"),
    ],
)
def test_human_size(count: int, text: str) -> None:
    assert human_size(count) == text
