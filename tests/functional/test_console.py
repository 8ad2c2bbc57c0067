"""The console without a browser: every page with nothing, one and a thousand rows, for all who may see it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import webob
from sqlalchemy import delete, insert, select, update
from webtest import TestApp, TestResponse

from backupfw import console
from backupfw.api.app import make_app
from backupfw.console import app as console_app
from backupfw.console import shown, timeline
from backupfw.console.login import Attempts, Field, Refused, TokenLogin, new_token
from backupfw.console.sessions import Sessions, User
from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.db.session import now
from backupfw.manager.actions import ActionManager, Kind
from backupfw.manager.queue.services import BACKUP_BINARY
from backupfw.manager.usecases import sessions
from backupfw.manager.usecases.overview import BackupState, Freed, Overview
from backupfw.manager.usecases.stores import StoreManager
from tests.functional.cloud import NOBODY, Cloud

#: Every page that lists something.
PAGES = ("health", "now", "volumes", "messages", "messages/done")
#: A volume that :func:`fill` makes, which has all its backups.
VOLUME = "00000000-0000-4000-8000-000000000000"
#: Names that users gave: markup, quotes, text from right to left, and much too long.
HOSTILE = ("<script>alert(1)</script>", '"onload="alert(1)', "\u202egnp.exe", "&lt;b&gt;", "x" * 255)
SAME = {"Sec-Fetch-Site": "same-origin"}


class Anybody:
    """A login in which users say who they are, by a token of ``noauth``."""

    hint = "Say who you are."
    fields = (Field("token", "Token"),)

    def user(self, given: Mapping[str, str]) -> User:
        """See :class:`backupfw.console.login.Login`."""
        if ":" not in given["token"]:
            raise Refused
        return User(given["token"], given["token"].partition(":")[0], "")


class Browser:
    """Somebody who looks at the console, without JavaScript."""

    def __init__(self, app: Any, token: str | None) -> None:
        self.app = TestApp(app, extra_environ={"HTTP_HOST": "localhost:80"})
        if token is not None:
            self.app.post("/console/login", {"token": token}, headers=SAME, status=303)

    def get(self, path: str, status: int = 200, **headers: str) -> TestResponse:
        """Ask for a page."""
        return _checked(self.app.get(f"/console/{path}", headers=headers, status=status))

    def post(self, path: str, fields: Any = "", status: int = 303, **headers: str) -> TestResponse:
        """Send a form."""
        return _checked(self.app.post(f"/console/{path}", fields, headers=headers or SAME, status=status))


def _checked(response: TestResponse) -> TestResponse:
    """Check what every answer has, and that no name became markup."""
    assert response.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    if "/static/" not in response.request.path:
        assert response.headers["Cache-Control"] == "no-store"
    if response.content_type == "text/html" and response.status_int != 303:
        assert "<script>alert" not in response.text
        assert not re.search(r"<[^>]*\s(style|onload|onclick)=", response.text.replace("&quot;onload=", ""))
        for tag in ("table", "section", "main", "form", "details", "article", "small", "div"):
            assert response.text.count(f"<{tag}") == response.text.count(f"</{tag}>"), tag
    return response


@pytest.fixture(scope="module")
def desk(shared: Cloud) -> Any:
    """The application with the console, on an installation of the module."""
    return made(shared)


def made(cloud: Cloud) -> Any:
    """Return the application with a console into which anybody may log in."""
    kept = Sessions(sessions.SessionManager(cloud.db))
    stores = StoreManager(cloud.db, cloud.conf)
    calls = {"main": (17, 2)}
    reads = (Overview(cloud.db, cloud.conf), stores, ActionManager(cloud.db, cloud.conf))
    maker = console_app.maker(*reads, lambda: calls, kept, Anybody())
    return make_app(cloud.managers, cloud.conf, beside={"console": maker})


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, templates: Path) -> Iterator[Cloud]:
    """An installation with a thousand of everything, with hostile names."""
    cloud = Cloud(tmp_path_factory.mktemp("full"), templates)
    fill(cloud, 1000)
    yield cloud
    cloud.close()


def fill(cloud: Cloud, count: int) -> None:
    """Make rows of everything that pages show."""
    numbers, volume = range(count), VOLUME
    with cloud.db.write() as session:
        moment = now(session)
        volumes = [
            {
                "id": f"00000000-0000-4000-8000-{number:012}", "project_id": "demo", "status": "available",
                "size": 1, "length": 1 << 30, "display_name": HOSTILE[number % len(HOSTILE)],
                "created_at": moment - timedelta(hours=number),
            }
            for number in numbers
        ]  # fmt: skip
        session.execute(insert(models.Volume), volumes)
        backups = [
            {
                "id": f"10000000-0000-4000-8000-{number:012}", "project_id": "demo", "volume_id": volume,
                "status": ("available", "creating", "error")[number % 3], "size": 1, "length": 1 << 30,
                "display_name": HOSTILE[number % len(HOSTILE)], "fail_reason": "<script>alert(1)</script>",
                "store": "main", "stored_bytes": number << 20, "referenced_bytes": number << 21,
                "created_at": moment - timedelta(hours=number), "is_incremental": bool(number % 2),
                "data_timestamp": moment - timedelta(hours=number),
            }
            for number in numbers
        ]  # fmt: skip
        session.execute(insert(models.Backup), backups)
        session.execute(
            insert(models.Task),
            [
                {
                    "kind": "backup.create", "resource_id": one["id"], "source_id": volume,
                    "project_id": "demo", "payload": {}, "state": "queued", "queue_position": number,
                    "created_at": moment,
                }
                for number, one in enumerate(backups)
            ],
        )  # fmt: skip
        session.execute(
            insert(models.Action),
            [
                {
                    "kind": "backup.create", "project_id": "demo", "user_id": HOSTILE[number % len(HOSTILE)],
                    "resource_id": one["id"], "resource_name": one["display_name"], "volume_id": volume,
                    "detail": HOSTILE[0], "request_id": HOSTILE[0], "created_at": moment,
                }
                for number, one in enumerate(backups)
            ],
        )  # fmt: skip
        session.execute(
            insert(models.Message),
            [
                {
                    "id": f"20000000-0000-4000-8000-{number:012}", "project_id": "demo",
                    "resource_type": "VOLUME_BACKUP", "resource_uuid": backups[number]["id"],
                    "action_id": "013", "detail_id": "017", "event_id": "VOLUME_BACKUP_013_017",
                    "message_level": "ERROR", "created_at": moment,
                }
                for number in numbers
            ],
        )  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("role", ["reader", "member", "admin"])
def test_every_page_with_nothing(desk: Any, page: str, role: str) -> None:
    answer = Browser(desk, f"alice:demo:{role}").get(page)
    assert 'aria-current="page"' in answer.text


@pytest.mark.parametrize("page", [*PAGES, f"volumes/{VOLUME}"])
def test_every_page_with_one_row(cloud: Cloud, page: str) -> None:
    fill(cloud, 1)
    for role in ("reader", "member", "admin"):
        Browser(made(cloud), f"alice:demo:{role}").get(page)


@pytest.mark.parametrize("page", [*PAGES, f"volumes/{VOLUME}"])
def test_every_page_with_a_thousand_rows_is_short(full: Cloud, page: str) -> None:
    for role in ("reader", "admin"):
        answer = Browser(made(full), f"alice:demo:{role}").get(page)
        # The files that all pages have are packed.
        files = re.findall(r'(?:href|src)="(/console/static/[^"]+)"', answer.text)
        sizes = [
            len(webob.Request.blank(path, accept_encoding="gzip").get_response(made(full)).body)
            for path in files
        ]
        assert len(files) == 4
        assert len(answer.body) + sum(sizes) < 150_000, (len(answer.body), sizes)


@pytest.mark.parametrize("page", PAGES)
def test_another_project_sees_nothing_of_it(full: Cloud, page: str) -> None:
    text = Browser(made(full), "bob:other:admin_of_nothing,member").get(page).text
    assert "alert(1)" not in text
    assert "10000000-" not in text


def test_tasks_are_shown_with_what_they_wait_for(cloud: Cloud) -> None:
    volume = cloud.volume(name="mail")
    cloud.client().post("/backups", {"backup": {"volume_id": volume, "name": "nightly"}})
    text = Browser(made(cloud), "alice:demo:member").get("now").text
    assert "mail" in text
    assert "nightly" in text
    assert "waiting-for-worker" in text
    with cloud.db.write() as session:
        later = now(session) + timedelta(minutes=1)
        session.execute(
            update(models.Task).values(
                state="running", owner="host7/1", attempt=2, lease_until=later, progress_done=1 << 29,
                progress_total=1 << 30, progress_rate=1 << 25,
            )
        )  # fmt: skip
    text = Browser(made(cloud), "alice:demo:member").get("now").text
    assert "50 %" in text
    assert '<span title="536 870 912 bytes">512 MiB</span>' in text
    assert "16 s left" in text
    assert "attempt 2" in text
    assert "host7" not in text, "users are told of no host"
    assert "host7" in Browser(made(cloud), "root:demo:admin").get("now").text


def test_whatever_a_task_is_about_its_volume_is_found(cloud: Cloud) -> None:
    source, target, third = (cloud.volume(name=name) for name in ("mail", "target", "third"))
    backup = cloud.backup(source)
    snapshot = cloud.client().post("/snapshots", {"snapshot": {"volume_id": third}}).json["snapshot"]["id"]
    with cloud.db.write() as session:
        manifest = session.get_one(models.Backup, backup).manifest_id
        session.execute(delete(models.Task))
        for number, (kind, about, other) in enumerate(
            [
                ("backup.restore", backup, target),
                ("backup.delete", backup, None),
                ("backup.copy", manifest, None),
                ("manifest.scrub", manifest, None),
                ("snapshot.delete", snapshot, third),
                ("volume.extend", third, None),
            ]
        ):
            session.add(
                models.Task(
                    kind=kind, resource_id=about, source_id=other, project_id="demo", payload={},
                    state="queued", queue_position=number, created_at=now(session),
                )
            )  # fmt: skip
    overview = Overview(cloud.db, cloud.conf)
    work = overview.work(_admin())
    assert [(one.kind, one.volume_name, one.backup_id) for one in work.operations] == [
        ("backup.restore", "target", backup),
        ("backup.delete", "mail", backup),
        ("backup.copy", "mail", backup),
        ("manifest.scrub", "mail", backup),
        ("snapshot.delete", "third", None),
        ("volume.extend", "third", None),
    ]
    assert [one.total for one in work.operations] == [1 << 30, None, 1 << 30, None, None, None]
    assert work.operations[1].waits_for == "waiting-for-operation"
    assert (work.running, work.waiting) == (0, 6)
    short = overview.work(_admin(), 2)
    assert (len(short.operations), short.waiting) == (2, 6)
    user = RequestContext("demo", "alice", ["member"])
    assert len(overview.work(user).operations) == 5, "nobody asked for a scrub"


def test_a_refresh_is_a_part_of_the_page(full: Cloud) -> None:
    browser = Browser(made(full), "alice:demo:member")
    part = browser.get("now", **{"HX-Request": "true"}).text
    assert part.strip().startswith('<section id="changing"')
    times = re.compile(r"<time.*?</time>")
    assert times.sub("", part).strip() in times.sub("", browser.get("now").text)
    assert "<html" not in part


def test_an_operation_is_cancelled_after_a_question(cloud: Cloud) -> None:
    volume = cloud.volume()
    backup = cloud.client().post("/backups", {"backup": {"volume_id": volume}}).json["backup"]["id"]
    browser = Browser(made(cloud), "alice:demo:member")
    question = browser.get("now").click("Cancel")
    _checked(question)
    assert f"backupfw backup cancel {backup}" in question.text
    question.forms[1].submit(headers=SAME, status=303).follow()
    assert cloud.managers.backups.get(_admin(), backup).status == "error"
    assert browser.post(f"now/{backup}/cancel", status=400).text.count('role="alert"') == 1


def test_a_backup_is_verified_by_a_click(cloud: Cloud) -> None:
    volume = cloud.volume()
    backup = cloud.backup(volume, name="monday")
    browser = Browser(made(cloud), "alice:demo:member")
    page = browser.get(f"volumes/{volume}")
    assert "backupfw backup verify --by-service ID" in page.text
    (form,) = (one for one in page.forms.values() if one.action.endswith("/verify"))
    page = _checked(form.submit(headers=SAME, status=303).follow())
    assert "is being verified" in page.text
    assert re.search(r'aria-label="Verify monday" disabled', page.text)
    assert "already being verified" in browser.post(f"volumes/{volume}/{backup}/verify", status=400).text
    now = browser.get("now")
    assert "Verification of a backup of" in now.text
    question = _checked(now.click("Cancel"))
    assert f"backupfw backup cancel --verification {backup}" in question.text
    question.forms[1].submit(headers=SAME, status=303)
    assert "Nothing runs" in browser.get("now").text
    browser.post(f"volumes/{volume}/{backup}/verify")
    cloud.settle()
    page = browser.get(f"volumes/{volume}")
    assert "is being verified" not in page.text
    assert re.search(r"<time[^>]*>[^<]*</time><small><span class=\"state good\">ok", page.text)
    cloud.set_status(models.Backup, backup, "error")
    assert "Verify" not in browser.get(f"volumes/{volume}").text.replace("Verify as an API call", "")


def test_a_volume_is_backed_up_restored_and_its_backup_deleted(cloud: Cloud) -> None:
    volume = cloud.volume(name="mail")
    browser = Browser(made(cloud), "alice:demo:member")
    page = _checked(browser.get("volumes").click("mail"))
    assert "There is none." in page.text
    # The first one is a full one, also as a call and as a command.
    assert "--incremental" not in page.text
    assert "&quot;incremental&quot;: false" in page.text
    form = page.forms[1]
    form["name"] = "before upgrade"
    page = form.submit(headers=SAME, status=303).follow()
    cloud.settle()
    page = browser.get(f"volumes/{volume}")
    assert "before upgrade" in page.text
    assert f"backupfw backup create {volume} --incremental" in page.text
    assert "openstack volume backup set --property backupfw:keep=true ID" in page.text
    (backup,) = cloud.managers.backups.list(_admin()).items
    assert backup.display_name == "before upgrade"
    # To a new volume.
    question = _checked(page.click("Restore"))
    assert f"backupfw backup restore {backup.id}" in question.text
    question.forms[1]["name"] = "second"
    restored = question.forms[1].submit(headers=SAME, status=303).follow()
    cloud.settle()
    assert "second" in restored.text
    # Over one that is there, only if that is said.
    question = browser.get(f"volumes/{volume}/{backup.id}/restore")
    question.forms[1]["to"] = "existing"
    assert "overwritten" in question.forms[1].submit(headers=SAME, status=400).text
    question.forms[1]["overwrite"] = True
    question.forms[1].submit(headers=SAME, status=303)
    assert cloud.managers.volumes.get(_admin(), volume).status == "restoring-backup"
    cloud.settle()
    question = _checked(browser.get(f"volumes/{volume}").click("Delete"))
    assert "It frees: " in question.text
    question.forms[1].submit(headers=SAME, status=303)
    cloud.settle()
    assert not cloud.managers.backups.list(_admin()).items


def test_older_backups_are_on_further_pages(full: Cloud) -> None:
    browser = Browser(made(full), "alice:demo:reader")
    page = browser.get(f"volumes/{VOLUME}")
    assert "1 to 50 of 1000." in page.text
    older = _checked(page.click("Older"))
    assert "51 to 100 of 1000." in older.text
    ids = re.findall('id="backup-([0-9a-f-]+)"', page.text + older.text)
    assert len(set(ids)) == 100
    assert "Older" not in browser.get(f"volumes/{VOLUME}?from=950").text
    for wrong in ("-1", "x", "1" * 30, "%D9%A3"):
        assert "1 to 50 of" in browser.get(f"volumes/{VOLUME}?from={wrong}").text


def test_a_backup_is_kept_from_policies(cloud: Cloud) -> None:
    backup = cloud.backup(cloud.volume())
    found = cloud.managers.backups.get(_admin(), backup)
    browser = Browser(made(cloud), "alice:demo:member")
    for word, value in (("Keep", "true"), ("Keep no longer", "false"), ("Keep", "true")):
        page = browser.get(f"volumes/{found.volume_id}")
        assert f">{word}</button>" in page.text
        assert (", kept" in page.text) == (word != "Keep")
        browser.post(f"volumes/{found.volume_id}/{backup}/keep", {"keep": value})
        assert cloud.managers.backups.get(_admin(), backup).metadata == {"backupfw:keep": value}
    assert ", kept" in browser.get(f"volumes/{found.volume_id}").text
    reader = Browser(made(cloud), "eve:demo:reader")
    assert "Keep" not in reader.get(f"volumes/{found.volume_id}").text
    reader.post(f"volumes/{found.volume_id}/{backup}/keep", status=403)
    Browser(made(cloud), "bob:other:member").post(f"volumes/{found.volume_id}/{backup}/keep", status=404)


def test_an_action_on_a_backup_of_a_volume_with_any_id_is_answered(cloud: Cloud) -> None:
    """Whoever made the backup may have called it so; the header of the answer has plain characters only."""
    fill(cloud, 1)
    with cloud.db.write() as session:
        session.execute(update(models.Backup).values(volume_id="\u65e5\u672c"))
    page = "volumes/%E6%97%A5%E6%9C%AC"
    answer = Browser(made(cloud), "u:demo").post(f"{page}/10000000-0000-4000-8000-000000000000/keep")
    assert urlsplit(answer.headers["Location"]).path == f"/console/{page}"


def test_a_volume_that_is_gone_is_found_by_its_backups(cloud: Cloud) -> None:
    volume = cloud.volume(name="mail")
    backup = cloud.backup(volume)
    cloud.client().delete(f"/volumes/{volume}")
    cloud.settle()
    page = Browser(made(cloud), "alice:demo:reader").get(f"volumes/{volume}")
    assert "The volume is gone" in page.text
    assert backup[:8] in page.text
    assert "<form" not in page.text.partition("</nav>")[2]
    Browser(made(cloud), "bob:other:member").get(f"volumes/{volume}", status=404)


def test_an_administrator_acts_in_the_project_of_what_he_changes(cloud: Cloud) -> None:
    volume = cloud.volume("theirs")
    browser = Browser(made(cloud), "root:demo:admin")
    page = browser.get(f"volumes/{volume}")
    page.forms[1].submit(headers=SAME, status=303)
    (backup,) = cloud.managers.backups.list(_admin(), all_tenants=True).items
    assert backup.project_id == "theirs"


def test_health(cloud: Cloud) -> None:
    """Green means that nobody needs to look at anything."""
    volume = cloud.volume(name="mail")
    app = made(cloud)
    user, admin = Browser(app, "alice:demo:reader"), Browser(app, "root:demo:admin")
    text = user.get("health").text
    assert "Everything is backed up." in text, "a new volume may wait for its first night"
    assert "1 younger than that and without one yet" in text
    assert "No worker has ever reported itself." in admin.get("health").text
    assert "Workers" not in user.get("health").text
    cloud.start_worker()
    with cloud.db.write() as session:
        long_ago = now(session) - timedelta(days=3)
        session.execute(update(models.Volume).values(created_at=long_ago))
    text = user.get("health").text
    assert "1 volume of 1 without a good backup" in text
    assert f'href="/console/volumes/{volume}"' in text
    assert "Everything is backed up." in user.get("health?days=7").text
    backup = cloud.backup(volume)
    assert "Everything is backed up." in user.get("health").text
    with cloud.db.write() as session:
        row = session.get_one(models.Backup, backup)
        row.data_timestamp = now(session) - timedelta(days=1, hours=1)
    assert "Everything is backed up." in user.get("health").text, "it is late, but not too late"
    with cloud.db.write() as session:
        session.get_one(models.Backup, backup).data_timestamp = now(session) - timedelta(days=1, hours=3)
    assert "1 volume of 1 without" in user.get("health").text
    # A backup that failed, and one that is damaged.
    backup = cloud.backup(volume)
    with cloud.db.write() as session:
        row = session.get_one(models.Backup, backup)
        session.add(
            models.DamagedObject(
                digest="0" * 64, store="main", container="c", key="k", reason="gone", found_at=now(session)
            )
        )
        session.flush()
        session.add(models.DamageMark(manifest_id=row.manifest_id, digest="0" * 64))
    text = user.get("health").text
    assert "Damaged" in text
    assert "1 volume of 1 without" in text, "a damaged backup is no good one"
    with cloud.db.write() as session:
        session.execute(delete(models.DamageMark))
    cloud.set_status(models.Backup, cloud.backup(volume), "error")
    text = user.get("health").text
    assert "Failed within a day" in text
    assert "Everything" not in text
    cloud.set_status(models.Backup, backup, "available")


def test_backups_of_the_project_that_had_the_volume_before_are_no_use(cloud: Cloud) -> None:
    """Whoever got a volume cannot restore them, and is not told of when they are."""
    volume = cloud.volume(name="given")
    cloud.backup(volume)
    app = made(cloud)
    with cloud.db.write() as session:
        row = session.get_one(models.Volume, volume)
        row.project_id, row.created_at = "other", now(session) - timedelta(days=3)
    owner, admin = Browser(app, "bob:other:member"), Browser(app, "root:demo:admin")
    assert "1 volume of 1 without a good backup" in owner.get("health").text
    assert "Last good backup: never" in " ".join(owner.get(f"volumes/{volume}").text.split())
    assert "1 volume of 1 without" not in admin.get("health").text


def test_what_another_project_calls_its_volume_is_not_told(cloud: Cloud) -> None:
    """It got it by a transfer; policies and tasks of the former owner name it still."""
    volume = cloud.volume(name="mine")
    cloud.client().post("/backups", {"backup": {"volume_id": volume, "name": "nightly"}})
    settings = {"schedule": {"cron": "@daily"}, "selection": {"volume_ids": [volume]}}
    policy = cloud.managers.policies.create(RequestContext("demo", "u"), settings=settings)
    pages = ("now", f"policies/{policy.id}", f"policies/{policy.id}/preview")
    app = made(cloud)
    former = Browser(app, "alice:demo:member")
    assert all("mine" in former.get(page).text for page in pages)
    with cloud.db.write() as session:
        row = session.get_one(models.Volume, volume)
        row.project_id, row.display_name = "other", "secret"
    for page in pages:
        assert "secret" not in former.get(page).text, page
        assert volume[:8] in former.get(page).text, page
        assert "secret" in Browser(app, "root:demo:admin").get(page).text, page


def test_health_of_copies(cloud: Cloud) -> None:
    """The store of the backup itself may be the one that is lost."""
    backup = cloud.backup(cloud.volume(name="mail"))
    user, stranger = (Browser(made(cloud), f"alice:{project}:reader") for project in ("demo", "other"))
    copy, digest = "30000000-0000-4000-8000-000000000000", "0" * 64
    with cloud.db.write() as session:
        moment = now(session)
        manifest = session.get_one(models.Backup, backup).manifest_id
        session.add(
            models.BackupCopy(
                id=copy, backup_id=backup, store="offsite", container="c", status="error", created_at=moment
            )
        )
    text = user.get("health").text
    assert "Everything" not in text
    assert "Not copied" in text
    assert "copy in offsite" in text
    assert "Everything" in stranger.get("health").text
    with cloud.db.write() as session:
        row = session.get_one(models.BackupCopy, copy)
        # It has a manifest of its own; here the one that is there.
        row.status, row.manifest_id = "available", manifest
        session.get_one(models.Backup, backup).manifest_id = None
    assert "Everything is backed up." in user.get("health").text
    with cloud.db.write() as session:
        found = {"store": "offsite", "container": "c", "key": "k", "reason": "gone", "found_at": moment}
        session.add(models.DamagedObject(digest=digest, **found))
        session.flush()
        session.add(models.DamageMark(manifest_id=manifest, digest=digest))
    text = user.get("health").text
    assert "Everything" not in text
    assert 'copy in offsite: <span class="state bad">damaged</span>' in text
    assert "0 volumes" not in text, "the backup itself is good"
    assert "1 volume of 1 without" not in text
    assert "Everything" in stranger.get("health").text


def test_health_of_what_was_not_deleted_or_tested(cloud: Cloud) -> None:
    """Coffee has to wait until somebody has looked."""
    cloud.volume(name="mail")
    backup = cloud.backup(cloud.volume(name="web"))
    user, stranger = (Browser(made(cloud), f"alice:{project}:reader") for project in ("demo", "other"))

    def ages(**values: Any) -> None:
        with cloud.db.write() as session:
            long_ago = now(session) - timedelta(days=9)
            values = {"created_at": long_ago, **values}
            session.execute(update(models.Backup).where(models.Backup.id == backup).values(**values))

    ages()
    assert "Everything is backed up." in user.get("health").text
    for title, wrong, right in (
        ("Not deleted", {"status": "error_deleting"}, {"status": "available"}),
        ("Failed their restore test", {"restore_test_result": "failed"}, {"restore_test_result": "ok"}),
    ):
        ages(**wrong)
        text = user.get("health").text
        assert f"<h2>{title}</h2>" in text
        assert "Everything" not in text
        assert "Everything" in stranger.get("health").text
        ages(**right)
        assert "Everything is backed up." in user.get("health").text


def test_health_of_scrubs(cloud: Cloud) -> None:
    cloud.backup(cloud.volume(name="mail"))
    admin = Browser(made(cloud), "root:demo:admin")
    cloud.managers.services.heartbeat("host1", BACKUP_BINARY, "nova", {"main": "x", "offsite": "x"})
    with cloud.db.write() as session:
        session.execute(update(models.Manifest).values(created_at=now(session) - timedelta(days=31)))
    assert "Everything is backed up." in admin.get("health").text, "nothing is to be scrubbed"
    cloud.conf.set_override("scrub_days", 30, "store:main")
    text = admin.get("health").text
    assert "not verified in time" in text
    assert "Everything" not in text
    cloud.conf.set_override("scrub_days", 32, "store:main")
    assert "Everything is backed up." in admin.get("health").text


def test_health_of_policies(cloud: Cloud) -> None:
    """A volume can have a good backup of today, and yet its policy does not run."""
    volume = cloud.volume(name="mail")
    body = {"name": "daily", "schedule": {"cron": "@daily"}, "selection": {"volume_ids": [volume]}}
    policy = (
        cloud.client()
        .at("3.0")
        .post("/backup-policies", {"backup_policy": body}, 201)
        .json["backup_policy"]["id"]
    )
    app = made(cloud)
    user = Browser(app, "alice:demo:reader")

    def run(status: str, hours: int, number: int) -> None:
        with cloud.db.write() as session:
            moment = now(session) - timedelta(hours=hours)
            row = models.PolicyRun(
                id=f"40000000-0000-4000-8000-{number:012}", policy_id=policy, project_id="demo",
                volume_id=volume, scheduled_at=moment, begin_at=moment, begin_before=moment, status=status,
                reason="<script>alert(1)</script>", created_at=moment, tidied=True,
            )  # fmt: skip
            session.add(row)

    for number, status in enumerate(("waiting", "running", "ok", "skipped")):
        run(status, number + 1, number)
    run("missed", 25, 5)
    run("failed", 25, 6)
    assert "Everything is backed up." in user.get("health").text
    for number, status in ((7, "missed"), (8, "failed")):
        run(status, number, number)
        text = user.get("health").text
        assert "Everything" not in text
        assert f'<span class="state bad">{status}</span>' in text
        assert f"policy {policy}" in text
    assert f"policy {policy}" in Browser(app, "root:admin:admin").get("health").text
    assert "Everything is backed up." in Browser(app, "bob:other:reader").get("health").text


def test_health_of_workers_stores_and_quotas(cloud: Cloud) -> None:
    app = made(cloud)
    admin = Browser(app, "root:demo:admin")
    cloud.start_worker()
    text = admin.get("health").text
    # The worker reaches one of the two stores.
    assert "host1" in text
    assert text.count("reached by no worker") == 1
    both = {"main": "x", "offsite": "x"}
    cloud.managers.services.heartbeat("host1", BACKUP_BINARY, "nova", both)
    assert "Everything is backed up." in admin.get("health").text
    cloud.client().post("/backups", {"backup": {"volume_id": cloud.volume()}})
    with cloud.db.write() as session:
        session.execute(update(models.Task).values(store_down=True))
    assert "does not answer" in admin.get("health").text
    cloud.settle()
    with cloud.db.write() as session:
        session.execute(update(models.Service).values(reported_at=now(session) - timedelta(hours=1)))
    assert "Everything" not in admin.get("health").text
    cloud.managers.quota.update("demo", {"backups": 1})
    text = Browser(app, "alice:demo:member").get("health").text
    assert "backups: 1 of 1" in text


def test_messages_are_read_page_by_page_and_deleted(full: Cloud) -> None:
    app = made(full)
    browser = Browser(app, "alice:demo:member")
    first = browser.get("messages")
    second = _checked(first.click("More"))
    assert len(re.findall("/delete", second.text)) == 50
    assert not set(re.findall("messages/[0-9a-f-]{36}", first.text)) & set(
        re.findall("messages/[0-9a-f-]{36}/delete", second.text)
    )
    reader = Browser(app, "eve:demo:reader")
    assert "/delete" not in reader.get("messages").text
    assert "openstack volume message delete ID" in first.text
    assert "openstack volume message delete ID" not in reader.get("messages").text
    (one,) = full.managers.messages.list(_admin(), limit=1).items
    reader.post(f"messages/{one.id}/delete", status=403)
    Browser(app, "bob:other:member").post(f"messages/{one.id}/delete", status=404)
    browser.post(f"messages/{one.id}/delete")
    browser.post(f"messages/{one.id}/delete", status=404)


def test_messages_and_actions_of_a_project(cloud: Cloud) -> None:
    app = made(cloud)
    admin, user = Browser(app, "root:demo:admin"), Browser(app, "alice:demo:reader")
    with cloud.db.write() as session:
        for number, project in enumerate(("demo", "other")):
            session.add(
                models.Message(
                    id=f"20000000-0000-4000-8000-{number:012}", project_id=project,
                    resource_type="VOLUME_BACKUP", resource_uuid=NOBODY, action_id="013", detail_id="017",
                    event_id="VOLUME_BACKUP_013_017", message_level="ERROR", created_at=now(session),
                )
            )  # fmt: skip
    backups: dict[str, str] = {}
    for project in ("demo", "other"):
        backups[project] = cloud.backup(cloud.volume(project), project=project)
    body = {"name": "daily <b>", "schedule": {"cron": "@daily"}, "selection": {"all": True}}
    policy = cloud.client().at("3.0").post("/backup-policies", {"backup_policy": body}, 201)
    policy_id = policy.json["backup_policy"]["id"]
    cloud.managers.policies.pause(_admin(), policy_id)
    acting = RequestContext("demo", "alice", ["member"], policy_id=policy_id)
    cloud.managers.backups.delete(acting, backups["demo"])
    cloud.settle()
    for page, both in (("messages", "project other"), ("messages/done", "project other")):
        assert both in admin.get(page).text
        assert both not in admin.get(f"{page}?project=demo").text
        assert "project demo" not in admin.get(f"{page}?project=nobody").text
        assert backups["other"] not in user.get(f"{page}?project=other").text
    assert backups["other"] in admin.get("messages/done").text
    text = user.get("messages/done").text
    assert [text.count(words) for words in ("Policy made:", "Policy changed:", "daily &lt;b&gt;")] == [
        1,
        1,
        2,
    ]
    assert f">policy {policy_id[:8]}</a>" in text, "what a policy does is nobody's"
    assert "Deletion of backup" in text
    assert "root" in text.partition("Policy changed:")[2]
    # It is gone, and what was done to it is known.
    about = user.get(f"messages/done?about={backups['demo'].upper()}").text
    assert [about.count(words) for words in ("Deletion of backup", 'row">Backup ', "Policy")] == [1, 1, 0]
    assert "<p>Nothing.</p>" in user.get(f"messages/done?about={backups['other']}").text
    assert "Policy made" in user.get("messages/done?before=yesterday").text, "it is no number"


def test_actions_tell_of_no_policies_who_may_not_see_them(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text('"backup_policy:get_all": "role:admin"\n')
    cloud.conf.set_override("policy_file", str(tmp_path / "policy.yaml"), "oslo_policy")
    settings = {"schedule": {"cron": "@daily"}, "selection": {"all": True}}
    cloud.managers.policies.create(_admin(), settings=settings, name="secret")
    app = made(cloud)
    assert "secret" in Browser(app, "root:demo:admin").get("messages/done").text
    assert "secret" not in Browser(app, "alice:demo:member").get("messages/done").text


def test_actions_are_read_page_by_page(full: Cloud) -> None:
    first = Browser(made(full), "alice:demo:reader").get("messages/done")
    pages = [first, first.click("Older")]
    ids = [set(re.findall("#backup-([0-9a-f-]{36})", page.text)) for page in pages]
    assert [len(found) for found in ids] == [50, 50]
    assert not ids[0] & ids[1]


def test_every_kind_of_action_has_words() -> None:
    assert set(shown.ACTIONS) == set(Kind)


def _lineage(cloud: Cloud, *edges: tuple[int | None, str]) -> list[str]:
    """Make backups of one volume: 10 new bytes and 5 shared each, with the base's number and a state."""
    volume = cloud.volume()
    ids = [cloud.backup(volume) for _ in edges]
    with cloud.db.write() as session:
        manifests = [session.get_one(models.Backup, one).manifest_id for one in ids]
        for one, manifest, (base, state) in zip(ids, manifests, edges, strict=True):
            session.execute(
                update(models.Manifest)
                .where(models.Manifest.id == manifest)
                .values(base_id=None if base is None else manifests[base], state=state)
            )
            values: dict[str, Any] = {"stored_bytes": 10, "referenced_bytes": 15}
            if base is not None:
                values["parent_id"] = ids[base]
            session.execute(update(models.Backup).where(models.Backup.id == one).values(**values))
    return ids


