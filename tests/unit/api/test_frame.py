"""Links, paths, versions, identity, policy, routing: the frame around the controllers."""

from __future__ import annotations

import io
from typing import Any
from unittest.mock import MagicMock

import pytest
from pecan.routing import lookup_controller

from backupfw import errors as core_errors
from backupfw.api import enforcer, errors, faults, identity, pipeline, policies, urls, versions
from backupfw.api.identity.noauth import ANONYMOUS, NoAuth, context_of
from backupfw.api.request import Request, action, expose
from backupfw.api.resource import TEMPLATE, ActionsResource, Resource, routes
from backupfw.api.urls import Links, base_url
from backupfw.api.versions import V2, ApiVersion
from backupfw.context import RequestContext


@pytest.mark.parametrize(
    ("environ", "endpoint", "expected"),
    [
        ({"HTTP_HOST": "h:8776"}, None, "http://h:8776"),
        ({"HTTP_HOST": "h:80"}, None, "http://h"),
        ({"HTTP_HOST": "h:443", "wsgi.url_scheme": "https"}, None, "https://h"),
        ({"SERVER_NAME": "s", "SERVER_PORT": "1"}, None, "http://s:1"),
        ({"HTTP_HOST": "h", "SCRIPT_NAME": "/volume"}, None, "http://h/volume"),
        ({"HTTP_HOST": "h"}, "https://e/x/", "https://e/x"),
        ({"HTTP_HOST": "h", "HTTP_X_FORWARDED_HOST": "f"}, None, "http://h"),
    ],
)
def test_links_begin_with_the_endpoint_or_the_requests_address(
    environ: dict[str, str], endpoint: str | None, expected: str
) -> None:
    assert base_url(environ, endpoint) == expected


def test_links_quote_and_may_lack_the_project() -> None:
    assert Links("http://h", "v2", "a/ä").of("backups", "x") == [
        {"rel": "self", "href": "http://h/v2/a%2F%C3%A4/backups/x"},
        {"rel": "bookmark", "href": "http://h/a%2F%C3%A4/backups/x"},
    ]
    assert Links("http://h", "v3", None).of("backups", "x")[0]["href"] == "http://h/v3/backups/x"


def test_the_next_page_keeps_the_query_but_not_the_offset() -> None:
    links = Links("http://h", "v2", "p")
    query = [("limit", "2"), ("offset", "4"), ("marker", "old"), ("name", "ä&b")]
    assert links.next_page("backups/detail", query, "m") == [
        {"rel": "next", "href": "http://h/v2/p/backups/detail?limit=2&name=%C3%A4%26b&marker=m"}
    ]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("", (None, None, ())),
        ("/", (None, None, ())),
        ("/v2", ("v2", None, ())),
        ("/v2/", ("v2", None, ())),
        ("/v2/p", ("v2", "p", ())),
        ("/v2/p/backups/", ("v2", "p", ("backups",))),
        ("/v2/p/backups/a.json", ("v2", "p", ("backups", "a.json"))),
        ("/v2/p//backups", ("v2", "p", ("", "backups"))),
        ("/v2/ä/x".encode().decode("latin-1"), ("v2", "ä", ("x",))),
        ("/v3/", ("v3", None, ())),
        ("/v3/p/backups", ("v3", "p", ("backups",))),
        ("/v3/backups", ("v3", None, ("backups",))),
        ("/v3/backups/detail/", ("v3", None, ("backups", "detail"))),
        ("/v3/backups/backups", ("v3", None, ("backups", "backups"))),
        ("/v2/backups/backups", ("v2", "backups", ("backups",))),
        ("/v2/backups", ("v2", "backups", ())),
    ],
)
def test_a_path_is_cut_into_version_project_and_rest(raw: str, expected: tuple[Any, ...]) -> None:
    path = urls.parse({"PATH_INFO": raw}, {"backups"})
    assert (path.prefix, path.project, path.rest) == expected


@pytest.mark.parametrize("raw", ["/v1", "/v2//backups", "/backups", "/v2/\xff", "/V2/p"])
def test_a_path_of_no_served_version_is_unknown(raw: str) -> None:
    with pytest.raises(errors.UnknownRoute):
        urls.parse({"PATH_INFO": raw})


@pytest.mark.parametrize("raw", ["/v2/a\0b/backups", "/v2/" + "p" * 256 + "/backups", "/v2/a\nb/backups"])
def test_projects_that_cannot_be(raw: str) -> None:
    with pytest.raises(errors.MalformedUrl):
        urls.parse({"PATH_INFO": raw})


