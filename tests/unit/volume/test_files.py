"""New files appear whole or not at all, and never replace a finished one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backupfw.errors import InvalidInput
from backupfw.volume.local import files


def test_nothing_is_visible_before_the_end(tmp_path: Path) -> None:
    with files.new_file(str(tmp_path), "a.img") as fd:
        os.write(fd, b"content")
        assert not (tmp_path / "a.img").exists()
    assert os.listdir(tmp_path) == ["a.img"]
    assert (tmp_path / "a.img").read_bytes() == b"content"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with files.new_file(str(tmp_path), "a.img") as fd:
            os.write(fd, b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_call_left_is_removed_and_only_that(tmp_path: Path) -> None:
    (tmp_path / "a.img.0123.part").write_bytes(b"left")
    (tmp_path / "b.img.0123.part").write_bytes(b"another's")
    with files.new_file(str(tmp_path), "a.img"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["a.img", "b.img.0123.part"]
    files.remove(str(tmp_path), "b.img")
    assert os.listdir(tmp_path) == ["a.img"]


def test_a_call_that_wakes_up_late_does_not_replace_the_finished_file(tmp_path: Path) -> None:
    late = files.new_file(str(tmp_path), "a.img")
    os.write(late.__enter__(), b"late")
    with files.new_file(str(tmp_path), "a.img") as fd:
        os.write(fd, b"in time")
    with pytest.raises(FileNotFoundError):
        late.__exit__(None, None, None)
    assert (tmp_path / "a.img").read_bytes() == b"in time"


def test_of_two_calls_at_once_the_first_finished_stays(tmp_path: Path) -> None:
    with files.new_file(str(tmp_path), "a.img") as late:
        os.write(late, b"late")
        # Not through new_file, which would have removed the other's part.
        (tmp_path / "a.img").write_bytes(b"in time")
    assert (tmp_path / "a.img").read_bytes() == b"in time"
    assert os.listdir(tmp_path) == ["a.img"]


def test_removing_twice_succeeds(tmp_path: Path) -> None:
    (tmp_path / "a.img").touch()
    files.remove(str(tmp_path), "a.img")
    files.remove(str(tmp_path), "a.img")
    files.remove(str(tmp_path / "gone"), "a.img")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("bad", ["", "..", "../x", "a/b", ".hidden", "a\0", "x" * 65])
def test_an_id_cannot_leave_the_directory(bad: str) -> None:
    with pytest.raises(InvalidInput):
        files.volume_name(bad)
    with pytest.raises(InvalidInput):
        files.snapshot_name(bad)
