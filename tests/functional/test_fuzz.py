"""Whatever is sent, nothing answers with a 5xx, and every answer has the frame of an answer."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from backupfw.api import bodies as api_bodies
from backupfw.api.controllers.root import ROUTES
from backupfw.api.errors import RequestError
from backupfw.api.resource import Route
from backupfw.api.versions import V3_HIGHEST
from backupfw.db import models
from tests.functional.cloud import NOBODY, Cloud, check_frame, record

QUIET = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NASTY = [
    "",
    " ",
    "\0",
    "\n",
    "ä",
    "\U0001f600",
    "\ud800",
    "..",
    "%",
    "%00",
    "'",
    '"; DROP TABLE backups; --',
    "a" * 300,
    "9" * 400,
    "-1",
    "1e999",
    "null",
    NOBODY,
    "available",
    "demo",
]
texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=20))
scalars = st.one_of(
    texts,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([2**31, 2**63, 2**64, 10**40, -(2**63) - 1]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)

#: Bodies that are right, to be spoilt in one place.
BODIES: list[Any] = [
    {"backup": {"volume_id": NOBODY, "name": "n", "description": "d", "container": "c", "force": True}},
    {"backup": {"volume_id": NOBODY, "incremental": "yes", "snapshot_id": None}},
    {"backup": {"volume_id": NOBODY, "metadata": {"k": "v"}, "availability_zone": "nova"}},
    {"backup": {"name": "n", "description": "d", "metadata": {"k": "v"}}},
    {"restore": {"volume_id": NOBODY, "name": "n"}},
    record(display_description="x", metadata={"k": "v"}, created_at="2026-11-23T16:13:55Z", object_count=1),
    {"os-reset_status": {"status": "error"}},
    {"os-force_delete": {}},
    {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "h", "instance_uuid": NOBODY, "mode": "rw"}},
    {"os-detach": {"attachment_id": NOBODY}},
    {"os-extend": {"new_size": 2}},
    {
        "volume": {
            "size": 1,
            "name": "n",
            "metadata": {"k": "v"},
            "source_volid": NOBODY,
            "volume_type": "__DEFAULT__",
        }
    },
    {"volume": {"size": 1, "backup_id": NOBODY, "group_id": None}},
    {"snapshot": {"volume_id": NOBODY, "name": "n", "force": True, "metadata": {"k": "v"}}},
    {"metadata": {"k": "v"}},
    {"volume_type": {"name": "n", "description": "d", "extra_specs": {"k": "v"}}},
    {"extra_specs": {"k": "v"}},
    {"addProjectAccess": {"project": "demo"}},
    {"os-set_image_metadata": {"metadata": {"k": "v"}}},
    {"os-retype": {"new_type": "__DEFAULT__", "migration_policy": "never"}},
    {"meta": {"k": "v"}},
    {"quota_set": {"backups": 1, "tenant_id": "demo"}},
    {"quota_class_set": {"backups": 1}},
    {"host": "h", "binary": "cinder-backup"},
    {"host": "h", "binary": "cinder-backup", "disabled_reason": "x"},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    return found


def spoilt(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    return {**value, path[0]: spoilt(value[path[0]], path[1:], new)}


def with_ids(body: Any, real: dict[str, str]) -> Any:
    """Put ids that are there in place of the one that is not."""
    text = json.dumps(body)
    for key in ("volume_id", "snapshot_id", "backup_id"):
        text = text.replace(f'"{key}": "{NOBODY}"', f'"{key}": "{real[key]}"')
    return json.loads(text.replace(f'"source_volid": "{NOBODY}"', f'"source_volid": "{real["volume_id"]}"'))


def fits(route: Route, body: Any) -> bool:
    """Whether the body is right for the route."""
    takes = route.takes
    if route.actions:
        (name, *_) = body
        takes = route.actions[name].takes if name in route.actions else None
    if takes is None:
        return False
    try:
        api_bodies.validate(body, takes(V3_HIGHEST))
    except RequestError:
        return False
    return True


@st.composite
def bodies(draw: st.DrawFn, route: Route, real: dict[str, str]) -> Any:
    """Draw a body: mostly one that is right for the route, half of the time spoilt in one place."""
    right: list[Any] = [body for body in BODIES if fits(route, body)]
    stray: int = draw(st.integers(0, 4))
    body: Any = draw(st.sampled_from(right if right and stray else BODIES))
    if draw(st.integers(0, 3)):
        body = with_ids(body, real)
    if draw(st.booleans()):
        return body
    return spoilt(body, draw(st.sampled_from(places(body))), draw(values))


def send(cloud: Cloud, method: str, path: str, raw: bytes, headers: dict[str, str]) -> None:
    answer = cloud.app.request(path, method=method, body=raw, headers=headers, expect_errors=True)
    check_frame(answer, method)
    assert answer.status_int < 500 or answer.status_int == 503, (method, path, raw, answer.text)


#: Where calls go, and the microversion header with them; mostly to the version that has all of them.
VERSIONS = [
    *(("/v3/demo", "volume latest"), ("/v3", "volume latest"), ("/v3/demo", "compute 2.1,volume 3.71")),
    *(("/v2/demo", ""), ("/v3/demo", "volume 3.0"), ("/v3", "volume 3.43"), ("/v3/demo", "volume 3.72")),
]


def aimed(draw: Any, token: str) -> tuple[str, dict[str, str]]:
    """Draw where a call goes; return what stands before its path, and its headers."""
    prefix, version = draw(st.sampled_from(VERSIONS))
    headers = {"Content-Type": "application/json", "X-Auth-Token": token}
    if version:
        headers["OpenStack-API-Version"] = version
    return prefix, headers


def encoded(text: str) -> str:
    return urllib.parse.quote(text.encode("utf-8", "surrogatepass"), safe="")


@pytest.fixture(scope="module")
def real(shared: Cloud) -> dict[str, str]:
    """Ids that are there, by the name of the path's part."""
    for limit in ("volumes", "gigabytes", "snapshots", "backups", "backup_gigabytes"):
        shared.conf.set_override(limit, -1, "quota")
    shared.start_worker()
    volume = shared.volume(size=1)
    return {
        "volume_id": volume,
        "snapshot_id": shared.snapshot(volume),
        "backup_id": shared.backup(volume),
        "target": "another",
        "name": "another",
        "type_id": "default",
        "alias": "backups",
    }


