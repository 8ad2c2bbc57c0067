"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from backupfw.amounts import human_size
from backupfw.cmd import progress
from backupfw.cmd.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only the test moves: ``clock[0]`` is the time."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_has_a_bar_that_goes_when_the_work_is_done(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    shown = Progress("copying [bold] x", out)
    assert out.getvalue() == "", "nothing is drawn before there is something to show"
    shown.update(0, 4 << 20)
    clock[0] = 2.0
    shown.update(3 << 20, 4 << 20)
    shown.abandon()
    drawn = out.getvalue()
    assert "copying [bold] x: 0 B of 4 MiB (0 %)" in drawn
    assert "copying [bold] x: 3 MiB of 4 MiB (75 %), 1.5 MiB/s" in drawn
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in drawn
    # The bar's line is wiped and the cursor is back.
    assert drawn.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")
    shown.update(4 << 20, 4 << 20)
    assert out.getvalue() == drawn


def test_a_terminal_keeps_the_last_line(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    shown = Progress("copying", out)
    shown.beat()
    clock[0] = 3.0
    shown.finish("done")
    assert out.getvalue().endswith("copying: done (3.0 s)\n")


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
def test_sizes_are_shown_in_units(count: int, text: str) -> None:
    assert human_size(count) == text