def test_what_a_deletion_frees(cloud: Cloud) -> None:
    first, middle, last = _lineage(cloud, (None, "live"), (0, "live"), (1, "live"))
    overview = Overview(cloud.db, cloud.conf)
    frees = [overview.frees(_admin(), one) for one in (first, middle, last)]
    # Who has descendants shares with them; the last one's base names all that it shares.
    assert frees == [Freed(0, 15), Freed(0, 10), Freed(10, 10)]
    with cloud.db.write() as session:
        session.execute(update(models.Backup).where(models.Backup.id == last).values(parent_id=first))
    assert overview.frees(_admin(), last) == Freed(10, 15), "its base is another than it was made with"
    with cloud.db.write() as session:
        shared = session.get_one(models.Backup, last).manifest_id
        session.execute(update(models.Backup).where(models.Backup.id == first).values(manifest_id=shared))
    assert overview.frees(_admin(), last) == Freed(0, 0), "a duplicate needs it all"
    (alone,) = _lineage(cloud, (None, "live"))
    assert overview.frees(_admin(), alone) == Freed(15, 15)
    (going,) = _lineage(cloud, (None, "released"))
    assert overview.frees(_admin(), going) is None


def test_the_time_line_is_to_scale() -> None:
    now = datetime(2026, 1, 11)

    def state(day: int, new: int, shared: int) -> BackupState:
        return BackupState(
            id=str(day), name=None, project_id="demo", volume_id=VOLUME, status="available", fail_reason=None,
            is_incremental=False, size=1, moment=datetime(2026, 1, day), new=new, shared=shared, frees=None,
            damaged=False, verified_at=None, verified_how=None, verified_result=None, store=None, copies=(),
        )  # fmt: skip

    assert timeline.drawn([state(1, 0, 0)], now) is None
    line = timeline.drawn([state(6, 25, 75), state(1, 100, 0), state(2, 1, 0)], now)
    assert line is not None
    first, second, third = line.bars
    room = timeline.WIDTH - first.width
    assert (first.x, first.new, first.shared) == (0, timeline.HEIGHT, 0)
    assert second.x == pytest.approx(room / 10, abs=0.1)
    assert second.new == 2.0, "it can be seen"
    assert third.x == pytest.approx(room / 2, abs=0.1)
    assert third.new == pytest.approx(timeline.HEIGHT / 4, abs=0.1)
    assert third.new + third.shared == pytest.approx(timeline.HEIGHT, abs=0.1)


