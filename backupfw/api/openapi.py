"""The description of the API in OpenAPI 3.1, made from what decides: the route table and the schemas.

One description holds for one version: bodies, calls and answers are those of the version it was asked for
in.  It is served at ``/v2/openapi.json`` and ``/v3/openapi.json``, to everybody.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from backupfw import __version__
from backupfw.api import microversions, policies, versions
from backupfw.api.routing import Route
from backupfw.api.schemas import answers
from backupfw.api.versions import ApiVersion

_PARAMETER = re.compile(r"\{([a-z_]+)\}")
#: Collections whose listings have pages, order and filters.
_LISTED = frozenset(
    f"/{name}{tail}" for name in ("backups", "volumes", "snapshots") for tail in ("", "/detail")
)
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
#: What refusals of any call mean; what only some calls have is added to it.
_REFUSALS = {
    400: "The request is not what it must be.",
    401: "Nobody can be made out from the token.",
    403: "The policy does not allow it.",
    404: "It is not there, or not for this caller.",
}


def _plain(schema: Any) -> Any:
    """Put a draft 4 schema into the terms of OpenAPI: regular expressions end by ``$`` there."""
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
    """What each call is for: the text of the first rule that it asks."""
    found: dict[str, str] = {}
    for rule in policies.RULES.values():
        for operation in rule.operations:
            found.setdefault(_shape(operation), rule.text)
    # What everybody may read has no rule.
    return {"GET /resource_filters": "Show which filters listings know.", **found}


def _shape(operation: str) -> str:
    return _PARAMETER.sub("{}", operation)


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _body(route: Route, version: ApiVersion) -> dict[str, Any] | None:
    if route.schema is not None:
        return {"required": True, "content": _json(_plain(route.schema(version)))}
    served = {name: action for name, action in route.actions.items() if action.since <= version}
    if not served:
        return None
    schemas = [_plain(action.schema(version)) for action in served.values()]
    return {"required": True, "content": _json({"oneOf": schemas})}


def _parameters(route: Route, served: versions.ServedVersion, version: ApiVersion) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"$ref": "#/components/parameters/project_id"}]
    if served.has_microversions:
        found.append({"$ref": "#/components/parameters/version"})
    for name in _PARAMETER.findall(route.template):
        # What is no id is not found, so it need not be refused.
        schema = {"type": "string", "minLength": 1}
        found.append({"name": name, "in": "path", "required": True, "schema": schema})
    if route.method == "GET" and route.template in _LISTED:
        listing = dict(_LISTING)
        if version >= microversions.COUNT_INFO:
            listing["with_count"] = _COUNT
        for name, (schema, text) in listing.items():
            found.append({"name": name, "in": "query", "description": text, "schema": schema})
    if route.template == "/os-quota-sets/{target}" and route.method == "GET":
        found.append(
            {"name": "usage", "in": "query", "description": "Usage beside limits.", "schema": _BOOLEAN}
        )
    return found


def _responses(route: Route, served: versions.ServedVersion, version: ApiVersion) -> dict[str, Any]:
    answer = answers.ANSWERS.get(f"{route.method} {route.template}")
    done: dict[str, Any] = {"description": "Done, or accepted."}
    if answer is not None:
        done["content"] = _json(_plain(answer(version)))
    elif route.method in ("GET", "PUT") or (route.method == "POST" and not route.actions):
        done["content"] = _json({"type": "object"})
    refusals = dict(_REFUSALS)
    if served.has_microversions:
        refusals[406] = "The version is not served."
    if route.takes_body:
        refusals |= {
            405: "The store or provider cannot do it.",
            413: "The body is too large, or a quota would be exceeded.",
            415: "The body is not JSON.",
        }
    refusals[503] = "Nobody who could do it answers."
    fault = {"$ref": "#/components/schemas/fault"}
    return {
        str(route.status): done,
        **{
            str(status): {"description": text, "content": _json(fault)}
            for status, text in sorted(refusals.items())
        },
    }


def describe(routes: Iterable[Route], prefix: str, version: ApiVersion, base: str) -> dict[str, Any]:
    """Return the description of a version.

    :param prefix: ``v2`` or ``v3``.
    :param base: scheme, host and mount point that its paths stand behind.
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
    """The descriptions as they are served, each made once.  Thread-safe.

    There are as many as versions, so what anybody may ask for takes a bounded time and room.

    :param routes: every line of the route table.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple(routes)
        self._parts = functools.cache(self._make)

    def of(self, prefix: str, version: ApiVersion, base: str) -> tuple[bytes, str]:
        """Return the JSON text of a version's description, and its tag; parameters as of :func:`describe`."""
        before, after, digest = self._parts(prefix, version)
        url = json.dumps(base).encode()
        return before + url + after, hashlib.sha256(digest + url).hexdigest()[:32]

    def _make(self, prefix: str, version: ApiVersion) -> tuple[bytes, bytes, bytes]:
        """Make what stands before and after the server's URL, which each request sees differently."""
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
        "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
    }
