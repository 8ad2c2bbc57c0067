"""``/metrics``, ``/live`` and ``/ready`` of a real service, before, during and after work."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, select, text, update

from backupfw.cmd import database, meters, monitoring, service
from backupfw.cmd.meters import Meters
from backupfw.cmd.monitoring import Health, Listener
from backupfw.db.models import Backup, DamagedObject, DamageMark, Task
from backupfw.db.session import now
from tests.servers.ports import free_port
from tests.unit.cmd.conftest import Run, load_conf
from tests.unit.manager.policies.support import PolicyWorld
from tests.waiting import PATIENCE, wait_until


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def figures(text_: bytes) -> dict[tuple[str, ...], float]:
    """The samples by name and the values of their labels, in the order of the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text_.decode())
        for sample in family.samples
    }


@pytest.fixture
def served(run: Run, state: Path, tmp_path: Path) -> Iterator[tuple[str, str, Any]]:
    """A service with a listener: the API's URL, the listener's, its configuration."""
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(range(256)) * 4096)
    assert run("volume", "adopt", str(image)).status == 0
    conf = load_conf(state)
    conf.set_override("port", free_port(), "metrics")
    with service.EmbeddedService(conf) as serving:
        yield serving.url, f"http://127.0.0.1:{conf.metrics.port}", conf


