"""Cells and tables of Markdown that every kind of results is shown with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .results import Record


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column flush left, the others right."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def ratio(value: float | None) -> str:
    """A ratio in three figures; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def ms(value: float | None) -> str:
    """Milliseconds in three or four figures; a dash where there are none."""
    if value is None:
        return "-"
    digits = 4 if value < 1 else 3 if value < 10 else 2 if value < 100 else 0
    return f"{value:,.{digits}f}"


def us(ms: float | None) -> str:
    """Milliseconds as microseconds, in tenths below 1,000; a dash where there are none."""
    return "-" if ms is None else f"{1e3 * ms:,.{1 if ms < 1 else 0}f}"


def listed(facts: Mapping[str, str]) -> str:
    """Facts by title as one sentence."""
    return "; ".join(f"{title} {value}" for title, value in facts.items()) + "."


def not_timed(records: Iterable[Record], who: Sequence[str], what: str) -> list[str]:
    """A line for each reason and whom it befell, and how many rows say so; wrong and failed ones first.

    Args:
        who: columns that name them. what: one row in a word.
    """
    counts: dict[tuple[str, ...], int] = {}
    for record in records:
        if record["status"] != "ok":
            key = (record["status"], *(record[name] for name in who))
            counts[key] = counts.get(key, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (item[0][0].startswith("skipped"), item[0]))
    return [f"- {', '.join(names)}, {count} {what}{'s' * (count > 1)}: {why}" for (why, *names), count in ordered]
