"""``backupfw policy``: backup policies, their runs, and what they will do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from backupfw.cmd import base, usecases
from backupfw.cmd.progress import counted

#: The fields of a policy's schedule and retention that are numbers: option, bounds, help.
_SCHEDULE = (
    ("jitter", 0, 86400, "seconds over which its volumes are spread"),
    ("start_window", 1, 10080, "minutes within which a run may begin"),
    ("completion_window", 1, 10080, "minutes within which a backup must be complete, or is cancelled"),
)
_RETENTION = (
    *((name, 0, 10000, f"keep {text}") for name, text in (
        ("last", "so many of the newest"),
        ("hourly", "the newest of so many hours"),
        ("daily", "the newest of so many days"),
        ("weekly", "the newest of so many weeks"),
        ("monthly", "the newest of so many months"),
        ("yearly", "the newest of so many years"),
    )),
    ("min_keep", 1, 10000, "so many of the newest stay in any case"),
)  # fmt: skip


def _number(least: int, largest: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text[:20]) <= largest:
            raise argparse.ArgumentTypeError(f"{text!a} is no number from {least} to {largest}")
        return int(text)

    return read


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = usecases.text(text).partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!a} is not KEY=VALUE")
    return key, value


def _copy(text: str) -> dict[str, Any]:
    from backupfw.manager.policies.settings import copy_words

    words = copy_words(usecases.text(text))
    bounds = {name: (least, largest) for name, least, largest, _ in _RETENTION}
    for name, value in words.get("retention", {}).items():
        if name in bounds:
            _number(*bounds[name])(str(value))
        elif name != "within" or isinstance(value, int):
            raise argparse.ArgumentTypeError(f"{text!a}: {name!a} is no rule of a retention")
    return words


def _add_settings(parser: argparse.ArgumentParser, *, new: bool) -> None:
    """Add the options of what a policy is set to.

    :param new: the policy is made; otherwise what is not named stays.
    """
    parser.add_argument(
        "--cron",
        required=new,
        metavar="EXPR",
        type=usecases.text,
        help="five fields, or @hourly, @daily, ...",
    )
    parser.add_argument("--timezone", metavar="ZONE", type=usecases.text, help="e.g. Europe/Berlin (UTC)")
    which = parser.add_mutually_exclusive_group(required=new)
    which.add_argument("--volume", metavar="ID", action="append", help="this volume (id or name); repeatable")
    which.add_argument(
        "--metadata", metavar="KEY=VALUE", action="append", type=_pair, help="volumes with it; repeatable"
    )
    which.add_argument("--all", action="store_true", help="all volumes of the project")
    for name, least, largest, text in (*_SCHEDULE, *_RETENTION):
        parser.add_argument(
            f"--{name.replace('_', '-')}", dest=name, metavar="N", type=_number(least, largest), help=text
        )
    parser.add_argument(
        "--within",
        metavar="TIME",
        type=usecases.text,
        help="keep what is so much older than the newest: 36h, 30d",
    )
    parser.add_argument("--store", metavar="NAME", type=usecases.text, help="where its backups go")
    copies = parser.add_mutually_exclusive_group()
    copies.add_argument(
        "--copy-to",
        metavar="STORE[,RULE=N...]",
        action="append",
        type=_copy,
        help="copy its backups there, too, and what to keep there, as e.g. offsite,daily=7,within=30d"
        " (as long as the backups); repeatable, and all of them are named anew",
    )
    copies.add_argument(
        "--no-copies", dest="copy_to", action="store_const", const=[], help="copy its backups nowhere"
    )
    parser.add_argument(
        "--full-every", metavar="N", type=_number(1, 1000), help="of so many backups one is full; 1: each"
    )
    quiesce = parser.add_mutually_exclusive_group()
    quiesce.add_argument(
        "--quiesce",
        metavar="NAME",
        type=usecases.text,
        help="freeze volumes with these commands of [quiesce:NAME] while their points are taken",
    )
    quiesce.add_argument("--no-quiesce", action="store_true", help="do not freeze them")
    parser.add_argument(
        "--max-concurrent", metavar="N", type=_number(1, 10000), help="so many of its backups at once"
    )
    parser.add_argument("--name", metavar="N", type=usecases.text, help="display name")
    parser.add_argument("--description", metavar="TEXT", type=usecases.text, help="what it is for")


def _settings(
    cases: usecases.UseCases,
    args: argparse.Namespace,
    project: str,
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the parts of the settings that the options change, with the fields that stay.

    :param project: whose volumes can be named.
    """
    from backupfw.db import models

    given = {
        "schedule": {
            name: getattr(args, name) for name in ("cron", "timezone", *(field[0] for field in _SCHEDULE))
        },
        "retention": {name: getattr(args, name) for name in (*(field[0] for field in _RETENTION), "within")},
        "backup": {"store": args.store, "full_every": args.full_every, "quiesce": args.quiesce},
    }
    parts: dict[str, Any] = {}
    for part, fields in given.items():
        changed = {name: value for name, value in fields.items() if value is not None}
        if changed:
            parts[part] = {**known.get(part, {}), **changed}
    if args.copy_to is not None:
        parts["copy_to"] = args.copy_to
    if args.no_quiesce:
        parts["backup"] = {**known.get("backup", {}), **parts.get("backup", {}), "quiesce": None}
    if args.all:
        parts["selection"] = {"all": True}
    elif args.metadata:
        parts["selection"] = {"metadata": dict(args.metadata)}
    elif args.volume:
        found = [cases.find(models.Volume, one, project_id=project) for one in args.volume]
        parts["selection"] = {"volume_ids": list(dict.fromkeys(found))}
    return parts


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a policy as the command shows it: what it is set to beside its other fields."""
    shown = dict(values)
    return {**{key: value for key, value in shown.items() if key != "settings"}, **shown["settings"]}


class _OfOne(base.Command):
    """A command about one policy."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        _add_policy(parser)

    def found(self, args: argparse.Namespace) -> tuple[usecases.UseCases, str]:
        """Return the use cases, and the policy's id."""
        return _found(usecases.UseCases(*self.database(args)), args)


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="POLICY", help="the policy's id or name")
    usecases.add_project(parser)


