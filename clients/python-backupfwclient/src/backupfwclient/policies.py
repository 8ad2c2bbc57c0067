"""``openstack volume backup policy …``: backups that the service makes by a schedule, and what it keeps."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from cliff.columns import FormattableColumn
from osc_lib import exceptions
from osc_lib.cli.format_columns import DictColumn
from osc_lib.cli.parseractions import KeyValueAction
from osc_lib.command import command

from backupfwclient.service import Service, for_each

_PATH = "/backup-policies"
#: Parts of a policy, and the options that set their fields: option, what it takes, help.
_OPTIONS: dict[str, dict[str, tuple[str, Any, str]]] = {
    "schedule": {
        "cron": ("--cron", str, "When: minute, hour, day of month, month, day of week; or e.g. @daily"),
        "timezone": ("--timezone", str, "IANA time zone of the schedule and of the retention (default: UTC)"),
        "jitter": ("--jitter", int, "Seconds over which the volumes are spread"),
        "start_window": ("--start-window", int, "Minutes within which a run may begin"),
        "completion_window": ("--completion-window", int, "Minutes within which a backup must be complete"),
    },
    "backup": {
        "store": ("--store", str, "Store that gets the backups"),
        "full_every": ("--full-every", int, "Of so many backups in a row, one is full"),
        "quiesce": (
            "--quiesce",
            str,
            "Name of the commands that freeze volumes while their points are taken",
        ),
    },
    "retention": {
        **{
            name: (f"--keep-{name}", int, f"How many {name} backups are kept")
            for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly")
        },
        "within": ("--keep-within", str, "What is at most so much older than the newest is kept, e.g. 30d"),
        "min_keep": ("--min-keep", int, "So many of the newest are kept in any case"),
    },
}


def _policy(service: Service, name_or_id: str) -> dict[str, Any]:
    """Return a policy by its id or name.

    :raises CommandError: there is none, or several have this name.
    """
    found: dict[str, Any] | None = service.get(f"{_PATH}/{quote(name_or_id, safe='')}", "backup_policy")
    if found is not None:
        return found
    named = _page(service, name=name_or_id)
    if len(named) != 1:
        many = "No backup policy" if not named else "More than one backup policy"
        raise exceptions.CommandError(f"{many} found for {name_or_id}")
    (only,) = named
    return dict(only)


def _page(service: Service, **query: Any) -> list[dict[str, Any]]:
    """Return a page of policies; filters and marker as the service has them."""
    found: list[dict[str, Any]] | None = service.get(f"{_PATH}/detail", "backup_policies", **query)
    if found is None:
        raise exceptions.CommandError(
            "The service has no backup policies: it is not backupfw, or an older one."
        )
    return found


def _path(policy: dict[str, Any]) -> str:
    return f"{_PATH}/{policy['id']}"


class _Copies(FormattableColumn[list[dict[str, Any]]]):
    def human_readable(self) -> str:
        return "\n".join(
            ",".join((one["store"], *(f"{name}={value}" for name, value in _kept(one) if value is not None)))
            for one in self._value
        )


def _kept(copy: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    return (copy.get("retention") or {}).items()


def _copy(text: str) -> dict[str, Any]:
    """Return what the service calls a member of ``copy_to``; it says what is wrong with it."""
    store, *rules = text.split(",")
    if not rules:
        return {"store": store}
    pairs = (rule.partition("=") for rule in rules)
    keep = {name.replace("-", "_"): int(value) if value.isdecimal() else value for name, _, value in pairs}
    return {"store": store, "retention": keep}


def _shown(policy: dict[str, Any]) -> tuple[Sequence[str], Sequence[Any]]:
    """Return a policy as a table and JSON show it."""
    fields = {name: value for name, value in policy.items() if name != "links"}
    for name in ("schedule", "backup", "retention", "selection"):
        fields[name] = DictColumn(fields[name])
    # A release before this one has none.
    if "copy_to" in fields:
        fields["copy_to"] = _Copies(fields["copy_to"])
    return tuple(fields), tuple(fields.values())


def _add_options(parser: argparse.ArgumentParser, needed: bool) -> None:
    """Add the options of a policy's fields.

    :param needed: whether schedule and selection must be given.
    """
    parser.add_argument("--description", metavar="<description>", help="Description of the policy")
    for options in _OPTIONS.values():
        for name, (option, kind, text) in options.items():
            parser.add_argument(
                option,
                metavar="<number>" if kind is int else f"<{name.replace('_', '-')}>",
                type=kind,
                dest=name,
                required=needed and name == "cron",
                help=text,
            )
    which = parser.add_mutually_exclusive_group(required=needed)
    which.add_argument(
        "--volume",
        metavar="<volume>",
        action="append",
        dest="volumes",
        help="Volume to back up (name or ID; repeat for several)",
    )
    which.add_argument(
        "--volume-property",
        metavar="<key=value>",
        action=KeyValueAction,
        dest="metadata",
        help="Back up the volumes with this property (repeat: with all of them)",
    )
    which.add_argument("--all-volumes", action="store_true", help="Back up all volumes of the project")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--incremental",
        action="store_true",
        default=None,
        help="Make incremental backups (default)",
    )
    kind.add_argument(
        "--no-incremental",
        action="store_false",
        dest="incremental",
        help="Make full backups only",
    )
    copies = parser.add_mutually_exclusive_group()
    copies.add_argument(
        "--copy-to",
        metavar="<store>[,<rule>=<number>...]",
        action="append",
        type=_copy,
        help="Store to which the backups are copied, too, and what is kept there, e.g. offsite,daily=7"
        " (default: as long as the backups; repeat for several stores, which replace those before)",
    )
    copies.add_argument(
        "--no-copies", action="store_const", const=[], dest="copy_to", help="Copy the backups nowhere"
    )
    parser.add_argument(
        "--no-quiesce", action="store_true", help="Do not freeze volumes while their points are taken"
    )
    parser.add_argument(
        "--max-concurrent", metavar="<number>", type=int, help="How many of its backups are made at once"
    )


def _wanted(service: Service, args: argparse.Namespace, now: dict[str, Any]) -> dict[str, Any]:
    """Return the body that the options ask for.

    :param now: the policy as it is: the service replaces a part as a whole.
    """
    body: dict[str, Any] = {}
    for part, options in _OPTIONS.items():
        changes = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
        if part == "backup" and args.incremental is not None:
            changes["incremental"] = args.incremental
        if part == "backup" and args.no_quiesce:
            changes["quiesce"] = None
        if changes:
            body[part] = {**now.get(part, {}), **changes}
    if args.volumes:
        body["selection"] = {"volume_ids": [service.find_volume(name).id for name in args.volumes]}
    elif args.metadata:
        body["selection"] = {"metadata": args.metadata}
    elif args.all_volumes:
        body["selection"] = {"all": True}
    if args.copy_to is not None:
        body["copy_to"] = args.copy_to
    for name in ("name", "description", "max_concurrent"):
        if getattr(args, name) is not None:
            body[name] = getattr(args, name)
    return body


class _OfPolicy:
    """Mix-in of the commands on one policy."""

    app: Any

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser of the command's words."""
        parser: argparse.ArgumentParser = super().get_parser(prog_name)  # type: ignore[misc]
        parser.add_argument("policy", metavar="<policy>", help="Backup policy (name or ID)")
        return parser


