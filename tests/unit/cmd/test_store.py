"""``backupfw store list`` and ``store check``: every line of what they print, and nothing secret in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from backupfw.chunkstore import loader
from backupfw.chunkstore.base import CheckItem, ChunkStore
from backupfw.chunkstore.memory import MemoryStore
from backupfw.plugins import PluginInfo
from backupfw.testing import operator
from tests.unit.cmd.conftest import Run

SECRET = "a-very-secret-key"


@pytest.fixture
def configure(state: Path, tmp_path: Path) -> Path:
    """The instance's configuration file, empty."""
    state.mkdir()
    return state / "backupfw.conf"


def test_list_is_a_table(run: Run, configure: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure.write_text(
        "[DEFAULT]\nenabled_stores = main, offsite, trial\ndefault_store = offsite\n"
        f"[store:main]\ndriver = posix\npath = {tmp_path}/one\n"
        f"[store:offsite]\ndriver = posix\npath = {tmp_path}/two\n"
        "[store:trial]\ndriver = memory\n"
        "[store:not-enabled]\ndriver = memory\n"
    )
    drivers = [
        PluginInfo("memory", "m:M", "backupfw", "0.1.0", 1, None),
        PluginInfo("posix", "p:P", "backupfw-posix", "12.10.3", 1, None),
        PluginInfo("tape", "t:T", "backupfw-tape", "2.0", None, "driver 'tape' cannot be loaded"),
    ]
    monkeypatch.setattr(loader, "installed_drivers", lambda: drivers)
    done = run("store", "list")
    assert done.status == 0
    assert done.err == ""
    assert done.out == (
        "driver  distribution    version  api  stores                   state\n"
        "memory  backupfw        0.1.0    1    trial                    ok\n"
        "posix   backupfw-posix  12.10.3  1    main, offsite (default)  ok\n"
        "tape    backupfw-tape   2.0      -    -                        driver 'tape' cannot be loaded\n"
    )


def test_list_shows_what_is_installed(run: Run) -> None:
    rows = {line.split()[0]: line.split() for line in run("store", "list").out.splitlines()[1:]}
    assert rows["memory"][1:4] == ["backupfw", version("backupfw"), "1"]
    assert rows["posix"][1:4] == ["backupfw-posix", version("backupfw-posix"), "1"]
    assert rows["posix"][4:6] == ["main", "(default)"]


def test_check_prints_a_verdict_per_guarantee(run: Run, configure: Path) -> None:
    configure.write_text("[store:main]\ndriver = memory\n")
    done = run("store", "check", "main")
    assert done.status == 0
    assert done.err == ""
    assert done.out == (
        "check ok      write\n"
        "check ok      read\n"
        "check ok      list\n"
        "check ok      delete\n"
        "G14   ok      containers can be made and listed\n"
        "G1    ok      what is put comes back: 0 bytes to 32 MiB\n"
        "G2    ok      a missing object is an error\n"
        "G3    ok      deleting a missing object succeeds\n"
        "G4    ok      a failed put leaves nothing\n"
        "G5    ok      bytes that are not what was declared are refused\n"
        "G6    ok      a put replaces at once\n"
        "G7    ok      conditional puts\n"
        "G9    ok      ranges are exact\n"
        "G10   ok      listings are complete, prefixes raw: 1103 objects\n"
        "G11   ok      many objects are deleted: 1103 objects, 1000 per request\n"
        "G12   ok      names are stored as they are\n"
        "G13   ok      many threads at once: 8 threads\n"
        "clean ok      nothing is left behind\n"
        "store main: ok\n"
    )


def test_check_goes_on_after_a_guarantee_that_is_broken(
    run: Run, configure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure.write_text("[store:main]\ndriver = memory\n")

    def wrong(bench: object) -> str | None:
        raise operator._Broken("it is not so")

    looks = tuple(
        (guarantee, title, wrong if guarantee == "G9" else look)
        for guarantee, title, look in operator._LOOKS
        if guarantee in ("G14", "G2", "G9", "G12")
    )
    monkeypatch.setattr(operator, "_LOOKS", looks)
    done = run("store", "check", "main")
    assert done.status == 1
    assert done.out.splitlines()[4:] == [
        "G14   ok      containers can be made and listed",
        "G2    ok      a missing object is an error",
        "G9    FAILED  ranges are exact: it is not so",
        "G12   ok      names are stored as they are",
        "clean ok      nothing is left behind",
        "store main: NOT ok",
    ]


def keeps_versions(store: ChunkStore, container: str) -> Sequence[CheckItem]:
    return (
        CheckItem("versions", True, f"{container} keeps them", warning=True),
        CheckItem("locks", True, "none"),
    )


def test_container_settings_are_reported(run: Run, configure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the check as a warning, by audit and sweep as a note; nothing fails for it."""
    monkeypatch.setattr(ChunkStore, "inspect", keeps_versions)
    configure.write_text("[store:main]\ndriver = memory\n")
    done = run("store", "check", "main")
    assert done.status == 0
    assert "check warning versions: volumebackups keeps them" in done.out.splitlines()
    assert "check ok      locks: none" in done.out.splitlines()
    assert done.out.splitlines()[-1] == "store main: ok, 1 warning"


@pytest.mark.parametrize(
    "options",
    [
        # Nobody listens there.
        (
            f"driver = s3\nendpoint = http://127.0.0.1:9\nregion = r\naccess_key_id = AKID{SECRET}\n"
            f"secret_access_key = {SECRET}\n"
        ),
        (
            "driver = swift\nauth = v1\nauth_url = http://127.0.0.1:9/auth/v1.0\nusername = u\n"
            f"password = {SECRET}\n"
        ),
    ],
    ids=["s3", "swift"],
)
def test_check_of_a_store_that_is_down_shows_no_secret(run: Run, configure: Path, options: str) -> None:
    configure.write_text(
        f"[DEFAULT]\nenabled_stores = far\ndefault_store = far\n[store:far]\n{options}retry_tries = 1\n"
    )
    done = run("store", "check", "far")
    assert done.status == 1
    assert done.out.splitlines()[-1] == "store far: NOT ok"
    assert "G14   FAILED  " in done.out
    assert SECRET not in done.out + done.err
    assert SECRET not in run("store", "list").out


def test_options_that_a_driver_refuses_show_no_secret(run: Run, configure: Path) -> None:
    configure.write_text(
        "[DEFAULT]\nenabled_stores = far\ndefault_store = far\n"
        f"[store:far]\ndriver = s3\nsecret_access_key = {SECRET}\n"
    )
    done = run("store", "check", "far")
    assert done.status == 1
    assert done.err.startswith("backupfw: ")
    assert len(done.err.splitlines()) == 1
    assert SECRET not in done.out + done.err


# ---- locks and older versions ------------------------------------------------------------------------


@pytest.mark.usefixtures("few_objects")
def test_check_proves_locks(run: Run, configure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "LOCKED", 0.2)
    configure.write_text("[store:main]\ndriver = memory\nlock_days = 30\n")
    done = run("store", "check", "main")
    assert done.status == 0
    assert (
        "G20   ok      locked objects stay: a locked object cannot be deleted with these credentials\n"
        in done.out
    )


def test_only_a_driver_with_locks_may_lock(run: Run, configure: Path, tmp_path: Path) -> None:
    configure.write_text(f"[store:main]\ndriver = posix\npath = {tmp_path}/one\nlock_days = 30\n")
    done = run("config", "check")
    assert done.status == 1
    assert "section [store:main], option lock_days: the driver 'posix' has no locks" in done.err + done.out


def test_undelete_says_which_store_has_no_older_versions(run: Run, configure: Path) -> None:
    configure.write_text("[store:main]\ndriver = memory\n")
    done = run("store", "undelete", "main", "--before", "2026-01-31T18:00")
    assert done.status == 1
    assert "the store keeps no older versions" in done.err
    assert run("store", "undelete", "main", "--before", "yesterday").status == 2


def test_undelete_prints_what_it_brings_back(
    run: Run, configure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only objects of backups: the holder object and what others have stay as they are."""
    ours = "i/p/v/b/1.1-0123456789abcdef/manifest"
    asked: list[tuple[str, datetime, bool]] = []

    def bring_back(
        _self: object, container: str, before: datetime, wanted: Any, *, dry_run: bool = False
    ) -> Iterator[str]:
        asked.append((container, before, dry_run))
        return filter(wanted, (ours, "i.holder", "somebody/else"))

    monkeypatch.setattr(MemoryStore, "bring_back", bring_back)
    configure.write_text("[store:main]\ndriver = memory\n")
    done = run("store", "undelete", "main", "--before", "2026-01-31T18:00", "--dry-run", "--container", "c")
    assert (done.status, done.out, done.err) == (0, f"{ours}\n1 object would be brought back\n", "")
    assert (
        run("store", "undelete", "main", "--before", "2026-01-31").out == f"{ours}\n1 object brought back\n"
    )
    assert asked == [
        ("c", datetime(2026, 1, 31, 18, tzinfo=UTC), True),
        ("volumebackups", datetime(2026, 1, 31, tzinfo=UTC), False),
    ]
