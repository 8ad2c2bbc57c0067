"""The form of a backup policy: its fields, and the body of the API that they make."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backupfw.api import bodies, versions
from backupfw.api.schemas import backup_policies as schemas
from backupfw.manager.policies import settings
from backupfw.manager.rows import BackupPolicy


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the form.

    :ivar part: of the policy's settings; empty: the field is the policy's own.
    :ivar kind: text, number, flag, lines, or choice: one of some names, or none.
    :ivar hint: what people are told below it.
    """

    part: str
    name: str
    label: str
    hint: str = ""
    kind: str = "text"

    @property
    def key(self) -> str:
        """Its name in the form, and where messages say what is wrong."""
        return f"{self.part}.{self.name}" if self.part else self.name


_COUNTS = ("hourly", "daily", "weekly", "monthly", "yearly")
_UNITS = ("hours", "days", "weeks", "months", "years")
VOLUMES = Field("selection", "volume_ids", "Their ids, one a line", kind="lines")
COPIES = Field(
    "",
    "copy_to",
    "Copies",
    "other stores that get a copy of each backup, one a line, and what is kept there,"
    " e.g. offsite,daily=7,within=30d; without that a copy stays as long as its backup",
    "lines",
)
METADATA = Field("selection", "metadata", "Their metadata, all of it, one KEY=VALUE a line", kind="lines")
#: The fields, as they stand in the form; those of the selection stand there by themselves.
GROUPS = (
    (
        "Policy",
        (
            Field("", "name", "Name"),
            Field("", "description", "Description"),
            Field("", "max_concurrent", "Backups at once", "no limit if it is empty", "number"),
        ),
    ),
    (
        "When",
        (
            Field(
                "schedule",
                "cron",
                "Schedule",
                "minute, hour, day of month, month, day of week, e.g. 30 2 * * *;"
                " or @hourly, @daily, @weekly, @monthly, @yearly",
            ),
            Field("schedule", "timezone", "Time zone", "e.g. Europe/Berlin; UTC if it is empty"),
            Field("schedule", "jitter", "Spread", "seconds over which its volumes are spread", "number"),
            Field(
                "schedule", "start_window", "Start window", "minutes within which a run may begin", "number"
            ),
            Field(
                "schedule",
                "completion_window",
                "Completion window",
                "minutes within which a backup must be complete, or is cancelled; none if it is empty",
                "number",
            ),
        ),
    ),
    (
        "How",
        (
            Field("backup", "store", "Store", "as the operator's rules say if it is empty"),
            Field("backup", "incremental", "Incremental: share with the backup before", kind="flag"),
            Field("backup", "full_every", "Of so many backups one is full", "not needed", "number"),
            COPIES,
            Field(
                "backup", "quiesce", "Freeze while a point is taken", "with the operator's commands", "choice"
            ),
        ),
    ),
    (
        "What is kept",
        (
            Field("retention", "last", "Of the newest", "how many", "number"),
            *(
                Field("retention", name, f"Of {unit}", f"the newest backup of so many {unit}", "number")
                for name, unit in zip(_COUNTS, _UNITS, strict=True)
            ),
            Field("retention", "within", "Younger than", "than the newest one and this: 36h, 30d, 8w"),
            Field("retention", "min_keep", "At least", "so many of the newest in any case", "number"),
        ),
    ),
)
_FIELDS = tuple(field for _, fields in GROUPS for field in fields)
_KEYS = frozenset(field.key for field in (*_FIELDS, VOLUMES, METADATA)) | {"selection"}


def filled(policy: BackupPolicy) -> dict[str, str]:
    """Return what a policy has in the fields."""
    own = {
        COPIES.name: "\n".join(map(settings.copy_text, policy.settings["copy_to"])) or None,
        "name": policy.display_name,
        "description": policy.display_description,
        "max_concurrent": policy.max_concurrent,
    }
    values = {}
    for field in _FIELDS:
        value = policy.settings[field.part][field.name] if field.part else own[field.name]
        if value is not None and value is not False:
            values[field.key] = "on" if value is True else str(value)
    ((kind, which),) = policy.settings["selection"].items()
    values["selection"] = kind
    if kind == VOLUMES.name:
        values[VOLUMES.key] = "\n".join(which)
    elif kind == METADATA.name:
        values[METADATA.key] = "\n".join(f"{key}={value}" for key, value in which.items())
    return values


def state(policy: BackupPolicy) -> str:
    """Return what tells whether a policy was changed since its form was filled."""
    return (policy.updated_at or policy.created_at).isoformat()


