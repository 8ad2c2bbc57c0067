"""What every subcommand is made of: its options, how it opens things, how it prints a list or a record.

A command is a class of one of the three kinds below and an entry point of the group ``backupfw.command``, so
that a driver's distribution can bring some.  It is small: it declares its arguments, and calls functions that
other code can call, too.  Its docstring is its help.  Modules that take long to import are imported in
functions.
"""

from __future__ import annotations

import argparse
import json
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from cliff import command, lister, show

from backupfw import naming

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext
    from backupfw.db.session import Database

T = TypeVar("T")
#: A line of a command's own text; one that may be too long for memory comes in parts.
Line = str | Iterable[str]

#: The formats that keep structure; the others have text in each cell.
_STRUCTURED = ("json", "yaml")


def operator(project: str = "") -> RequestContext:
    """Return the context of a command: an administrator, in a project where that matters."""
    from backupfw.context import RequestContext

    return RequestContext(project, "backupfw", frozenset({"admin"}), is_admin=True)


class AnyCommand(command.Command):
    """What the three kinds have in common.

    :ivar status: the exit status of a command that does not return one.
    """

    conflict_handler = "error"
    status = 0

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's own arguments; it has the common options already."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the command's parser."""
        from backupfw.cmd import configure

        parser = super().get_parser(prog_name)
        # An abbreviation that is unique today can mean two options in a later release.
        parser.allow_abbrev = False
        self.add_arguments(parser)
        configure.add_options(parser)
        self._parser = parser
        return parser

    def get_epilog(self) -> str:
        """Name the distribution of a command that is not ours; ours are not searched for, to save time."""
        return "" if type(self).__module__.startswith("backupfw.") else super().get_epilog()

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Run the command; what it opened is closed afterwards.

        :returns: the exit status.
        """
        with ExitStack() as self._stack:
            return super().run(parsed_args) or self.status

    def require_columns(self, wanted: Sequence[str], known: Sequence[str]) -> None:
        """Refuse ``--column`` with a name that there is not; cliff would leave it out.

        :raises SystemExit: wrong usage.
        """
        for name in wanted:
            if name.strip().lower().replace(" ", "_") not in known:
                self.refuse(f"there is no column {name!r}; columns: {', '.join(known)}")

    def refuse(self, problem: str) -> NoReturn:
        """Say what is wrong with the arguments, where the parser itself cannot see that.

        :raises SystemExit: always, with the status of wrong usage.
        """
        self._parser.error(problem)

    def open(self, context: AbstractContextManager[T]) -> T:
        """Enter a context until the command is over, which is when all of its output is written."""
        return self._stack.enter_context(context)

    def database(self, args: argparse.Namespace, make: bool = False) -> tuple[cfg.ConfigOpts, Database]:
        """Load the configuration and open the database until the command is over.

        :param make: as for :func:`backupfw.cmd.database.connect`.
        :raises ConfigError: as :func:`backupfw.cmd.database.prepare`.
        """
        from backupfw.cmd import configure, database

        conf = configure.load_conf(args)
        return conf, self.open(database.opened(conf, make))


class Command(AnyCommand):
    """A command that does something, and says what."""

    @abstractmethod
    def take_action(self, parsed_args: argparse.Namespace) -> int | None:
        """Do it.

        :returns: the exit status; None stands for 0.
        """


class _Formatted(AnyCommand):
    """A command whose output has a format.

    :cvar formats: the formats that it can have: the last part of the name of their entry points' group.
    :cvar default_format: the format when none is asked for.
    """

    formats: str
    default_format = "table"

    @property
    def formatter_namespace(self) -> str:
        """Return the group of entry points of our formats."""
        return f"backupfw.formatter.{self.formats}"

    @property
    def formatter_default(self) -> str:
        """Return the format when none is asked for."""
        return self.default_format


