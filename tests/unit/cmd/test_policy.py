"""``backupfw policy``, from the first to the last verb, on the database alone; how soon policies run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from backupfw.cmd import database, service
from tests.unit.cmd.conftest import Run, load_conf
from tests.waiting import wait_until


def test_a_policy_from_its_beginning_to_its_end(run: Run) -> None:
    volume = run("volume", "create", "--size", "1", "--name", "data", "--project", "p").out.strip()
    made = run(
        *("policy", "create", "--project", "p", "--name", "nightly", "--cron", "30 2 * * *"),
        *("--timezone", "Europe/Berlin", "--volume", "data", "--daily", "7", "--within", "36h"),
        *("--full-every", "5", "--max-concurrent", "2"),
    )
    assert (made.status, made.err) == (0, "")
    policy = made.out.strip()
    shown = json.loads(run("policy", "show", "nightly", "-f", "json").out)
    assert (shown["id"], shown["project_id"], shown["enabled"]) == (policy, "p", True)
    assert shown["selection"] == {"volume_ids": [volume]}
    assert (shown["retention"]["daily"], shown["retention"]["within"]) == (7, "36h")
    assert (shown["backup"]["full_every"], shown["max_concurrent"]) == (5, 2)
    assert shown["copy_to"] == []
    # What is not named stays, also within a part.
    assert run("policy", "set", policy, "--weekly", "4", "--start-window", "90", "--name", "new").status == 0
    (listed,) = json.loads(run("policy", "list", "--project", "p", "-f", "json").out)
    assert (listed["name"], listed["cron"], listed["timezone"]) == ("new", "30 2 * * *", "Europe/Berlin")
    shown = json.loads(run("policy", "show", "new", "-f", "json").out)
    assert (shown["retention"]["daily"], shown["retention"]["weekly"]) == (7, 4)
    assert shown["schedule"]["start_window"] == 90
    assert run("policy", "run", "new").out == "1 run planned\n"
    (waiting,) = json.loads(run("policy", "runs", "new", "-f", "json").out)
    assert (waiting["volume_id"], waiting["status"]) == (volume, "waiting")
    assert run("policy", "pause", "new").status == 0
    assert run("policy", "runs", "new", "--status", "waiting", "-f", "value").out == ""
    (skipped,) = json.loads(run("policy", "runs", "new", "--status", "skipped", "-f", "json").out)
    assert skipped["reason"] == "The policy was paused."
    assert run("policy", "resume", "new").out.startswith("next run at 20")
    assert json.loads(run("policy", "preview", "new", "-f", "json").out) == []
    assert run("policy", "delete", "new").status == 0
    assert json.loads(run("policy", "list", "-f", "json").out) == []
    gone = run("policy", "show", policy)
    assert (gone.status, gone.err) == (1, f"backupfw: Backup policy {policy} could not be found.\n")


def test_volumes_are_frozen_by_what_the_operator_has(run: Run, tmp_path: Path) -> None:
    conf = tmp_path / "quiesce.conf"
    conf.write_text(
        "[DEFAULT]\nquiesce_commands = agent\n"
        "[quiesce:agent]\nfreeze = /bin/true {volume_id}\nthaw = /bin/true\n"
    )
    run("db", "sync")
    create = ("policy", "create", "--project", "p", "--cron", "@daily", "--all")
    wrong = run(*create, "--quiesce", "agent")
    assert wrong.status == 1
    assert wrong.err == "backupfw: backup.quiesce: there are no commands agent; this service has none.\n"
    policy = run(*create, "--quiesce", "agent", "--config-file", str(conf)).out.strip()

    def how() -> Any:
        return json.loads(run("policy", "show", policy, "-f", "json").out)["backup"]

    assert how()["quiesce"] == "agent"
    assert run("policy", "set", policy, "--full-every", "3", "--config-file", str(conf)).status == 0
    assert (how()["quiesce"], how()["full_every"]) == ("agent", 3)
    assert run("policy", "set", policy, "--no-quiesce").status == 0
    assert (how()["quiesce"], how()["full_every"]) == (None, 3)
    assert run(*create, "--quiesce", "agent", "--no-quiesce").status == 2


def test_volumes_by_metadata_and_all(run: Run) -> None:
    run("db", "sync")
    create = ("policy", "create", "--project", "p", "--cron", "@daily")
    by_pairs = run(*create, "--metadata", "a=b", "--metadata", "c=d=e", "--paused").out.strip()
    shown = json.loads(run("policy", "show", by_pairs, "-f", "json").out)
    assert shown["selection"] == {"metadata": {"a": "b", "c": "d=e"}}
    assert (shown["enabled"], shown["next_run_at"]) == (False, None)
    everything = run(*create, "--all").out.strip()
    assert json.loads(run("policy", "show", everything, "-f", "json").out)["selection"] == {"all": True}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--cron", "61 * * * *", "--all"), 1, "schedule.cron"),
        (("--cron", "@daily", "--all", "--timezone", "Mars"), 1, "schedule.timezone"),
        (("--cron", "@daily", "--volume", "nobody"), 1, "nobody"),
        (("--cron", "@daily", "--all", "--copy-to", "attic"), 1, "copy_to[0].store"),
        (("--cron", "@daily", "--all", "--copy-to", "a", "--no-copies"), 2, "--no-copies"),
        (("--cron", "@daily", "--all", "--copy-to", "a,daily=x"), 2, "--copy-to"),
        (("--cron", "@daily", "--all", "--copy-to", "a,min-keep=0"), 2, "--copy-to"),
        (("--cron", "@daily", "--all", "--copy-to", "a,nightly=3"), 2, "'nightly' is no rule"),
        (("--cron", "@daily", "--all", "--copy-to", "a,within=3"), 2, "'within' is no rule"),
        (("--cron", "@daily"), 2, "--volume"),
        (("--all",), 2, "--cron"),
        (("--cron", "@daily", "--all", "--daily", "-1"), 2, "--daily"),
        (("--cron", "@daily", "--all", "--jitter", "9" * 30), 2, "--jitter"),
        (("--cron", "@daily", "--metadata", "x"), 2, "KEY=VALUE"),
    ],
)
def test_what_is_refused(run: Run, words: tuple[str, ...], status: int, said: str) -> None:
    run("db", "sync")
    done = run("policy", "create", "--project", "p", *words)
    assert (done.status, done.out) == (status, "")
    assert said in done.err


def test_what_is_to_run_now_waits_for_no_look_of_the_worker(state: Path) -> None:
    conf = load_conf(state)
    conf.set_override("port", 0, "api")
    # Its looks into the database are minutes apart, those of an idle one for policies hours.
    conf.set_override("poll_seconds", 300.0, "backup")
    database.prepare(conf, make=True)
    with service.EmbeddedService(conf) as serving, requests.Session() as session:
        session.headers["X-Auth-Token"] = "tester:demo:admin"

        def call(path: str, body: Any = None) -> Any:
            method = "GET" if body is None else "POST"
            answer = session.request(method, f"{serving.url}v3/demo{path}", json=body)
            assert answer.ok, answer.text
            return answer.json()

        volume = call("/volumes", {"volume": {"size": 1}})["volume"]["id"]
        wait_until("the volume", lambda: call(f"/volumes/{volume}")["volume"]["status"] == "available")
        wanted = {"schedule": {"cron": "@yearly"}, "selection": {"volume_ids": [volume]}}
        policy = call("/backup-policies", {"backup_policy": wanted})["backup_policy"]["id"]
        call(f"/backup-policies/{policy}/action", {"run": {}})
        wait_until("a backup", lambda: call("/backups?status=available")["backups"])
