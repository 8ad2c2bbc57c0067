"""The table of docs/clients.md: client by operation, each cell against what the tests have shown."""

from __future__ import annotations

from pathlib import Path

from tests.servers.programs import ROOT

PAGE = ROOT / "docs" / "clients.md"
TITLE = "## Client by operation\n"

#: Client and operation.
Cell = tuple[str, str]

#: What the tests write into a cell: run; sent as raw HTTP, as the client's source has it.
RUN, REPLAYED = "✓", "replayed"
#: The client has no such command, or its version of the API no such call: there is nothing to run.
NOTHING = "–"  # noqa: RUF001
#: It has one, and no test runs it.
NOT_RUN = "not run"


def client_error(number: int) -> str:
    """What stands in a cell when the client goes wrong, with any server; the page tells how."""
    return f"client's error ({number})"


def written(page: Path = PAGE) -> dict[Cell, str]:
    """Read the table."""
    _, begun, rest = page.read_text().partition(TITLE)
    assert begun, f"{page.name} has no {TITLE!r}"
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    names, _rule, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    clients = [name.replace("`", "") for name in names[1:]]
    return {(client, row[0]): said for row in rows for client, said in zip(clients, row[1:], strict=True)}


class Shown:
    """Remembers what the tests have shown; each call stands behind the checks of that operation.

    What a test shows must be what the page says, so that neither is changed alone.
    """

    def __init__(self) -> None:
        self._written = written()
        self.cells: dict[Cell, str] = {}

    def __call__(self, client: str, *operations: str, says: str = RUN) -> None:
        """A client's operations were checked at the service."""
        for operation in operations:
            there = self._written.get((client, operation), "no such cell")
            assert there == says, f"{PAGE.name}, {client}, {operation}: {there!r}, shown: {says!r}"
            self.cells[client, operation] = says

    def missing(self) -> dict[Cell, str]:
        """What the page says and no test has shown."""
        return {
            cell: said
            for cell, said in self._written.items()
            if said not in (NOTHING, NOT_RUN) and cell not in self.cells
        }
