"""How values are shown to people: sizes, times and states; templates call these functions.

All of them return text, which templates escape, except those that return :class:`~markupsafe.Markup`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup, escape

from backupfw.amounts import human_size
from backupfw.manager.actions import Kind
from backupfw.manager.policies.retention import COUNTS
from backupfw.manager.usecases.overview import Freed, Operation

#: The seconds of a unit of time, and its name.
_SPANS = ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
#: What a status means for people: its colour, beside which always stands the word.
_MEANINGS = {
    "available": "good",
    "ok": "good",
    "up": "good",
    "running": "good",
    "in-use": "good",
    "error": "bad",
    "error_deleting": "bad",
    "error_restoring": "bad",
    "damaged": "bad",
    "down": "bad",
    "failed": "bad",
    "missed": "bad",
    "waiting-for-store": "bad",
    "waiting-for-worker": "bad",
    "waiting-for-retry": "warn",
    "active": "good",
    "stays": "good",
    "overdue": "bad",
    "skipped": "warn",
    "paused": "warn",
    "never": "warn",
    "disabled": "warn",
    "frozen": "warn",
}


def sized(count: int | None) -> Markup:
    """Return bytes for people, with the exact number as the title."""
    if count is None:
        return Markup("-")
    exact = f"{count:,}".replace(",", " ")
    return Markup(f'<span title="{exact} bytes">{human_size(count)}</span>')  # noqa: S704  (no text of anybody)


def progress(one: Operation) -> Markup:
    """Return how far an operation is, how fast it is and when it ends."""
    total = one.total or 0
    done = min(one.done, total)
    words = f"{100 * done // total if total else 0} %, {sized(done)} of {sized(total)}"
    if one.rate:
        words += f", {sized(one.rate)}/s, {span(one.seconds_left or 0)} left"
    return Markup(words)  # noqa: S704  (numbers)


def span(seconds: float) -> str:
    """Return seconds for people, e.g. ``3 h 20 min``: the two largest units."""
    left, parts = max(int(seconds), 0), []
    for length, unit in _SPANS:
        if left >= length:
            parts.append(f"{left // length} {unit}")
            left %= length
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"


def moment(when: datetime) -> str:
    """Return a moment (naive UTC) for people, to the minute."""
    return f"{when:%Y-%m-%d %H:%M} UTC"


def counted(count: int, noun: str) -> str:
    """Return a number with what it counts."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def query(**values: str) -> str:
    """Return values as the query of an address."""
    return urlencode({name: value for name, value in values.items() if value})


def since(moment: datetime | None, now: datetime) -> Markup:
    """Return how long ago a moment was, with the moment itself (UTC) as the title; both naive UTC."""
    if moment is None:
        return Markup("never")
    exact = moment.replace(tzinfo=UTC, microsecond=0).isoformat().replace("+00:00", "Z")
    seconds = (now - moment).total_seconds()
    words = (
        "just now" if abs(seconds) < 1 else f"{_one(seconds)} ago" if seconds > 0 else f"in {_one(-seconds)}"
    )
    return Markup(f'<time datetime="{exact}" title="{exact}">{words}</time>')  # noqa: S704  (likewise)


def _one(seconds: float) -> str:
    return next(f"{int(seconds // length)} {unit}" for length, unit in _SPANS if seconds >= length)


def freed(found: Freed | None) -> Markup:
    """Return what a deletion frees, exactly or by its bounds."""
    if found is None:
        return Markup("not known here")
    if found.least == found.most:
        return sized(found.most)
    beginning = sized(found.least) + " to " if found.least else Markup("at most ")
    return beginning + sized(found.most)


def state(word: str) -> Markup:
    """Return a status as a word with a colour."""
    kind = _MEANINGS.get(word, "calm")
    return Markup(f'<span class="state {kind}">{escape(word)}</span>')  # noqa: S704  (escaped)


def named(name: str | None, resource_id: str | None) -> str:
    """Return what people call a resource: its name, or the beginning of its id."""
    return name or (resource_id or "-")[:8]


def selected(selection: Mapping[str, Any]) -> str:
    """Return which volumes a policy backs up."""
    if ids := selection.get("volume_ids"):
        return counted(len(ids), "volume")
    if pairs := selection.get("metadata"):
        return "with " + ", ".join(f"{key}={value}" for key, value in pairs.items())
    return "all of the project"


