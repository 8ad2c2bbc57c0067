"""The description of the API in OpenAPI 3.1, made from the controllers and the schemas.

Each version has its own description, with the calls, bodies and answers of that version.  It is served at
``/v2/openapi.json`` and ``/v3/openapi.json``, to everybody.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from backupfw import __version__
from backupfw.api import policies, versions
from backupfw.api.resource import Route
from backupfw.api.schemas import answers
from backupfw.api.schemas.answer_parts import AnswerOf
from backupfw.api.versions import ApiVersion

_PARAMETER = re.compile(r"\{([a-z_]+)\}")
_BOOLEAN = {"type": "string", "enum": ["true", "false", "True", "False", "1", "0"]}
_LISTING: Mapping[str, tuple[dict[str, Any], str]] = {
    "limit": ({"type": "integer", "minimum": 0}, "The most items of the page."),
    "marker": ({"type": "string", "format": "uuid"}, "Id of the last item of the page before."),
    "offset": ({"type": "integer", "minimum": 0, "maximum": 2147483647}, "How many items to leave out."),
    "sort": ({"type": "string"}, "Keys, the most significant first: key[:asc|desc],…"),
    "sort_key": ({"type": "string"}, "One key; not together with sort."),
    "sort_dir": ({"type": "string", "enum": ["asc", "desc"]}, "Its direction."),
    "all_tenants": (_BOOLEAN, "Every project's items; ignored for everybody but administrators."),
    "name": ({"type": "string"}, "Only items of this name."),
    "status": ({"type": "string"}, "Only items in this status."),
}
_COUNT = (_BOOLEAN, "Say how many items there are without paging.")
#: Filters that only some listings have, by collection.
_FILTERS: Mapping[str, Sequence[str]] = {
    "backups": ("volume_id",),
    "backup-policies": ("enabled",),
    "volumes": ("metadata", "bootable", "availability_zone"),
    "snapshots": ("volume_id", "metadata"),
    "messages": ("resource_uuid", "resource_type", "event_id", "request_id", "message_level"),
    "types": ("is_public",),
    "os-volume-transfer": ("volume_id",),
    "volume-transfers": ("volume_id",),
}
#: Filters of listings that some do not have, by collection.
_WITHOUT: Mapping[str, Sequence[str]] = {
    "messages": ("name", "status"),
    "types": ("name", "status"),
    "backup-policies": ("status",),
}
_TEXT = {"type": "string"}
#: Parameters of calls that are no listings: ``METHOD path`` -> name, first version, schema, text.
_QUERIES: Mapping[str, Sequence[tuple[str, ApiVersion, Mapping[str, Any], str]]] = {
    "GET /backup-policies/{policy_id}/runs": (
        *(
            (name, versions.V3, schema, text)
            for name, (schema, text) in _LISTING.items()
            if name not in ("name", "all_tenants")
        ),
        *((name, versions.V3, _TEXT, f"Only runs of this {name}.") for name in ("volume_id", "backup_id")),
        ("with_count", versions.COUNT_INFO, *_COUNT),
    ),
    "DELETE /volumes/{volume_id}": (
        ("cascade", versions.V2, _BOOLEAN, "Delete its snapshots too."),
        ("force", versions.VOLUME_DELETE_FORCE, _BOOLEAN, "In any status; for administrators."),
    ),
    "GET /os-quota-sets/{target}": (("usage", versions.V2, _BOOLEAN, "Usage beside limits."),),
    "GET /limits": tuple(
        (name, versions.LIMITS_OF_PROJECT, _TEXT, "Another project; for administrators.")
        for name in ("project_id", "tenant_id")
    ),
    "PUT /os-quota-sets/{target}": (
        ("skip_validation", versions.V2, _BOOLEAN, "Take limits below what is used."),
    ),
    "GET /os-services": tuple(
        (name, versions.V2, _TEXT, f"Only those of this {name}.") for name in ("host", "binary")
    ),
    "GET /os-hosts": tuple(
        (name, versions.V2, _TEXT, f"Only those of this {name}.") for name in ("zone", "service")
    ),
    "GET /resource_filters": (("resource", versions.V2, _TEXT, "Only those of this resource."),),
}
#: Headers of answers; those in _OF_ALL are in every one.
_HEADERS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "X-OpenStack-Request-ID": (_TEXT, "Id of the request, as in the log."),
    "X-Compute-Request-ID": (_TEXT, "The same."),
    versions.HEADER: (_TEXT, "The version that the answer is in."),
    "Vary": (_TEXT, "What else the answer depends on."),
    "Retry-After": (_TEXT, "Seconds; always 0."),
}
_OF_ALL = ("X-OpenStack-Request-ID", "X-Compute-Request-ID")
#: Status -> what it means.
_REFUSALS = {
    400: "The request is malformed or not allowed.",
    401: "The token identifies no user.",
    403: "The policy does not allow it.",
    404: "It does not exist, or not for this caller.",
    405: "The store or provider cannot do it.",
    406: "The version is not served.",
    409: "Such a resource exists already.",
    413: "The body is too large, or a quota would be exceeded.",
    415: "The body is not JSON.",
    503: "A service that is needed does not answer.",
}
#: Statuses that only a call with a body can have.
_OF_BODIES = frozenset({405, 409, 413, 415})


def _plain(schema: Any) -> Any:
    """Turn a draft 4 schema into one of OpenAPI, where regular expressions end with ``$``."""
    if isinstance(schema, Mapping):
        return {
            (_pattern(key) if isinstance(key, str) else key): (
                _pattern(value) if key == "pattern" else _plain(value)
            )
            for key, value in schema.items()
        }
    if isinstance(schema, list | tuple):
        return [_plain(item) for item in schema]
    return schema


def _pattern(text: str) -> str:
    return text.removesuffix(r"\Z") + "$" if text.endswith(r"\Z") else text


def _texts() -> dict[str, str]:
    """Return the purpose of each call: the text of the first rule that it asks."""
    found: dict[str, str] = {}
    for rule in policies.RULES.values():
        for operation in rule.operations:
            found.setdefault(_shape(operation), rule.text)
    # A call that everybody may make has no rule.
    return {"GET /resource_filters": "Show which filters listings know.", **found}


def _shape(operation: str) -> str:
    return _PARAMETER.sub("{}", operation)


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _body(route: Route, version: ApiVersion) -> dict[str, Any] | None:
    if route.takes is not None:
        return {"required": True, "content": _json(_plain(route.takes(version)))}
    served = {name: action for name, action in route.actions.items() if action.since <= version}
    if not served:
        return None
    schemas = [_plain(action.takes(version)) for action in served.values() if action.takes is not None]
    return {"required": True, "content": _json({"oneOf": schemas})}


def _parameters(route: Route, served: versions.ServedVersion, version: ApiVersion) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"$ref": "#/components/parameters/project_id"}]
    if served.has_microversions:
        found.append({"$ref": "#/components/parameters/version"})
    for name in _PARAMETER.findall(route.template):
        # A part that is no id is answered with 404, so it needs no pattern.
        one_part = {"type": "string", "minLength": 1}
        found.append({"name": name, "in": "path", "required": True, "schema": one_part})
    for name, (schema, text) in _queries(route, version).items():
        found.append({"name": name, "in": "query", "description": text, "schema": dict(schema)})
    return found


def _queries(route: Route, version: ApiVersion) -> dict[str, tuple[Mapping[str, Any], str]]:
    """Return the parameters of the query: name -> schema and text."""
    collection, _, tail = route.template.removeprefix("/").partition("/")
    if route.method != "GET" or collection not in _FILTERS or tail not in ("", "detail", "summary"):
        known = _QUERIES.get(f"{route.method} {route.template}", ())
        return {name: (schema, text) for name, since, schema, text in known if since <= version}
    if collection == "messages" and version < versions.MESSAGES_PAGINATION:
        return {}
    found: dict[str, tuple[Mapping[str, Any], str]] = dict(_LISTING)
    left_out = _WITHOUT.get(collection, ())
    found = {name: value for name, value in found.items() if name not in left_out}
    found |= {name: (_TEXT, f"Only items of this {name}.") for name in _FILTERS[collection]}
    if version >= versions.COUNT_INFO:
        found["with_count"] = _COUNT
    return found


def _responses(route: Route, served: versions.ServedVersion, version: ApiVersion) -> dict[str, Any]:
    done = {
        str(status): _done([answer(version) for answer in found], served)
        for status, found in _answers(route, version).items()
    }
    refusals = [status for status in _REFUSALS if route.takes_body or status not in _OF_BODIES]
    if not served.has_microversions:
        refusals.remove(406)
    return {
        **done,
        **{str(status): {"$ref": f"#/components/responses/{status}"} for status in refusals},
    }


def _answers(route: Route, version: ApiVersion) -> dict[int, list[AnswerOf]]:
    """Return the schemas of a route's successful answers, by status; none for an answer without a body."""
    line = f"{route.method} {route.template}"
    found: dict[int, list[AnswerOf]] = {}
    for status, name in [
        *([] if route.actions else [(route.status, line)]),
        *(
            (action.status, f"{line} ({name})")
            for name, action in route.actions.items()
            if action.since <= version
        ),
    ]:
        answer = answers.ANSWERS.get(name)
        found.setdefault(status, []).extend([] if answer is None else [answer])
    return found


