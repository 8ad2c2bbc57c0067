"""The versions this service speaks, how a request chooses one, and the documents that announce them.

Behaviour is switched by comparing a call's :class:`ApiVersion` with a constant of
:mod:`backupfw.api.microversions`; only :mod:`backupfw.api.paths` knows besides that there is a v2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from backupfw.api import errors


class ApiVersion(NamedTuple):
    """A version a call is made in; ordered, so ``version >= ApiVersion(3, 9)`` reads as it should."""

    major: int
    minor: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


V2 = ApiVersion(2, 0)
V3 = ApiVersion(3, 0)
#: The highest microversion whose behaviour is known here; :mod:`microversions` has them one by one.
V3_HIGHEST = ApiVersion(3, 71)

#: The request header that chooses a microversion, and the answer's that says which one was chosen.
HEADER = "OpenStack-API-Version"
#: Our name in that header, which may speak to several services at once.
SERVICE = "volume"
#: Where the version of a request stands in the WSGI environment.
VERSION = "backupfw.version"

#: As clients write versions; no leading zeros, so each version has one spelling.
_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """One major version as the version documents show it.

    :ivar prefix: the first part of its paths.
    :ivar lowest, highest: the microversions it spans; equal where there are none.
    :ivar status: ``CURRENT``, ``SUPPORTED`` or ``DEPRECATED``.
    """

    prefix: str
    lowest: ApiVersion
    highest: ApiVersion
    status: str
    updated: str

    @property
    def has_microversions(self) -> bool:
        """Whether a header chooses among several minor versions."""
        return self.lowest != self.highest


#: By path prefix, oldest first.
SERVED: Mapping[str, ServedVersion] = {
    "v2": ServedVersion("v2", V2, V2, "SUPPORTED", "2026-11-23T00:00:00Z"),
    "v3": ServedVersion("v3", V3, V3_HIGHEST, "CURRENT", "2026-11-25T00:00:00Z"),
}


def _wanted(header: str) -> str:
    """Return what a header asks of this service: ``latest`` or a version, unchecked.

    :raises BadRequest: it says nothing about this service, or is not ``service version[, …]``.
    """
    for part in header.split(","):
        service, *version = part.split(maxsplit=1) or [""]
        if service == SERVICE:
            return "".join(version).strip()
    raise errors.BadRequest(f"The header {HEADER} names no version of the service {SERVICE}.")


def negotiate(served: ServedVersion, header: str | None) -> ApiVersion:
    """Choose the version of a call from its major version and the header.

    Without a header it is the lowest one.  A major version without microversions has no header.

    :raises BadRequest: the header is malformed, or names other services only.
    :raises UnsupportedVersion: it asks for a version that is not served.
    """
    if header is None or not served.has_microversions:
        return served.lowest
    text = _wanted(header)
    if text == "latest":
        return served.highest
    match = _VERSION.fullmatch(text)
    if match is None:
        raise errors.BadRequest(
            f"API Version String '{text}' is of invalid format. Must be of format MajorNum.MinorNum."
        )
    version = ApiVersion(int(match[1]), int(match[2]))
    if not served.lowest <= version <= served.highest:
        raise errors.UnsupportedVersion(str(version), str(served.lowest), str(served.highest))
    return version


def reply_headers(served: ServedVersion, version: ApiVersion | None) -> list[tuple[str, str]]:
    """Return what an answer says about its version; one without microversions has no such headers.

    :param version: None where the request asked for none that is served.
    """
    if not served.has_microversions:
        return []
    chosen = [] if version is None else [(HEADER, f"{SERVICE} {version}")]
    return [*chosen, ("Vary", HEADER)]


def _entry(served: ServedVersion, base: str) -> dict[str, Any]:
    # Clients index "version" and "min_version" of every entry, also where there are no microversions.
    return {
        "id": f"v{served.lowest}",
        "status": served.status,
        "version": str(served.highest) if served.has_microversions else "",
        "min_version": str(served.lowest) if served.has_microversions else "",
        "updated": served.updated,
        "links": [{"rel": "self", "href": f"{base}/{served.prefix}/"}],
        "media-types": [
            {
                "base": "application/json",
                "type": f"application/vnd.openstack.volume+json;version={served.lowest.major}",
            }
        ],
    }


def document(base: str, prefix: str | None = None) -> dict[str, Any]:
    """Return the version document of every version, or of the one with that path prefix.

    :param base: scheme, host and mount point, without a trailing slash.
    """
    chosen = SERVED.values() if prefix is None else [SERVED[prefix]]
    return {"versions": [_entry(served, base) for served in chosen]}