class CreatePolicy(command.ShowOne):
    """Create a backup policy"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser of the command's words."""
        parser = super().get_parser(prog_name)
        parser.add_argument("name", metavar="<name>", help="Name of the policy")
        _add_options(parser, needed=True)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return the new policy."""
        service = Service(self.app)
        body = {"backup_policy": _wanted(service, parsed_args, {})}
        return _shown(service.send("POST", _PATH, body)["backup_policy"])


class SetPolicy(_OfPolicy, command.Command):
    """Change a backup policy; what is not named stays, and backups that were made stay, too"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser of the command's words."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--name", metavar="<name>", help="New name of the policy")
        _add_options(parser, needed=False)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Change it."""
        service = Service(self.app)
        policy = _policy(service, parsed_args.policy)
        body = _wanted(service, parsed_args, policy)
        if body:
            service.send("PUT", _path(policy), {"backup_policy": body})


class ShowPolicy(_OfPolicy, command.ShowOne):
    """Show a backup policy"""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return it."""
        return _shown(_policy(Service(self.app), parsed_args.policy))


class ListPolicies(command.Lister):
    """List backup policies"""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:  # noqa: ARG002
        """Return all of them."""
        service = Service(self.app)
        found: list[dict[str, Any]] = []
        query: dict[str, Any] = {}
        while page := _page(service, **query):
            found += page
            query["marker"] = found[-1]["id"]
        titles = ("ID", "Name", "Enabled", "Cron", "Timezone", "Next Run At")
        return titles, [
            (
                *(one[name] for name in ("id", "name", "enabled")),
                one["schedule"]["cron"],
                one["schedule"]["timezone"],
                one["next_run_at"],
            )
            for one in found
        ]


