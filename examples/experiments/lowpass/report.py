"""Results of the measurement: tables for the page and the terminal, and rows as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import files

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def number(field: str) -> Callable[[Row], str]:
    return lambda row: f"{row[field]:.3f}"


def percent(field: str) -> Callable[[Row], str]:
    return lambda row: f"{100 * row[field]:.1f}"


def rounding(field: str) -> Callable[[Row], str]:
    return lambda row: f"{row[field]:.1e}"


def spectrum(graph: str) -> list[Column]:
    high = f"high_{graph}_"
    return [
        ("v", percent(high + "values")),
        ("A v", percent(high + "attended")),
        ("smoother %", lambda row: f"{100 * row[f'smoother_{graph}_attended']:.0f}"),
        ("gain low", number(f"gain_{graph}_low")),
        ("gain high", number(f"gain_{graph}_high")),
        ("tokens before", percent(high + "before")),
        ("update", percent(high + "update")),
        ("smoother %", lambda row: f"{100 * row[f'smoother_{graph}_update']:.0f}"),
        ("after attention", percent(high + "after_attention")),
        ("after MLP", percent(high + "after_mlp")),
    ]


BLOCK: Column = ("block", lambda row: str(row["block"]))
TABLES: dict[str, list[Column]] = {
    "Attention and the Gaussian filter": [
        BLOCK,
        ("softmax - Gaussian, float64", rounding("identity_float64")),
        ("float32", rounding("identity_float32")),
        ("keys' norms, sd / mean", number("key_norm_cv")),
        ("TV to the Gaussian filter", number("tv_gaussian")),
        ("TV to equal norms", number("tv_normalised")),
        ("TV to uniform", number("tv_uniform")),
    ],
    "Energy above the median frequency of the grid, %": [BLOCK, *spectrum("grid")],
    "Energy above the median frequency of attention's own graph, %": [BLOCK, *spectrum("attention")],
    "Reconstruction error, % of the variance": [
        BLOCK,
        *(
            (f"{label}, {kept:.0%} kept", percent(f"error_{signal}_{kept}"))
            for kept in (0.7, 0.5)
            for signal, label in (
                ("before", "tokens before"),
                ("update", "update"),
                ("after_attention", "after attention"),
            )
        ),
    ],
}


def markdown(rows: Sequence[Row]) -> str:
    """Every table under its name, one line a block."""
    parts = []
    for title, columns in TABLES.items():
        lines = [f"| {' | '.join(name for name, _ in columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(show(row) for _, show in columns)} |" for row in rows]
        parts.append(f"**{title}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """The rows with six digits, atomically; all have the fields of the first."""
    six = [{name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows]
    files.write_csv(path, list(rows[0]), six)
