"""What stands before the API: proxies' headers, health, CORS, request ids, the body limit."""

from __future__ import annotations

import argparse
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from webtest import TestApp

from backupfw.api.app import check, make_app
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


def test_a_request_is_one_line_of_the_log_whatever_its_path(
    served: Callable[..., TestApp], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        served().get("/v3/demo/backups/%0Aforged%20line%00%C3%A4", status=404)
    lines = [record.getMessage() for record in caplog.records if record.name == "backupfw.api.pipeline"]
    assert lines == ["GET /v3/demo/backups/%0Aforged%20line%00%C3%A4"]


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


def test_browsers_of_other_sites_learn_nothing(served: Callable[..., TestApp]) -> None:
    answer = served().get("/v3/demo/backups", headers={"Origin": ORIGIN})
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize(
    "origin",
    [
        "horizon.example.org",
        "https://horizon.example.org/",
        "https://Horizon.example.org",
        "https://horizon.example.org/dashboard",
        "https://horizon.example.org:port",
        "https://",
    ],
)
def test_a_site_that_no_browser_says_it_is(served: Callable[..., TestApp], origin: str) -> None:
    with pytest.raises(ConfigError, match=r"^section \[cors\], option allowed_origin: '.*' is not what"):
        served("cors", allowed_origin=[ORIGIN, origin])


@pytest.mark.parametrize("origin", ["http://localhost:8080", "https://[::1]:80", "moz-extension://0a-1", "*"])
def test_sites_that_browsers_say_they_are(served: Callable[..., TestApp], origin: str) -> None:
    served("cors", allowed_origin=[origin])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("allow_credentials = maybe", "allow_credentials"),
        ("max_age = long", "max_age"),
        ("allowed_origins = https://horizon.example.org", "allowed_origins"),
        ("allowed_origin = horizon.example.org", "allowed_origin"),
    ],
)
def test_what_is_wrong_in_the_files_cors_section(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "backupfw.conf"
    path.write_text(f"[cors]\n{line}\n")
    args = argparse.Namespace(state_dir=str(tmp_path / "state"), config_file=[str(path)], debug=False)
    with pytest.raises(ConfigError, match=rf"section \[cors\], option {said}:"):
        check(configure.load(args).conf)


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
    outsider = app.get("/v3/demo/backups", headers={"Origin": "https://evil.example.org"})
    assert "Access-Control-Allow-Origin" not in outsider.headers


def behind_proxies(served: Callable[..., TestApp]) -> TestApp:
    """Make the application where proxies are believed; only one address may ask for its health."""
    return served(
        "healthcheck", {"enable_proxy_headers_parsing": True}, allowed_source_ranges=["192.0.2.7/32"]
    )


def base_of(app: TestApp, sent: dict[str, str], **environ: str) -> str:
    """Return what links begin with."""
    answer = app.get("/v3", headers=sent, extra_environ=environ)
    href: str = answer.json["versions"][0]["links"][0]["href"]
    return href.removesuffix("/v3/")


@pytest.mark.parametrize(
    ("sent", "base", "is_the_client"),
    [
        ({"Forwarded": "for=192.0.2.7;proto=https;host=front"}, "https://front", True),
        ({"Forwarded": 'for="192.0.2.7:4711";host="front:99"'}, "http://front:99", True),
        ({"Forwarded": 'for=192.0.2.7;host=front, for="[2001:db8::1]";host=inner'}, "http://front", True),
        ({"Forwarded": 'for="[2001:db8::1]:4711"'}, "http://localhost", False),
        ({"Forwarded": "for=unknown"}, "http://localhost", False),
        (
            {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "front", "X-Forwarded-For": "192.0.2.7"},
            "https://front",
            True,
        ),
        (
            {"X-Forwarded-Proto": "https, http", "X-Forwarded-Host": "front, inner"},
            "https://front",
            False,
        ),
        ({"X-Forwarded-For": "192.0.2.7, 2001:db8::1"}, "http://localhost", True),
        ({"X-Forwarded-For": "\u00e4"}, "http://localhost", False),
        ({"X-Forwarded-Port": "99", "X-Forwarded-Host": "front"}, "http://front:99", False),
        ({"X-Forwarded-Port": "99", "X-Forwarded-Host": "[::1]"}, "http://[::1]:99", False),
        ({"X-Forwarded-Port": "99", "X-Forwarded-Host": "front:98"}, "http://front:98", False),
        ({"X-Forwarded-Prefix": "/volume"}, "http://localhost/volume", False),
        ({"X-Forwarded-Prefix": "volume/"}, "http://localhost/volume", False),
        ({"X-Forwarded-Prefix": "/outer, /inner/"}, "http://localhost/outer/inner", False),
        ({"X-Forwarded-Prefix": " , /"}, "http://localhost", False),
    ],
)
def test_headers_of_proxies_count_where_there_are_any(
    served: Callable[..., TestApp], sent: dict[str, str], base: str, is_the_client: bool
) -> None:
    assert base_of(served(), sent) == "http://localhost"
    behind = behind_proxies(served)
    assert base_of(behind, sent) == base
    # What is asked further in sees the client, not the proxy.
    status = 200 if is_the_client else 404
    behind.get("/healthcheck", headers=sent, extra_environ={"REMOTE_ADDR": "127.0.0.1"}, status=status)


def test_a_prefix_stands_before_the_mount_point(served: Callable[..., TestApp]) -> None:
    sent = {"X-Forwarded-Prefix": "/front"}
    assert base_of(behind_proxies(served), sent, SCRIPT_NAME="/volume") == "http://localhost/front/volume"


def test_a_server_that_does_not_say_where_it_mounts(cloud: Cloud) -> None:
    app = make_app(cloud.managers, configuration(enable_proxy_headers_parsing=True))
    for sent, base in (({}, ""), ({"HTTP_X_FORWARDED_PREFIX": "/volume"}, "/volume")):
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        # It may be left out where it is empty.
        del environ["SCRIPT_NAME"]
        said: list[str] = []
        body = b"".join(app({**environ, **sent}, lambda status, _headers, seen=said: seen.append(status)))
        assert said == ["300 Multiple Choices"]
        href = json.loads(body)["versions"][1]["links"][0]["href"]
        assert href == f"http://127.0.0.1{base}/v3/"


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


def test_a_process_that_can_be_given_no_work_is_not_healthy(cloud: Cloud) -> None:
    good = [True]
    app = TestApp(make_app(cloud.managers, configuration(), healthy=lambda: good[0]))
    app.get("/healthcheck", status=200)
    good[0] = False
    app.get("/healthcheck", status=503)
    app.get("/", status=300)