def _admin() -> Any:
    return RequestContext("demo", "root", ["admin"], is_admin=True)


def test_what_a_role_may_not_do_is_not_offered_and_refused(cloud: Cloud) -> None:
    backup = cloud.client().post("/backups", {"backup": {"volume_id": cloud.volume()}}).json["backup"]["id"]
    reader = Browser(made(cloud), "eve:demo:reader")
    assert "Cancel" not in reader.get("now").text
    reader.get(f"now/{backup}/cancel", status=403)
    reader.post(f"now/{backup}/cancel", status=403)
    stranger = Browser(made(cloud), "eve:other:member")
    volume = cloud.managers.backups.get(_admin(), backup).volume_id
    page = reader.get(f"volumes/{volume}").text
    for word in ("Back up", "Restore", "Delete<", "Verify"):
        assert word not in page
    reader.post(f"volumes/{volume}/backup", status=403)
    reader.post(f"volumes/{volume}/{backup}/verify", status=403)
    stranger.post(f"volumes/{volume}/{backup}/verify", status=404)
    stranger.post(f"volumes/{volume}/backup", status=404)
    for act in ("delete", "restore"):
        for ask in (reader.get, reader.post):
            ask(f"volumes/{volume}/{backup}/{act}", status=403)
        for ask in (stranger.get, stranger.post):
            ask(f"volumes/{volume}/{backup}/{act}", status=404)
    stranger.get(f"now/{backup}/cancel", status=404)
    stranger.post(f"now/{backup}/cancel", status=404)
    assert cloud.managers.backups.get(_admin(), backup).status == "creating"


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Referer": "http://localhost/console/now"},
    ],
)
def test_forms_of_other_sites_are_refused(desk: Any, headers: dict[str, str]) -> None:
    browser = Browser(desk, "alice:demo:member")
    browser.post("logout", status=403, **headers)
    browser.post("login", {"token": "a:b:admin"}, status=403, **headers)
    browser.post(f"now/{NOBODY}/cancel", status=403, **headers)
    browser.get("now")


