"""The description of the API: it is valid, it is what docs/ keeps, and the server behaves as it says."""

from __future__ import annotations

import abc
import copy
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from webtest import TestApp

from backupfw.api import openapi, versions
from backupfw.api.app import make_app
from backupfw.api.controllers.root import ROUTES
from backupfw.cmd.reference import openapi as documents
from backupfw.db import models
from tests.architecture.checkout import ROOT
from tests.functional.cloud import NOBODY, Cloud
from tests.integration.service import Service

KEPT = ROOT / "docs" / "openapi"
DESCRIPTIONS: dict[str, Any] = {name: json.loads(text) for name, text in documents().items()}
OPERATIONS = [
    (name, path, method)
    for name, description in DESCRIPTIONS.items()
    for path, operations in description["paths"].items()
    for method in operations
]


def no_body_that_is_not_described(_context: Any, response: Any, case: Any) -> None:
    """Refuse a body where the description has none."""
    if response.status_code < 400:
        described = case.operation.definition.raw["responses"][str(response.status_code)]
        assert "content" in described or not response.content


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    no_body_that_is_not_described,
]

schemathesis.openapi.format("backup_status", st.sampled_from(["available", "ERROR", "Available", "none"]))
schemathesis.openapi.format("base64", st.sampled_from(["e30=", "eyJpZCI6IDF9", "W10=", "AAAA", "!"]))
schemathesis.openapi.format("printable", st.text(max_size=300))


@pytest.mark.parametrize("name", sorted(DESCRIPTIONS))
def test_the_kept_description_is_up_to_date(name: str) -> None:
    assert (KEPT / name).read_text() == documents()[name], "run 'make openapi'"


def test_it_is_served_to_everybody(shared: Cloud) -> None:
    for prefix, header in (("v2", None), ("v3", "volume 3.71"), ("v3", "volume latest")):
        headers = {} if header is None else {"OpenStack-API-Version": header}
        served = shared.app.get(f"/{prefix}/openapi.json", headers=headers)
        kept = DESCRIPTIONS[f"{prefix}.json"]
        assert served.content_type == "application/json"
        assert served.json == {**kept, "servers": [{"url": "http://localhost"}]}
    # Each version has its own.
    oldest = shared.app.get("/v3/openapi.json").json
    assert oldest["info"]["version"] == "3.0"
    assert "put" not in oldest["paths"]["/v3/{project_id}/backups/{backup_id}"]
    for method in ("post", "put", "delete"):
        assert getattr(shared.app, method)("/v3/openapi.json", status=404).json["itemNotFound"]


def test_it_is_made_once_and_sent_once(shared: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    app = TestApp(make_app(shared.managers, shared.conf))
    made: list[tuple[str, str]] = []

    describe = openapi.describe

    def noted(routes: Any, prefix: str, version: Any, base: str) -> Any:
        made.append((prefix, str(version)))
        return describe(routes, prefix, version, base)

    monkeypatch.setattr(openapi, "describe", noted)
    first = app.get("/v3/openapi.json")
    tag = first.headers["ETag"]
    assert first.headers["Cache-Control"] == "no-cache"
    assert first.headers.getall("Vary") == ["OpenStack-API-Version"]
    again = app.get("/v3/openapi.json", headers={"If-None-Match": tag}, status=304)
    assert (again.body, again.headers["ETag"]) == (b"", tag)
    assert "Content-Type" not in again.headers
    assert app.get("/v3/openapi.json", headers={"If-None-Match": '"other"'}).body == first.body
    head = app.head("/v3/openapi.json")
    assert (head.body, head.headers["ETag"], head.content_length) == (b"", tag, len(first.body))
    # Another version, and another address, are another description.
    newest = app.get("/v3/openapi.json", headers={"OpenStack-API-Version": "volume latest"})
    elsewhere = app.get("/v3/openapi.json", headers={"Host": 'a"b\\.example.org'})
    assert elsewhere.json == {**first.json, "servers": [{"url": 'http://a"b\\.example.org'}]}
    assert len({tag, newest.headers["ETag"], elsewhere.headers["ETag"]}) == 3
    assert made == [("v3", "3.0"), ("v3", "3.71")]


def test_every_call_is_described_once() -> None:
    for description in DESCRIPTIONS.values():
        ids = [each["operationId"] for path in description["paths"].values() for each in path.values()]
        assert len(ids) == len(set(ids))
        assert all(each["summary"] for path in description["paths"].values() for each in path.values())


def test_every_answer_is_described_in_full() -> None:
    """What has no body says so in the code: its handler returns nothing."""
    for prefix, served in versions.SERVED.items():
        description = copy.deepcopy(DESCRIPTIONS[f"{prefix}.json"])
        headers = {"X-OpenStack-Request-ID", "X-Compute-Request-ID"}
        if served.has_microversions:
            headers |= {"OpenStack-API-Version", "Vary"}
        for route in ROUTES:
            if not route.serves(served.highest):
                continue
            operation = description["paths"][f"/{prefix}/{{project_id}}{route.template}"][
                route.method.lower()
            ]
            handlers = [(each.status, each.function) for each in [*route.actions.values()] or [route]]
            for status in {status for status, _ in handlers}:
                silent = {
                    inspect.signature(handler).return_annotation == "None"
                    for each, handler in handlers
                    if each == status
                }
                done = operation["responses"].pop(str(status))
                assert {"content" not in done} == silent, operation
                assert set(done["headers"]) == headers
            for status, answer in operation["responses"].items():
                assert answer == {"$ref": f"#/components/responses/{status}"}
        for status, answer in description["components"]["responses"].items():
            assert set(answer["headers"]) == headers | ({"Retry-After"} if status == "413" else set())
            assert answer["content"]


class World(abc.ABC):
    """An installation with something in it, and its descriptions."""

    def __init__(self) -> None:
        self.volume = self.snapshot = self.backup = NOBODY
        self.schemas = {name: self.read(name) for name in DESCRIPTIONS}

    @abc.abstractmethod
    def read(self, name: str) -> Any:
        """Let schemathesis read a description."""

    @abc.abstractmethod
    def refresh(self) -> None:
        """Have one of each, whatever the calls before did to theirs."""

    def send(self, case: Any, role: str) -> Any:
        """Send a request."""
        return case.call(headers={"X-Auth-Token": f"us:demo:{role}"})

    def aim(self, case: Any, word: str) -> None:
        """Put what there is in place of what was drawn, so that most calls find something."""
        for inner in case.body.values() if isinstance(case.body, dict) and word == "known" else ():
            if isinstance(inner, dict) and inner.get("volume_id"):
                inner["volume_id"] = self.volume
        named = {
            "project_id": "demo",
            "backup_id": self.backup,
            "volume_id": self.volume,
            "snapshot_id": self.snapshot,
            "id": self.volume if "/volumes/" in case.path else self.snapshot,
            "target": "demo",
        }
        for name in case.path_parameters or {}:
            if name == "project_id" or word == "known":
                case.path_parameters[name] = named.get(name, case.path_parameters[name])
            elif word == "nobody":
                case.path_parameters[name] = NOBODY

    def behaves(self, name: str, path: str, method: str, examples: int) -> None:
        """Call one operation with what its description allows, and hold each answer against it."""
        self.refresh()
        operation = self.schemas[name][path][method]

        @settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            case=operation.as_strategy(),
            word=st.sampled_from(["known", "known", "nobody", "drawn"]),
            role=st.sampled_from(["admin", "admin", "member", "reader"]),
        )
        def calls(case: Any, word: str, role: str) -> None:
            self.aim(case, word)
            case.validate_response(self.send(case, role), checks=CHECKS)

        calls()


