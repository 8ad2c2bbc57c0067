"""A backup as a file: whole and true, or not there; from the database and the store alone."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from backupfw.cmd import database, restore_file, usecases
from backupfw.cmd.progress import Progress
from backupfw.db import models
from backupfw.errors import BackupNotFound, Damaged, InvalidBackup, InvalidInput, TargetError
from backupfw.volume.local import files
from backupfw.volume.local.target import LocalTarget
from tests.servers.programs import missing_programs
from tests.unit.cmd.conftest import load_conf
from tests.unit.cmd.test_verify import BLOCK, Chain, chain, made

__all__ = ["chain", "made"]


def restore(state: Path, backup_id: str, path: Path, overwrite: bool = False) -> None:
    conf = load_conf(state)
    with database.opened(conf) as db:
        restore_file.restore(conf, db, backup_id, str(path), Progress("restoring"), overwrite=overwrite)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    directory = tmp_path / "there"
    directory.mkdir()
    return directory


def image_of(chain: Chain) -> bytes:
    return Path(chain.run("volume", "path", chain.volume).out.strip()).read_bytes()


def test_it_is_the_volume_as_it_was(chain: Chain, there: Path) -> None:
    restore(chain.state, chain.increment, there / "new.raw")
    restore(chain.state, chain.full, there / "old.raw")
    new, old = (there / "new.raw").read_bytes(), (there / "old.raw").read_bytes()
    assert new == image_of(chain)
    assert [at for at in range(0, len(new), BLOCK) if new[at : at + BLOCK] != old[at : at + BLOCK]] == [
        3 * BLOCK
    ]
    assert (there / "new.raw").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(there)) == ["new.raw", "old.raw"]


def test_a_file_that_is_there_is_replaced_only_when_asked_for(chain: Chain, there: Path) -> None:
    path = there / "new.raw"
    path.write_bytes(b"precious")
    with pytest.raises(InvalidInput, match="is there already; --overwrite"):
        restore(chain.state, chain.full, path)
    assert path.read_bytes() == b"precious"
    restore(chain.state, chain.increment, path, overwrite=True)
    assert path.read_bytes() == image_of(chain)
    assert os.listdir(there) == ["new.raw"]


def test_a_file_that_appears_meanwhile_stays(there: Path) -> None:
    path = there / "new.raw"

    def write() -> None:
        with restore_file.new_file(str(path)) as fd:
            os.write(fd, b"new")
            path.write_bytes(b"precious")

    with pytest.raises(InvalidInput, match="is there by now"):
        write()
    assert path.read_bytes() == b"precious"
    assert os.listdir(there) == ["new.raw"]


def test_where_links_cannot_be_made_it_stands_all_the_same(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(_part: str, _final: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", no_links)
    with restore_file.new_file(str(there / "new.raw")) as fd:
        os.write(fd, b"new")
    assert (there / "new.raw").read_bytes() == b"new"
    assert os.listdir(there) == ["new.raw"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_restore_leaves_no_file(
    chain: Chain, there: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    flush = LocalTarget.flush

    def interrupted(self: LocalTarget) -> None:
        flush(self)
        assert [name for name in os.listdir(there) if name.endswith(".part")]
        os.kill(os.getpid(), number)

    monkeypatch.setattr(LocalTarget, "flush", interrupted)
    # A shell makes its background jobs ignore SIGINT, and nohup SIGHUP.
    caught: dict[signal.Signals, Any] = dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)
    caught[signal.SIGINT] = signal.default_int_handler
    before = {each: signal.signal(each, handler) for each, handler in caught.items()}
    try:
        with pytest.raises(KeyboardInterrupt):
            restore(chain.state, chain.full, there / "new.raw")
        assert {each: signal.getsignal(each) for each in caught} == caught
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert os.listdir(there) == []


def test_nohup_lets_it_go_on(there: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with restore_file.new_file(str(there / "new.raw")) as fd:
            os.kill(os.getpid(), signal.SIGHUP)
            os.write(fd, b"new")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (there / "new.raw").read_bytes() == b"new"


def test_a_full_disk_leaves_no_file_and_says_which(
    chain: Chain, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: LocalTarget, _runs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalTarget, "write_runs", full)
    with pytest.raises(TargetError, match=r"new\.raw could not be written: .*No space left on device"):
        restore(chain.state, chain.full, there / "new.raw")
    assert os.listdir(there) == []


def test_a_full_disk_ends_the_bar(chain: Chain, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    progress = Progress("restoring", terminal)

    def full(_self: LocalTarget, _runs: Any) -> None:
        progress.update(1, 2)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalTarget, "write_runs", full)
    conf = load_conf(chain.state)
    with database.opened(conf) as db, pytest.raises(TargetError):
        restore_file.restore(conf, db, chain.full, str(there / "new.raw"), progress, overwrite=False)
    # The terminal's cursor is hidden below a bar.
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l") >= 0


def test_no_message_bus_is_needed(chain: Chain, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_arguments: Any) -> None:
        raise AssertionError("a dispatch is opened")

    monkeypatch.setattr(usecases, "opened", away)
    done = chain.run("backup", "restore", chain.increment, "--to", str(there / "new.raw"))
    assert (done.status, done.out) == (0, f"{there / 'new.raw'}\n"), done.err
    assert (there / "new.raw").read_bytes() == image_of(chain)


def test_damage_is_told_and_recorded_at_all_that_share_it(chain: Chain, there: Path) -> None:
    chain.spoil(chain.full, 5)
    with pytest.raises(Damaged):
        restore(chain.state, chain.full, there / "new.raw")
    assert os.listdir(there) == []
    assert chain.marked() == {chain.full, chain.increment}


def test_a_backup_without_data_is_told(chain: Chain, there: Path) -> None:
    with database.opened(load_conf(chain.state)) as db, db.write() as session:
        session.get_one(models.Backup, chain.other).deleted = True
    with pytest.raises(BackupNotFound):
        restore(chain.state, chain.other, there / "new.raw")
    for status in ("creating", "error"):
        with database.opened(load_conf(chain.state)) as db, db.write() as session:
            row = session.get_one(models.Backup, chain.increment)
            row.status, row.manifest_id = status, None
        with pytest.raises(InvalidBackup, match=f"has no data in a store \\(status {status}\\)"):
            restore(chain.state, chain.increment, there / "new.raw")


def test_the_service_s_own_files_and_volumes_are_not_overwritten(chain: Chain, there: Path) -> None:
    link = there / "link"
    link.symlink_to(chain.state / "store")
    for path in (chain.state / "backupfw.sqlite", chain.state / "volumes" / "x.raw", link / "x"):
        with pytest.raises(InvalidInput, match="belongs to this service"):
            restore(chain.state, chain.full, path, overwrite=True)
    volume = Path(chain.run("volume", "path", chain.volume).out.strip())
    with pytest.raises(InvalidInput, match=f"is volume {chain.volume}"):
        restore(chain.state, chain.full, volume, overwrite=True)
    with pytest.raises(InvalidInput, match="no regular file"):
        restore(chain.state, chain.full, there, overwrite=True)
    with pytest.raises(InvalidInput, match=f"there is no directory {there / 'missing'}\\.$"):
        restore(chain.state, chain.full, there / "missing" / "new.raw")


def test_images_in_a_directory_of_volumes_elsewhere_are_not_overwritten(chain: Chain, there: Path) -> None:
    conf = load_conf(chain.state)
    conf.set_override("volumes_dir", str(there), "volumes:local")
    more = there.parent / "more"
    more.mkdir()
    conf.set_override("snapshot_dirs", [str(more)], "volumes:local")
    with database.opened(conf) as db:
        for path in (there / f"volume-{chain.volume}.img", more / "snapshot-x.img"):
            path.write_bytes(b"precious")
            with pytest.raises(InvalidInput, match="belongs to this service"):
                restore_file.restore(conf, db, chain.full, str(path), Progress("restoring"), overwrite=True)
            assert path.read_bytes() == b"precious"


def test_a_volume_whose_image_is_away_gets_no_other_one(chain: Chain, there: Path) -> None:
    with database.opened(load_conf(chain.state)) as db, db.write() as session:
        session.get_one(models.Volume, chain.volume).location = str(there / "away.raw")
    with pytest.raises(InvalidInput, match=f"is volume {chain.volume}"):
        restore(chain.state, chain.full, there / "away.raw")
    assert os.listdir(there) == []


@pytest.mark.server
@pytest.mark.parametrize(("name", "disk_format"), [("new.qcow2", None), ("new.img", "qcow2")])
def test_it_is_a_qcow2_image_where_that_is_said(
    chain: Chain, there: Path, name: str, disk_format: str | None
) -> None:
    if missing := missing_programs("qemu-nbd", "qemu-img"):
        pytest.skip(f"{missing} are not installed")
    words = () if disk_format is None else ("--disk-format", disk_format)
    done = chain.run("backup", "restore", chain.increment, "--to", str(there / name), *words)
    assert done.status == 0, done.err
    assert os.listdir(there) == [name]
    command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", there / name, there / "raw"]
    subprocess.run(command, check=True)
    raw, wanted = (there / "raw").read_bytes(), image_of(chain)
    # Whole sectors.
    assert raw == wanted + bytes(-len(wanted) % 512)
    assert (there / name).stat().st_mode & 0o777 == 0o600


def test_a_format_is_for_a_file(chain: Chain) -> None:
    assert chain.run("backup", "restore", chain.increment, "--disk-format", "raw").status == 2
