"""The formats that cliff does not have.  The others are its own, see the entry points in setup.cfg."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from cliff.formatters.base import ListFormatter, SingleFormatter
from cliff.formatters.commaseparated import CSVLister

from backupfw import naming


class Text(ListFormatter):
    """Columns as wide as their widest cell, two blanks apart."""

    def add_argument_group(self, parser: argparse.ArgumentParser) -> None:
        """Add nothing."""

    def emit_list(
        self,
        column_names: Sequence[str],
        data: Iterable[Sequence[Any]],
        stdout: TextIO,
        parsed_args: argparse.Namespace,  # noqa: ARG002
    ) -> None:
        """Write a line for the names and one for each row."""
        rows = [list(column_names), *([naming.shown(str(cell)) for cell in row] for row in data)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            stdout.write(f"{line.rstrip()}\n")


class CsvOne(CSVLister, SingleFormatter):
    """A record as CSV: a line of names and a line of values."""

    def emit_one(
        self,
        column_names: Sequence[str],
        data: Sequence[Any],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        """Write the two lines."""
        self.emit_list(column_names, [data], stdout, parsed_args)
