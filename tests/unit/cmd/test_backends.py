"""Two volume back ends in one service: made in each, backed up, restored across; one that is not enabled."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from backupfw.cmd import database, service
from backupfw.db import models
from backupfw.manager.queue.services import BACKUP_BINARY, ServiceManager
from backupfw.manager.rules.volume_types import VolumeTypeManager
from backupfw.manager.usecases.backups import BackupManager
from backupfw.manager.usecases.volumes import VolumeManager
from backupfw.volume.base import API_VERSION
from tests.unit.cmd.conftest import CTX, Run, backed_up, load_conf
from tests.waiting import wait_until

MIB = 1 << 20


@pytest.fixture
def configure(state: Path, tmp_path: Path) -> Path:
    """The configuration of a service with two directories as back ends."""
    state.mkdir()
    file = state / "backupfw.conf"
    file.write_text(
        "[volumes]\nenabled = local, fast\n"
        f"[volumes:fast]\ndriver = local\nvolumes_dir = {tmp_path}/fast\n"
        "[backup]\npoll_seconds = 0.1\n"
    )
    return file


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(random.Random(5).randbytes(MIB) + bytes(MIB))
    return path


@contextmanager
def serving(state: Path) -> Iterator[tuple[BackupManager, VolumeManager, Any]]:
    conf = load_conf(state)
    database.prepare(conf, make=True)
    with service.EmbeddedService(conf), database.opened(conf) as db:
        yield BackupManager(db, conf), VolumeManager(db, conf, lambda: None), db


def one_line(run: Run, *words: str) -> str:
    done = run(*words)
    assert done.status == 0, done
    assert len(done.out.splitlines()) == 1, done
    return done.out.strip()


def shown(run: Run, volume: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("volume", "show", volume, "-f", "json").out)
    return found


def settled(volumes: VolumeManager, volume: str) -> str:
    """Wait until nothing works on a volume any more; returns its status."""
    working = ("restoring-backup", "backing-up", "creating")
    wait_until(f"volume {volume}", lambda: volumes.get(CTX, volume).status not in working)
    return volumes.get(CTX, volume).status


def test_volumes_are_made_backed_up_and_restored_across(
    run: Run, configure: Path, state: Path, tmp_path: Path, image: Path
) -> None:
    here = one_line(run, "volume", "create", "--image", str(image))
    there = one_line(run, "volume", "create", "--image", str(image), "--backend", "fast")
    for volume, backend, folder in ((here, "local", state / "volumes"), (there, "fast", tmp_path / "fast")):
        assert shown(run, volume)["backend"] == backend
        assert one_line(run, "volume", "path", volume) == f"{folder}/volume-{volume}.img"
    listed = json.loads(run("volume", "list", "--backend", "fast", "-f", "json").out)
    assert [one["id"] for one in listed] == [there]
    with serving(state) as (backups, volumes, _):
        of_there = backed_up(backups, there)
        # To a new volume: where the backup's volume is.
        _, new, _ = backups.restore(CTX, of_there)
        # Across, to an existing one.
        backups_of_here = backed_up(backups, here)
        assert settled(volumes, new) == "available"
        backups.restore(CTX, backups_of_here, volume_id=there)
        assert settled(volumes, there) == "available"
        assert volumes.get(CTX, new).backend == "fast"
        # A copy, and a snapshot's copy.
        copy = volumes.create(CTX, size=1, source_volid=new)
        assert settled(volumes, copy.id) == "available"
    for volume in (there, new, copy.id):
        path = tmp_path / "fast" / f"volume-{volume}.img"
        with path.open("rb") as file:
            assert file.read(2 * MIB) == image.read_bytes()


def test_without_a_back_end_the_projects_default_type_decides(
    run: Run, configure: Path, state: Path, tmp_path: Path, image: Path
) -> None:
    conf = load_conf(state)
    database.prepare(conf, make=True)
    with database.opened(conf) as db:
        types = VolumeTypeManager(db, conf)
        gold = types.create(CTX, name="gold", extra_specs={"volume_backend_name": "fast"})
        types.set_project_default(CTX, "p1", gold.id)
    for words in (("create", "--size", "1"), ("adopt", str(image))):
        mine = shown(run, one_line(run, "volume", *words, "--project", "p1"))
        assert (mine["volume_type"], mine["backend"]) == ("gold", "fast")
    made = one_line(run, "volume", "create", "--size", "1", "--project", "p1")
    assert one_line(run, "volume", "path", made) == f"{tmp_path}/fast/volume-{made}.img"
    assert shown(run, one_line(run, "volume", "create", "--size", "1"))["backend"] == "local"
    chosen = one_line(run, "volume", "create", "--size", "1", "--project", "p1", "--backend", "local")
    assert shown(run, chosen)["backend"] == "local"


def test_what_is_in_a_back_end_that_is_not_enabled_waits_and_is_told(
    run: Run, configure: Path, state: Path, image: Path
) -> None:
    there = one_line(run, "volume", "create", "--image", str(image), "--backend", "fast")
    with serving(state) as (backups, volumes, _):
        backup = backed_up(backups, there)
    configure.write_text("[backup]\npoll_seconds = 0.1\nservice_wait = 1\n")
    done = run("volume", "create", "--size", "1", "--backend", "fast")
    assert (done.status, done.out) == (1, "")
    assert "volume back end 'fast' is not enabled; enabled: local" in done.err
    assert run("volume", "path", there).status == 1
    audited = run("audit")
    assert "volume: volume back end fast: has 1 volume, but is not enabled here: not looked at" in audited.out
    with serving(state) as (backups, volumes, db):
        # To a new volume: it goes to the default back end.
        _, new, _ = backups.restore(CTX, backup)
        assert settled(volumes, new) == "available"
        assert volumes.get(CTX, new).backend == "local"
        lost = backups.create(CTX, volume_id=there).id
        wait_until("the end of the backup", lambda: backups.get(CTX, lost).status != "creating")
        failed = backups.get(CTX, lost)
        assert (failed.status, failed.fail_reason) == (
            "error",
            "No backup service with the volume back end fast was available.",
        )
        with db.read() as session:
            assert session.get_one(models.Volume, there).status == "available"


def test_a_back_ends_files_are_not_adopted_in_another(run: Run, configure: Path, tmp_path: Path) -> None:
    there = one_line(run, "volume", "create", "--size", "1", "--backend", "fast")
    path = tmp_path / "fast" / f"volume-{there}.img"
    for backend in ("local", "fast"):
        done = run("volume", "adopt", str(path), "--backend", backend)
        assert done.status == 1
        assert "belongs to this service" in done.err


@pytest.mark.parametrize("left", ["disabled", "moved"])
def test_images_of_ours_in_a_directory_that_is_no_more_configured_are_not_adopted(
    run: Run, configure: Path, state: Path, tmp_path: Path, image: Path, left: str
) -> None:
    adopted = one_line(run, "volume", "adopt", str(image))
    there = one_line(run, "volume", "create", "--size", "1", "--backend", "fast")
    with serving(state):
        snapshot = one_line(run, "snapshot", "create", there)
    if left == "disabled":
        configure.write_text("")
    else:
        configure.write_text(configure.read_text().replace(f"{tmp_path}/fast", f"{tmp_path}/new"))
    for name, said in (
        (f"volume-{there}.img", f"is volume {there} already"),
        (f"snapshot-{snapshot}.img", f"is snapshot {snapshot}"),
    ):
        path = tmp_path / "fast" / name
        path.chmod(0o600)
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(path)
        for found in (path, tmp_path / "link"):
            for words in (("adopt", str(found)), ("adopt", "--again", adopted, str(found))):
                done = run("volume", *words, "--as-raw")
                assert (done.status, done.out) == (1, ""), words
                assert said in done.err
    # Whatever else has such a name, or is there, is none of ours.
    other = tmp_path / "fast" / "volume-other.img"
    other.write_bytes(image.read_bytes())
    one_line(run, "volume", "adopt", str(other))


def test_storage_is_adopted_once_whatever_the_back_end(run: Run, configure: Path, image: Path) -> None:
    volume = one_line(run, "volume", "adopt", str(image), "--backend", "fast")
    assert shown(run, volume)["backend"] == "fast"
    again = run("volume", "adopt", str(image))
    assert again.status == 1
    assert f"volume {volume} already" in again.err
    assert run("volume", "adopt", "--again", volume, "--backend", "local").status == 2
    assert one_line(run, "volume", "adopt", "--again", volume) == volume
    assert shown(run, volume)["backend"] == "fast"


def test_installed_providers_are_listed(run: Run, configure: Path) -> None:
    done = run("volume", "backends", "--format", "json")
    assert done.status == 0, done.err
    (local,) = (each for each in json.loads(done.out) if each["driver"] == "local")
    assert local == {
        "driver": "local",
        "distribution": "backupfw",
        "version": version("backupfw"),
        "api": str(API_VERSION),
        "backends": "local, fast",
        "state": "ok",
    }


@pytest.mark.usefixtures("few_objects")
def test_a_back_end_is_checked(run: Run, configure: Path, tmp_path: Path) -> None:
    done = run("volume", "check", "fast")
    assert (done.status, done.err) == (0, "")
    assert done.out == (
        "ok      capabilities: allocation, snapshots, writes, fences\n"
        "ok      makes a volume\n"
        "ok      writes and reads it\n"
        "skipped it does not know what changed\n"
        "ok      keeps an earlier writer out\n"
        "ok      takes a snapshot, which does not change when the volume is written\n"
        "ok      extends the volume, with zeros\n"
        "ok      deletes both\n"
        "volume back end fast: ok\n"
    )
    assert os.listdir(tmp_path / "fast") == []
    checked = run("config", "check", "--connect")
    assert checked.status == 0
    assert (
        "volume back end local (default): driver local\nvolume back end fast: driver local\n" in checked.out
    )
    assert "volume back end local: ok\n" in checked.out
    assert "volume back end fast: ok\n" in checked.out


@pytest.mark.usefixtures("few_objects")
def test_a_check_says_what_does_not_work_and_cleans_up(
    run: Run, configure: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backupfw.volume.local.provider import LocalProvider

    def fail(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalProvider, "create_snapshot", fail)
    done = run("volume", "check", "fast")
    assert done.status == 1
    assert done.out == (
        "ok      capabilities: allocation, snapshots, writes, fences\n"
        "ok      makes a volume\n"
        "ok      writes and reads it\n"
        "skipped it does not know what changed\n"
        "ok      keeps an earlier writer out\n"
        "volume back end fast: NOT ok: [Errno 28] No space left on device\n"
    )
    assert os.listdir(tmp_path / "fast") == []
    assert run("config", "check", "--connect").status == 1


def test_a_check_tells_the_first_error_and_deletes_what_was_begun(
    run: Run, configure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backupfw.volume.local.provider import LocalProvider

    calls = []

    def create(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    def delete(*_: Any, **__: Any) -> None:
        calls.append("volume")
        raise OSError("there is no such volume")

    def delete_snapshot(*_: Any, **__: Any) -> None:
        calls.append("snapshot")

    monkeypatch.setattr(LocalProvider, "create", create)
    monkeypatch.setattr(LocalProvider, "delete", delete)
    monkeypatch.setattr(LocalProvider, "delete_snapshot", delete_snapshot)
    done = run("volume", "check", "fast")
    assert done.status == 1
    assert done.out.endswith("volume back end fast: NOT ok: [Errno 28] No space left on device\n")
    assert calls == ["volume"]


def test_a_check_deletes_the_volume_when_its_snapshot_cannot_be(
    run: Run, configure: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backupfw.volume.local.provider import LocalProvider

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no snapshot is deleted here")

    monkeypatch.setattr(LocalProvider, "delete_snapshot", fail)
    done = run("volume", "check", "fast")
    assert done.status == 1
    assert done.out.endswith("volume back end fast: NOT ok: no snapshot is deleted here\n")
    assert [name for name in os.listdir(tmp_path / "fast") if name.startswith("volume")] == []


def test_a_check_leaves_out_what_a_provider_does_not_do(
    run: Run, configure: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backupfw.volume.base import Capabilities
    from backupfw.volume.local.provider import LocalProvider

    def fail(*_: Any, **__: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(LocalProvider, "capabilities", Capabilities(allocation=True))
    for name in ("open_target", "create_snapshot", "delete_snapshot"):
        monkeypatch.setattr(LocalProvider, name, fail)
    done = run("volume", "check", "fast")
    assert (done.status, done.err) == (0, "")
    assert done.out == (
        "ok      capabilities: allocation\n"
        "ok      makes a volume\n"
        "ok      reads it\n"
        "skipped it does not write\n"
        "skipped it takes no snapshots\n"
        "ok      extends the volume, with zeros\n"
        "ok      deletes it\n"
        "volume back end fast: ok\n"
    )
    assert os.listdir(tmp_path / "fast") == []


def test_a_check_of_what_is_not_there(run: Run, configure: Path, tmp_path: Path) -> None:
    assert "volume back end 'slow' is not enabled; enabled: local, fast" in run("volume", "check", "slow").err
    (tmp_path / "file").write_text("")
    configure.write_text(
        f"[volumes]\nenabled = local, fast\n[volumes:fast]\ndriver = local\nvolumes_dir = {tmp_path}/file\n"
    )
    done = run("volume", "check", "fast")
    assert done.status == 1
    assert "section [volumes:fast]: option volumes_dir:" in done.err


@pytest.mark.usefixtures("few_objects")
def test_a_back_end_that_cannot_be_opened_ends_no_report(
    run: Run, configure: Path, state: Path, tmp_path: Path
) -> None:
    """It is one row of the check and one finding of the audit."""
    one_line(run, "volume", "create", "--size", "1", "--backend", "fast")
    here = one_line(run, "volume", "create", "--size", "1")
    (state / "volumes" / f"volume-{here}.img").unlink()
    (tmp_path / "file").write_text("")
    # First, so that all the rest is behind it.
    configure.write_text(
        "[DEFAULT]\nenabled_stores = broken, main\ndefault_store = main\n"
        f"[store:broken]\ndriver = posix\npath = {tmp_path}/file\n"
        f"[store:main]\ndriver = posix\npath = {tmp_path}/main\n"
        "[volumes]\nenabled = fast, local\ndefault = local\n"
        f"[volumes:fast]\ndriver = local\nvolumes_dir = {tmp_path}/file\n"
    )
    (tmp_path / "main").mkdir()
    done = run("config", "check", "--connect")
    assert done.status == 1
    lines = done.out.splitlines()
    assert [line for line in lines if "NOT ok" in line and "volume back end fast" in line], done
    assert [line for line in lines if "NOT ok" in line and "store broken" in line]
    assert "store main: ok" in done.out
    assert "volume back end local: ok" in lines
    done = run("audit")
    assert done.status == 1
    assert "volume: volume back end fast: could not be opened, its volumes were not looked at: " in done.out
    assert f"volume: volume {here}: its storage is gone" in done.out
    assert "store broken: could not be looked at" in done.out


def test_what_another_host_has_is_no_finding_on_this_one(
    run: Run, configure: Path, state: Path, tmp_path: Path, image: Path
) -> None:
    (tmp_path / "far").mkdir()
    stores = f"[store:main]\ndriver = posix\npath = {tmp_path}/main\n"
    far = f"[store:far]\ndriver = posix\npath = {tmp_path}/far\n"
    (tmp_path / "main").mkdir()
    here = configure.read_text()
    configure.write_text(f"[DEFAULT]\nenabled_stores = far, main\ndefault_store = far\n{stores}{far}{here}")
    there = one_line(run, "volume", "create", "--image", str(image), "--backend", "fast")
    with serving(state) as (backups, _, _):
        backed_up(backups, there)
    assert run("audit").status == 0
    configure.write_text(
        f"[DEFAULT]\nenabled_stores = main\ndefault_store = main\n{stores}[backup]\npoll_seconds = 0.1\n"
    )
    of_store = "store far: holds backups, but is not enabled here"
    of_volumes = "volume back end fast: has 1 volume, but is not enabled here"

    def told() -> tuple[bool, bool]:
        out = run("audit").out
        return of_store in out, of_volumes in out

    assert told() == (True, True)
    conf = load_conf(state)
    with database.opened(conf) as db:
        with db.write() as session:
            session.get_one(models.Volume, there).host = conf.host
        services = ServiceManager(db, conf)
        names = {"far": "backupfw.chunkstore.posix"}
        services.heartbeat(conf.host, BACKUP_BINARY, stores=names, backends={"fast": True}, process="own")
        assert told() == (True, True), "this host's own service says nothing: it may be of before"
        services.heartbeat("other", BACKUP_BINARY, stores=names, backends={"fast": False}, process="one")
        assert told() == (False, True), "the volume is this host's"
        services.heartbeat("other", BACKUP_BINARY, stores=names, backends={"fast": True}, process="one")
        assert told() == (False, False)
        assert run("audit").status == 0
        with db.write() as session:
            session.get_one(models.Volume, there).host = None
        services.heartbeat("other", BACKUP_BINARY, stores=names, backends={"fast": False}, process="one")
        assert told() == (False, False), "every host that has the back end can open the volume"


def test_an_older_configuration_and_its_state_directory_work_as_before(
    run: Run, state: Path, tmp_path: Path, image: Path
) -> None:
    """What is in ``[volumes]`` is of the back end ``local``."""
    state.mkdir()
    (state / "backupfw.conf").write_text(
        f"[volumes]\nprovider = local\nvolumes_dir = {tmp_path}/old\nsnapshot_tries = 5\n"
    )
    volume = one_line(run, "volume", "create", "--image", str(image))
    assert one_line(run, "volume", "path", volume) == f"{tmp_path}/old/volume-{volume}.img"
    assert shown(run, volume)["backend"] == "local"
    assert load_conf(state)["volumes:local"].snapshot_tries == 5
    # The section wins.
    with (state / "backupfw.conf").open("a") as file:
        file.write("[volumes:local]\nsnapshot_tries = 6\n")
    assert load_conf(state)["volumes:local"].snapshot_tries == 6
