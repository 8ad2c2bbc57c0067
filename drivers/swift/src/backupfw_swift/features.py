"""What a cluster can do, as it says itself under ``/info``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

from backupfw_swift.errors import Refused
from backupfw_swift.transport import Transport


@dataclass(frozen=True, slots=True)
class Features:
    """What matters to the driver.

    :ivar bulk_delete: most objects of one bulk delete, 0 without that middleware.
    :ivar policies: names of the storage policies; empty if the cluster does not tell.
    :ivar version: the server's version, if it tells.
    """

    bulk_delete: int = 0
    policies: tuple[str, ...] = ()
    version: str = ""


def info_url(account_url: str) -> str:
    """Return where a cluster describes itself, from the URL of an account.

    Swift's account is ``/v1/AUTH_x`` and its description ``/info``; behind a prefix, as radosgw's
    ``/swift/v1``, the description stands behind it too.
    """
    parsed = urlparse(account_url)
    found = re.match(r"(.*?)/v1(?:\.0)?(?:/|$)", parsed.path)
    return f"{parsed.scheme}://{parsed.netloc}{found[1] if found else ''}/info"


def ask(account_url: str, transport: Transport) -> Features:
    """Ask the cluster; one that does not describe itself has no features.

    :raises Refused: the server has a fault of its own (5xx).
    """
    try:
        answer = transport.request("GET", info_url(account_url)).json()
    except Refused as error:
        if error.status < 500:
            return Features()
        raise
    return understand(answer if isinstance(answer, Mapping) else {})


def understand(answer: Mapping[str, Any]) -> Features:
    """Read the description's sections."""
    swift = _section(answer, "swift")
    bulk = 0
    if "bulk_delete" in answer:
        section = _section(answer, "bulk_delete")
        # After max_failed_deletes failures the server gives up the rest: batches are no larger.
        limits = [section.get("max_deletes_per_request", 1000), section.get("max_failed_deletes", 1000)]
        bulk = min([limit for limit in limits if isinstance(limit, int)], default=1000)
    policies = swift.get("policies", ())
    return Features(
        bulk_delete=max(0, bulk),
        policies=tuple(
            name for policy in (policies if isinstance(policies, list) else ()) for name in _names(policy)
        ),
        version=str(swift.get("version", "")),
    )


def _section(answer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = answer.get(name)
    return section if isinstance(section, Mapping) else {}


def _names(policy: object) -> list[str]:
    if not isinstance(policy, Mapping):
        return []
    # The aliases hold the name too.
    names = f"{policy.get('name', '')},{policy.get('aliases', '')}".split(",")
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))
