"""The console's pages of backup policies, without a browser."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import webob
from sqlalchemy import insert

from backupfw.cmd.policy import Create
from backupfw.console import calendar, policy_form
from backupfw.db import models
from backupfw.db.session import now
from backupfw.errors import BackupPolicyNotFound
from backupfw.manager.policies import schedule, settings
from tests.functional.cloud import NOBODY, Cloud
from tests.functional.test_console import HOSTILE, SAME, VOLUME, Browser, _admin, fill, made

POLICY = "50000000-0000-4000-8000-000000000000"
SETTINGS = {
    "schedule": {"cron": "30 2 * * *", "timezone": "Europe/Berlin"},
    "selection": {"all": True},
    "retention": {"daily": 3},
}


def policies(cloud: Cloud, count: int) -> None:
    """Make policies, of the first one runs, and backups that it made."""
    fill(cloud, count)
    words = dict(settings.read(SETTINGS).words)
    with cloud.db.write() as session:
        moment = now(session)
        hours = [moment - timedelta(hours=number) for number in range(count)]
        ids = [f"50000000-0000-4000-8000-{number:012}" for number in range(count)]
        rows = [
            {
                "id": ids[number], "project_id": "demo", "enabled": True, "settings": words,
                "display_name": HOSTILE[number % 5], "display_description": HOSTILE[number % 5],
                "next_run_at": moment, "created_at": hours[number], "planned_at": moment,
            }
            for number in range(count)
        ]  # fmt: skip
        session.execute(insert(models.BackupPolicy), rows)
        runs = [
            {
                "id": f"40000000-0000-4000-8000-{number:012}", "policy_id": POLICY, "project_id": "demo",
                "volume_id": VOLUME, "scheduled_at": hours[number], "begin_at": hours[number],
                "begin_before": hours[number], "started_at": hours[number], "ended_at": moment,
                "status": ("ok", "failed", "missed")[number % 3], "reason": HOSTILE[number % 5],
                "backup_id": f"10000000-0000-4000-8000-{number:012}", "created_at": hours[number],
                "tidied": True,
            }
            for number in range(count)
        ]  # fmt: skip
        session.execute(insert(models.PolicyRun), runs)
        session.execute(models.Backup.__table__.update().values(policy_id=POLICY))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, templates: Path) -> Iterator[Cloud]:
    """An installation with a thousand policies, runs and backups."""
    cloud = Cloud(tmp_path_factory.mktemp("full"), templates)
    policies(cloud, 1000)
    yield cloud
    cloud.close()


PAGES = ("policies", f"policies/{POLICY}", f"policies/{POLICY}/preview")


def test_no_policy(cloud: Cloud) -> None:
    app = made(cloud)
    assert "New policy" in Browser(app, "alice:demo:member").get("policies").text
    assert "New policy" not in Browser(app, "alice:demo:reader").get("policies").text
    Browser(app, "alice:demo:member").get(f"policies/{POLICY}", status=404)
    Browser(app, "alice:demo:member").get("policies/nobody", status=404)


@pytest.mark.parametrize("page", PAGES)
def test_a_thousand_rows(full: Cloud, page: str) -> None:
    app = made(full)
    for role in ("reader", "member", "admin"):
        answer = Browser(app, f"alice:demo:{role}").get(page)
        files = re.findall(r'(?:href|src)="(/console/static/[^"]+)"', answer.text)
        sizes = [
            len(webob.Request.blank(path, accept_encoding="gzip").get_response(app).body) for path in files
        ]
        assert len(answer.body) + sum(sizes) < 150_000
    stranger = Browser(app, "bob:other:member").get(page, status=200 if page == "policies" else 404)
    assert "alert(1)" not in stranger.text


def test_one_row(cloud: Cloud) -> None:
    policies(cloud, 1)
    for page in PAGES:
        Browser(made(cloud), "alice:demo:reader").get(page)
    text = Browser(made(cloud), "alice:demo:reader").get(f"policies/{POLICY}/preview").text
    assert "daily 1" in text


def test_pages_of_lists(full: Cloud) -> None:
    browser = Browser(made(full), "alice:demo:reader")
    for page, link, pattern in (
        ("policies", "More", r'href="/console/policies/([0-9a-f-]{36})'),
        (f"policies/{POLICY}", "Older", r"#backup-([0-9a-f-]{36})"),
    ):
        first = browser.get(page)
        ids = [set(re.findall(pattern, text)) for text in (first.text, first.click(link).text)]
        assert (len(ids[0] - {POLICY}), len(ids[1])) in ((50, 50), (49, 50))
        assert not ids[0] & ids[1]


def _sent(browser: Browser, path: str, status: int = 303, **fields: str) -> Any:
    """Fill in a form and send it."""
    form = browser.get(path).forms[1]
    for key, value in fields.items():
        form[key.replace("__", ".")] = value
    return form.submit(headers=SAME, status=status)


def test_a_policy_is_made_changed_run_paused_and_deleted(cloud: Cloud) -> None:
    volume = cloud.volume(name="mail")
    browser, find = Browser(made(cloud), "alice:demo:member"), cloud.managers.policies.list
    page = _sent(
        browser, "policies/new", name="nightly <b>", description="of all", schedule__cron="15 3 * * 1-5",
        schedule__timezone="Europe/Berlin", schedule__start_window="90", retention__within="36h",
        max_concurrent="2",
    ).follow()  # fmt: skip
    (policy,) = find(_admin()).items
    assert (policy.display_name, policy.max_concurrent, policy.user_id) == ("nightly <b>", 2, "alice")
    assert policy.settings["schedule"]["start_window"] == 90
    assert policy.settings["retention"]["daily"] == 7
    assert policy.settings["selection"] == {"all": True}
    assert "nightly &lt;b&gt;" in page.text
    assert "03:15" in page.text
    # The form shows what it is set to, and what it does not show stays.
    form = browser.get(f"policies/{policy.id}/edit").forms[1]
    assert (form["schedule.cron"].value, form["backup.incremental"].checked) == ("15 3 * * 1-5", True)
    before = policy.settings
    form.submit(headers=SAME, status=303)
    assert cloud.managers.policies.get(_admin(), policy.id).settings == before
    form = browser.get(f"policies/{policy.id}/edit").forms[1]
    form["selection"], form["selection.volume_ids"] = "volume_ids", f" {volume.upper()} \r\n\r\n{volume}"
    form["backup.incremental"] = False
    form.submit(headers=SAME, status=303)
    policy = cloud.managers.policies.get(_admin(), policy.id)
    assert policy.settings["selection"] == {"volume_ids": [volume]}
    assert policy.settings["backup"]["incremental"] is False
    page = browser.get(f"policies/{policy.id}")
    assert "mail" in page.text
    for word, enabled in (("Run now", True), ("Pause", False), ("Resume", True)):
        button = next(form for form in page.forms.values() if f">{word}<" in form.text)
        page = button.submit("what", headers=SAME, status=303).follow()
        assert cloud.managers.policies.get(_admin(), policy.id).enabled == enabled
    (run,) = cloud.managers.policies.runs(_admin(), policy.id).items
    assert run.volume_id == volume
    assert f"backupfw policy run {policy.id}" in page.text
    browser.post(f"policies/{policy.id}/act", {"what": "nothing"}, status=400)
    question = page.click("Delete")
    assert f"backupfw policy delete {policy.id}" in question.text
    question.forms[1].submit(headers=SAME, status=303)
    with pytest.raises(BackupPolicyNotFound):
        cloud.managers.policies.get(_admin(), policy.id)


def test_copies(cloud: Cloud) -> None:
    browser, find = Browser(made(cloud), "alice:demo:member"), cloud.managers.policies.list
    page = _sent(browser, "policies/new", copy_to=" offsite , daily=7, min-keep = 2,within=8w\r\n").follow()
    (policy,) = find(_admin()).items
    (copy,) = policy.settings["copy_to"]
    assert copy["store"] == "offsite"
    kept = {name: value for name, value in copy["retention"].items() if value is not None}
    assert kept == {"daily": 7, "min_keep": 2, "within": "8w"}
    assert "copy in offsite; keeps all within 8w, 7 daily, at least 2 there" in page.text
    form = browser.get(f"policies/{policy.id}/edit").forms[1]
    assert form["copy_to"].value == "offsite,daily=7,within=8w,min_keep=2"
    form.submit(headers=SAME, status=303)
    assert find(_admin()).items[0].settings == policy.settings
    form = browser.get(f"policies/{policy.id}/edit").forms[1]
    form["copy_to"] = ""
    form.submit(headers=SAME, status=303)
    assert find(_admin()).items[0].settings["copy_to"] == []


def test_a_preview_says_of_each_store_why_it_keeps_a_backup(cloud: Cloud) -> None:
    policies(cloud, 1)
    with cloud.db.write() as session:
        copy = {"id": NOBODY, "backup_id": "10000000-0000-4000-8000-000000000000", "container": "c"}
        session.add(models.BackupCopy(**copy, store="offsite", status="available", created_at=now(session)))
    page = Browser(made(cloud), "alice:demo:member").get(f"policies/{POLICY}/preview").text
    assert "offsite: as long as the backup" in page
    assert "main: daily 1" in page


def test_a_policy_of_metadata(cloud: Cloud) -> None:
    browser = Browser(made(cloud), "alice:demo:member")
    _sent(browser, "policies/new", selection="metadata", selection__metadata="tier=gold\r\nowner = me=you")
    (policy,) = cloud.managers.policies.list(_admin()).items
    pairs = {"tier": "gold", "owner": "me=you"}
    assert policy.settings["selection"] == {"metadata": pairs}
    form = browser.get(f"policies/{policy.id}/edit").forms[1]
    assert policy_form.body(
        {"selection": "metadata", "selection.metadata": form["selection.metadata"].value}
    )["selection"] == {"metadata": pairs}


def test_a_form_that_is_old_undoes_nothing_by_itself(cloud: Cloud) -> None:
    """Whoever changed the name let backups go that somebody else had just decided to keep."""
    browser = Browser(made(cloud), "alice:demo:member")
    policy = cloud.managers.policies.create(_admin(), settings=SETTINGS)
    form = browser.get(f"policies/{policy.id}/edit").forms[1]
    form["name"] = "new"
    cloud.managers.policies.update(_admin(), policy.id, settings={"retention": {"daily": 30}})
    again = form.submit(headers=SAME, status=400)
    assert "changed the policy meanwhile" in again.text
    now_ = cloud.managers.policies.get(_admin(), policy.id)
    assert (now_.display_name, now_.settings["retention"]["daily"]) == (None, 30)
    again.forms[1].submit(headers=SAME, status=303)
    now_ = cloud.managers.policies.get(_admin(), policy.id)
    assert (now_.display_name, now_.settings["retention"]["daily"]) == ("new", 3)


def test_metadata_that_its_lines_do_not_say_stays_as_it_is(cloud: Cloud) -> None:
    """A new name made it another selection, perhaps of no volume at all, and nobody was told."""
    browser = Browser(made(cloud), "alice:demo:member")
    pairs = {" tier": "gold", "note": "two\nlines "}
    given = {"schedule": {"cron": "@daily"}, "selection": {"metadata": pairs}}
    policy = cloud.managers.policies.create(_admin(), settings=given)
    form = browser.get(f"policies/{policy.id}/edit").forms[1]
    form["name"] = "new"
    form.submit(headers=SAME, status=303)
    changed = cloud.managers.policies.get(_admin(), policy.id)
    assert (changed.display_name, changed.settings["selection"]) == ("new", {"metadata": pairs})
    form = browser.get(f"policies/{policy.id}/edit").forms[1]
    form["selection.metadata"] = "tier=gold"
    form.submit(headers=SAME, status=303)
    assert cloud.managers.policies.get(_admin(), policy.id).settings["selection"] == {
        "metadata": {"tier": "gold"}
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schedule.cron", "", "should be non-empty"),
        ("schedule.cron", "61 * * * *", "cannot be understood"),
        ("schedule.cron", "* * * * *", "more often than every 5 minutes"),
        ("schedule.timezone", "Mars/North", "is no time zone"),
        ("schedule.jitter", "soon", "is not of type"),
        ("schedule.completion_window", "5", "must not be less than"),
        ("retention.daily", "-1", "is not of type"),
        ("retention.last", "10001", "is greater than the maximum"),
        ("retention.within", "3y", "is not a number of hours, days or weeks"),
        ("backup.store", "<script>alert(1)</script>", "there is no store"),
        ("backup.full_every", "0", "is less than the minimum"),
        ("copy_to", "attic", "there is no store attic"),
        ("copy_to", "offsite\r\noffsite", "is named twice"),
        ("copy_to", "offsite,daily=many", "is not of type"),
        ("copy_to", "offsite,fortnightly=2", "was unexpected"),
        ("copy_to", "offsite,within=3y", "is not a number of hours, days or weeks"),
        ("max_concurrent", "0", "is less than the minimum"),
        ("selection.volume_ids", "nobody", "is not a 'uuid'"),
        ("selection.volume_ids", "00000000-0000-4000-8000-000000000009", "could not be found"),
        ("selection.metadata", "", "should be non-empty"),
    ],
)
def test_what_is_wrong_is_said_beside_the_field(cloud: Cloud, field: str, value: str, message: str) -> None:
    browser = Browser(made(cloud), "alice:demo:member")
    fields = {field.replace(".", "__"): value}
    if field.startswith("selection."):
        fields["selection"] = field.partition(".")[2]
    page = _sent(browser, "policies/new", 400, name="kept", **fields)
    beside = page.text.partition(f'id="about-{field}"')[2].partition("</small>")[0]
    assert 'class="problem"' in beside
    assert message in beside.replace("&#x27;", "'")
    assert page.text.count('class="problem"') == 1
    assert "<script>alert" not in page.text
    assert page.forms[1]["name"].value == "kept", "what was filled in stays"
    assert page.forms[1][field].value == value
    assert not cloud.managers.policies.list(_admin()).items


def test_the_commands_that_freeze_are_chosen_from_the_operators(cloud: Cloud) -> None:
    browser = Browser(made(cloud), "alice:demo:member")
    form = browser.get("policies/new").forms[1]
    chosen = form["backup.quiesce"]
    assert (chosen.value, [one[0] for one in chosen.options]) == ("", ["", "guest-agent", "database"])
    chosen.value = "database"
    form.submit(headers=SAME, status=303)
    (policy,) = cloud.managers.policies.list(_admin()).items
    assert policy.settings["backup"]["quiesce"] == "database"
    page = browser.get(f"policies/{policy.id}")
    assert "frozen with database" in page.text
    assert "--quiesce database" in page.text
    # What the operator has taken away meanwhile stays to be seen, and is refused.
    cloud.conf.set_override("quiesce_commands", ["guest-agent"])
    form = browser.get(f"policies/{policy.id}/edit").forms[1]
    assert form["backup.quiesce"].value == "database"
    refused = form.submit(headers=SAME, status=400)
    assert "there are no commands database; there are guest-agent." in refused.text
    form["backup.quiesce"] = ""
    form.submit(headers=SAME, status=303)
    assert cloud.managers.policies.get(_admin(), policy.id).settings["backup"]["quiesce"] is None


def test_what_a_role_may_not_do(cloud: Cloud) -> None:
    policies(cloud, 1)
    app = made(cloud)
    reader, stranger = Browser(app, "eve:demo:reader"), Browser(app, "eve:other:member")
    page = reader.get(f"policies/{POLICY}").text
    for word in ("Run now", "Pause", "Edit", "Delete"):
        assert f">{word}<" not in page
    for browser, status in ((reader, 403), (stranger, 404)):
        for path in ("edit", "delete"):
            browser.get(f"policies/{POLICY}/{path}", status=status)
            browser.post(f"policies/{POLICY}/{path}", status=status)
        for what in ("run", "pause", "resume"):
            browser.post(f"policies/{POLICY}/act", {"what": what}, status=status)
    reader.get("policies/new", status=403)
    reader.post("policies", {"schedule.cron": "@daily"}, status=403)
    # A project that a user names is not his own: his policy is.
    stranger.post("policies", {"schedule.cron": "@daily", "project": "demo"})
    assert [one.project_id for one in cloud.managers.policies.list(_admin(), all_tenants=True).items].count(
        "demo"
    ) == 1
    other = {"Sec-Fetch-Site": "cross-site"}
    member = Browser(app, "alice:demo:member")
    member.post("policies", {"schedule.cron": "@daily"}, status=403, **other)
    member.post(f"policies/{POLICY}/act", {"what": "run"}, status=403, **other)
    assert not [
        one for one in cloud.managers.policies.runs(_admin(), POLICY).items if one.status == "waiting"
    ]


def test_an_administrator_makes_a_policy_of_a_project(cloud: Cloud) -> None:
    volume = cloud.volume("theirs", name="mail")
    browser = Browser(made(cloud), "root:demo:admin")
    form = browser.get(f"volumes/{volume}").click("Let a policy").forms[1]
    assert (form["project"].value, form["selection.volume_ids"].value) == ("theirs", volume)
    form.submit(headers=SAME, status=303)
    (policy,) = cloud.managers.policies.list(_admin(), all_tenants=True).items
    assert (policy.project_id, policy.settings["selection"]) == ("theirs", {"volume_ids": [volume]})


def test_the_command_makes_the_same_policy(cloud: Cloud) -> None:
    given = {
        **policy_form.empty(), "name": "it's <b>", "schedule.jitter": "0", "backup.incremental": "",
        "selection": "metadata", "selection.metadata": "tier=very gold", "max_concurrent": "3",
        "copy_to": "offsite,weekly=8\nvault",
    }  # fmt: skip
    wanted = policy_form.body(given)
    words = shlex.split(policy_form.command(wanted, "backupfw policy create --project demo"))
    parser = argparse.ArgumentParser()
    Create(None, None).add_arguments(parser)
    args = parser.parse_args(words[3:])
    assert (args.name, args.jitter, args.full_every, args.daily) == ("it's <b>", 0, 1, 7)
    assert args.no_quiesce
    assert args.metadata == [("tier", "very gold")]
    assert args.copy_to == [{"store": "offsite", "retention": {"weekly": 8}}, {"store": "vault"}]
    none = shlex.split(
        policy_form.command({**wanted, "copy_to": []}, "backupfw policy create --project demo")
    )
    assert parser.parse_args(none[3:]).copy_to == []
    assert json.loads(policy_form.written(wanted))["backup_policy"]["schedule"]["jitter"] == 0
    assert not policy_form.problems(wanted)


def test_the_calendar() -> None:
    plan = schedule.read("30 2 * * *", "Europe/Berlin", jitter=None, start_window=60, completion_window=None)
    # A Wednesday, in the evening: in Berlin it is Thursday.
    weeks = calendar.weeks(plan, datetime(2026, 3, 25, 23, 30))
    assert len(weeks) == 5
    assert {len(week) for week in weeks} == {7}
    assert [day.known for day in weeks[0]] == [False, False, False, True, True, True, True]
    runs = {day.day: [f"{run:%H:%M}" for run in day.runs] for week in weeks for day in week}
    assert runs[date(2026, 3, 26)] == ["02:30"]
    assert runs[date(2026, 3, 29)] == ["03:00"], "there is no 02:30 on that day"
    often = schedule.read("*/5 * * * *", "UTC", jitter=None, start_window=60, completion_window=None)
    days = [day for week in calendar.weeks(often, datetime(2026, 3, 25)) for day in week if day.known]
    # Not all runs of the days behind were computed.
    assert [len(day.runs) for day in days] == [287]
    hourly = schedule.read("@hourly", "UTC", jitter=None, start_window=60, completion_window=None)
    days = [day for week in calendar.weeks(hourly, datetime(2026, 3, 25)) for day in week if day.known]
    assert [len(day.runs) for day in days] == [23, *[24] * 11]
    rare = schedule.read("0 0 29 2 *", "UTC", jitter=None, start_window=60, completion_window=None)
    assert not any(day.runs for week in calendar.weeks(rare, datetime(2026, 3, 25)) for day in week)