def revive(cloud: Cloud, real: dict[str, str]) -> None:
    """Make what an earlier example used up available again."""
    rows = ((models.Volume, "volume_id"), (models.Snapshot, "snapshot_id"), (models.Backup, "backup_id"))
    with cloud.db.write() as session:
        session.execute(delete(models.Task))
        session.execute(delete(models.Attachment))
        for model, key in rows:
            session.execute(
                update(model).where(model.id == real[key]).values(status="available", deleted=False)
            )


@QUIET
@given(data=st.data())
def test_any_body_to_any_route(shared: Cloud, real: dict[str, str], data: st.DataObject) -> None:
    revive(shared, real)
    route = data.draw(st.sampled_from(ROUTES))
    path = route.template
    for part in [piece[1:-1] for piece in path.split("/") if piece.startswith("{")]:
        there = real.get(part, "k")
        text = data.draw(st.one_of(st.just(there), st.just(there), st.just(there), texts))
        path = path.replace("{" + part + "}", encoded(text))
    body = data.draw(bodies(route, real))
    try:
        raw = json.dumps(body).encode()
    except ValueError:
        raw = b"{"
    query = urllib.parse.urlencode(
        data.draw(st.dictionaries(st.sampled_from(["usage", "cascade", "limit", "x"]), texts, max_size=1)),
        errors="surrogatepass",
    )
    roles = data.draw(st.sampled_from(["admin", "admin", "member", "reader"]))
    prefix, headers = aimed(data.draw, f"alice:demo:{roles}")
    send(shared, route.method, f"{prefix}{path}?{query}", raw, headers)


@QUIET
@given(data=st.data())
def test_any_query_to_any_listing(shared: Cloud, real: dict[str, str], data: st.DataObject) -> None:
    names = [
        *("limit", "marker", "offset", "sort", "sort_key", "sort_dir", "all_tenants", "with_count"),
        *("name", "status", "volume_id", "metadata", "bootable", "size", "created_at", "deleted", "location"),
        *(
            "project_id",
            "is_incremental",
            "completed",
            "length",
            "~",
            "name~",
            "id",
            "manifest_id",
            "__class__",
        ),
    ]
    chosen = st.one_of(
        texts, st.sampled_from([*names, "created_at:asc,id:desc", "1", "0", "true", *real.values()])
    )
    pairs = data.draw(st.lists(st.tuples(st.one_of(st.sampled_from(names), texts), chosen), max_size=4))
    collection = data.draw(
        st.sampled_from(["backups", "volumes", "snapshots", "backups/detail", "volumes/detail"])
        | st.sampled_from(["snapshots/detail", "volumes/summary", "messages"])
    )
    query = "&".join(f"{encoded(key)}={encoded(value)}" for key, value in pairs)
    roles = data.draw(st.sampled_from(["admin", "member"]))
    prefix, headers = aimed(data.draw, f"a:demo:{roles}")
    send(shared, "GET", f"{prefix}/{collection}?{query}", b"", headers)


@QUIET
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"]),
    parts=st.lists(
        st.one_of(texts, st.sampled_from(["v2", "v3", "demo", "backups", "detail", "action"])), max_size=5
    ),
    raw=st.binary(max_size=40),
    content_type=st.sampled_from(
        ["application/json", "text/plain", "", "multipart/form-data", ";", "x/y; z"]
    ),
    token=st.one_of(
        st.sampled_from(["", ":", "a:demo", "a:demo:admin", "::::", "a:demo:,,"]),
        st.text("ab:,\xe4", max_size=9),
    ),
)
def test_no_request_to_any_path_ends_in_500(
    shared: Cloud, method: str, parts: list[str], raw: bytes, content_type: str, token: str
) -> None:
    path = "/" + "/".join(encoded(part) for part in parts)
    headers = {"Content-Type": content_type, "X-Auth-Token": token}
    send(shared, method, path, raw, headers)


@QUIET
@given(raw=st.binary(max_size=60), query=st.binary(max_size=30), path=st.binary(max_size=20))
def test_no_bytes_of_a_request_end_in_500(shared: Cloud, raw: bytes, query: bytes, path: bytes) -> None:
    environ = {
        "QUERY_STRING": query.decode("latin-1"),
        "PATH_INFO": "/v2/demo/backups/" + path.decode("latin-1"),
        "CONTENT_TYPE": "application/json",
    }
    for method in ("GET", "POST", "DELETE"):
        answer = shared.app.request("/", method=method, body=raw, environ=dict(environ), expect_errors=True)
        check_frame(answer, method)
        assert answer.status_int < 500