def test_an_older_browser_says_the_origin_only(desk: Any) -> None:
    Browser(desk, "alice:demo:member").post("logout", Origin="http://localhost")


def test_who_is_not_logged_in_is_asked_to(desk: Any) -> None:
    nobody = Browser(desk, None)
    answer = nobody.get("now", status=303)
    assert answer.headers["Location"] == "/console/login?next=now"
    answer = nobody.get("now", **{"HX-Request": "true"})
    assert answer.headers["HX-Redirect"] == "/console/login?next=now"
    assert not answer.body
    # What others say of the caller counts for nothing.
    nobody.get("now", status=303, **{"X-Auth-Token": "root:demo:admin", "X-Roles": "admin"})
    form = nobody.get("login?next=now").form
    form["token"] = "nobody"
    refused = form.submit(headers=SAME, status=403)
    assert "That is not right." in refused.text
    assert "nobody" not in refused.text
    form["token"] = "alice:demo:member"
    assert form.submit(headers=SAME, status=303).headers["Location"] == "/console/now"
    nobody.get("now")
    nobody.post("logout")
    nobody.get("now", status=303)


def test_a_login_leads_to_no_other_site(desk: Any) -> None:
    for target in ("https://evil.example/", "//evil.example", "/\\evil.example", "now\r\nSet-Cookie: a=b"):
        browser = Browser(desk, None)
        answer = browser.app.post(
            "/console/login", {"token": "a:b:member", "next": target}, headers=SAME, expect_errors=True
        )
        assert answer.status_int in (303, 400)
        if answer.status_int == 303:
            where = urlsplit(answer.headers["Location"])
            assert not where.netloc
            assert where.path.startswith("/console/")


