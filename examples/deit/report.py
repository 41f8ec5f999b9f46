"""Results of the evaluation: the table on the terminal, and the rows as CSV and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import files
from common.tables import columns

from .evaluate import Seen
from .rows import Row

HEADINGS = ("", "top-1 %", "agree %", "GMACs base", "pooled", "clustering", "images/s")


def to_record(row: Row, images: int) -> dict[str, Any]:
    """A row as plain numbers: shares in per cent, costs in GMACs per image, tokens per block."""
    return {
        "method": row.name,
        "label": row.label,
        "images": images,
        "correct": row.correct,
        "agree": row.agree,
        "top1_percent": round(100 * row.correct / images, 3),
        "agreement_percent": round(100 * row.agree / images, 3),
        "base_gmacs": row.macs.base / 1e9,
        "pooled_gmacs": row.macs.model / 1e9,
        "clustering_gmacs": row.macs.clustering / 1e9,
        "images_per_second": round(row.images_per_second, 2),
        "tokens_per_block": row.tokens,
    }


def cells(record: dict[str, Any]) -> tuple[str, ...]:
    """A record as the table shows it, in the order of HEADINGS."""
    percents = [f"{record[name]:.1f}" for name in ("top1_percent", "agreement_percent")]
    gmacs = [f"{record[name]:.4f}" for name in ("base_gmacs", "pooled_gmacs", "clustering_gmacs")]
    return (record["label"], *percents, *gmacs, f"{record['images_per_second']:.0f}")


def table(records: list[dict[str, Any]]) -> str:
    """The rows in columns: labels flush left, numbers flush right."""
    lines = [HEADINGS, *(cells(record) for record in records)]
    text = columns(lines)
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def corrupt_line(seen: Seen) -> str:
    """One line on the files that could not be read; empty where there are none."""
    if not seen.corrupt:
        return ""
    some = ", ".join(seen.corrupt[:3]) + (", ..." if len(seen.corrupt) > 3 else "")
    return f"{len(seen.corrupt)} corrupt image(s) left out: {some}"


def write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    """One line per row; the tokens per block are joined by spaces."""
    flat = [{**record, "tokens_per_block": " ".join(map(str, record["tokens_per_block"]))} for record in records]
    files.write_csv(path, list(records[0]), flat, "\r\n")


def write_json(path: Path, facts: dict[str, str], records: list[dict[str, Any]], seen: Seen) -> None:
    """The run's facts, the rows, and the files that could not be read."""
    files.write_json(path, {"run": facts, "images": seen.images, "corrupt": seen.corrupt, "rows": records})