def api(url: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(f"{url}v3/demo{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        return json.load(answer)


def test_a_backup_in_figures(served: tuple[str, str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "KEPT_SECONDS", 0)
    url, listener, conf = served
    (volume,) = api(url, "/volumes")["volumes"]
    good = ("backupfw_last_good_backup_timestamp", "", "demo", volume["id"])
    assert figures(get(f"{listener}/metrics")[1])[good] == 0
    for incremental in (False, True):
        body = {"backup": {"volume_id": volume["id"], "incremental": incremental}}
        made = api(url, "/backups", body)["backup"]["id"]
        path = f"/backups/{made}"
        wait_until("the backup", lambda path=path: api(url, path)["backup"]["status"] == "available")
    status, answer = get(f"{listener}/metrics")
    assert status == 200
    found = figures(answer)
    assert found["backupfw_task_attempts_total", "backup.create"] == 2
    assert found["backupfw_tasks_ended_total", "backup.create", "done"] == 2
    shown = api(url, f"/backups/{made}")["backup"]["data_timestamp"]
    at = datetime.fromisoformat(shown).replace(tzinfo=UTC).timestamp()
    assert found[good] == pytest.approx(at, abs=1)
    assert found["backupfw_backup_read_bytes_total",] >= 2 << 20
    assert found["backupfw_backup_sampled_bytes_total",] == 0
    assert found["backupfw_backup_changes_missed_total",] == 0
    stored = found["backupfw_backup_stored_bytes_total",]
    assert 0 < stored <= found["backupfw_store_bytes_total", "sent", "main"]
    assert found["backupfw_backup_deduplicated_bytes_total",] > 0
    assert found["backupfw_store_seconds_count", "put", "main"] >= 4
    assert found["backupfw_api_request_seconds_count", "POST", "/backups", "202"] == 2
    assert found["backupfw_api_request_seconds_count", "GET", "/backups/{backup_id}", "200"] >= 2
    assert found["backupfw_tasks", "backup.create", "running"] == 0
    assert found["backupfw_queue_age_seconds",] == 0
    with database.opened(conf) as db, db.write() as session:
        session.add(
            DamagedObject(digest="d", store="main", container="c", key="k", reason="r", found_at=now(session))
        )
        session.flush()
        for manifest in session.scalars(select(Backup.manifest_id)):
            session.add(DamageMark(manifest_id=manifest, digest="d"))
    # Damaged ones are no good ones.
    assert figures(get(f"{listener}/metrics")[1])[good] == 0
    # No other id, of anything, stands in a label.
    assert answer.count(volume["id"].encode()) == 1
    assert made.encode() not in answer


def test_live_and_ready_say_what_runs(served: tuple[str, str, Any]) -> None:
    _url, listener, conf = served
    ok = {"worker": "ok", "api": "ok"}
    assert [get(f"{listener}/live")[0], json.loads(get(f"{listener}/live")[1])] == [200, ok]
    status, answer = get(f"{listener}/ready")
    assert status == 200
    assert json.loads(answer) == {
        **ok,
        "database": "ok",
        "dispatch": "this process and looks into the database",
    }
    assert get(f"{listener}/elsewhere")[0] == 404
    with database.opened(conf) as db, db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    status, answer = get(f"{listener}/ready")
    assert (status, json.loads(answer)["database"]) == (503, "another schema")
    assert get(f"{listener}/live")[0] == 200


def test_ready_reads_no_migrations_from_the_disk(
    served: tuple[str, str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load balancer asks every second."""
    _, listener, _ = served
    assert get(f"{listener}/ready")[0] == 200
    monkeypatch.setattr("alembic.script.ScriptDirectory.from_config", None)
    assert get(f"{listener}/ready")[0] == 200


def test_a_part_that_ended_and_a_database_that_is_away() -> None:
    class Away:
        engine = None

    health = Health(Away(), {"worker": lambda: False}, "messages")  # type: ignore[arg-type]
    assert health.live() == (False, {"worker": "ended"})
    assert health.ready() == (
        False,
        {"worker": "ended", "database": "does not answer", "dispatch": "messages"},
    )


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nHost:"], ids=["idle", "slow"])
def test_connections_that_ask_nothing_keep_nobody_out(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "_PATIENCE", 3000)
    # With more of them the kernel's queue overflows, and each that did not find room tries again after 1 s.
    monkeypatch.setattr(monitoring, "CONNECTIONS", 8)

    class Silent:
        def text(self) -> bytes:
            return b""

    health = Health(None, {"worker": lambda: True}, "messages")  # type: ignore[arg-type]
    port = free_port()
    listener = Listener("127.0.0.1", port, Silent(), health)  # type: ignore[arg-type]
    with closing(listener), ExitStack() as stack:
        before = threading.active_count()
        for _ in range(4 * monitoring.CONNECTIONS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            with suppress(ConnectionError):
                sock.sendall(sent)
        for path in ("/live", "/metrics"):
            assert get(f"http://127.0.0.1:{port}{path}")[0] == 200
        # Those that were ended may take a moment.
        wait_until("their end", lambda: threading.active_count() <= before + monitoring.CONNECTIONS)


def test_the_queue_gets_older(run: Run, state: Path, backup_id: str) -> None:
    from backupfw.cmd.meters import Meters
    from backupfw.manager.queue import tasks

    conf = load_conf(state)
    with database.opened(conf) as db:
        with db.write() as session:
            tasks.add(
                session,
                tasks.BACKUP_DELETE,
                resource_id=backup_id,
                source_id=None,
                project_id="demo",
                request_id=None,
            )
            session.execute(update(Task).values(updated_at=now(session) - timedelta(seconds=500)))
        meters = Meters(db)
        meters.attempt("backup.delete", taken_over=True)
        meters.operation("main", "get", 0.1, 0, 5, OSError("no"))
        found = figures(meters.text())
    assert 500 <= found["backupfw_queue_age_seconds",] < 1000
    assert found["backupfw_tasks", "backup.delete", "queued"] == 1
    assert found["backupfw_lease_take_overs_total", "backup.delete"] == 1
    assert found["backupfw_store_errors_total", "OSError", "get", "main"] == 1


def test_it_is_off_unless_a_port_is_given(run: Run, state: Path) -> None:
    assert run("db", "sync").status == 0
    assert load_conf(state).metrics.port is None


def test_calls_of_this_process_to_stores_are_counted(run: Run, state: Path) -> None:
    assert run("db", "sync").status == 0
    with database.opened(load_conf(state)) as db:
        shown = meters.Meters(db)
        assert shown.store_calls() == {}
        for store, operation, error in (
            ("main", "put", None),
            ("main", "get", OSError()),
            ("main", "get", None),
            ("offsite", "put", None),
        ):
            shown.operation(store, operation, 0.1, 1, 1, error)
        assert shown.store_calls() == {"main": (3, 1), "offsite": (1, 0)}


def test_figures_about_all_backups_are_kept_for_a_while(
    run: Run, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests at the same time make one query; the tasks are always those of now."""
    assert run("db", "sync").status == 0
    with database.opened(load_conf(state)) as db:
        asked: list[str] = []
        event.listen(db.engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
        shown = meters.Meters(db)
        for seconds, queries in ((60.0, 1), (0.0, 4)):
            monkeypatch.setattr(meters, "KEPT_SECONDS", seconds)
            asked.clear()
            with ThreadPoolExecutor(4) as pool:
                assert all("backupfw_damaged_backups 0.0" in text for text in pool.map(_text, [shown] * 4))
            assert sum("FROM volumes" in each for each in asked) == queries
            assert sum("min(coalesce(tasks" in each for each in asked) == 4


def _text(shown: meters.Meters) -> str:
    return shown.text().decode()


def test_policies_in_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    world = PolicyWorld(monkeypatch)
    volume, other = world.volume(), world.volume()
    policy = world.policy(selection={"volume_ids": [volume]})
    idle = world.policy(enabled=False)
    world.backups.create(world.ctx(), volume_id=volume)
    world.make()

    def found() -> dict[tuple[str, ...], float]:
        return figures(Meters(world.db).text())

    def at(text: str) -> float:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()

    good = "backupfw_last_good_backup_timestamp"
    by_hand = found()[good, "", "p1", volume]
    assert (good, policy, "p1", volume) not in found()
    world.at("2026-01-02T00:00:01")
    world.night()
    shown = found()
    assert shown[good, policy, "p1", volume] == pytest.approx(at("2026-01-02T00:00:01"), abs=1)
    assert shown[good, "", "p1", volume] == by_hand == pytest.approx(at("2026-01-01T12:00"), abs=1)
    assert shown[good, "", "p1", other] == 0
    totals = ("backupfw_policy_missed_runs_total", "backupfw_policy_failed_runs_total")
    # They begin at 0: Prometheus sees the first one as an increase.
    assert [shown[name, one, "p1"] for name in totals for one in (policy, idle)] == [0, 0, 0, 0]
    world.at("2026-01-03T06:00")
    world.night()
    assert [found()[name, policy, "p1"] for name in totals] == [1, 0]
    # The backups of a policy that is gone are nobody's.
    world.policies.delete(world.ctx(), policy)
    assert found()[good, "", "p1", volume] == shown[good, policy, "p1", volume]
    assert not any(policy in sample for sample in found())
