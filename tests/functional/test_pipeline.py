"""What stands before the API: proxies' headers, health, CORS, request ids, the body limit."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from webtest import TestApp

from backupfw.api.app import make_app
from backupfw.cmd import configure
from backupfw.errors import ConfigError
from tests.functional.cloud import Cloud, check_frame, configuration

ORIGIN = "https://horizon.example.org"
OURS = f"req-{uuid.UUID(int=1)}"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, templates: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path_factory.mktemp("pipeline"), templates)
    yield made
    made.close()


@pytest.fixture
def served(cloud: Cloud) -> Callable[..., TestApp]:
    """Makes the application with values of ``[cors]`` and ``[healthcheck]``, and others of ``[api]``."""

    def make(group: str = "", api: dict[str, Any] | None = None, **values: Any) -> TestApp:
        conf = configuration(**(api or {}))
        for name, value in values.items():
            conf.set_override(name, value, group)
        return TestApp(make_app(cloud.managers, conf))

    return make


def test_every_answer_has_its_own_id(served: Callable[..., TestApp]) -> None:
    app = served()
    seen = set()
    for path, status in (("/", 300), ("/v3/demo/backups", 200), ("/nowhere", 404), ("/v2/a/b?x=%00", 404)):
        answer = app.get(path, status=status)
        check_frame(answer)
        seen.add(answer.headers["x-openstack-request-id"])
    too_long = app.post("/v3/demo/backups", b"x" * (2 << 20), status=413, headers={"Content-Type": "text/x"})
    check_frame(too_long)
    seen.add(too_long.headers["x-openstack-request-id"])
    assert len(seen) == 5


@pytest.mark.parametrize(("sent", "told"), [(OURS, OURS), ("req-x", "nothing"), (OURS + "\u00e4", "nothing")])
def test_the_callers_id_is_in_the_log_but_is_not_ours(
    cloud: Cloud,
    served: Callable[..., TestApp],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    sent: str,
    told: str,
) -> None:
    def fails(*_args: Any, **_values: Any) -> None:
        raise RuntimeError("seen")

    monkeypatch.setattr(cloud.managers.backups, "list", fails)
    answer = served().get("/v3/demo/backups", headers={"X-OpenStack-Request-ID": sent}, status=500)
    check_frame(answer)
    own = answer.headers["x-openstack-request-id"]
    assert own != sent
    assert f"while answering {own}, part of {told} " in caplog.text


def test_health_needs_no_token_and_has_no_version(served: Callable[..., TestApp]) -> None:
    app = served()
    answer = app.get("/healthcheck", headers={"Accept": "application/json"})
    assert answer.json == {"detailed": False, "reasons": []}
    assert app.get("/healthcheck").content_type == "text/plain"
    assert app.head("/healthcheck", status=204).body == b""


def test_health_can_be_switched_off_by_a_file(served: Callable[..., TestApp], tmp_path: Path) -> None:
    path = tmp_path / "off"
    app = served("healthcheck", backends=["disable_by_file"], disable_by_file_path=str(path))
    app.get("/healthcheck", status=200)
    path.touch()
    app.get("/healthcheck", status=503)


def test_health_is_not_there_for_those_who_may_not_ask(served: Callable[..., TestApp]) -> None:
    app = served("healthcheck", allowed_source_ranges=["192.0.2.0/24"])
    check_frame(app.get("/healthcheck", extra_environ={"REMOTE_ADDR": "127.0.0.1"}, status=404))
    app.get("/healthcheck", extra_environ={"REMOTE_ADDR": "192.0.2.7"}, status=200)
    with pytest.raises(ConfigError, match=r"section \[healthcheck\]: 'here' does not appear to be"):
        served("healthcheck", allowed_source_ranges=["here"])


def test_browsers_of_other_sites_are_told_nothing(served: Callable[..., TestApp]) -> None:
    answer = served().get("/v3/demo/backups", headers={"Origin": ORIGIN})
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


def test_browsers_of_a_site_that_is_allowed(served: Callable[..., TestApp]) -> None:
    app = served("cors", allowed_origin=[ORIGIN])
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "X-Auth-Token, OpenStack-API-Version",
    }
    before = app.options("/v3/demo/backups", headers=asked, status=200)
    assert before.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert before.headers["Access-Control-Allow-Methods"] == "PUT"
    # Also what is refused, and what is told beside the body.
    refused = app.get("/v3/demo/backups?limit=x", headers={"Origin": ORIGIN}, status=400)
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "OpenStack-API-Version" in refused.headers["Access-Control-Expose-Headers"]
    check_frame(refused)
    stranger = app.get("/v3/demo/backups", headers={"Origin": "https://evil.example.org"})
    assert "Access-Control-Allow-Origin" not in stranger.headers


@pytest.mark.parametrize(
    "sent",
    [
        {"Forwarded": "for=192.0.2.7;proto=https;host=front"},
        {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "front", "X-Forwarded-For": "192.0.2.7"},
    ],
    ids=["forwarded", "x-forwarded"],
)
def test_headers_of_a_proxy_count_where_there_is_one(
    served: Callable[..., TestApp], sent: dict[str, str]
) -> None:
    def links(app: TestApp) -> str:
        answer = app.get("/v3", headers=sent)
        href: str = answer.json["versions"][0]["links"][0]["href"]
        return href

    assert links(served()) == "http://localhost/v3/"
    behind = served(
        "healthcheck", {"enable_proxy_headers_parsing": True}, allowed_source_ranges=["192.0.2.0/24"]
    )
    assert links(behind) == "https://front/v3/"
    # What is asked further in sees the client, not the proxy.
    behind.get("/healthcheck", headers=sent, extra_environ={"REMOTE_ADDR": "127.0.0.1"}, status=200)


KEYSTONE = """
[api]
auth_strategy = keystone
[cors]
allowed_origin = https://horizon.example.org
[keystone_authtoken]
auth_type = password
auth_url = http://127.0.0.1:9/v3
username = us
password = secret
http_request_max_retries = 0
"""


def test_layers_around_an_identity_service_that_does_not_answer(cloud: Cloud, tmp_path: Path) -> None:
    path = tmp_path / "backupfw.conf"
    path.write_text(KEYSTONE)
    args = argparse.Namespace(state_dir=str(tmp_path / "state"), config_file=[str(path)], debug=False)
    app = TestApp(make_app(cloud.managers, configure.load(args).conf))
    check_frame(app.get("/", status=300))
    assert app.get("/v3/openapi.json").json["openapi"]
    assert app.get("/healthcheck", status=200)
    # A browser asks before it has a token, and may read what a refusal says.
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    before = app.options("/v3/demo/backups", headers=asked, status=200)
    assert before.headers["Access-Control-Allow-Origin"] == ORIGIN
    refused = app.get("/v3/demo/backups", headers={"Origin": ORIGIN}, status=401)
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert refused.headers["WWW-Authenticate"] == 'Keystone uri="http://127.0.0.1:9/v3"'
    assert refused.json["error"]["code"] == 401
    unknown = app.get("/v3/demo/backups", headers={"X-Auth-Token": "t"}, status=503)
    check_frame(unknown)
    assert "identity service" in unknown.json["serviceUnavailable"]["message"]
