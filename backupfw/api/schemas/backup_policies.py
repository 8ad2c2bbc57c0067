"""Bodies of the calls about backup policies, and of their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backupfw.api.schemas import types
from backupfw.api.schemas.answer_parts import (
    FLAG,
    LINKS,
    NUMBER,
    TEXT,
    TEXT_OR_NULL,
    TIME,
    AnswerOf,
    always,
    exactly,
    one,
    page,
    summary,
)

#: Volumes that a policy can name; with more of them it is for ``metadata`` or ``all``.
MOST_VOLUMES = 100
#: Pairs of metadata that a policy can ask for.
MOST_PAIRS = 32
#: Stores to which a policy can copy.
MOST_COPIES = 5
#: Minutes: a week.
_LONGEST_WINDOW = 7 * 24 * 60
_LARGEST_COUNT = 10000
_COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def _number(least: int, largest: int) -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": least, "maximum": largest}


def _text(largest: int) -> dict[str, Any]:
    return {"type": ["string", "null"], "minLength": 1, "maxLength": largest}


_SCHEDULE = {
    "cron": {"type": "string", "minLength": 1, "maxLength": 100},
    "timezone": _text(64),
    "jitter": _number(0, 24 * 60 * 60),
    "start_window": _number(1, _LONGEST_WINDOW),
    "completion_window": _number(1, _LONGEST_WINDOW),
}
_BACKUP = {
    "store": _text(255),
    "incremental": {"type": ["boolean", "null"]},
    "full_every": _number(1, 1000),
    "quiesce": _text(63),
}
_RETENTION = {
    **dict.fromkeys(_COUNTS, _number(0, _LARGEST_COUNT)),
    "within": {"type": ["string", "null"], "maxLength": 6},
    "min_keep": _number(1, _LARGEST_COUNT),
}
_SELECTION = {
    "volume_ids": {
        "type": "array",
        "minItems": 1,
        "maxItems": MOST_VOLUMES,
        "items": types.UUID,
        "uniqueItems": True,
    },
    "metadata": {**types.METADATA, "minProperties": 1, "maxProperties": MOST_PAIRS},
    "all": {"enum": [True]},
}
_RETENTION_OR_NULL = {**types.record(_RETENTION), "type": ["object", "null"]}
_COPY_TO = {
    "store": {"type": "string", "minLength": 1, "maxLength": 255},
    "retention": _RETENTION_OR_NULL,
}
_FIELDS: dict[str, Any] = {
    "name": types.NAME,
    "description": types.DESCRIPTION,
    "enabled": {"type": "boolean"},
    "schedule": types.record(_SCHEDULE, required=["cron"]),
    "backup": {**types.record(_BACKUP), "type": ["object", "null"]},
    "retention": _RETENTION_OR_NULL,
    "selection": {**types.record(_SELECTION), "minProperties": 1, "maxProperties": 1},
    "copy_to": {
        "type": ["array", "null"],
        "maxItems": MOST_COPIES,
        "items": types.record(_COPY_TO, required=["store"]),
    },
    "max_concurrent": _number(1, _LARGEST_COUNT),
}

#: ``POST /backup-policies``.
create = types.always(
    types.wrapped("backup_policy", types.record(_FIELDS, required=["schedule", "selection"]))
)
#: ``PUT /backup-policies/{id}``.
update = types.always(types.wrapped("backup_policy", {**types.record(_FIELDS), "minProperties": 1}))

#: Actions ``run``, ``pause``, ``resume``: an empty object, as each may take more one day.
run = types.always(types.wrapped("run", types.record({})))
pause = types.always(types.wrapped("pause", types.record({})))
resume = types.always(types.wrapped("resume", types.record({})))
#: Action ``preview``.
preview = types.always(
    types.wrapped(
        "preview",
        types.record(
            {
                "at": {"type": ["string", "null"], "maxLength": 40},
                "days": _number(0, 366),
                "volume_id": types.UUID_OR_NULL,
            }
        ),
    )
)

_NUMBER_OR_NULL = {"type": ["integer", "null"]}
_KEPT = exactly({**dict.fromkeys(_COUNTS, _NUMBER_OR_NULL), "within": TEXT_OR_NULL, "min_keep": NUMBER})
_POLICY = exactly(
    {
        "id": types.UUID,
        "name": TEXT_OR_NULL,
        "description": TEXT_OR_NULL,
        "project_id": TEXT,
        "enabled": FLAG,
        "schedule": exactly(
            {
                "cron": TEXT,
                "timezone": TEXT,
                "jitter": NUMBER,
                "start_window": NUMBER,
                "completion_window": _NUMBER_OR_NULL,
            }
        ),
        "backup": exactly(
            {
                "store": TEXT_OR_NULL,
                "incremental": FLAG,
                "full_every": _NUMBER_OR_NULL,
                "quiesce": TEXT_OR_NULL,
            }
        ),
        "retention": _KEPT,
        "selection": {**types.record(_SELECTION), "minProperties": 1, "maxProperties": 1},
        "copy_to": {
            "type": "array",
            "items": exactly({"store": TEXT, "retention": {**_KEPT, "type": ["object", "null"]}}),
        },
        "max_concurrent": _NUMBER_OR_NULL,
        "next_run_at": TIME,
        "created_by": TEXT_OR_NULL,
        "updated_by": TEXT_OR_NULL,
        "created_at": TIME,
        "updated_at": TIME,
        "links": LINKS,
    }
)
_RUN = exactly(
    {
        "id": types.UUID,
        # None: it searches the volumes of foreign catalogues.
        "volume_id": types.UUID_OR_NULL,
        "scheduled_at": TIME,
        "status": {"enum": ["waiting", "running", "ok", "skipped", "missed", "failed"]},
        "reason": TEXT_OR_NULL,
        "backup_id": types.UUID_OR_NULL,
        # None: nobody asked for it, or nobody wrote to the volume.
        "quiesced": {"type": ["boolean", "null"]},
        "started_at": TIME,
        "ended_at": TIME,
    }
)
_RUNS = {"type": "array", "items": _RUN}
_PLACE = exactly({"store": TEXT, "reason": TEXT, "goes_at": TIME})
_FATE = exactly(
    {
        "backup_id": types.UUID,
        "data_timestamp": TIME,
        "reason": TEXT,
        "goes_at": TIME,
        "places": {"type": "array", "items": _PLACE},
    }
)
_PREVIEW = exactly(
    {
        "next_runs": {"type": "array", "items": TIME},
        "until": TIME,
        "volumes": {
            "type": "array",
            "items": exactly(
                {
                    "volume_id": types.UUID,
                    "backups": {"type": "array", "items": _FATE},
                    "backups_then": NUMBER,
                }
            ),
        },
        "volumes_total": NUMBER,
    }
)
_SHOWN = one("backup_policy", always(_POLICY))
_ONE = "/backup-policies/{policy_id}"

#: Part of :data:`backupfw.api.schemas.answers.ANSWERS`.
ANSWERS: Mapping[str, AnswerOf] = {
    "GET /backup-policies": page("backup_policies", summary),
    "GET /backup-policies/detail": page("backup_policies", always(_POLICY)),
    "POST /backup-policies": _SHOWN,
    f"GET {_ONE}": _SHOWN,
    f"PUT {_ONE}": _SHOWN,
    f"GET {_ONE}/runs": page("runs", always(_RUN)),
    f"POST {_ONE}/action (run)": always(exactly({"runs": _RUNS})),
    f"POST {_ONE}/action (pause)": _SHOWN,
    f"POST {_ONE}/action (resume)": _SHOWN,
    f"POST {_ONE}/action (preview)": always(exactly({"preview": _PREVIEW})),
}
