"""The versions that this service speaks, how a request chooses one, and the documents that announce them.

Code that depends on a version compares a call's :class:`ApiVersion` with a constant of this module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from backupfw.api import errors


class ApiVersion(NamedTuple):
    """The version of a call; versions can be compared: ``version >= ApiVersion(3, 9)``."""

    major: int
    minor: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


V2 = ApiVersion(2, 0)
V3 = ApiVersion(3, 0)
#: The highest microversion that is served.
V3_HIGHEST = ApiVersion(3, 71)

# The microversions of v3 that change anything here, one line each.  The others are about features that this
# service does not have (images, servers, clusters): a request in one of them is served like one in the
# version before it.  v2 is older than all of them.
BASE_VERSION = V3  # everything v2 has, and nothing else
MESSAGES = ApiVersion(3, 3)  # /messages: what failed after it was accepted
MESSAGES_PAGINATION = ApiVersion(3, 5)  # their listing has filters, order and pages
SERVICE_CLUSTER = ApiVersion(3, 7)  # services show a cluster: null, there are none
BACKUP_UPDATE = ApiVersion(3, 9)  # PUT /backups/{id} changes name and description
VOLUME_SUMMARY = ApiVersion(3, 12)  # GET /volumes/summary
VOLUME_GROUP = ApiVersion(3, 13)  # volumes show a group: null, there are none
SNAPSHOT_GROUP = ApiVersion(3, 14)  # snapshots show a group's snapshot: null, there are none
BACKUP_PROJECT = ApiVersion(3, 18)  # backups show their project, if the policy lets the caller see it
VOLUME_PROVIDER_ID = ApiVersion(3, 21)  # volumes show a provider's id, to administrators: null
VOLUME_DELETE_FORCE = ApiVersion(3, 23)  # DELETE /volumes/{id}?force=True, for administrators
RESOURCE_FILTER = ApiVersion(3, 31)  # the operator chooses the filters; members get 400 for others
RESOURCE_FILTER_CONFIG = ApiVersion(3, 33)  # GET /resource_filters shows that choice
LIKE_FILTER = ApiVersion(3, 34)  # name~=part, if the operator lists name~; always for administrators
VOLUME_SUMMARY_METADATA = ApiVersion(3, 36)  # the summary has the metadata of all volumes
BACKUP_SORT_NAME = ApiVersion(3, 37)  # backups can be sorted by name
LIMITS_OF_PROJECT = ApiVersion(3, 39)  # GET /limits?project_id of another project, for administrators
SNAPSHOT_USER_ID = ApiVersion(3, 41)  # snapshots show who made them
BACKUP_METADATA = ApiVersion(3, 43)  # metadata of backups: create, update, show
COUNT_INFO = ApiVersion(3, 45)  # with_count=True adds how many there are without paging
VOLUME_FROM_BACKUP = ApiVersion(3, 47)  # POST /volumes with backup_id
VOLUME_SHARED_TARGETS = ApiVersion(3, 48)  # volumes show shared_targets: false, and service_uuid: null
BACKUP_AZ = ApiVersion(3, 51)  # POST /backups with availability_zone
TRANSFERS = ApiVersion(3, 55)  # /volume-transfers, as /os-volume-transfer in every version; no_snapshots
BACKUP_USER_ID = ApiVersion(3, 56)  # backups show who made them, by the policy of 3.18
TRANSFER_PROJECTS = ApiVersion(3, 57)  # transfers show from which project to which
VOLUME_CLUSTER_NAME = ApiVersion(3, 61)  # volumes show a cluster to administrators: null
DEFAULT_TYPES = ApiVersion(3, 62)  # /default-types: the type of a project's new volumes
VOLUME_TYPE_ID = ApiVersion(3, 63)  # volumes show their type's id
ENCRYPTION_KEY_ID = ApiVersion(3, 64)  # backups show their key's id, if they have one
CONSUMES_QUOTA = ApiVersion(3, 65)  # volumes and snapshots show whether they count: true
SNAPSHOT_IN_USE = ApiVersion(3, 66)  # a snapshot of a volume in use needs no force
PROJECT_ID_OPTIONAL = ApiVersion(3, 67)  # /v3/backups without a project; served in every version

#: The request's header that chooses a microversion, and the answer's that names it.
HEADER = "OpenStack-API-Version"
#: Our name in that header, which may name versions of several services.
SERVICE = "volume"
#: Key of the request's version in the WSGI environment.
VERSION = "backupfw.version"

#: A version as clients write it, without leading zeros: each version has one spelling.
_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """One major version as the version documents show it.

    :ivar prefix: the first part of its paths.
    :ivar lowest, highest: its lowest and highest microversion; equal where it has none.
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
    """Return what a header asks for: ``latest`` or a version, not checked.

    :raises BadRequest: it does not name this service, or is not ``service version[, …]``.
    """
    for part in header.split(","):
        service, *version = part.split(maxsplit=1) or [""]
        if service == SERVICE:
            return "".join(version).strip()
    raise errors.BadRequest(f"The header {HEADER} names no version of the service {SERVICE}.")


def negotiate(served: ServedVersion, header: str | None) -> ApiVersion:
    """Choose the version of a call by its major version and the header.

    Without a header it is the lowest version.  A major version without microversions ignores the header.

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
    """Return the headers of an answer that name its version; none for a version without microversions.

    :param version: None where the requested version is not served.
    """
    if not served.has_microversions:
        return []
    chosen = [] if version is None else [(HEADER, f"{SERVICE} {version}")]
    return [*chosen, ("Vary", HEADER)]


def _entry(served: ServedVersion, base: str) -> dict[str, Any]:
    # Clients need "version" and "min_version" in every entry, also in one without microversions.
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
