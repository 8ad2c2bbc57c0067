"""``openstack volume backup copy create``, ``list`` and ``delete``: a backup's copies in other stores."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from osc_lib import exceptions
from osc_lib.command import command

from backupfwclient.service import Service, wait

#: The service's names of what is shown.
_FIELDS = ("store", "container", "status", "fail_reason", "created_at", "updated_at")


def _copies(service: Service, backup_id: str) -> list[dict[str, Any]]:
    """Return the copies that a backup has, as the service gives them."""
    found: list[dict[str, Any]] | None = service.get(f"/backups/{backup_id}/copies", "copies")
    if found is None:
        raise exceptions.CommandError(
            f"There are no copies of backup {backup_id}: it is gone, or the service is not backupfw."
        )
    return found


def _add_names(parser: argparse.ArgumentParser, store: str) -> None:
    parser.add_argument("backup", metavar="<backup>", help="Backup (name or ID)")
    parser.add_argument("store", metavar="<store>", help=store)


class CreateCopy(command.ShowOne):
    """Copy a backup to another store of the service"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser of the command's words."""
        parser = super().get_parser(prog_name)
        _add_names(parser, "Store that gets the copy")
        parser.add_argument(
            "--wait", action="store_true", help="Wait until the copy is complete; fail if it failed"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return the new copy."""
        service = Service(self.app)
        backup = service.find_backup(parsed_args.backup)
        service.act(f"/backups/{backup.id}", "os-backupfw-copy", {"store": parsed_args.store})

        def look() -> dict[str, Any]:
            for copy in _copies(service, backup.id):
                if copy["store"] == parsed_args.store:
                    return copy
            raise exceptions.CommandError(f"The copy of {backup.id} in {parsed_args.store} was removed.")

        copy = wait(look, lambda seen: not parsed_args.wait or seen["status"] != "copying")
        if parsed_args.wait and copy["status"] != "available":
            raise exceptions.CommandError(
                f"The copy of {backup.id} in {parsed_args.store} is {copy['status']}: {copy['fail_reason']}"
            )
        return _FIELDS, tuple(copy[name] for name in _FIELDS)


class ListCopies(command.Lister):
    """List a backup's copies in other stores"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser of the command's words."""
        parser = super().get_parser(prog_name)
        parser.add_argument("backup", metavar="<backup>", help="Backup (name or ID)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
        """Return the copies."""
        service = Service(self.app)
        copies = _copies(service, service.find_backup(parsed_args.backup).id)
        titles = tuple(name.replace("_", " ").title() for name in _FIELDS)
        return titles, [tuple(copy[name] for name in _FIELDS) for copy in copies]


class DeleteCopy(command.Command):
    """Delete a backup's copy in another store, complete or not; the backup stays"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser of the command's words."""
        parser = super().get_parser(prog_name)
        _add_names(parser, "Store whose copy is deleted")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Ask for it; the service deletes the objects later."""
        service = Service(self.app)
        backup = service.find_backup(parsed_args.backup)
        service.act(f"/backups/{backup.id}", "os-backupfw-remove_copy", {"store": parsed_args.store})
