"""The whole job with the command alone: against a running service, and with none."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from backupfw.cmd import service, usecases, waiting
from tests.files import files_below
from tests.unit.cmd.conftest import Outcome, Run, load_conf
from tests.unit.cmd.test_serve import start
from tests.waiting import PATIENCE, wait_until

MIB = 1 << 20
MISSING = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def quick(state: Path) -> None:
    """A service that finds at once what a command queues."""
    state.mkdir()
    (state / "backupfw.conf").write_text("[backup]\npoll_seconds = 0.1\n")


@pytest.fixture
def served(state: Path, quick: None) -> Iterator[None]:
    """A service that runs in this process."""
    from backupfw.cmd import database

    conf = load_conf(state)
    conf.set_override("port", 0, "api")
    database.prepare(conf, make=True)
    with service.EmbeddedService(conf):
        yield


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a worker to appear."""
    monkeypatch.setattr(waiting, "NO_WORKER_SECONDS", 0.0)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    with path.open("wb") as file:
        file.write(random.Random(5).randbytes(MIB))
        file.truncate(3 * MIB)
    return path


def done(outcome: Outcome) -> str:
    """Return the only line of a command that worked."""
    assert outcome.status == 0, outcome
    assert len(outcome.out.splitlines()) == 1, outcome
    return outcome.out.strip()


def records(outcome: Outcome) -> list[dict[str, Any]]:
    assert outcome.status == 0, outcome
    found: list[dict[str, Any]] = json.loads(outcome.out)
    return found


def listed(run: Run, noun: str, *words: str) -> list[dict[str, Any]]:
    return records(run(noun, "list", *words, "-f", "json"))


def shown(run: Run, noun: str, *words: str) -> dict[str, Any]:
    outcome = run(noun, "show", *words, "-f", "json")
    assert outcome.status == 0, outcome
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def assert_same(one: Path, other: Path) -> None:
    """Compare two sparse files: their beginnings, and that there is nothing behind."""
    with one.open("rb") as first, other.open("rb") as second:
        assert first.read(4 * MIB) == second.read(4 * MIB)
    assert one.stat().st_size == other.stat().st_size == 1 << 30
    assert max(one.stat().st_blocks, other.stat().st_blocks) * 512 < 4 * MIB, "holes stay holes"


def test_the_whole_job_beside_a_service_and_after_it(
    run: Run, state: Path, quick: None, image: Path, tmp_path: Path
) -> None:
    process = start("serve", "--state-dir", str(state), "--port", "0")
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("backupfw ready")
        volume = done(run("volume", "create", "--size", "1", "--image", str(image), "--name", "data"))
        full = done(run("backup", "create", "data"))
        path = Path(done(run("volume", "path", "data")))
        with path.open("r+b") as file:
            file.seek(2 * MIB)
            file.write(b"changed" * 1000)
        increment = done(run("backup", "create", "data", "--incremental", "--name", "latest"))
        assert done_silently(run("backup", "delete", full))
        (only,) = listed(run, "backup")
        assert (only["id"], only["name"], only["size"], only["is_incremental"]) == (
            increment,
            "latest",
            1,
            True,
        )
        assert done(run("backup", "restore", "latest", "--to", str(tmp_path / "beside"))) == str(
            tmp_path / "beside"
        )
        restored = done(run("backup", "restore", "latest", "--name", "again"))
        assert_same(Path(done(run("volume", "path", "again"))), path)
        assert {one["id"] for one in listed(run, "volume")} == {volume, restored}
        assert done(run("backup", "restore", "latest", "--volume", "again")) == restored
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0
    assert run("backup", "verify", "latest").status == 0
    done(run("backup", "restore", increment, "--to", str(tmp_path / "after")))
    assert_same(tmp_path / "beside", path)
    assert_same(tmp_path / "after", path)
    (row,) = records(run("usage", "-f", "json"))
    stored = files_below(state / "store")
    assert (row["project"], row["backups"], row["own_objects"]) == ("demo", 1, len(stored))
    assert run("usage", "--by", "store", "-c", "store", "-c", "backups", "-f", "value").out == "main 1\n"
    assert row["own_bytes"] == row["deleting_frees_bytes"] == sum(one.stat().st_size for one in stored)