def empty(volume_id: str = "") -> dict[str, str]:
    """Return what a new policy has in the fields: a backup each night.

    :param volume_id: the volume that it is for; empty: all of the project.
    """
    kind = VOLUMES.name if volume_id else "all"
    kept = {"retention.daily": "7", "retention.weekly": "4", "retention.min_keep": "1"}
    return {
        "schedule.cron": "30 2 * * *",
        "schedule.timezone": "UTC",
        "backup.incremental": "on",
        **kept,
        "selection": kind,
        VOLUMES.key: volume_id,
    }


def body(given: Mapping[str, str], policy: BackupPolicy | None = None) -> dict[str, Any]:
    """Return the body of the API, without its wrapper, that a form makes; it may be wrong.

    :param policy: what the form was filled from; None: nothing.
    """
    found: dict[str, Any] = {"schedule": {}, "backup": {}, "retention": {}}
    for field in _FIELDS:
        (found[field.part] if field.part else found)[field.name] = _value(field, given)
    found[COPIES.name] = [settings.copy_words(line) for line in _lines(given, COPIES.key)]
    # It cannot be left out, and its own message says that it is empty.
    found["schedule"]["cron"] = found["schedule"]["cron"] or ""
    kind = given.get("selection", "")
    lines = _lines(given, f"selection.{kind}")
    if kind == VOLUMES.name:
        found["selection"] = {kind: list(dict.fromkeys(line.lower() for line in lines))}
    elif kind == METADATA.name:
        pairs = (line.partition("=") for line in lines)
        found["selection"] = {kind: {key.strip(): value.strip() for key, _, value in pairs}}
    else:
        found["selection"] = {"all": True}
    if policy is not None:
        before = filled(policy)
        if before["selection"] == kind and lines == _lines(before, f"selection.{kind}"):
            # Not every pair can be read again from its line: what nobody has changed stays.
            found["selection"] = policy.settings["selection"]
    return found


def _lines(given: Mapping[str, str], key: str) -> list[str]:
    return [line.strip() for line in given.get(key, "").splitlines() if line.strip()]


def _value(field: Field, given: Mapping[str, str]) -> str | int | bool | None:
    text = given.get(field.key, "").strip()
    if field.kind == "flag":
        return bool(text)
    if field.kind == "number" and text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    return text or None


def problems(wanted: Mapping[str, Any]) -> dict[str, str]:
    """Return what the schema of the API says of a body, by the field."""
    schema = schemas.create(versions.SERVED["v3"].highest)
    found = bodies.problems({"backup_policy": wanted}, schema)
    return {_key(place[1:]): message for place, message in found.items()}


def _key(place: tuple[str | int, ...]) -> str:
    names = [str(name) for name in place[:2]]
    return ".".join(names) if ".".join(names) in _KEYS else names[0]


def place_of(message: str) -> tuple[str, str]:
    """Return the field that a refusal of the use case names, and what it says; empty: it names none."""
    head, colon, rest = message.partition(": ")
    if head.startswith(f"{COPIES.key}["):
        # Which of its lines it is, people see by what is said.
        head = COPIES.key
    return (head, rest) if colon and head in _KEYS else ("", message)


def written(wanted: Mapping[str, Any]) -> str:
    """Return a body as people read it, without what is not set."""
    return json.dumps({"backup_policy": _set(wanted)}, indent=2, ensure_ascii=False)


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _set(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


def command(wanted: Mapping[str, Any], beginning: str) -> str:
    """Return the command that sets a policy to the same.

    :param beginning: the command up to its options.
    """
    options: list[str] = []
    values = {**wanted["schedule"], **wanted["retention"], "store": wanted["backup"]["store"]}
    values |= {name: wanted[name] for name in ("name", "description", "max_concurrent")}
    # The command has no option for it, but it means the same.
    values["full_every"] = wanted["backup"]["full_every"] if wanted["backup"]["incremental"] else 1
    if (quiesce := wanted["backup"]["quiesce"]) is not None:
        options += ["--quiesce", quiesce]
    else:
        options.append("--no-quiesce")
    for name, value in values.items():
        if value is not None:
            options += [f"--{name.replace('_', '-')}", str(value)]
    for one in wanted[COPIES.name]:
        options += ["--copy-to", settings.copy_text(one)]
    if not wanted[COPIES.name]:
        options.append("--no-copies")
    selection = wanted["selection"]
    for volume_id in selection.get("volume_ids", ()):
        options += ["--volume", volume_id]
    for key, value in selection.get("metadata", {}).items():
        options += ["--metadata", f"{key}={value}"]
    if "all" in selection:
        options.append("--all")
    return f"{beginning} {shlex.join(options)}"
