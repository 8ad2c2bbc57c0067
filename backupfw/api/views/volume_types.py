"""Volume types as answers show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backupfw.manager.rows import VolumeType

#: Extra specs that everybody may see, because users choose a type by them.
_FOR_EVERYBODY = frozenset({"RESKEY:availability_zones", "multiattach", "replication_enabled"})


def created(kind: VolumeType, *, all_specs: bool) -> dict[str, Any]:
    """What create shows.

    :param all_specs: whether the caller may see all extra specs.
    """
    return {
        "id": kind.id,
        "name": kind.name,
        "description": kind.description,
        "is_public": kind.is_public,
        "os-volume-type-access:is_public": kind.is_public,
        "extra_specs": extra_specs(kind.extra_specs, all_specs=all_specs),
    }


def updated(kind: VolumeType, *, all_specs: bool) -> dict[str, Any]:
    """What update shows: published suites refuse the older name of ``is_public`` here."""
    body = created(kind, all_specs=all_specs)
    del body["os-volume-type-access:is_public"]
    return body


def detail(kind: VolumeType, *, all_specs: bool) -> dict[str, Any]:
    """What show and the list show; parameters as of :func:`created`."""
    return {**created(kind, all_specs=all_specs), "qos_specs_id": None}


def extra_specs(specs: Mapping[str, str], *, all_specs: bool) -> dict[str, str]:
    """What a caller may see of a type's extra specs."""
    return {key: value for key, value in specs.items() if all_specs or key in _FOR_EVERYBODY}