def headers_for(name: str) -> dict[str, str]:
    """Return what chooses the version that a kept description describes."""
    return {} if name == "v2.json" else {"OpenStack-API-Version": "volume latest"}


#: No limit but the one that keeps disks small.
ROOM = {**dict.fromkeys(("volumes", "backups", "snapshots", "gigabytes"), -1), "per_volume_gigabytes": 2}


class InProcess(World):
    """The application alone; nothing is ever done but what :class:`Cloud` does by hand."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        cloud.start_worker()
        self.app = make_app(cloud.managers, cloud.conf)
        super().__init__()

    def read(self, name: str) -> Any:
        path = f"/{name.removesuffix('.json')}/openapi.json"
        return schemathesis.openapi.from_wsgi(path, self.app, headers=headers_for(name))

    def refresh(self) -> None:
        self.cloud.settle()
        kept = ((models.Volume, self.volume), (models.Snapshot, self.snapshot), (models.Backup, self.backup))
        with self.cloud.db.read() as session:
            rows = [session.get(model, made) for model, made in kept]
        if all(row is not None and not row.deleted and row.status == "available" for row in rows):
            return
        self.cloud.client(roles="admin").put("/os-quota-sets/demo", {"quota_set": ROOM})
        self.volume = self.cloud.volume()
        self.snapshot = self.cloud.snapshot(self.volume)
        self.backup = self.cloud.backup(self.volume)


class Served(World):
    """``backupfw serve`` as a process, with a worker that does what is asked for."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.client = service.client()
        self.session = requests.Session()
        super().__init__()

    def read(self, name: str) -> Any:
        url = f"http://127.0.0.1:{self.service.port}/{name.removesuffix('.json')}/openapi.json"
        return schemathesis.openapi.from_url(url, headers=headers_for(name))

    def send(self, case: Any, role: str) -> Any:
        return case.call(session=self.session, headers={"X-Auth-Token": f"us:demo:{role}"})

    def refresh(self) -> None:
        self.client.expect(200, "PUT", "/os-quota-sets/demo", {"quota_set": ROOM})
        if self.client.status("volume", self.volume) != "available":
            self.volume = self.client.create_volume()
        if self.client.status("snapshot", self.snapshot) != "available":
            body = {"snapshot": {"volume_id": self.volume}}
            self.snapshot = self.client.expect(202, "POST", "/snapshots", body)["snapshot"]["id"]
            self.client.wait_status("snapshot", self.snapshot, "available")
        if self.client.status("backup", self.backup) != "available":
            self.backup = self.client.backup(self.volume)


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory, templates: Path) -> Iterator[World]:
    cloud = Cloud(tmp_path_factory.mktemp("openapi"), templates)
    yield InProcess(cloud)
    cloud.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    service = Service(tmp_path_factory.mktemp("served") / "state").start()
    try:
        yield Served(service)
        assert service.stop() == 0
        assert "Unexpected error" not in service.log_tail(10**6)
    finally:
        service.stop()


EVERY_OPERATION = pytest.mark.parametrize(
    ("name", "path", "method"), OPERATIONS, ids=[f"{method} {path}" for _, path, method in OPERATIONS]
)


@EVERY_OPERATION
def test_the_api_behaves_as_it_is_described(in_process: World, name: str, path: str, method: str) -> None:
    # The older version is answered by the same code.
    in_process.behaves(name, path, method, examples=2 if name == "v2.json" else 5)


@pytest.mark.check
@EVERY_OPERATION
def test_the_served_api_behaves_as_it_is_described(served: World, name: str, path: str, method: str) -> None:
    served.behaves(name, path, method, examples=3)