def _found(cases: usecases.UseCases, args: argparse.Namespace) -> tuple[usecases.UseCases, str]:
    from backupfw.db import models

    return cases, cases.find(models.BackupPolicy, args.id, args.project)


class Create(base.Command):
    """Make a backup policy in a project and print its id; workers back up its volumes by its schedule."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--project", required=True, metavar="P", type=usecases.project, help="whose it is"
        )
        _add_settings(parser, new=True)
        parser.add_argument("--paused", action="store_true", help="it rests until 'policy resume'")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Make it."""
        args = parsed_args
        cases = usecases.UseCases(*self.database(args))
        made = cases.policies.create(
            base.operator(args.project),
            settings=_settings(cases, args, args.project, {}),
            name=args.name,
            description=args.description,
            enabled=not args.paused,
            max_concurrent=args.max_concurrent,
        )
        print(made.id)


class Set(_OfOne):
    """Change a backup policy; what is not named stays."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        super().add_arguments(parser)
        _add_settings(parser, new=False)

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Change it."""
        args = parsed_args
        cases, policy = self.found(args)
        known = cases.policies.get(base.operator(), policy)
        values = {"name": args.name, "description": args.description, "max_concurrent": args.max_concurrent}
        changes: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
        cases.policies.update(
            base.operator(known.project_id),
            policy,
            settings=_settings(cases, args, known.project_id, known.settings),
            **changes,
        )


class List(base.Lister):
    """List backup policies, oldest first."""

    columns = ("id", "name", "project_id", "enabled", "cron", "timezone", "next_run_at", "created_at")
    short = ("id", "name", "enabled", "cron", "timezone", "next_run_at")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("--project", metavar="ID", type=usecases.text, help="only those of this project")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Return them page by page."""
        cases = usecases.UseCases(*self.database(args))
        for one in usecases.pages(cases.policies.list, {"project_id": args.project}):
            shown = _plain(usecases.described(one))
            yield {**shown, **shown["schedule"]}


class Show(base.ShowOne):
    """Show a backup policy."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        _add_policy(parser)

    def record(self, args: argparse.Namespace) -> Mapping[str, Any]:
        """Return it."""
        cases, policy = _found(usecases.UseCases(*self.database(args)), args)
        return _plain(usecases.described(cases.policies.get(base.operator(), policy)))


class Delete(_OfOne):
    """Delete a backup policy and the records of its runs; its backups stay."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Delete it."""
        cases, policy = self.found(parsed_args)
        cases.policies.delete(base.operator(), policy)


class Run(_OfOne):
    """Back up the volumes of a policy now, besides its schedule; 'policy runs' shows what becomes of it."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Plan the runs."""
        cases, policy = self.found(parsed_args)
        print(f"{counted(len(cases.policies.run(base.operator(), policy)), 'run')} planned")


class Pause(_OfOne):
    """Let a backup policy rest: nothing is planned, and runs that wait are skipped."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Let it rest."""
        cases, policy = self.found(parsed_args)
        cases.policies.pause(base.operator(), policy)


class Resume(_OfOne):
    """Let a backup policy go on with its next scheduled time."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Let it go on."""
        cases, policy = self.found(parsed_args)
        print(f"next run at {cases.policies.resume(base.operator(), policy).next_run_at} UTC")


class Preview(base.Lister):
    """List the backups of a policy, by store: why each is kept, and after which of the next runs it goes."""

    columns = ("volume_id", "backup_id", "data_timestamp", "store", "reason", "goes_at")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        _add_policy(parser)
        parser.add_argument("--days", metavar="N", type=_number(0, 366), default=30, help="how far (30)")
        parser.add_argument("--volume", metavar="ID", help="only of this volume (id or name)")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Return them, volume by volume."""
        from backupfw.cmd import catalogue, database

        cases, policy = _found(usecases.UseCases(*self.database(args)), args)
        volume = (
            None if args.volume is None else catalogue.find_backed_up(cases.db, args.volume, args.project)
        )
        found = cases.policies.preview(base.operator(), policy, days=args.days, volume_id=volume)
        for one in found.volumes:
            for fate in one.backups:
                shown = database.plain(fate)
                common = {"volume_id": one.volume_id, "data_timestamp": shown["taken_at"]}
                for place in fate.places:
                    yield {**common, "backup_id": fate.backup_id, **database.plain(place)}


class Runs(base.Lister):
    """List the runs of a backup policy, oldest first, with what became of each."""

    columns = (
        *("id", "volume_id", "scheduled_at", "status", "reason", "backup_id", "quiesced"),
        *("started_at", "ended_at"),
    )
    short = ("volume_id", "scheduled_at", "status", "backup_id", "reason")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        _add_policy(parser)
        states = ("waiting", "running", "ok", "skipped", "missed", "failed")
        parser.add_argument("--status", choices=states, help="only those in this status")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Return them page by page."""
        cases, policy = _found(usecases.UseCases(*self.database(args)), args)

        def page(context: Any, **paging: Any) -> Any:
            return cases.policies.runs(context, policy, **paging)

        return map(usecases.described, usecases.pages(page, {"status": args.status}))
