"""``openstack volume backup progress``, ``cancel`` and ``verify``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from osc_lib import exceptions
from osc_lib.cli.format_columns import SizeColumn
from osc_lib.command import command
from osc_lib.utils import format_size

from backupfwclient.service import Service, for_each, wait

#: What the service says of a backup on which nothing runs or waits.
IDLE = "idle"
#: Fields of the progress that count bytes; the table shows them with a unit.
_BYTES = ("bytes_done", "bytes_total", "bytes_per_second")


class ShowProgress(command.ShowOne):
    """Show the running operation of a backup: what it does or waits for, and how far it is"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser of the command's words."""
        parser = super().get_parser(prog_name)
        parser.add_argument("backup", metavar="<backup>", help="Backup to look at (name or ID)")
        parser.add_argument(
            "--wait",
            action="store_true",
            help="Wait until the operation is over; fail if it failed. A terminal shows how far it is",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return the progress with the backup's status."""
        service = Service(self.app)
        backup = service.find_backup(parsed_args.backup)
        path = f"/backups/{backup.id}"
        progress = service.get(f"{path}/progress", "progress")
        if progress is None:
            raise exceptions.CommandError(
                f"There is no progress of backup {backup.id}: it is gone, or the service is not backupfw."
            )
        status, failure = backup.status, None
        if parsed_args.wait:
            line = _Line()
            seen = wait(
                lambda: line.show(service.get(f"{path}/progress", "progress")),
                lambda seen: seen is None or seen["phase"] == IDLE,
            )
            line.end()
            # A backup whose deletion was awaited is gone.
            progress = seen or {**dict.fromkeys(progress), "phase": IDLE}
            over = service.get(path, "backup")
            status, failure = ("deleted", None) if over is None else (over["status"], over["fail_reason"])
        if failure:
            raise exceptions.CommandError(f"Backup {backup.id} is {status}: {failure}")
        shown = {"id": backup.id, "status": status, **progress}
        for name in _BYTES:
            if shown[name] is not None:
                shown[name] = SizeColumn(shown[name])
        return tuple(shown), tuple(shown.values())


class _Line:
    """A line on the terminal that is written anew; nothing if standard error is none."""

    def __init__(self) -> None:
        self._stream = sys.stderr if sys.stderr.isatty() else None

    def show(self, progress: dict[str, Any] | None) -> dict[str, Any] | None:
        """Show how far it is; returns what it was given."""
        if self._stream is not None and progress is not None:
            text = str(progress["phase"])
            if progress["bytes_total"]:
                done, total = progress["bytes_done"] or 0, progress["bytes_total"]
                text += f": {format_size(done)} of {format_size(total)} ({100 * done // total} %)"
            self._stream.write(f"\r{text:<60}")
            self._stream.flush()
        return progress

    def end(self) -> None:
        """Leave the line to what follows."""
        if self._stream is not None:
            self._stream.write(f"\r{'':<60}\r")


class CancelBackup(command.Command):
    """Cancel the making, the restore or else the verification of backups, whether it waits or runs"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser of the command's words."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "backups", metavar="<backup>", nargs="+", help="Backup(s) whose operation ends (name or ID)"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Cancel each; one that is refused does not keep the others from it."""
        service = Service(self.app)

        def cancel(name: str) -> None:
            service.act(f"/backups/{service.find_backup(name).id}", "os-backupfw-cancel", {})

        for_each(parsed_args.backups, "backups not cancelled", cancel)


class VerifyBackup(command.Command):
    """Let the service read all of backups, in their stores and in those of their copies, and compare it"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser of the command's words."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "backups", metavar="<backup>", nargs="+", help="Backup(s) to verify (name or ID); see progress"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Begin each verification; one that is refused does not keep the others from it."""
        service = Service(self.app)

        def verify(name: str) -> None:
            service.act(f"/backups/{service.find_backup(name).id}", "os-backupfw-verify", {})

        for_each(parsed_args.backups, "backups not verified", verify)
