"""Timed attention as a table for each device: this library's kernels beside `scaled_dot_product_attention`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import results
from ..markdown import ratio, table, us
from ..results import Record, number
from .attention_rows import TABLE

KIND, COMMANDS = TABLE.kind, ("device",)
BEGIN, END = "<!-- attention:begin -->", "<!-- attention:end -->"
BASE = "torch SDPA"


def latest(records: Sequence[Record]) -> list[Record]:
    """The last row of every shape and provider, by shape."""
    names = ("b", "h", "n", "d", "dtype", "provider", "significance")
    last = {tuple(record[name] for name in names): record for record in sorted(records, key=lambda one: one["run"])}
    return sorted(last.values(), key=lambda one: (-int(one["n"]), one["provider"], one["significance"]))


def section(records: Sequence[Record]) -> str:
    """All of one device."""
    first = records[0]
    facts = f"Commit {first['commit']}; torch {first['torch']}; Triton {first['triton']}; run {first['run'][:10]}."
    lines = []
    for record in records:
        shape = tuple(record[name] for name in ("b", "h", "n", "d"))
        base = [one for one in records if one["provider"] == BASE and tuple(one[name] for name in "bhnd") == shape]
        name = f"{record['provider']}{', significance' * (record['significance'] == 'True')}"
        cells = [f"B={shape[0]} H={shape[1]} N={shape[2]} d={shape[3]}", name]
        if record["status"] != "ok":
            lines.append([*cells, record["status"], "-", "-", "-"])
            continue
        against = results.over(record, base[0]) if base and base[0]["status"] == "ok" else None
        times = us(number(record, "p50_ms")), us(number(record, "graph_p50_ms"))
        lines.append([*cells, *times, ratio(against), f"{float(record['error']):.1e}"])
    header = ["heads", "provider", "p50 us", "graph p50 us", "over SDPA", "error"]
    return "\n\n".join([f"### Attention: {first['device']}", facts, table(header, lines)])


def text(folder: Path, quick: bool = False) -> str:
    """The tables of every device in a folder; Refusal where a file is of another make."""
    found = [TABLE.read(path) for path in results.files(folder, quick, KIND)]
    return "\n\n".join(section(latest(records)) for records in found)
