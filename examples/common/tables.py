"""Tables and headings on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells as text: labels flush left, numbers flush right."""
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return [
        "  ".join([label.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
        for label, *cells in lines
    ]


def heading(facts: Mapping[str, str]) -> str:
    """A run's facts, one a line."""
    width = max(len(name) for name in facts)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in facts.items())
