"""The ``backupfw`` command: finds the subcommand, runs it, turns errors into one line.

Exit status: 0 only when it worked, 1 failed, 2 wrong usage, 130 interrupted.  Ids, paths and what was asked
for go to standard output; progress and errors to standard error.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import locale
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from cliff import app, command, commandmanager
from stevedore.named import NamedExtensionManager

import backupfw
from backupfw.cmd import base
from backupfw.errors import BackupfwError

#: The group of entry points that commands are in; a blank in a name is an underscore there.
GROUP = "backupfw.command"


class Commands(commandmanager.CommandManager):
    """Finds commands by their entry points, and imports the one that is run only."""

    def load_commands(self, namespace: str) -> None:
        """Find the commands of a group; another distribution cannot replace one of ours."""
        self.group_list.append(namespace)
        # With no names, it imports nothing.
        points = NamedExtensionManager(namespace, names=[]).list_entry_points()
        for point in sorted(points, key=lambda each: not each.value.startswith("backupfw.")):
            self.commands.setdefault(point.name.replace("_", " "), point)

    def add_command(self, name: str, command_class: type[command.Command]) -> None:
        """Add a command of cliff's own, unless we have one of that name."""
        if name not in self.commands:
            super().add_command(name, command_class)

    def find_command(self, argv: list[str]) -> tuple[type[command.Command], str, list[str]]:
        """Return the command that the first words name in full, its name, and the words after that.

        :raises ValueError: there is none.
        """
        for count in range(len(argv), 0, -1):
            name = " ".join(argv[:count])
            if name in self.commands:
                return self.commands[name].load(), name, argv[count:]
        named = itertools.takewhile(lambda word: not word.startswith("-"), argv)
        raise ValueError(f"there is no command {' '.join(named)!r}")


class App(app.App):
    """The whole command.

    Of cliff's, it has the commands, their parsers and their formats.  It configures no logging, which is the
    configuration's; it has no interactive mode; and its errors are those of :func:`main`.
    """

    NAME = "backupfw"
    command_manager: Commands

    def __init__(self) -> None:
        # Cliff sets the user's locale.  Then messages of the system would be in the user's language, also in
        # the database.
        before = locale.setlocale(locale.LC_ALL)
        super().__init__(
            description="Back up block volumes to chunk stores and restore them.",
            version=backupfw.__version__,
            command_manager=Commands(GROUP),
        )
        locale.setlocale(locale.LC_ALL, before)

    def build_option_parser(
        self, description: str | None, version: str | None, argparse_kwargs: dict[str, Any] | None = None
    ) -> argparse.ArgumentParser:
        """Return the parser of the words before the command; the command has its own parser."""
        parser = argparse.ArgumentParser(
            prog=self.NAME,
            usage="%(prog)s [-h] [--version] COMMAND ...",
            description=description,
            add_help=False,
            allow_abbrev=False,
            **(argparse_kwargs or {}),
        )
        parser.add_argument("-h", "--help", action="store_true", help="show this help and exit")
        parser.add_argument("--version", action="version", version=f"{self.NAME} {version}")
        parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
        return parser

    def parse(self, argv: Sequence[str]) -> tuple[command.Command, argparse.Namespace]:
        """Return the command that some words ask for, and what it is to be run with.

        :raises SystemExit: wrong usage, or one of the options that print something.
        """
        if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version"):
            self.parser.error(
                f"{argv[0]} stands before the command; options follow it: {self.NAME} COMMAND [OPTION ...]"
            )
        self.options = self.parser.parse_args(argv)
        words = self.options.words
        if self.options.help:
            self._print_help("")
        try:
            factory, name, rest = self.command_manager.find_command(words)
        except ValueError as error:
            self._refuse(words, str(error))
        found = factory(self, self.options, name)
        return found, found.get_parser(f"{self.NAME} {name}").parse_args(rest)

    def _refuse(self, words: Sequence[str], problem: str) -> None:
        """Say what there is instead of what was asked for.

        :raises SystemExit: always.
        """
        group = words[0] if words else ""
        names = [name for name, _ in self.command_manager]
        inside = [name for name in names if name.startswith(f"{group} ")]
        if inside and words[1:2] in (["-h"], ["--help"]):
            self._print_help(f"{group} ")
        if len(names) <= 2:
            # Only the two commands of cliff were found.
            problem = "what is installed is older than this code: install it again"
        if not words:
            self.parser.error("a COMMAND is needed; --help lists them")
        if inside:
            unknown = f"{problem}; " if words[1:] and not words[1].startswith("-") else ""
            self.parser.error(f"{unknown}{group!r} needs one of: {', '.join(sorted(inside))}")
        near = get_close_matches(" ".join(words[:2]), names) or get_close_matches(group, names)
        self.parser.error(f"{problem}{', perhaps: ' + ', '.join(near) if near else ''}; --help lists them")

    def _print_help(self, prefix: str) -> None:
        """List the commands whose names begin with something.

        :raises SystemExit: always.
        """
        text = [self.parser.format_help()] if not prefix else [f"usage: {self.NAME} {prefix}COMMAND ...\n"]
        text.append("\ncommands:\n")
        for name, point in sorted(self.command_manager):
            if name.startswith(prefix):
                try:
                    about = (inspect.getdoc(point.load()) or "").partition("\n")[0]
                except Exception as error:  # noqa: BLE001  (somebody else's command must not take ours away)
                    about = f"cannot be loaded: {error}"
                text.append(f"    {name:<17} {about}\n")
        text.append(f"\n'{self.NAME} COMMAND --help' tells more about one command.\n")
        self.stdout.write("".join(text))
        self.stdout.flush()
        raise SystemExit(0)


class Help(base.Command):
    """Tell what a command does and what its options are."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("words", metavar="COMMAND", nargs="*", help="the command, e.g. backup list")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Print the help."""
        App().parse([*parsed_args.words, "--help"])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return what a command would be run with; runs nothing.

    :raises SystemExit: wrong usage.
    """
    return App().parse(argv)[1]


def _message(error: Exception, debug: bool) -> str:
    """Say in one line what went wrong."""
    from oslo_db.exception import DBError
    from sqlalchemy.exc import DBAPIError

    from backupfw.outages import database_words

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (BackupfwError, OSError)):
        return text
    if isinstance(error, (DBError, DBAPIError)):
        return f"database: {database_words(error)}"
    hint = "" if debug else " (--debug shows where)"
    return f"internal error: {type(error).__name__}: {text}{hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    :param argv: its words; those of the process when None.
    :returns: the exit status.
    :raises SystemExit: wrong usage, or ``--help``.
    """
    debug = False
    try:
        found, args = App().parse(sys.argv[1:] if argv is None else argv)
        # A command of somebody else's may not have our options.
        debug = getattr(args, "debug", False)
        status = found.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("backupfw: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output has left.  Without this, Python would report that again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  (whatever it is, the user gets one line)
        if debug:
            traceback.print_exc()
        print(f"backupfw: {_message(error, debug)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