def _done(bodies: Sequence[dict[str, Any]], served: versions.ServedVersion) -> dict[str, Any]:
    done: dict[str, Any] = {
        "description": "Done, or accepted." if bodies else "Done, or accepted; there is no body.",
        "headers": _headers(served),
    }
    if bodies:
        several = {"anyOf": [body for index, body in enumerate(bodies) if body not in bodies[:index]]}
        done["content"] = _json(_plain(bodies[0] if len(several["anyOf"]) == 1 else several))
    return done


def _refusal(served: versions.ServedVersion, status: int) -> dict[str, Any]:
    return {
        "description": _REFUSALS[status],
        "headers": _headers(served, *(["Retry-After"] if status == 413 else [])),
        "content": _json({"$ref": "#/components/schemas/fault"}),
    }


def _headers(served: versions.ServedVersion, *more: str) -> dict[str, Any]:
    names = [*_OF_ALL, *((versions.HEADER, "Vary") if served.has_microversions else ()), *more]
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def describe(routes: Iterable[Route], prefix: str, version: ApiVersion, base: str) -> dict[str, Any]:
    """Return the description of a version.

    :param prefix: ``v2`` or ``v3``.
    :param base: scheme, host and mount point of the service.
    """
    served = versions.SERVED[prefix]
    texts = _texts()
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if not route.serves(version):
            continue
        operation: dict[str, Any] = {
            "operationId": f"{route.method.lower()}{route.template.replace('/', '_')}",
            "tags": [route.template.split("/")[1]],
            "parameters": _parameters(route, served, version),
            "responses": _responses(route, served, version),
        }
        named = [f"{route.method} {route.template}"] + [
            f"{route.method} {route.template} ({name})" for name in route.actions
        ]
        said = [texts[shape] for shape in map(_shape, named) if shape in texts]
        if said:
            operation["summary"] = " ".join(said)
        body = _body(route, version)
        if body is not None:
            operation["requestBody"] = body
        path = f"/{prefix}/{{project_id}}{route.template}"
        paths.setdefault(path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "backupfw: the Block Storage backups API",
            "version": str(version),
            "summary": f"Volume backups, version {version}, as backupfw {__version__} serves it.",
        },
        "servers": [{"url": base}],
        "security": [{"token": []}],
        "paths": paths,
        "components": _components(served, version),
    }