def done_silently(outcome: Outcome) -> bool:
    assert (outcome.status, outcome.out) == (0, ""), outcome
    return True


def test_without_a_service_what_only_a_worker_does_stays_queued(
    run: Run, state: Path, quick: None, alone: None, image: Path
) -> None:
    volume = done(run("volume", "adopt", str(image)))
    queued = run("backup", "create", volume, "--no-wait")
    backup = done(queued)
    assert "is queued; no worker is there now" in queued.err
    assert "'backupfw serve'" in queued.err
    assert shown(run, "backup", backup)["status"] == "creating"
    assert "has no data in a store (status creating)" in run("backup", "restore", backup, "--to", "x").err
    assert run("volume", "forget", volume).status == 1, "it is being backed up"
    assert done(run("backup", "cancel", backup)).endswith("is error: The backup was cancelled.")
    assert shown(run, "volume", volume)["status"] == "available"
    assert run("backup", "cancel", backup).status == 1
    waited = run("backup", "create", volume)
    assert waited.status == 1
    assert "stays queued; no worker is there now" in waited.err
    second = waited.out.strip()
    assert shown(run, "backup", second)["status"] == "creating"
    conf = load_conf(state)
    conf.set_override("port", 0, "api")
    with service.EmbeddedService(conf):
        deleted = run("backup", "delete", backup)
        assert done_silently(deleted)
        # The volume is free when its queued backup was made, which nothing waits for here.
        wait_until("the backup", lambda: shown(run, "backup", second)["status"] != "creating")
        assert done(run("backup", "create", volume, "--incremental"))
    assert shown(run, "backup", second)["status"] == "available"


def test_what_fails_says_why_and_is_status_1(run: Run, served: None, image: Path) -> None:
    volume = done(run("volume", "adopt", str(image)))
    backup = done(run("backup", "create", volume))
    image.unlink()
    made = run("backup", "create", volume)
    assert made.status == 1
    assert made.err == (
        f"backupfw: making backup {made.out.strip()} failed: The storage of volume {volume} is gone.\n"
    )
    restored = run("backup", "restore", backup, "--volume", volume)
    assert (restored.status, restored.out) == (1, f"{volume}\n")
    assert restored.err.endswith(f"failed: The storage of volume {volume} is gone.\n")