def test_a_session_ends(cloud: Cloud) -> None:
    browser = Browser(made(cloud), "alice:demo:member")

    def age(**values: timedelta) -> None:
        with cloud.db.write() as session:
            row = session.scalars(select(models.ConsoleSession)).one()
            for name, much in values.items():
                setattr(row, name, now(session) - much)

    # A refresh is no use of it, a page is.
    age(used_at=sessions.IDLE - timedelta(minutes=1))
    browser.get("now", **{"HX-Request": "true"})
    age(used_at=sessions.IDLE + timedelta(seconds=1))
    browser.get("now", status=303)
    browser = Browser(made(cloud), "alice:demo:member")
    age(used_at=sessions.IDLE - timedelta(minutes=1))
    browser.get("now")
    with cloud.db.read() as session:
        row = session.scalars(select(models.ConsoleSession)).one()
        assert row.used_at > now(session) - timedelta(minutes=1)
        # Nothing in the row is worth stealing.
        cookie = browser.app.cookies["backupfw-console"].strip('"')
        assert b"alice" not in row.sealed
        assert cookie not in row.digest
    age(created_at=sessions.LONGEST + timedelta(seconds=1))
    browser.get("now", status=303)


def test_a_session_is_known_to_every_process_and_after_a_restart(cloud: Cloud) -> None:
    browser = Browser(made(cloud), "alice:demo:member")
    other = Browser(made(cloud), None)
    other.app.cookiejar = browser.app.cookiejar
    other.get("now")


