"""Users' texts: those of bodies, queries, filters and headers are judged by one rule."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event

from backupfw.api.controllers.root import ROUTES
from backupfw.api.request import SchemaOf
from backupfw.api.versions import SERVED
from tests.functional.cloud import Cloud, check_frame, message

#: Method, path, headers as WSGI has them, and body of a request.
Sent = tuple[str, str, dict[str, str], bytes]
TOKEN = {"X-Auth-Token": "user:demo:member"}


def wire(text: str) -> str:
    """A text's bytes as they stand in a WSGI environment; half of a surrogate pair as some encode it."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def in_body(text: str) -> Sent:
    return "POST", "/v3/demo/backups", TOKEN, json.dumps({"backup": {"name": text}}).encode()


def in_body_unescaped(text: str) -> Sent:
    raw = json.dumps({"backup": {"name": text}}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return "POST", "/v3/demo/backups", TOKEN, raw


def in_key(text: str) -> Sent:
    body = json.dumps({"backup": {"metadata": {text: "x"}}}).encode()
    return "POST", "/v3/demo/backups", {**TOKEN, "OpenStack-API-Version": "volume 3.43"}, body


def in_query(text: str) -> Sent:
    quoted = urllib.parse.quote(text, errors="surrogatepass")
    return "GET", f"/v3/demo/backups?name={quoted}", TOKEN, b""


def in_query_key(text: str) -> Sent:
    quoted = urllib.parse.quote(text, errors="surrogatepass")
    return "GET", f"/v3/demo/backups?{quoted}=x", TOKEN, b""


def in_filter(text: str) -> Sent:
    quoted = urllib.parse.quote(f"{{'tier': {text!a}}}")
    return "GET", f"/v3/demo/volumes?metadata={quoted}", TOKEN, b""


def in_version(text: str) -> Sent:
    return "GET", "/v3/demo/backups", {**TOKEN, "OpenStack-API-Version": wire(f"volume {text}")}, b""


def in_token(text: str) -> Sent:
    return "GET", "/v3/demo/backups", {"X-Auth-Token": wire(f"{text}:demo:member")}, b""


KINDS: list[tuple[Callable[[str], Sent], int]] = [
    (in_body, 400),
    (in_body_unescaped, 400),
    (in_key, 400),
    (in_query, 400),
    (in_query_key, 400),
    (in_filter, 400),
    (in_version, 400),
    (in_token, 401),
]
TEXTS = {
    "half of a surrogate pair": ("a\ud800b", "it is not Unicode"),
    "NUL": ("a\0b", "it holds a NUL"),
    "escape": ("a\x1b[2Jb", "it holds control characters"),
    "backspace": ("a\bb", "it holds control characters"),
    "delete": ("a\x7fb", "it holds control characters"),
    "C1": ("a\x9bb", "it holds control characters"),
    "overlong": ("a" * 5000, "long"),
}
#: What a kind says otherwise, because its reader never gets as far as to the text.
OTHERWISE = {
    (in_body_unescaped, "half of a surrogate pair"): "Malformed request body",
    (in_query, "half of a surrogate pair"): "Malformed query string",
    (in_query_key, "half of a surrogate pair"): "Malformed query string",
    # The value that is shown first takes all the room of the message.
    (in_body, "overlong"): "Invalid input for field/attribute name",
    (in_body_unescaped, "overlong"): "Invalid input for field/attribute name",
    (in_key, "overlong"): "Invalid input for field/attribute metadata",
}


@pytest.mark.parametrize("what", TEXTS)
@pytest.mark.parametrize(("kind", "status"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_bad_text_is_refused_wherever_it_stands(
    shared: Cloud, kind: Callable[[str], Sent], status: int, what: str
) -> None:
    text, problem = TEXTS[what]
    method, path, headers, body = kind(text)
    answer = shared.app.request(
        path,
        method=method,
        body=body,
        headers={**headers, **({"Content-Type": "application/json"} if body else {})},
        expect_errors=True,
    )
    check_frame(answer)
    assert answer.status_int == status, answer.text
    assert OTHERWISE.get((kind, what), problem) in message(answer)


@pytest.mark.parametrize("text", ["a\tb", "two\nlines", "\U0001f600", "a\u2028b", "ä"])
def test_any_other_text_is_stored_and_found(cloud: Cloud, text: str) -> None:
    member = cloud.client()
    made = member.post("/backups", {"backup": {"volume_id": cloud.volume(), "name": text}})
    found = member.get(f"/backups?name={urllib.parse.quote(text)}").json["backups"]
    assert [each["id"] for each in found] == [made.json["backup"]["id"]]
    assert found[0]["name"] == text


@pytest.mark.parametrize("text", ["a\0b", "a" * 300])
def test_no_part_of_a_path_reaches_the_database_that_no_column_holds(shared: Cloud, text: str) -> None:
    asked: set[Any] = set()

    def note(_conn: Any, _cursor: Any, _statement: str, values: Any, _context: Any, _many: bool) -> None:
        asked.update(values.values() if isinstance(values, dict) else values)

    routes = [route for route in ROUTES if "{" in route.template and not route.takes_body]
    assert len(routes) > 20
    admin = shared.client(roles="admin").at("latest")
    event.listen(shared.db.engine, "before_cursor_execute", note)
    try:
        for route in routes:
            path = re.sub(r"\{.*?\}", urllib.parse.quote(text), route.template)
            assert 400 <= admin.call(route.method, path).status_int < 500, path
            assert text not in asked, path
    finally:
        event.remove(shared.db.engine, "before_cursor_execute", note)


def unlimited(schema: Any, place: str = "") -> list[str]:
    """The texts of a schema that may be of any length."""
    if not isinstance(schema, dict):
        return []
    kinds = schema.get("type", [])
    bounded = {"maxLength", "enum", "pattern", "format"} & set(schema)
    found = [place] if "string" in kinds and not bounded else []
    for part in ("properties", "patternProperties"):
        for name, inner in schema.get(part, {}).items():
            found += unlimited(inner, f"{place}.{name}")
    for part in ("anyOf", "oneOf", "allOf"):
        for inner in schema.get(part, ()):
            found += unlimited(inner, place)
    return found + unlimited(schema.get("items"), f"{place}[]")


def test_every_text_of_a_body_has_a_limit() -> None:
    bodies: list[tuple[str, SchemaOf]] = []
    for route in ROUTES:
        taken = [route.takes, *(action.takes for action in route.actions.values())]
        bodies += [(f"{route.method} {route.template}", takes) for takes in taken if takes is not None]
    assert len(bodies) > 40
    found = {
        f"{line}: {place}"
        for line, takes in bodies
        for served in SERVED.values()
        for place in unlimited(takes(served.highest))
    }
    assert found == set()
