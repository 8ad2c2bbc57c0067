"""``backupfw volume`` without a running service."""

from __future__ import annotations

import os
import random
import sqlite3
import uuid
from pathlib import Path

import pytest

from backupfw.volume.local.provider import LocalProvider
from tests.unit.cmd.conftest import Run

MIB = 1 << 20


def rows(state: Path) -> list[dict[str, object]]:
    with sqlite3.connect(state / "backupfw.sqlite") as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM volumes ORDER BY created_at")]


def test_an_empty_volume(run: Run, state: Path) -> None:
    done = run("volume", "create", "--size", "2", "--name", "data", "--project", "p1")
    assert done.status == 0, done.err
    (row,) = rows(state)
    assert done.out == f"{row['id']}\n"
    assert (row["status"], row["size"], row["length"], row["adopted"]) == ("available", 2, 2 << 30, 0)
    assert (row["project_id"], row["display_name"]) == ("p1", "data")
    path = Path(run("volume", "path", str(row["id"])).out.rstrip("\n"))
    assert path.stat().st_size == 2 << 30
    assert path.stat().st_blocks * 512 < MIB
    assert state.stat().st_mode & 0o777 == 0o700


def test_a_volume_from_an_image(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    data = random.Random(4).randbytes(MIB + 17)
    with image.open("wb") as file:
        file.seek(5 * MIB)
        file.write(data)
    done = run("volume", "create", "--image", str(image))
    assert done.status == 0, done.err
    assert uuid.UUID(done.out.strip())
    assert "copying" in done.err
    path = Path(run("volume", "path", done.out.strip()).out.strip())
    assert path.stat().st_size == 1 << 30, "the size is the image's, in whole GiB"
    assert path.stat().st_blocks * 512 < 4 * MIB, "holes stay holes"
    with path.open("rb") as file:
        assert file.read(5 * MIB) == bytes(5 * MIB)
        assert file.read(len(data)) == data
        assert file.read(MIB) == bytes(MIB)


def test_an_image_that_does_not_fit(run: Run, state: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    with image.open("wb") as file:
        file.truncate((1 << 30) + 1)
    done = run("volume", "create", "--size", "1", "--image", str(image))
    assert (done.status, done.out) == (1, "")
    assert "more than --size 1" in done.err
    assert list((state / "volumes").iterdir()) == []


def test_a_size_is_needed(run: Run) -> None:
    done = run("volume", "create")
    assert done.status == 1
    assert "--size" in done.err


def test_nothing_is_left_when_the_quota_refuses(run: Run, state: Path) -> None:
    (state).mkdir()
    (state / "backupfw.conf").write_text("[quota]\nvolumes = 1\n")
    assert run("volume", "create", "--size", "1").status == 0
    done = run("volume", "create", "--size", "1")
    assert done.status == 1
    assert "exceeded" in done.err
    assert len(rows(state)) == 1
    assert len([path for path in (state / "volumes").iterdir() if path.suffix == ".img"]) == 1


def test_nothing_is_left_when_the_copy_is_interrupted(
    run: Run, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(os.urandom(MIB))
    create = LocalProvider.create

    def interrupted(self: LocalProvider, *args: object) -> str:
        create(self, *args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalProvider, "create", interrupted)
    done = run("volume", "create", "--image", str(image))
    assert (done.status, done.out) == (130, "")
    assert rows(state) == [] if (state / "backupfw.sqlite").exists() else True
    assert [path for path in (state / "volumes").iterdir() if path.suffix == ".img"] == []


def test_adopt(run: Run, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(MIB))
    monkeypatch.chdir(tmp_path)
    done = run("volume", "adopt", "image.raw", "--name", "mine")
    assert done.status == 0, done.err
    (row,) = rows(state)
    assert done.out == f"{row['id']}\n"
    assert (row["adopted"], row["length"], row["size"], row["project_id"]) == (1, MIB, 1, "demo")
    assert run("volume", "path", str(row["id"])).out == f"{image}\n"
    again = run("volume", "adopt", str(image))
    assert again.status == 1
    assert str(row["id"]) in again.err


def test_a_path_that_is_no_volume(run: Run, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        done = run("volume", "adopt", str(path))
        assert (done.status, done.out) == (1, "")
        assert len(done.err.splitlines()) == 1
    assert run("volume", "path", str(uuid.uuid4())).status == 1