def test_the_cookie(desk: Any) -> None:
    def cookie(host: str, scheme: str) -> str:
        app = TestApp(desk, extra_environ={"HTTP_HOST": host, "wsgi.url_scheme": scheme})
        answer = app.post(
            "/console/login", {"token": "a:b:member"}, headers={"Sec-Fetch-Site": "same-origin"}, status="*"
        )
        return answer.headers.get("Set-Cookie", str(answer.status_int))

    secure = cookie("backup.example.org", "https")
    assert secure.startswith("__Host-backupfw-console=")
    for part in ("; Path=/;", "; secure", "; HttpOnly", "; SameSite=Strict"):
        assert part.lower() in f"{secure};".lower()
    plain = cookie("127.0.0.1:8776", "http")
    assert plain.startswith("backupfw-console=")
    for part in ("; Path=/console/;", "; HttpOnly", "; SameSite=Strict"):
        assert part.lower() in f"{plain};".lower()
    for loopback in ("[::1]:8776", "[::1]", "127.0.0.1", "localhost"):
        assert cookie(loopback, "http").startswith("backupfw-console=")
    # Whoever listens on the way would have it; another site's name may lead here, too.
    assert cookie("backup.example.org", "http") == "403"
    assert cookie("127.0.0.1.evil.example", "http") == "403"


