"""Results of a comparison: the table on the terminal and in a document, and the rows as CSV and JSON."""

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
    ("same as scipy", "same_as_scipy", "{}"),
    ("peak / batch", "peak_over_batch", "{:.2f}"),
    ("ms", "seconds", "{:.0f}"),
    ("x scipy", "over_scipy", "{:.2f}"),
    ("x fastcluster", "over_fastcluster", "{:.2f}"),
)
FIELDS = (
    "method", "label", "pool_factor", "documents", "vectors_per_document", "index_mb", "recall_at_1_percent", "mrr",
    "objective_least", "objective_mean", "objective_worst", "same_as_scipy", "same_as_fastcluster", "peak_over_batch",
    "seconds", "over_scipy", "over_fastcluster",
)  # fmt: skip


def shown_columns(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The columns that any row has a number for."""
    return [column for column in COLUMNS if any(row.get(column[1]) is not None for row in rows)]


def cells(row: dict[str, Any], chosen: list[tuple[str, str, str]], nothing: str) -> list[str]:
    """A row as a table shows it, with `nothing` where there is no number."""
    shown = {**row, "seconds": None if row.get("seconds") is None else 1e3 * row["seconds"]}
    return [form.format(shown[field]) if shown.get(field) is not None else nothing for _, field, form in chosen]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in columns: labels flush left, numbers flush right, a line before every pool factor."""
    chosen = shown_columns(rows)
    lines = [[name for name, _, _ in chosen], *(cells(row, chosen, "-") for row in rows)]
    text, factor = [], None
    shown = columns(lines)
    for line, row in zip(shown, [{"pool_factor": None}, *rows], strict=True):
        if row["pool_factor"] != factor:
            text.append("-" * len(shown[0]))
            factor = row["pool_factor"]
        text.append(line)
    return "\n".join(text)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The same as a table of Markdown."""
    chosen = shown_columns(rows)
    lines = [[name for name, _, _ in chosen], ["---"] * len(chosen), *(cells(row, chosen, "") for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    files.write_csv(path, FIELDS, rows, "\r\n")


def write_json(path: Path, facts: dict[str, str], rows: list[dict[str, Any]]) -> None:
    files.write_json(path, {"run": facts, "rows": rows})