def test_an_interrupted_wait_ends_only_the_wait(
    run: Run, state: Path, quick: None, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = done(run("volume", "adopt", str(image)))

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(waiting.time, "sleep", interrupted)
    made = run("backup", "create", volume)
    assert made.status == 130
    backup = made.out.strip()
    assert f"making backup {backup} goes on; 'backupfw backup cancel {backup}' stops it" in made.err
    assert shown(run, "backup", backup)["status"] == "creating"


def test_names_are_taken_where_they_are_unique(run: Run, quick: None, alone: None) -> None:
    first = done(run("volume", "create", "--size", "1", "--name", "same"))
    assert shown(run, "volume", "same")["id"] == first
    second = done(run("volume", "create", "--size", "1", "--name", "same"))
    several = run("volume", "path", "same")
    assert (several.status, several.out) == (1, "")
    assert (
        f"Several volumes are named 'same'; give the id: {first} of project demo, {second} of project demo."
        in several.err
    )
    # An id comes first, whatever else has it for a name.
    third = done(run("volume", "create", "--size", "1", "--name", first))
    assert shown(run, "volume", first)["id"] == first
    assert shown(run, "volume", third)["name"] == first
    assert shown(run, "volume", first.upper())["id"] == first
    for text in ("", "x" * 300, "\udcff", "a\nb", MISSING):
        outcome = run("volume", "show", text)
        assert (outcome.status, outcome.out) == (1, ""), text
        assert outcome.err.startswith("backupfw: Volume "), text


def test_a_project_tells_things_of_one_name_apart(run: Run, quick: None, served: None, image: Path) -> None:
    volumes = {}
    for project in ("red", "blue"):
        volumes[project] = done(
            run("volume", "create", "--image", str(image), "--name", "disk", "--project", project)
        )
    several = run("volume", "show", "disk")
    assert (several.status, several.out) == (1, "")
    assert f"{volumes['red']} of project red" in several.err
    assert f"{volumes['blue']} of project blue" in several.err
    for project, volume in volumes.items():
        assert shown(run, "volume", "disk", "--project", project)["id"] == volume
        assert done(run("volume", "path", "disk", "--project", project)).endswith(f"{volume}.img")
        made = done(run("backup", "create", "disk", "--name", "night", "--project", project))
        assert shown(run, "backup", made)["volume_id"] == volume
        assert shown(run, "backup", "night", "--project", project)["id"] == made
        listed = run("backup", "list", "--volume", "disk", "--project", project, "-f", "value", "-c", "id")
        assert listed.out == f"{made}\n"
        assert run("backup", "verify", "night", "--project", project).status == 0
        done(run("snapshot", "create", "disk", "--name", "calm", "--project", project))
        # Of the volume that is backed up.
        done(run("backup", "create", "disk", "--snapshot", "calm", "--project", project, "--name", "calm"))
    assert "Several backups are named 'night'" in run("backup", "restore", "night").err
    # Whoever names a project does not get at another one's.
    assert run("backup", "show", "night", "--project", "green").status == 1
    assert run("backup", "delete", "night", "--project", "green").status == 1
    back = done(run("backup", "restore", "night", "--project", "red", "--name", "back"))
    assert shown(run, "volume", back)["project_id"] == "red"
    assert run("backup", "delete", "night", "--project", "blue").status == 0
    # The other one is left, and needs no project.
    assert shown(run, "backup", "night")["volume_id"] == volumes["red"]


def test_a_name_is_not_looked_up_in_other_projects(
    run: Run, quick: None, served: None, image: Path, tmp_path: Path
) -> None:
    """Else the backup of one project would be written over the volume of another one."""
    words = ("volume", "create", "--image", str(image))
    red = done(run(*words, "--name", "disk", "--project", "red"))
    blue = done(run(*words, "--name", "data", "--project", "blue"))
    backup = done(run("backup", "create", "disk", "--name", "nightly"))
    done(run("snapshot", "create", "disk", "--name", "calm"))
    file = str(tmp_path / "file")
    for refused in (
        ("backup", "restore", backup, "--volume", "data"),
        ("backup", "restore", "nightly", "--volume", "data", "--project", "red"),
        ("backup", "restore", "nightly", "--volume", "data", "--project", "blue"),
        ("backup", "restore", "nightly", "--project", "blue"),
        ("backup", "restore", "nightly", "--to", file, "--project", "blue"),
        ("backup", "create", "disk", "--project", "blue"),
        ("backup", "create", "data", "--snapshot", "calm"),
        ("backup", "list", "--volume", "disk", "--project", "blue"),
        ("backup", "verify", "--volume", "disk", "--project", "blue"),
        ("snapshot", "list", "--volume", "disk", "--project", "blue"),
    ):
        outcome = run(*refused)
        assert (outcome.status, outcome.out) == (1, ""), (refused, outcome)
    assert len(listed(run, "volume")) == 2
    assert done(run("backup", "restore", "nightly", "--to", file, "--project", "red")) == file
    assert done(run("backup", "restore", "nightly", "--volume", "disk", "--project", "red")) == red
    # A project can be named for the target, and an id may be anywhere.
    assert done(run("backup", "restore", backup, "--volume", "data", "--project", "blue")) == blue
    assert done(run("backup", "restore", "nightly", "--volume", blue)) == blue


def test_the_id_of_a_deleted_volume_is_nobodys_name(run: Run, served: None, image: Path) -> None:
    """Who gives a volume that name would get what an operator restores to the one that is gone."""
    gone = done(run("volume", "adopt", str(image)))
    backup = done(run("backup", "create", gone))
    assert done_silently(run("volume", "forget", gone))
    other = done(run("volume", "create", "--size", "1", "--name", gone, "--project", "other"))
    for words in (
        ("backup", "restore", backup, "--volume", gone),
        ("backup", "create", gone),
        ("volume", "delete", gone),
    ):
        outcome = run(*words)
        assert (outcome.status, outcome.err) == (1, f"backupfw: Volume {gone} could not be found.\n")
    assert shown(run, "volume", other)["status"] == "available"


@pytest.mark.parametrize(
    "words",
    [
        ("volume", "path"),
        ("volume", "attach"),
        ("volume", "detach"),
        ("volume", "extend", "2"),
        ("volume", "forget"),
        ("volume", "delete"),
        ("volume", "adopt", "--again"),
        ("backup", "create"),
        ("backup", "show"),
        ("backup", "verify"),
        ("backup", "restore"),
        ("backup", "cancel"),
        ("backup", "delete"),
        ("snapshot", "create"),
        ("snapshot", "show"),
        ("snapshot", "delete"),
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_reported_by_every_command(
    run: Run, quick: None, words: tuple[str, ...]
) -> None:
    assert run("db", "sync").status == 0
    noun, verb, *more = words
    # The number of gigabytes comes after the volume.
    outcome = run(noun, verb, "nothing", *more) if more == ["2"] else run(*words, "nothing")
    assert (outcome.status, outcome.out) == (1, "")
    what = "Volume" if words in (("backup", "create"), ("snapshot", "create")) else noun.capitalize()
    assert outcome.err == f"backupfw: {what} nothing could not be found.\n"


def test_a_deleted_volume_is_named_by_its_id(run: Run, served: None, image: Path) -> None:
    volume = done(run("volume", "adopt", str(image), "--name", "v"))
    backup = done(run("backup", "create", "v"))
    assert done_silently(run("volume", "forget", "v"))
    assert [one["id"] for one in listed(run, "backup", "--volume", volume)] == [backup]
    assert records(run("usage", "--by", "backup", "--volume", volume, "-f", "json"))[0]["backup"] == backup
    for words in (("backup", "list"), ("backup", "verify"), ("usage",)):
        outcome = run(*words, "--volume", "v")
        assert (outcome.status, outcome.err) == (1, "backupfw: There is no backup of v.\n")


def test_workers_are_woken_through_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch = Mock()
    monkeypatch.setattr(service, "make_dispatch", lambda _conf, listens: dispatch)
    conf = SimpleNamespace(transport_url="rabbit://", volumes=SimpleNamespace(enabled=[]))
    with usecases.opened(conf, Mock()) as cases:
        cases.volumes._wake()
        assert (dispatch.wake.call_count, dispatch.close.call_count) == (1, 0)
    assert dispatch.close.call_count == 1


def test_wrong_usage_is_status_2(run: Run, quick: None) -> None:
    for words in (
        ("backup", "create"),
        ("backup", "create", "v", "--wait", "--no-wait"),
        ("backup", "restore", "b", "--to", "f", "--volume", "v"),
        ("backup", "delete"),
        ("volume", "extend", "v", "0"),
        ("quota", "set", "p", "backups"),
        ("quota", "set", "p", "backups=many"),
        ("quota", "set", "p", "backups=1", "backups=2"),
        ("volume", "list", "--status", "bogus"),
        ("backup", "verify", "--all", "--project", "p"),
        ("quota", "show", "\udcff"),
        ("usage", "--by", "moon"),
    ):
        assert run(*words).status == 2, words


@pytest.mark.parametrize("bad", ["x" * 256, "a\x1b[2Jb", "\udcff"], ids=ascii)
@pytest.mark.parametrize(
    "words",
    [
        ("volume", "create", "--size", "1", "--name"),
        ("volume", "create", "--size", "1", "--project"),
        ("volume", "adopt", "i.raw", "--name"),
        ("volume", "attach", "v", "--host"),
        ("backup", "list", "--project"),
        ("backup", "verify", "--project"),
        ("quota", "show"),
    ],
    ids=" ".join,
)
def test_a_text_that_the_api_refuses_is_wrong_usage(
    run: Run, state: Path, words: tuple[str, ...], bad: str
) -> None:
    assert run(*words, bad).status == 2
    assert not state.exists(), "nothing is made before"


def test_a_project_that_no_path_can_name_is_wrong_usage(run: Run, state: Path) -> None:
    for bad in ("", "a\nb", "a\tb"):
        for words in (("volume", "create", "--size", "1", "--project"), ("quota", "show")):
            assert run(*words, bad).status == 2
    assert not state.exists()


def test_what_is_named_twice_is_deleted_once(run: Run, served: None, image: Path) -> None:
    volume = done(run("volume", "create", "--size", "1", "--name", "v"))
    assert done_silently(run("volume", "delete", "v", volume))


def test_the_commands_of_snapshots_do_the_whole_job(run: Run, served: None, image: Path) -> None:
    volume = done(
        run("volume", "create", "--size", "1", "--image", str(image), "--name", "v", "--project", "p")
    )
    snapshot = done(run("snapshot", "create", "v", "--name", "s"))
    (row,) = listed(run, "snapshot")
    assert (row["id"], row["name"], row["volume_id"], row["project_id"], row["status"]) == (
        snapshot, "s", volume, "p", "available",
    )  # fmt: skip
    assert listed(run, "snapshot", "--volume", "v") == listed(run, "snapshot", "--project", "p") == [row]
    assert listed(run, "snapshot", "--project", "q") == []
    assert shown(run, "snapshot", "s")["size"] == 1
    backup = done(run("backup", "create", "v", "--snapshot", "s"))
    assert shown(run, "backup", backup)["snapshot_id"] == snapshot
    assert shown(run, "backup", backup)["project_id"] == "p", "the volume's"
    refused = run("volume", "delete", "v")
    assert refused.status == 1
    assert "dependent snapshots" in refused.err
    assert done_silently(run("snapshot", "delete", "s"))
    assert listed(run, "snapshot") == []


def test_the_commands_of_volumes_do_the_whole_job(run: Run, served: None, image: Path) -> None:
    volume = done(run("volume", "create", "--size", "1", "--name", "v"))
    assert done_silently(run("volume", "extend", "v", "2"))
    assert shown(run, "volume", "v")["size"] == 2
    assert run("volume", "extend", "v", "2").status == 1
    done(run("volume", "attach", "v", "--host", "kvm1"))
    assert shown(run, "volume", "v")["attachments"][0]["host_name"] == "kvm1"
    refused = run("volume", "delete", "v")
    assert refused.status == 1
    assert "in-use" in refused.err
    assert run("volume", "detach", "v").status == 0
    adopted = done(run("volume", "adopt", str(image)))
    assert [one["id"] for one in listed(run, "volume", "--status", "available")] == [volume, adopted]
    assert run("volume", "forget", "v").status == 1, "its storage would be left"
    # One that cannot be deleted keeps none of the others.
    some = run("volume", "delete", volume, adopted, "nothing")
    assert some.status == 1
    assert len(listed(run, "volume")) == 2, "a misspelt one is told before anything is deleted"
    assert done_silently(run("volume", "forget", adopted))
    assert image.stat().st_size == 3 * MIB
    assert done_silently(run("volume", "delete", "v"))
    assert listed(run, "volume") == []


def test_quotas_are_shown_set_and_enforced(run: Run, quick: None) -> None:
    assert run("db", "sync").status == 0
    limits = {row["resource"]: row for row in records(run("quota", "show", "demo", "-f", "json"))}
    assert limits["backups"] == {"resource": "backups", "limit": -1, "in_use": 0}
    assert done_silently(run("quota", "set", "demo", "volumes=1", "gigabytes=5"))
    done(run("volume", "create", "--size", "1"))
    assert "exceeded" in run("volume", "create", "--size", "1").err
    limits = {row["resource"]: row for row in records(run("quota", "show", "demo", "-f", "json"))}
    assert limits["volumes"] == {"resource": "volumes", "limit": 1, "in_use": 1}
    assert limits["gigabytes"]["limit"] == 5
    assert run("quota", "set", "demo", "volumes=0").status == 1, "it is below what is used"
    assert done_silently(run("quota", "set", "demo", "volumes=0", "--force"))
    unknown = run("quota", "set", "demo", "moons=1", "suns=2")
    assert unknown.status == 1
    assert unknown.err.endswith("Bad key(s) in quota set: moons, suns\n")
    assert (
        "more than one limit is given for backups" in run("quota", "set", "d", "backups=1", "backups=2").err
    )


def test_a_status_that_there_is_not_is_answered_with_those_that_there_are(run: Run, quick: None) -> None:
    assert run("db", "sync").status == 0
    refused = run("volume", "list", "--status", "bogus")
    assert (refused.status, refused.out) == (2, "")
    assert "there is no status 'bogus'; statuses: attaching, available, " in refused.err
    assert json.loads(run("volume", "list", "--status", "error_restoring", "-f", "json").out) == []