class Descriptions:
    """The descriptions as they are served; each is made once.  Thread-safe.

    There is one for each version, so requests of anybody cost bounded time and memory.

    :param routes: every call that the controllers serve.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple(routes)
        self._parts = functools.cache(self._make)

    def of(self, prefix: str, version: ApiVersion, base: str) -> tuple[bytes, str]:
        """Return a version's description as JSON, and its ETag; parameters as of :func:`describe`."""
        before, after, digest = self._parts(prefix, version)
        url = json.dumps(base).encode()
        return before + url + after, hashlib.sha256(digest + url).hexdigest()[:32]

    def _make(self, prefix: str, version: ApiVersion) -> tuple[bytes, bytes, bytes]:
        """Make the text before and after the server's URL, which depends on the request."""
        text = json.dumps(describe(self._routes, prefix, version, "")).encode()
        before, mark, after = text.partition(b'"servers": [{"url": ')
        return before + mark, after.removeprefix(b'""'), hashlib.sha256(text).digest()


def _components(served: versions.ServedVersion, version: ApiVersion) -> dict[str, Any]:
    parameters = {
        "project_id": {
            "name": "project_id",
            "in": "path",
            "required": True,
            "description": "The caller's project."
            + (" It may be left out with the slash before it." if served.has_microversions else ""),
            "schema": {"type": "string", "minLength": 1},
        }
    }
    if served.has_microversions:
        parameters["version"] = {
            "name": versions.HEADER,
            "in": "header",
            "required": version != served.lowest,
            "description": f"Without it the version is {served.lowest}.",
            "schema": {"type": "string", "enum": [f"{versions.SERVICE} {version}"]},
        }
    return {
        "schemas": {"fault": _plain(answers.FAULT)},
        "parameters": parameters,
        "responses": {
            str(status): _refusal(served, status)
            for status in _REFUSALS
            if served.has_microversions or status != 406
        },
        "headers": {
            name: {"required": True, "description": text, "schema": dict(schema)}
            for name, (schema, text) in _HEADERS.items()
            if served.has_microversions or name not in (versions.HEADER, "Vary")
        },
        "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
    }
