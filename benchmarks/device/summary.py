"""What a run found, short enough to be read where only the end of the output comes back."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import journal
from .journal import FILE, SUPERVISOR

# Characters in all, of a line, and of one that says what is wrong.
MOST, MOST_OF_LINE, MOST_OF_RED = 11_500, 200, 300
# Columns of the harness: those that name a row, and those with results.
NAMES = ("group", "case", "model", "schedule", "mode", "provider", "method", "b", "h", "n", "d", "k", "iters")
TOLD = ("status", "p50_ms", "graph_p50_ms", "objective_ratio", "over_floor", "tax", "speedup", "error")
QUIET = ("at", "step", "what", "red", "rehearsal")


def text(folder: Path) -> str:
    """A table of the steps, what was red, then as many rows as there is room for."""
    rows = journal.read(folder)
    steps = [row for row in rows if row["step"] == SUPERVISOR]
    found = [row for row in rows if row["step"] != SUPERVISOR]
    lines = [f"{'step':<16}{'seconds':>8}{'rows':>6}  ended"]
    lines += [
        f"{row['what']:<16}{row.get('seconds', '-'):>8}{row.get('rows', '-'):>6}  {_how(row)}"[:MOST_OF_LINE]
        for row in steps
    ]
    red = [f"{row['step']}: {row.get('what', '')}: {row['red']}"[:MOST_OF_RED] for row in found if "red" in row]
    lines += ["", f"red: {len(red)}", *red] if red else []
    rest = [_line(f"{row['step']}: {row.get('what', '')}", row, exclude=QUIET) for row in found if "red" not in row]
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rest += [_csv_line(record) for record in csv.DictReader(file)]
    return _cut([*lines, "", *rest])


def _how(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    more = {name: value for name, value in row.items() if name not in (*QUIET, "seconds", "rows", "ended")}
    told = "".join(f", {name}={value}" for name, value in more.items())
    return f"{row.get('red') or 'ok'}{told}"


def _line(name: str, row: dict[str, Any], exclude: Iterable[str]) -> str:
    told = " ".join(f"{key}={value}" for key, value in row.items() if key not in exclude)
    return f"{name}  {told}"[:MOST_OF_LINE]


def _csv_line(record: dict[str, str]) -> str:
    name = " ".join(f"{key}={record[key]}" if len(key) == 1 else record[key] for key in NAMES if record.get(key))
    return _line(name, {key: record[key] for key in TOLD if record.get(key)}, ())


def _cut(lines: list[str]) -> str:
    """The lines that fit, and how many are left out."""
    kept, size = [], 0
    for place, line in enumerate(lines):
        size += len(line) + 1
        if size > MOST:
            kept.append(f"... and {len(lines) - place} lines more, see {FILE} and the CSV files")
            break
        kept.append(line)
    return "\n".join(kept)