class Lister(_Formatted, lister.Lister):
    """A command that lists records.

    :cvar columns: the names of their values, which are keys in JSON and YAML.
    :cvar short: the columns of a table where neither ``--column`` nor ``--long`` asks for others; empty: all.
    :cvar default_format: ``table``, or ``text`` for a report.
    :cvar scripts_read_text: people had a text before there were formats, so whatever is no terminal still
        gets it when no format is asked for.
    :cvar json_text: what ``--json`` prints, if the command had that option before there were formats: its own
        text, as JSON.
    """

    columns: Sequence[str] = ()
    short: Sequence[str] = ()
    formats = "list"
    scripts_read_text = False
    json_text = ""

    @property
    def formatter_default(self) -> str:
        """Return the format when none is asked for."""
        return "text" if self.scripts_read_text and not sys.stdout.isatty() else self.default_format

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the command's parser."""
        parser = super().get_parser(prog_name)
        if self.short:
            parser.add_argument("--long", action="store_true", help="all columns in a table, too")
        if self.json_text:
            parser.add_argument("--json", action="store_true", help=f"{self.json_text}; takes no --format")
        return parser

    @abstractmethod
    def records(self, args: argparse.Namespace) -> Iterable[Mapping[str, Any]]:
        """Return the records, of plain values; they may be read while they are printed.

        They may have more values than there are columns, for :meth:`lines`.
        """

    def lines(self, args: argparse.Namespace, records: Iterator[Mapping[str, Any]]) -> Iterable[Line] | None:  # noqa: ARG002
        """Return the command's own text; None: columns without borders."""
        return None

    def is_text(self, args: argparse.Namespace) -> bool:
        """Say whether the command's own text is asked for."""
        return args.formatter == "text" and not (args.columns or args.sort_columns)

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        """Return the columns, and a row for each record."""
        self.require_columns([*parsed_args.columns, *parsed_args.sort_columns], self.columns)
        if self.json_text and parsed_args.json:
            if parsed_args.formatter == self.formatter_default:
                parsed_args.formatter = "text"
            if not self.is_text(parsed_args):
                self.refuse("--json takes no --format and no columns; '--format json' does")
        if self.short and parsed_args.formatter == "table" and not (parsed_args.columns or parsed_args.long):
            parsed_args.columns = [*self.short]
        records = self.records(parsed_args)
        self._text = None
        if self.is_text(parsed_args):
            records = iter(records)
            self._text = self.lines(parsed_args, records)
        return self.columns, (_row(self.columns, one, parsed_args.formatter) for one in records)

    def reported(self, records: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Yield records; the command fails if the ``result`` of one is ``failed``."""
        for one in records:
            if one["result"] == "failed":
                self.status = 1
            yield one

    def produce_output(
        self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Iterable[Sequence[Any]]
    ) -> int:
        """Write the list."""
        if self._text is not None:
            for line in self._text:
                self.app.stdout.writelines([line] if isinstance(line, str) else line)
                self.app.stdout.write("\n")
                # Some lines take a while, and a reader gets each at once.
                self.app.stdout.flush()
            return 0
        return super().produce_output(parsed_args, column_names, data)


class Verdicts(Lister):
    """A command that lists verdicts: each has its ``line`` for people; see :meth:`Lister.reported`."""

    default_format = "text"

    def lines(self, args: argparse.Namespace, records: Iterator[Mapping[str, Any]]) -> Iterable[str]:  # noqa: ARG002
        """Return the line of each."""
        return (one["line"] for one in records)


class ShowOne(_Formatted, show.ShowOne):
    """A command that shows one record.

    :cvar default_format: ``table`` or ``json``.
    """

    formats = "show"

    @abstractmethod
    def record(self, args: argparse.Namespace) -> Mapping[str, Any]:
        """Return the record, of plain values."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Iterable[Any]]:
        """Return the names and the values."""
        record = self.record(parsed_args)
        self.require_columns(parsed_args.columns, tuple(record))
        return tuple(record), _row(tuple(record), record, parsed_args.formatter)


def _row(columns: Sequence[str], record: Mapping[str, Any], formatter: str) -> tuple[Any, ...]:
    values = tuple(record[name] for name in columns)
    if formatter in _STRUCTURED:
        return values
    texts = (json.dumps(each) if isinstance(each, dict | list) else each for each in values)
    if formatter != "table":
        return tuple(texts)
    # Names that an earlier release or a manifest brought may hold control characters.
    return tuple(naming.shown(each) if isinstance(each, str) else each for each in texts)


def moment(text: str) -> datetime:
    """Return a day or time as naive UTC; for argparse."""
    from backupfw import moments

    try:
        return moments.parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date, e.g. 2026-01-31") from None
