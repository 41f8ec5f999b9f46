"""Rows of results as JSON lines, one for each mutant, written as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .mutant import Mutant

# The suites in the order in which they run, and how a document says it.
SUITES = {"room": "its room", "slow": "its room's slow tests", "quick": "the quick suite", "full": "the full suite"}
# Whether the quick suite holds a suite's tests.
QUICK = ("room", "quick")


class Row(NamedTuple):
    """suite: the first that saw the mutant, None where none did; test: the test that failed; seconds: of all runs."""

    name: str
    digest: str
    commit: str
    suite: str | None
    test: str | None
    seconds: float


def read(path: Path) -> dict[str, Row]:
    """The rows of a file by name, the last of each; none where there is no file."""
    if not path.is_file():
        return {}
    rows = [Row(**json.loads(line)) for line in path.read_text().splitlines() if line.strip()]
    return {row.name: row for row in rows}


def append(path: Path, row: Row) -> None:
    """Adds a row to a file."""
    with path.open("a") as file:
        file.write(json.dumps(row._asdict()) + "\n")


def known(rows: dict[str, Row], mutants: Iterable[Mutant]) -> list[tuple[Mutant, Row]]:
    """Mutants whose row is about the text that they plant."""
    found: list[tuple[Mutant, Row]] = []
    for mutant in mutants:
        row: Any = rows.get(mutant.name)
        if row is not None and row.digest == mutant.digest:
            found.append((mutant, row))
    return found