class DeletePolicy(command.Command):
    """Delete backup policies; their backups stay"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser of the command's words."""
        parser = super().get_parser(prog_name)
        parser.add_argument("policies", metavar="<policy>", nargs="+", help="Backup policies (name or ID)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Delete each; one that is refused does not keep the others from it."""
        service = Service(self.app)

        def delete(name: str) -> None:
            service.send("DELETE", _path(_policy(service, name)))

        for_each(parsed_args.policies, "backup policies not deleted", delete)


#: Columns of runs.
_RUN = ("id", "volume_id", "scheduled_at", "status", "reason", "backup_id", "started_at", "ended_at")


def _runs(runs: Iterable[dict[str, Any]]) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
    titles = tuple(name.replace("_", " ").title().replace("Id", "ID") for name in _RUN)
    return titles, [tuple(run[name] for name in _RUN) for run in runs]


class RunPolicy(_OfPolicy, command.Lister):
    """Back up the volumes of a backup policy now, besides its schedule"""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
        """Return the runs that were begun."""
        service = Service(self.app)
        return _runs(service.act(_path(_policy(service, parsed_args.policy)), "run", {})["runs"])


class ListRuns(_OfPolicy, command.Lister):
    """List the runs of a backup policy, the newest first"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser of the command's words."""
        parser = super().get_parser(prog_name)
        states = ("waiting", "running", "ok", "skipped", "missed", "failed")
        parser.add_argument("--status", choices=states, help="Only runs with this status")
        parser.add_argument("--volume", metavar="<volume-id>", help="Only runs of this volume (ID)")
        parser.add_argument(
            "--limit", metavar="<number>", type=int, default=100, help="How many (default: %(default)s)"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
        """Return them."""
        service = Service(self.app)
        wanted = {"status": parsed_args.status, "volume_id": parsed_args.volume, "limit": parsed_args.limit}
        query = {name: value for name, value in wanted.items() if value is not None}
        path = _path(_policy(service, parsed_args.policy))
        return _runs(service.get(f"{path}/runs", "runs", **query) or ())


class PausePolicy(_OfPolicy, command.Command):
    """Let a backup policy rest; backups that are being made are completed"""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Ask for it."""
        service = Service(self.app)
        service.act(_path(_policy(service, parsed_args.policy)), "pause", {})


class ResumePolicy(_OfPolicy, command.Command):
    """Let a backup policy go on with its next scheduled time"""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Ask for it."""
        service = Service(self.app)
        service.act(_path(_policy(service, parsed_args.policy)), "resume", {})


class _Times(FormattableColumn[list[str]]):
    def human_readable(self) -> str:
        return "\n".join(self._value)


class _Fates(FormattableColumn[list[dict[str, Any]]]):
    def human_readable(self) -> str:
        lines = []
        for volume in self._value:
            lines.append(f"volume {volume['volume_id']}, {volume['backups_then']} backups then")
            for one in volume["backups"]:
                goes = f", goes at {one['goes_at']}" if one["goes_at"] else ""
                lines.append(f"  {one['data_timestamp']} {one['backup_id']}: {one['reason']}{goes}")
                # An older service tells of no places; one place is the backup itself.
                places = one.get("places", ())
                for place in places if len(places) > 1 else ():
                    goes = f", goes at {place['goes_at']}" if place["goes_at"] else ""
                    lines.append(f"    {place['store']}: {place['reason']}{goes}")
        return "\n".join(lines)


class PreviewPolicy(_OfPolicy, command.ShowOne):
    """Show what a backup policy will do: its next runs, and of each backup why it is kept or when it goes"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser of the command's words."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--at", metavar="<time>", help="From when on, ISO 8601 (default: now)")
        parser.add_argument("--days", metavar="<days>", type=int, help="How far, in days (default: 30)")
        parser.add_argument("--volume", metavar="<volume>", help="Of this volume only (name or ID)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return it; nothing is changed."""
        service = Service(self.app)
        policy = _policy(service, parsed_args.policy)
        body = {"at": parsed_args.at, "days": parsed_args.days, "volume_id": None}
        if parsed_args.volume is not None:
            body["volume_id"] = service.find_volume(parsed_args.volume).id
        found = service.act(_path(policy), "preview", body)["preview"]
        shown = {**found, "next_runs": _Times(found["next_runs"]), "volumes": _Fates(found["volumes"])}
        return tuple(shown), tuple(shown.values())