def test_the_document_of_version_2_has_no_microversions() -> None:
    entry, _newer = versions.document("http://h")["versions"]
    assert entry["id"] == "v2.0"
    assert entry["version"] == entry["min_version"] == ""
    assert entry["links"] == [{"rel": "self", "href": "http://h/v2/"}]
    assert versions.document("http://h", "v2")["versions"] == [entry]
    assert ApiVersion(3, 10) > ApiVersion(3, 9) > V2


@pytest.mark.parametrize(
    ("token", "user", "roles", "is_admin"),
    [
        ("", ANONYMOUS, {"member"}, False),
        ("notused", "notused", {"member"}, False),
        ("u:p", "u", {"member"}, False),
        ("u:p:", "u", {"member"}, False),
        ("u:p:reader", "u", {"reader"}, False),
        ("u:p:Admin, reader", "u", {"admin", "reader"}, True),
        (":p", ANONYMOUS, {"member"}, False),
    ],
)
def test_a_noauth_token_names_user_project_and_roles(
    token: str, user: str, roles: set[str], is_admin: bool
) -> None:
    context = context_of(token, "p", frozenset({"member"}), "req-1")
    expected = RequestContext("p", user, roles, request_id="req-1", user_token=token)
    assert vars(context) == vars(expected)
    seen: list[RequestContext] = []
    layer = NoAuth(
        lambda environ, start: seen.append(environ[identity.CONTEXT]) or [],
        ["member"],
        enforcer.defaults(),
    )
    path = urls.Path("v2", "p", ("backups",))
    layer({"HTTP_X_AUTH_TOKEN": token, urls.PATH: path, faults.REQUEST_ID: "req-1"}, None)
    expected = RequestContext("p", user, roles, request_id="req-1", user_token=token, is_admin=is_admin)
    assert list(map(vars, seen)) == [vars(expected)]


def test_the_token_names_the_project_where_the_path_has_none() -> None:
    assert context_of("u:p:reader", None, frozenset(), "req-1").project_id == "p"
    for token in ("", "u", "u:", ":"):
        with pytest.raises(errors.Unauthorized, match="names a project"):
            context_of(token, None, frozenset(), "req-1")
    with pytest.raises(errors.MalformedUrl):
        context_of("u:" + "p" * 256, None, frozenset(), "req-1")


@pytest.mark.parametrize("token", ["u:q", "u:", ":", "u:q:admin"])
def test_a_token_of_another_project(token: str) -> None:
    with pytest.raises(errors.MalformedUrl):
        context_of(token, "p", frozenset({"admin"}), "req-1")


def test_a_token_with_a_long_user() -> None:
    with pytest.raises(errors.Unauthorized):
        context_of("u" * 256 + ":p", "p", frozenset(), "req-1")


@pytest.mark.parametrize(
    ("roles", "allowed"),
    [
        ({"admin"}, {"backup:get", "backup:create", "backup:export-import"}),
        ({"member"}, {"backup:get", "backup:create"}),
        ({"reader"}, {"backup:get"}),
        ({"other"}, set()),
        (set(), set()),
    ],
)
def test_each_role_may_do_what_its_level_allows(roles: set[str], allowed: set[str]) -> None:
    context = RequestContext("p", "u", frozenset(roles), "admin" in roles)
    policy = enforcer.defaults()
    rules = ("backup:get", "backup:create", "backup:export-import")
    assert {rule for rule in rules if policy.allows(context, rule, "p")} == allowed
    others = {rule for rule in rules if policy.allows(context, rule, "another")}
    assert others == (allowed if "admin" in roles else set())


def test_a_refusal_names_its_rule() -> None:
    with pytest.raises(core_errors.Forbidden, match=r"Policy doesn't allow backup:create to be performed\."):
        policies.enforce(enforcer.defaults(), RequestContext("p", "u"), "backup:create")


class Thing(ActionsResource):
    """``/things/{thing_id}``."""

    @expose("GET")
    def show(self, req: Any, resp: Any) -> dict[str, Any]:
        return {}

    @expose("PUT", since=ApiVersion(3, 9))
    def update(self, req: Any, resp: Any) -> dict[str, Any]:
        return {}

    @action("late", takes=lambda version: {}, since=ApiVersion(3, 5))
    def late(self, req: Any, resp: Any) -> None:
        return None

    @action("other", takes=lambda version: {}, status=204)
    def other(self, req: Any, resp: Any) -> None:
        return None


class Things(Resource):
    """``/things``."""

    item = ("thing_id", Thing)

    @expose("GET", "detail")
    def detail(self, req: Any, resp: Any) -> dict[str, Any]:
        return {}


class NewThings(Things):
    """``/new-things``."""

    since = ApiVersion(3, 5)