def test_attempts_are_counted() -> None:
    clock = [0.0]
    attempts = Attempts(3, 60, lambda: clock[0])
    assert [attempts.begin("a") for _ in range(4)] == [True, True, True, False]
    assert attempts.begin("b")
    clock[0] = 61.0
    assert attempts.begin("a")
    attempts.succeeded("a")
    assert [attempts.begin("a") for _ in range(3)] == [True, True, True]
    for number in range(Attempts.MAX_ADDRESSES + 1):
        attempts.begin(str(number))
    assert len(attempts._failed) == Attempts.MAX_ADDRESSES


def test_too_many_attempts_are_refused(cloud: Cloud) -> None:
    browser = Browser(made(cloud), None)
    for _ in range(10):
        browser.post("login", {"token": "wrong"}, status=403)
    browser.post("login", {"token": "alice:demo:member"}, status=429)


def test_the_printed_token() -> None:
    token = new_token()
    assert len(token) == 22
    login = TokenLogin(token, everywhere=True)
    assert login.user({"token": f" {token}\n"}).token == "operator:operator"
    for wrong in ("", token[:-1], token + "x", "\ud7ff"):
        with pytest.raises(Refused):
            login.user({"token": wrong})
    of_project = TokenLogin(token, everywhere=False)
    assert of_project.user({"token": token, "project": "demo"}).token == "operator:demo"
    for project in ("", "demo:admin", "a\nb"):
        with pytest.raises(Refused):
            of_project.user({"token": token, "project": project})


