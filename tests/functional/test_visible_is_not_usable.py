"""Who is let see the things of every project (``context_is_admin``) may use only what the rules say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from webtest import TestApp

from backupfw.api.app import make_app
from tests.functional.cloud import Client, Cloud, configuration

POLICY = '"context_is_admin": "role:admin or role:auditor"\n'


@pytest.fixture
def auditor(cloud: Cloud, tmp_path: Path) -> Client:
    """A member of ``demo`` whom the operator lets see everything."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    conf = configuration()
    conf.set_override("policy_file", str(path), "oslo_policy")
    app = TestApp(make_app(cloud.managers, conf))
    return Client(app, "demo", "carol:demo:auditor,member", "3.71", "/v3/demo")


Call = tuple[str, dict[str, Any]]


def _backup(_own: str, volume: str, _snapshot: str) -> Call:
    return "/backups", {"backup": {"volume_id": volume}}


def _backup_of_snapshot(_own: str, volume: str, snapshot: str) -> Call:
    return "/backups", {"backup": {"volume_id": volume, "snapshot_id": snapshot}}


def _restore(own: str, volume: str, _snapshot: str) -> Call:
    return f"/backups/{own}/restore", {"restore": {"volume_id": volume}}


def _snapshot(_own: str, volume: str, _snapshot: str) -> Call:
    return "/snapshots", {"snapshot": {"volume_id": volume}}


def _clone(_own: str, volume: str, _snapshot: str) -> Call:
    return "/volumes", {"volume": {"source_volid": volume, "size": 1}}


def _volume_of_snapshot(_own: str, _volume: str, snapshot: str) -> Call:
    return "/volumes", {"volume": {"snapshot_id": snapshot, "size": 1}}


@pytest.mark.parametrize(
    "call", [_backup, _backup_of_snapshot, _restore, _snapshot, _clone, _volume_of_snapshot]
)
def test_what_a_body_names(cloud: Cloud, auditor: Client, call: Callable[..., Call]) -> None:
    own = cloud.backup(cloud.volume())
    volume = cloud.volume("other")
    snapshot = cloud.snapshot(volume, "other")
    assert volume in str(auditor.get("/volumes?all_tenants=1").json)
    path, body = call(own, volume, snapshot)
    auditor.call("POST", path, body, 403)
    # To an administrator, the same is allowed.
    cloud.client(roles="admin").call("POST", path, body, 202)