class Tree(Resource):
    """Everything."""

    children = {"things": Things, "new-things": NewThings}


def find(method: str, parts: tuple[str, ...], version: ApiVersion) -> tuple[str, Any, str]:
    """Return what Pecan is told of a request: the method's name, its resource, the template."""
    request = Request({"REQUEST_METHOD": method})
    request.version = version
    found, rest = lookup_controller(Tree(MagicMock()), list(parts), request)
    assert rest == ()
    return found.__name__, found.__self__, request.environ[TEMPLATE]


def test_methods_come_with_versions() -> None:
    assert find("GET", ("things", "detail"), V2)[::2] == ("detail", "/things/detail")
    name, thing, template = find("GET", ("things", "x"), V2)
    assert (name, thing.parts, template) == ("show", ("x",), "/things/{thing_id}")
    assert find("HEAD", ("things", "x"), V2)[0] == "show"
    assert find("PUT", ("things", "x"), ApiVersion(3, 9))[0] == "update"
    assert find("GET", ("new-things", "x"), ApiVersion(3, 5))[0] == "show"
    for method, parts, version in [
        ("PUT", ("things", "x"), V2),
        ("PUT", ("things", "x"), ApiVersion(3, 8)),
        ("GET", ("things",), V2),
        ("GET", ("things", ""), V2),
        ("GET", ("things", "", "x"), V2),
        ("POST", ("things", "x"), V2),
        ("GET", ("new-things", "x"), ApiVersion(3, 4)),
        ("GET", (), V2),
    ]:
        with pytest.raises(errors.UnknownRoute):
            find(method, parts, version)


@pytest.mark.parametrize(
    "name", ["show", "index", "detail", "_route", "_lookup", "site", "parts", "children", "__class__", "late"]
)
def test_no_name_of_the_code_is_a_part_of_the_path(name: str) -> None:
    if name != "detail":
        assert find("GET", ("things", name), V2)[1].parts == (name,)
    for parts in [(name,), ("things", "x", name), ("things", "x", name, "show")]:
        with pytest.raises(errors.UnknownRoute):
            find("GET", parts, V2)


@pytest.mark.parametrize("body", [None, [], "x", {}, {"a": 1, "b": 2}])
def test_an_action_body_has_one_key(body: object) -> None:
    with pytest.raises(errors.MalformedBody):
        Thing.chosen(V2, body)


def test_actions_come_with_versions() -> None:
    assert Thing.chosen(ApiVersion(3, 5), {"late": None}).status == 202
    assert Thing.chosen(V2, {"other": None}).status == 204
    for name in ("late", "show"):
        with pytest.raises(errors.BadRequest, match=f"There is no such action: {name}"):
            Thing.chosen(V2, {name: None})


def test_the_walk_finds_what_is_served() -> None:
    found = {(route.method, route.template, str(route.since)) for route in routes(Tree)}
    assert found == {
        (method, f"/{path}{tail}", str(max(first, since)))
        for path, first in (("things", V2), ("new-things", ApiVersion(3, 5)))
        for method, tail, since in (
            ("GET", "/detail", V2),
            ("GET", "/{thing_id}", V2),
            ("PUT", "/{thing_id}", ApiVersion(3, 9)),
            ("POST", "/{thing_id}/action", V2),
        )
    }
    assert {frozenset(route.actions) for route in routes(Tree)} == {frozenset(), frozenset({"late", "other"})}


def test_a_body_of_unknown_length_is_bounded() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        data = environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [str(len(data)).encode()]

    envelope = pipeline.Envelope(app, max_body=10)
    for size, expected in ((10, "200 OK"), (11, "413 Request Entity Too Large")):
        seen: list[str] = []
        environ = {
            "wsgi.input": io.BytesIO(b"x" * size),
            "wsgi.input_terminated": True,
            "REQUEST_METHOD": "POST",
        }
        list(envelope(environ, lambda status, headers, exc_info=None, seen=seen: seen.append(status)))
        assert seen == [expected]


@pytest.mark.parametrize(
    ("length", "expected"),
    [("x", "400 "), ("-1", "400 "), ("11", "413 "), ("9" * 40, "413 "), ("10", "200 "), ("", "200 ")],
)
def test_a_body_longer_than_the_limit_is_refused_by_its_declared_length(length: str, expected: str) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return []

    seen: list[str] = []

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        seen.append(status)

    environ = {"CONTENT_LENGTH": length, "wsgi.input": io.BytesIO(), "REQUEST_METHOD": "POST"}
    list(pipeline.Envelope(app, max_body=10)(environ, start))
    (status,) = seen
    assert status.startswith(expected)
