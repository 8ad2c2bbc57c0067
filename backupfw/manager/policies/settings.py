"""What a backup policy is set to: from the words of the API to the objects that compute with it, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from backupfw.errors import InvalidInput
from backupfw.manager.policies import retention, schedule
from backupfw.manager.policies.retention import Rules
from backupfw.manager.policies.schedule import Schedule

#: Minutes after the scheduled time within which a run may begin, unless the policy says another number.
START_WINDOW = 60

#: Units of ``within``.
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
#: ``within``: a number of hours, days or weeks.
WITHIN = re.compile(r"([1-9][0-9]{0,4})([hdw])", re.ASCII)
#: The fields of a retention, and what they are unless they are given.
_RETENTION: Mapping[str, Any] = {**dict.fromkeys(retention.COUNTS), "within": None, "min_keep": 1}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a policy is set to; :func:`read` makes it of what the API was given.

    :ivar words: all of it, as the API shows it and as it is stored.
    :ivar store: the store of its backups; None: as placement rules say.
    :ivar incremental: whether a backup shares with the one before it; the first one is full.
    :ivar full_every: of so many backups of a volume in a row, one is full; None: none need be.
    :ivar copies: the stores to which its backups are copied, and what is kept there.
    :ivar quiesce: the name of the commands that freeze a volume while its point is taken; None: none do.
    :ivar volume_ids: the volumes, if the policy names them.
    :ivar metadata: the pairs that its volumes have; neither: all volumes of the project.
    """

    words: Mapping[str, Any]
    schedule: Schedule
    rules: Rules
    store: str | None
    incremental: bool
    full_every: int | None
    copies: Mapping[str, Rules]
    quiesce: str | None
    volume_ids: tuple[str, ...] | None
    metadata: Mapping[str, str] | None

    @property
    def by_name(self) -> bool:
        """Whether the policy names its volumes; otherwise a run finds them."""
        return self.volume_ids is not None

    def has_rules(self, store: str) -> bool:
        """Whether copies in a store have rules of their own; otherwise they live as long as their backups."""
        return store in self.copies and self.copies[store].limits()


def read(given: Mapping[str, Any]) -> Settings:
    """Return the settings that a body of the API asks for; what it leaves out gets its default.

    Its schema has checked types and bounds; what is stored is read again with this function.

    :param given: ``schedule``, ``selection``, and perhaps ``backup``, ``retention`` and ``copy_to``.
    :raises InvalidInput: values do not fit each other, or cannot be understood; the message names the field.
    """
    when, how, keep = (
        _filled(given.get(part), defaults)
        for part, defaults in (
            (
                "schedule",
                {
                    "cron": None,
                    "timezone": "UTC",
                    "jitter": None,
                    "start_window": START_WINDOW,
                    "completion_window": None,
                },
            ),
            ("backup", {"store": None, "incremental": True, "full_every": None, "quiesce": None}),
            ("retention", _RETENTION),
        )
    )
    copy_to = [
        {"store": one["store"], "retention": _filled(rules, _RETENTION) if rules else None}
        for one, rules in ((one, one.get("retention")) for one in given.get("copy_to") or ())
    ]
    plan = schedule.read(
        when["cron"],
        when["timezone"],
        jitter=when["jitter"],
        start_window=when["start_window"],
        completion_window=when["completion_window"],
    )
    if plan.completion_window is not None and plan.completion_window < plan.start_window:
        raise InvalidInput(
            f"schedule.completion_window: {plan.completion_window} minutes must not be less than"
            f" start_window, {plan.start_window} minutes: both begin at the scheduled time."
        )
    which = {name: value for name, value in (given.get("selection") or {}).items() if value}
    if len(which) != 1:
        raise InvalidInput("selection: must have one of volume_ids, metadata and all.")
    ids = which.get("volume_ids")
    return Settings(
        words={
            "schedule": {**when, "jitter": plan.jitter},
            "backup": how,
            "retention": keep,
            "selection": which,
            "copy_to": copy_to,
        },
        schedule=plan,
        rules=_rules(keep, "retention"),
        store=how["store"],
        incremental=how["incremental"],
        full_every=how["full_every"],
        copies=_copies(copy_to, how["store"]),
        quiesce=how["quiesce"],
        volume_ids=None if ids is None else tuple(ids),
        metadata=which.get("metadata"),
    )


def _copies(copy_to: Sequence[Mapping[str, Any]], own: str | None) -> dict[str, Rules]:
    """Return what is kept in which other stores.

    :param own: the store of the backups themselves, if the policy names it.
    """
    found: dict[str, Rules] = {}
    for number, one in enumerate(copy_to):
        store, field = one["store"], f"copy_to[{number}]"
        if store == own:
            raise InvalidInput(f"{field}.store: {store} is the store of the backups themselves.")
        if store in found:
            raise InvalidInput(f"{field}.store: {store} is named twice.")
        found[store] = _rules(one["retention"] or _RETENTION, f"{field}.retention")
    return found


def _rules(keep: Mapping[str, Any], field: str) -> Rules:
    """Return the rules of a retention whose fields are all there.

    :param field: where it stands.
    """
    return Rules(
        {name: keep[name] for name in retention.COUNTS if keep[name]},
        _within(keep["within"], field),
        keep["min_keep"],
    )


def _filled(given: Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return all fields; one that is null has its default."""
    values = given or {}
    return {name: default if values.get(name) is None else values[name] for name, default in defaults.items()}


def _within(text: str | None, field: str) -> timedelta | None:
    if text is None:
        return None
    match = WITHIN.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"{field}.within: {text!a} is not a number of hours, days or weeks, as e.g. 36h, 30d or 8w."
        )
    return int(match[1]) * _UNITS[match[2]]


def copy_words(text: str) -> dict[str, Any]:
    """Return a member of ``copy_to`` as people write it: a store, and what is kept there.

    For example ``offsite,daily=7,within=36h``.  It may be wrong: the schema of the API says how.
    """
    store, *rules = (part.strip() for part in text.split(","))
    if not rules:
        return {"store": store}
    pairs = (rule.partition("=") for rule in rules)
    keep = {name.strip().replace("-", "_"): _value(value.strip()) for name, _, value in pairs}
    return {"store": store, "retention": keep}


def copy_text(words: Mapping[str, Any]) -> str:
    """Return a member of ``copy_to`` as :func:`copy_words` reads it."""
    keep = {name: value for name, value in (words.get("retention") or {}).items() if value is not None}
    return ",".join((words["store"], *(f"{name}={value}" for name, value in keep.items())))


def _value(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text
