"""The versions this service speaks, and the documents that announce them.

Behaviour is switched by comparing a call's :class:`ApiVersion`; nothing else in the API knows that
there is a v2.  Another major version is one more entry of :data:`SERVED` (and a negotiation of its
minor version in :func:`negotiate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class ApiVersion:
    """A version a call is made in; ordered, so ``version >= ApiVersion(3, 9)`` reads as it should."""

    major: int
    minor: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


V2 = ApiVersion(2, 0)


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
    "v2": ServedVersion("v2", V2, V2, "CURRENT", "2026-11-23T00:00:00Z"),
}


def negotiate(served: ServedVersion, headers: Mapping[str, str]) -> ApiVersion:  # noqa: ARG001
    """Choose the version of a call from its major version and headers."""
    return served.lowest


def reply_headers(version: ApiVersion) -> dict[str, str]:
    """Return what an answer in ``version`` says about it; v2 has no such headers."""
    del version
    return {}


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
