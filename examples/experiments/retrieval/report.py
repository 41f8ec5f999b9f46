"""Results of a comparison: the table on the terminal, and the rows as CSV and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import files
from common.tables import columns

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
    text, factor = [], None
    shown = columns(lines)
    for line, row in zip(shown, [{"pool_factor": None}, *rows], strict=True):
        if row["pool_factor"] != factor:
            text.append("-" * len(shown[0]))
            factor = row["pool_factor"]
        text.append(line)
    return "\n".join(text)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    files.write_csv(path, FIELDS, rows, "\r\n")


def write_json(path: Path, facts: dict[str, str], rows: list[dict[str, Any]]) -> None:
    files.write_json(path, {"run": facts, "rows": rows})