def test_malformed_requests_are_answered(desk: Any) -> None:
    browser = Browser(desk, "alice:demo:member")
    browser.get("nowhere", status=404)
    browser.get("now/nobody/cancel", status=404)
    browser.get("now?x=%ff", status=400)
    browser.get("login?next=%00", status=400)
    browser.post("login", b"\xff\xfe=", status=400)
    browser.post("login", "token=" + "x" * 70_000, status=413)
    browser.get("logout", status=404)
    browser.get("health/")
    browser.get("health//nowhere", status=404)
    browser.app.put("/console/now", headers=SAME, status=404)
    browser.app.get("/console", status=303)
    assert browser.app.head("/console/now").body == b""


@pytest.mark.parametrize("path", ["\xff", "volumes/\xff", "login/\xc3", "static/\xff"])
def test_a_path_that_is_no_text_is_not_found(desk: Any, path: str) -> None:
    """WebTest cannot ask for it."""
    cookie = "; ".join(f"{name}={value}" for name, value in Browser(desk, "a:b:member").app.cookies.items())
    for method in ("GET", "POST"):
        request = webob.Request.blank("/", method=method, headers={"Cookie": cookie, **SAME})
        request.environ["PATH_INFO"] = f"/console/{path}"
        answer = request.get_response(desk)
        assert answer.status_int == 404
        assert 'href="/console/"' in answer.text
        assert "Content-Security-Policy" in answer.headers


def test_the_api_is_as_before(desk: Any) -> None:
    app = TestApp(desk)
    assert app.get("/v3", status="*").content_type == "application/json"
    assert app.get("/consoles", status=404).content_type == "application/json"


def test_the_files_of_others_are_as_they_were() -> None:
    static = Path(str(resources.files(console))) / "static"
    text = (static / "VENDORED.md").read_text()
    table = re.findall(r"^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$", text, re.MULTILINE)
    vendored = {path.name for path in static.iterdir() if re.search(r"\d", path.stem)}
    assert {name for name, _ in table} == vendored != set()
    for name, digest in table:
        assert hashlib.sha256((static / name).read_bytes()).hexdigest() == digest, name
        assert (static / f"{name.partition('-')[0]}.LICENSE").exists()


def test_the_room_is_small() -> None:
    """What reviewers can read in one go stays so."""
    place = Path(str(resources.files(console)))
    assert len((place / "static" / "own.css").read_text().splitlines()) <= 100
    for view in (place / "views").glob("*.py"):
        assert len(view.read_text().splitlines()) <= 110, view
    for template in (place / "templates").glob("*.mako"):
        text = template.read_text()
        assert "<script>" not in text
        assert " style=" not in text
        # The only text that is not escaped is markup that stands in the template itself.
        for expression in re.findall(r"\$\{([^}]*)\| *n\}", text):
            assert re.fullmatch(
                r"""'[^'"{]*(?:"[^"]*"[^'"]*)*' if (?:(?! else ).)+ else '' """, expression
            ), expression
