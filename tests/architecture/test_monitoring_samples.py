"""Rules for Prometheus and the dashboard for Grafana use figures that ``/metrics`` has, with their labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from backupfw.cmd.meters import Meters
from backupfw.db.models import BackupPolicy, Base, DamagedObject, Volume
from backupfw.db.session import Database, now
from tests.architecture.checkout import ROOT

RULES = ROOT / "etc" / "prometheus" / "backupfw.rules.yml"
DASHBOARD = ROOT / "etc" / "grafana" / "backupfw.json"
#: A figure, as an expression names it, with its selector.
FIGURE = re.compile(r"\b(backupfw_\w+)(?:\{([^}]*)\})?")
#: The labels that an expression groups by.
GROUPED = re.compile(r"\bby \(([^)]*)\)")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Each expression, and the text that names its labels to people."""
    for rule in rules():
        yield rule["expr"], rule["annotations"]["summary"]
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels of each figure, by its name, as ``/metrics`` of a process that has done something has it."""
    with closing(Database(f"sqlite:///{tmp_path_factory.mktemp('figures')}/db")) as db:
        Base.metadata.create_all(db.engine)
        with db.write() as session:
            values = {"user_id": "u", "status": "available", "size": 1, "length": 1}
            session.add(Volume(id="v", project_id="p", created_at=now(session), **values))
            settings = {"settings": {}, "planned_at": now(session)}
            session.add(BackupPolicy(id="n", project_id="p", created_at=now(session), **settings))
            place = {"store": "main", "container": "box", "key": "key", "reason": "it is missing"}
            session.add(DamagedObject(digest="d", found_at=now(session), **place))
        meters = Meters(db)
        meters.operation("main", "get", 0.1, 0, 5, OSError())
        meters.retried("main", "get", 0.1, OSError())  # type: ignore[arg-type]
        list(meters.measured(lambda _environ, start: start("200 OK") or [])({"REQUEST_METHOD": "GET"}, print))
        families = text_string_to_metric_families(meters.text().decode())
        return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.mark.parametrize(("expression", "said"), list(expressions()))
def test_what_an_expression_names_is_there(expression: str, said: str, figures: dict[str, set[str]]) -> None:
    named = FIGURE.findall(expression)
    assert named
    labels: set[str] = set()
    for name, selector in named:
        assert name in figures
        labels |= figures[name]
        assert set(re.findall(r"(\w+)=", selector)) <= figures[name]
    by = {label.strip() for group in GROUPED.findall(expression) for label in group.split(",")}
    assert by <= labels
    # What is said of a value uses labels that are left.
    assert set(re.findall(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}", said)) <= by


def test_each_rule_and_panel_can_be_told_apart() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    assert {rule["labels"]["severity"] for rule in rules()} == {"warning", "critical"}
    assert len({panel["id"] for panel in panels()}) == len(panels())
    squares = [
        (x, y)
        for panel in panels()
        for place in (panel["gridPos"],)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(squares)) == len(squares), "panels overlap"
    assert max(x for x, _y in squares) < 24


def test_the_search_finds_what_it_looks_for(figures: dict[str, set[str]]) -> None:
    assert FIGURE.findall('sum by (kind) (backupfw_gone_total{a="b"})') == [("backupfw_gone_total", 'a="b"')]
    assert "backupfw_gone_total" not in figures
    assert figures["backupfw_last_good_backup_timestamp"] == {"project", "volume", "policy"}
