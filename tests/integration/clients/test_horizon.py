"""Horizon's pages of backups, signed in at a real Keystone, as its views and forms have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients import lines
from tests.integration.clients.content import GIB, fill
from tests.integration.clients.table import Shown
from tests.integration.clients.world import World
from tests.integration.content import change_image, same_content
from tests.integration.service import Client
from tests.servers.keystone import User

pytestmark = pytest.mark.server

SCRIPT = str(Path(__file__).with_name("horizon_script.py"))
#: The table's name for it.
HORIZON = "Horizon"
BACKUPS = "/project/backups/"
#: What the page of volumes says where there is neither Nova nor Glance.
ALONE = "Invalid service catalog: "


class Pages:
    """What somebody sees who is signed in."""

    def __init__(self, program: lines.Program) -> None:
        self._program = program

    def open(self, path: str, modal: bool = False) -> str:
        """Open a page, which must be there and complain of nothing; returns its text."""
        return str(self._asked({"get": path, "modal": modal})["page"])

    def send(self, path: str, **form: Any) -> str:
        """Send a form; returns what the page says."""
        answer = self._asked({"post": path, "form": form})
        # A form that is shown again says what is wrong with it.
        assert not answer["wrong"], (path, form, answer["wrong"])
        return " ".join(answer["said"])

    def _asked(self, asked: Any) -> Any:
        answer = self._program.ask(asked)
        assert answer["status"] == 200, (asked, answer["status"], answer["said"])
        complaints = [said for said in answer["said"] if "Error: " in said and ALONE not in said]
        assert not complaints, (asked, complaints)
        return answer


@pytest.fixture(scope="module")
def pages(horizon: Path, world: World, admin: User) -> Iterator[Pages]:
    words = [str(horizon), "-P", "-W", "ignore", SCRIPT]
    with lines.started(words, world.variables(admin)) as program:
        yield Pages(program)


@pytest.fixture(scope="module")
def api(world: World, admin: User) -> Client:
    """Looks at what the pages did, and waits."""
    return world.client(admin)


def named(api: Client, kind: str, name: str) -> Any:
    """The one backup or volume of a name."""
    (found,) = api.expect(200, "GET", f"/{kind}s/detail?name={name}")[f"{kind}s"]
    return found


def test_from_backup_to_restore(pages: Pages, api: Client, shows: Shown) -> None:
    volume = api.create_volume(name="seen-in-horizon")
    source = api.volume_path(volume)
    fill(source, seed=41)
    form = f"/project/volumes/{volume}/create_backup/"
    # Without a backup to build on the form does not offer an incremental one.
    assert "incremental" not in pages.open(form, modal=True)
    said = pages.send(form, name="full-of-horizon", description="d", volume_id=volume, snapshot_id="")
    assert "full-of-horizon" in said
    full = named(api, "backup", "full-of-horizon")
    api.wait_status("backup", full["id"], "available")
    assert (full["description"], full["volume_id"]) == ("d", volume)
    # It asks for versions whenever it chooses a microversion.
    shows(HORIZON, "discovery of versions", "create a backup: full")
    change_image(source, 42)
    assert "incremental" in pages.open(form, modal=True)
    shows(HORIZON, "list, with filters")
    pages.send(form, name="more-of-horizon", volume_id=volume, snapshot_id="", incremental="on")
    more = named(api, "backup", "more-of-horizon")
    api.wait_status("backup", more["id"], "available")
    assert more["is_incremental"]
    shows(HORIZON, "… incremental")

    table = pages.open(BACKUPS)
    for word in ("full-of-horizon", "more-of-horizon", "seen-in-horizon"):
        assert word in table
    # The pages of this table are counted.
    count = len(api.expect(200, "GET", "/backups")["backups"])
    assert f"{count} items" in table.replace("\n", " ") or f"of {count}" in table
    shows(HORIZON, "… by pages", "… with a count")
    detail = pages.open(f"{BACKUPS}{full['id']}/")
    assert "full-of-horizon" in detail
    assert "seen-in-horizon" in detail
    shows(HORIZON, "show by id")

    restore = f"{BACKUPS}{more['id']}/restore/?backup_name=more-of-horizon&volume_id={volume}"
    assert "seen-in-horizon" in pages.open(restore, modal=True)
    before = {each["id"] for each in api.expect(200, "GET", "/volumes")["volumes"]}
    pages.send(restore, backup_id=more["id"], backup_name="more-of-horizon", volume_id="")
    (new,) = {each["id"] for each in api.expect(200, "GET", "/volumes")["volumes"]} - before
    api.wait_status("volume", new, "available")
    api.wait_status("backup", more["id"], "available")
    target = api.volume_path(new)
    assert same_content(source, target, GIB)
    shows(HORIZON, "restore to a new volume")
    fill(target, seed=43)
    pages.send(restore, backup_id=more["id"], backup_name="more-of-horizon", volume_id=new)
    api.wait_status("backup", more["id"], "available")
    api.wait_status("volume", new, "available")
    assert same_content(source, target, GIB)
    shows(HORIZON, "restore over a volume")

    status = f"/admin/backups/{more['id']}/update_status"
    pages.send(status, status="error")
    assert api.status("backup", more["id"]) == "error"
    shows(HORIZON, "reset the status")
    pages.send("/admin/backups/", action=f"volume_backups__delete__{more['id']}")
    api.wait_status("backup", more["id"], None)
    pages.send(BACKUPS, action=f"volume_backups__delete__{full['id']}")
    api.wait_status("backup", full["id"], None)
    shows(HORIZON, "delete")


def test_volumes_and_snapshots(pages: Pages, api: Client, shows: Shown) -> None:
    pages.send(
        "/project/volumes/create/",
        name="made-in-horizon",
        description="",
        volume_source_type="no_source_type",
        type="",
        size=1,
    )
    volume = named(api, "volume", "made-in-horizon")["id"]
    api.wait_status("volume", volume, "available")
    pages.send(f"/project/volumes/{volume}/update/", name="renamed-in-horizon", description="d")
    assert api.expect(200, "GET", f"/volumes/{volume}")["volume"]["name"] == "renamed-in-horizon"
    shows(HORIZON, "volumes: change")
    pages.send(
        f"/project/volumes/{volume}/create_snapshot/",
        name="snapshot-of-horizon",
        description="",
        volume_id=volume,
    )
    snapshot = named(api, "snapshot", "snapshot-of-horizon")
    api.wait_status("snapshot", snapshot["id"], "available")
    assert "snapshot-of-horizon" in pages.open("/project/snapshots/")
    form = f"/project/volumes/{volume}/create_backup/{snapshot['id']}"
    pages.send(form, name="of-a-snapshot", volume_id=volume, snapshot_id=snapshot["id"])
    backup = named(api, "backup", "of-a-snapshot")
    api.wait_status("backup", backup["id"], "available")
    assert backup["snapshot_id"] == snapshot["id"]
    shows(HORIZON, "… of a snapshot")
    pages.send("/project/snapshots/", action=f"volume_snapshots__delete__{snapshot['id']}")
    api.wait_status("snapshot", snapshot["id"], None)
    shows(HORIZON, "snapshots: create, list, delete")
    assert "renamed-in-horizon" in pages.open("/project/volumes/")
    pages.send("/project/volumes/", action=f"volumes__delete__{volume}")
    api.wait_status("volume", volume, None)
    shows(HORIZON, "volumes: create, show, list, delete")
    assert "cinder-backup" in pages.open("/admin/info/?tab=system_info__volume_services")
    shows(HORIZON, "services")