def kept(retention: Mapping[str, Any]) -> str:
    """Return what a policy keeps."""
    counts = [f"{value} {name}" for name in COUNTS if (value := retention.get(name))]
    if within := retention.get("within"):
        counts.insert(0, f"all within {within}")
    least = retention["min_keep"]
    more = f", at least {least}" if counts and least > 1 else ""
    return (", ".join(counts) or "everything") + more


#: What tasks do, by kind.
OPERATIONS = {
    "backup.create": "Backup of",
    "backup.import": "Import of",
    "backup.restore": "Restore to",
    "backup.delete": "Deletion of a backup of",
    "backup.copy": "Copy of a backup of",
    "backup.verify": "Verification of a backup of",
    "manifest.release": "Removal of objects of",
    "manifest.scrub": "Verification of what a store has of",
    "volume.create": "Making of",
    "volume.delete": "Deletion of",
    "volume.extend": "Extension of",
    "volume.tidy": "Tidying of",
    "volume.thaw": "Thawing of",
    "snapshot.create": "Snapshot of",
    "snapshot.delete": "Deletion of a snapshot of",
}
#: What is said of an action, by its kind.
ACTIONS = {
    Kind.BACKUP_CREATE: "Backup",
    Kind.BACKUP_UPDATE: "Change of backup",
    Kind.BACKUP_DELETE: "Deletion of backup",
    Kind.BACKUP_FORCE_DELETE: "Forced deletion of backup",
    Kind.BACKUP_RESTORE: "Restore of backup",
    Kind.BACKUP_VERIFY: "Verification of backup",
    Kind.BACKUP_CANCEL: "Cancellation for backup",
    Kind.BACKUP_COPY: "Copy of backup",
    Kind.BACKUP_REMOVE_COPY: "Removal of a copy of backup",
    Kind.BACKUP_PROMOTE_COPY: "Promotion of a copy of backup",
    Kind.BACKUP_CONVERT: "Conversion of backup",
    Kind.BACKUP_IMPORT: "Import of backup",
    Kind.BACKUP_RESET_STATUS: "Reset of backup",
    Kind.BACKUP_DESTROY_KEYS: "Destruction of the key of backup",
    Kind.POLICY_CREATE: "Policy made:",
    Kind.POLICY_UPDATE: "Policy changed:",
    Kind.POLICY_DELETE: "Policy deleted:",
    Kind.POLICY_RUN: "Policy run:",
    Kind.VOLUME_CREATE: "Making of volume",
    Kind.VOLUME_UPDATE: "Change of volume",
    Kind.VOLUME_ADOPT: "Adoption of volume",
    Kind.VOLUME_FORGET: "Volume forgotten:",
    Kind.VOLUME_DELETE: "Deletion of volume",
    Kind.VOLUME_FORCE_DELETE: "Forced deletion of volume",
    Kind.VOLUME_EXTEND: "Extension of volume",
    Kind.VOLUME_TRANSFER: "Transfer of volume",
    Kind.VOLUME_ATTACH: "Attachment of volume",
    Kind.VOLUME_DETACH: "Detachment of volume",
    Kind.VOLUME_RESET_STATUS: "Reset of volume",
    Kind.SNAPSHOT_CREATE: "Making of snapshot",
    Kind.SNAPSHOT_UPDATE: "Change of snapshot",
    Kind.SNAPSHOT_DELETE: "Deletion of snapshot",
    Kind.SNAPSHOT_FORCE_DELETE: "Forced deletion of snapshot",
    Kind.SNAPSHOT_RESET_STATUS: "Reset of snapshot",
}
#: Why tasks wait, by what :func:`backupfw.manager.queue.waiting.why` says.
REASONS = {
    "queued": "for a free worker",
    "waiting-for-limit": "as many run as may run at once",
    "waiting-for-worker": "no live worker can do it",
    "waiting-for-operation": "an earlier operation comes first",
    "waiting-for-retry": "the last attempt failed; the next one comes later",
    "waiting-for-store": "the store does not answer",
    "waiting-for-lock": "its data is locked in the store",
}
#: Spans of some days, by their number.
DAYS = {1: "day", 7: "week", 30: "month"}
