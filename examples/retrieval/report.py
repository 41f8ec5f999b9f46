"""What a comparison leaves behind: the table on the terminal, and the rows as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from deit.checkpoint import write_atomically

# Column, its field in a row, and how a number is shown.
COLUMNS = (
    ("", "label", "{}"),
    ("p", "pool_factor", "{:g}"),
    ("vectors/doc", "vectors_per_document", "{:.1f}"),
    ("MB", "index_mb", "{:.2f}"),
    ("recall@1 %", "recall_at_1_percent", "{:.1f}"),
    ("MRR", "mrr", "{:.3f}"),
    ("objective", "objective_mean", "{:.4f}"),
    ("worst", "objective_worst", "{:.4f}"),
    ("ms", "seconds", "{:.0f}"),
    ("x faster", "speedup", "{:.2f}"),
)
FIELDS = (
    "method", "label", "pool_factor", "documents", "vectors_per_document", "index_mb", "recall_at_1_percent", "mrr",
    "objective_least", "objective_mean", "objective_worst", "seconds", "speedup",
)  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    """A row as the table shows it; a dash where there is no number."""
    shown = {**row, "seconds": None if row.get("seconds") is None else 1e3 * row["seconds"]}
    return [form.format(shown[field]) if shown.get(field) is not None else "-" for _, field, form in COLUMNS]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in columns: labels flush left, numbers flush right, a line before every pool factor."""
    lines = [[name for name, _, _ in COLUMNS], *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text, factor = [], None
    for line, row in zip(lines, [{"pool_factor": None}, *rows], strict=True):
        if row["pool_factor"] != factor:
            text.append("-" * (sum(widths) + 2 * len(widths) - 2))
            factor = row["pool_factor"]
        padded = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join([line[0].ljust(widths[0]), *padded]))
    return "\n".join(text)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=FIELDS)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), newline=""))


def write_json(path: Path, facts: dict[str, str], rows: list[dict[str, Any]]) -> None:
    text = json.dumps({"run": facts, "rows": rows}, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
