"""The ``backupfw`` command: finds the subcommand, runs it, turns errors into one line.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.  Ids, paths and what was asked for go to
standard output; progress and errors to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from oslo_db.exception import DBError
from sqlalchemy.exc import DBAPIError

import backupfw
from backupfw.cmd import audit, backup, config, db, lifecycle, serve, store, sweep, volume
from backupfw.errors import BackupfwError

#: In the order the help shows them.
MODULES = (serve, volume, backup, store, audit, sweep, db, config, lifecycle)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="backupfw",
        description="Back up block volumes to chunk stores and restore them.",
        epilog="'backupfw COMMAND --help' tells more about one command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"backupfw {backupfw.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in MODULES:
        module.add_parser(commands)
    return parser


def _message(error: Exception, debug: bool) -> str:
    """Say in one line what went wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (BackupfwError, OSError)):
        return text
    if isinstance(error, (DBError, DBAPIError)):
        # The client library's words, without the statement.
        inner = getattr(error, "inner_exception", None) or error
        return f"database: {' '.join(str(getattr(inner, 'orig', None) or error).split())}"
    hint = "" if debug else " (--debug shows where)"
    return f"internal error: {type(error).__name__}: {text}{hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    :param argv: its words; those of the process when None.
    :returns: the exit status.
    :raises SystemExit: wrong usage, or ``--help``.
    """
    args = build_parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("backupfw: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output left; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  (whatever it is, the user gets one line)
        if args.debug:
            traceback.print_exc()
        print(f"backupfw: {_message(error, args.debug)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
