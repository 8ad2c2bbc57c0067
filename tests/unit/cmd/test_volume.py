"""``backupfw volume`` without a running service."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import uuid
from pathlib import Path

import pytest

from backupfw.volume.local import opening
from backupfw.volume.local.provider import LocalProvider
from tests.unit.cmd.conftest import Run

MIB = 1 << 20


def rows(state: Path) -> list[dict[str, object]]:
    with sqlite3.connect(state / "backupfw.sqlite") as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM volumes ORDER BY created_at")]


def test_a_volume_without_an_image_is_sparse_and_of_full_length(run: Run, state: Path) -> None:
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
    assert done.status == 2
    assert "--size is needed where there is no --image" in done.err


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


def test_an_adopted_image_stays_where_it_is(
    run: Run, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    missing = tmp_path / "missing"
    for words in (("adopt", str(missing)), ("create", "--image", str(missing))):
        done = run("volume", *words)
        assert (done.status, done.out, done.err) == (1, "", f"backupfw: {missing} does not exist.\n")
    done = run("volume", "adopt", str(tmp_path))
    assert (done.status, done.out) == (1, "")
    assert len(done.err.splitlines()) == 1
    assert run("volume", "path", str(uuid.uuid4())).status == 1


def adopted(run: Run, image: Path, *words: str) -> str:
    done = run("volume", "adopt", str(image), *words)
    assert done.status == 0, done.err
    return done.out.strip()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(os.urandom(MIB))
    return path


def test_the_service_s_own_files_are_no_volumes(run: Run, state: Path, tmp_path: Path, image: Path) -> None:
    adopted(run, image)
    (state / "store" / "backups").mkdir(parents=True, exist_ok=True)
    pack = state / "store" / "backups" / "pack"
    pack.write_bytes(b"pack")
    os.link(state / "backupfw.sqlite", tmp_path / "hard")
    os.link(pack, tmp_path / "hard-pack")
    # A copy of the state directory would write to the original's.
    inside = state / "disk.raw"
    inside.write_bytes(bytes(MIB))
    for path in (inside, state / "backupfw.sqlite", pack, tmp_path / "hard", tmp_path / "hard-pack"):
        for words in (("adopt", str(path)), ("create", "--image", str(path))):
            done = run("volume", *words)
            assert done.status == 1
            assert "belongs to this service" in done.err
    assert len(rows(state)) == 1


def test_a_store_elsewhere_is_the_service_s_own_too(run: Run, state: Path, tmp_path: Path) -> None:
    state.mkdir()
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "pack").write_bytes(b"pack")
    (state / "backupfw.conf").write_text(
        f"[DEFAULT]\nenabled_stores = main\n[store:main]\ndriver = posix\npath = {tmp_path / 'packs'}\n"
    )
    done = run("volume", "adopt", str(tmp_path / "packs" / "pack"))
    assert done.status == 1
    assert "belongs to this service" in done.err


@pytest.mark.parametrize("recorded", [True, False])
def test_an_adopted_image_is_no_second_volume(
    run: Run, state: Path, tmp_path: Path, image: Path, recorded: bool
) -> None:
    volume = adopted(run, image)
    if not recorded:
        with sqlite3.connect(state / "backupfw.sqlite") as db:
            db.execute("UPDATE volumes SET storage_id = NULL")
    os.link(image, tmp_path / "hard")
    done = run("volume", "adopt", str(tmp_path / "hard"))
    assert done.status == 1
    assert f"is volume {volume} already" in done.err


def test_in_use_attach_and_detach(run: Run, state: Path, image: Path) -> None:
    volume = adopted(run, image, "--in-use")
    assert rows(state)[0]["status"] == "in-use"
    assert run("volume", "detach", volume).status == 0
    assert rows(state)[0]["status"] == "available"
    done = run("volume", "attach", volume, "--host", "kvm1")
    assert uuid.UUID(done.out.strip())
    assert rows(state)[0]["status"] == "in-use"
    assert run("volume", "attach", volume).status == 1
    assert run("volume", "detach", volume, "--attachment", done.out.strip()).status == 0
    assert rows(state)[0]["status"] == "available"
    assert run("volume", "detach", volume).status == 1


def test_adopting_again_what_was_replaced_or_moved(
    run: Run, state: Path, tmp_path: Path, image: Path
) -> None:
    volume = adopted(run, image)
    new = tmp_path / "new.raw"
    new.write_bytes(bytes(MIB // 2))
    new.rename(image)
    done = run("audit")
    assert done.status == 1
    assert f"volume {volume}" in done.out
    assert "is another one than was adopted" in done.out
    assert f"adopt --again {volume}" in done.out
    assert run("volume", "adopt", "--again", volume).out.strip() == volume
    assert [row["length"] for row in rows(state)] == [MIB // 2]
    assert run("audit").status == 0
    image.rename(tmp_path / "moved.raw")
    assert "is gone" in run("audit").out
    done = run("volume", "adopt", "--again", volume, str(tmp_path / "moved.raw"))
    assert done.status == 0, done.err
    assert run("volume", "path", volume).out.strip() == str(tmp_path / "moved.raw")
    with (tmp_path / "moved.raw").open("ab") as file:
        file.write(bytes(MIB))
    assert "the next backup of it takes all of it" in run("audit").out
    assert run("volume", "adopt", "--again", str(uuid.uuid4())).status == 1
    ours = run("volume", "create", "--size", "1").out.strip()
    assert "service's own" in run("volume", "adopt", "--again", ours, str(image.parent / "moved.raw")).err


def test_an_image_to_copy_need_only_be_readable(
    run: Run, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image.chmod(0o444)
    real = opening.again

    def read_only(fd: int, flags: int) -> int:
        # Root may write whatever the mode says: say what anybody else would hear.
        if os.fstat(fd).st_ino == image.stat().st_ino and flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(fd, flags)

    monkeypatch.setattr(opening, "again", read_only)
    volume = run("volume", "create", "--image", str(image))
    assert volume.status == 0, volume.err
    with Path(run("volume", "path", volume.out.strip()).out.strip()).open("rb") as copy:
        assert copy.read(MIB) == image.read_bytes()
    done = run("volume", "adopt", str(image))
    assert done.status == 1
    assert "cannot be opened: permission denied" in done.err


def test_a_packed_image_is_named(run: Run, image: Path) -> None:
    image.write_bytes(bytes(MIB) + b"koly" + bytes(508))
    done = run("volume", "adopt", str(image))
    assert done.status == 1
    assert "is a dmg image; convert it first (qemu-img convert -O raw)" in done.err
    assert run("volume", "create", "--image", str(image)).status == 1
    assert run("volume", "adopt", str(image), "--as-raw").status == 0


@pytest.mark.parametrize("absolute", [False, True])
def test_a_moved_state_directory_works(run: Run, state: Path, tmp_path: Path, absolute: bool) -> None:
    volume = run("volume", "create", "--size", "1").out.strip()
    if absolute:
        # As releases before this one recorded it.
        with sqlite3.connect(state / "backupfw.sqlite") as db:
            db.execute("UPDATE volumes SET location = ?", (f"{state}/volumes/volume-{volume}.img",))
    else:
        assert rows(state)[0]["location"] == f"volume-{volume}.img"
    moved = tmp_path / "moved"
    state.rename(moved)
    done = run("volume", "path", volume, "--state-dir", str(moved), at_state=False)
    assert done.out.strip() == f"{moved}/volumes/volume-{volume}.img"
    assert run("audit", "--state-dir", str(moved), at_state=False).status == 0


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_state_files_are_private_whatever_the_umask(run: Run, state: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert run("volume", "create", "--size", "1").status == 0
        modes = {path: path.stat().st_mode & 0o777 for path in state.rglob("*") if path.is_file()}
        assert modes
        assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}
        # One of an earlier release.
        (state / "backupfw.sqlite").chmod(0o644)
        assert run("audit").status == 0
        assert (state / "backupfw.sqlite").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_back_end_that_does_not_list_what_can_be_adopted_says_so(run: Run, image: Path) -> None:
    adopted(run, image)
    done = run("volume", "adoptable", "local")
    assert (done.status, done.out) == (1, "")
    assert "does not list" in done.err
