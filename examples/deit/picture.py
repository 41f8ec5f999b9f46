"""The cost-accuracy picture: top-1 and agreement over GMACs, with the clustering's share drawn as a tail."""

from __future__ import annotations

from pathlib import Path

from common.files import write_atomically
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .methods import BASE_LABEL, METHODS
from .rows import Row

# Okabe and Ito's colours, which colour-blind readers can tell apart; a family's colour does not depend on the rows.
FAMILIES = dict.fromkeys([BASE_LABEL, *(method.family for method in METHODS)])
COLOURS = dict(zip(FAMILIES, ("#000000", "#0072B2", "#D55E00", "#777777", "#009E73"), strict=True))


def spread(heights: list[float], gap: float) -> list[float]:
    """Ascending heights moved as little as needed to stand `gap` apart: groups that touch share their mean place."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height, 1])
        while len(groups) > 1:
            (low, below), (high, above) = groups[-2:]
            if high - low >= gap * (below + above) / 2:
                break
            groups[-2:] = [[(low * below + high * above) / (below + above), below + above]]
    return [middle + (i - (count - 1) / 2) * gap for middle, count in groups for i in range(int(count))]


def panel(axes: Axes, rows: list[Row], values: dict[str, float]) -> None:
    """One value per row over its GMACs; the labels stand in a column right of the points, each joined to its own."""
    base, pooled = rows[0], rows[1:]
    axes.axhline(values[base.name], color=COLOURS[base.family], linewidth=0.8, linestyle=":")
    for row in rows:
        cost, total, value = row.macs.model / 1e9, row.macs.total / 1e9, values[row.name]
        axes.plot([cost, total], [value, value], color=COLOURS[row.family], linewidth=1)
        axes.plot(total, value, "*" if row is base else "o", color=COLOURS[row.family], markersize=7)

    low, high = min(values.values()), max(values.values())
    margin = max(1.0, 0.08 * (high - low))
    right = max([row.macs.total / 1e9 for row in pooled], default=base.macs.base / 1e9)
    left = min([row.macs.model / 1e9 for row in pooled], default=right)
    width = max(base.macs.base / 1e9, right) - left or right
    axes.set_xlim(left - 0.08 * width, left + 1.1 * width)
    order = sorted(pooled, key=lambda row: values[row.name])
    places = spread([values[row.name] for row in order], 0.05 * (high - low + 2 * margin))
    axes.set_ylim(min([low, *places]) - margin, max([high, *places]) + margin)
    for row, place in zip(order, places, strict=True):
        axes.annotate(
            f"{row.label}  {values[row.name]:.1f}",
            (row.macs.total / 1e9, values[row.name]),
            (right + 0.1 * width, place),
            va="center",
            fontsize=8,
            color=COLOURS[row.family],
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            arrowprops={
                "arrowstyle": "-",
                "color": COLOURS[row.family],
                "linewidth": 0.4,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )
    axes.annotate(
        f"{base.label}  {values[base.name]:.1f}", (base.macs.base / 1e9, values[base.name]), (0, 7),
        textcoords="offset points", ha="right", fontsize=8,
    )  # fmt: skip
    axes.grid(alpha=0.2)


def draw(path: Path, rows: list[Row], images: int, title: str) -> None:
    """Writes the picture as PNG, atomically."""
    figure = Figure(figsize=(13, 5.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, agreement = figure.subplots(1, 2)
    panel(accuracy, rows, {row.name: 100 * row.correct / images for row in rows})
    panel(agreement, rows, {row.name: 100 * row.agree / images for row in rows})
    accuracy.set_ylabel(f"top-1 %, {images:,} images")
    agreement.set_ylabel("agreement with the base model, %")
    for family in dict.fromkeys(row.family for row in rows[1:]):
        agreement.plot([], [], "o", color=COLOURS[family], label=family)
    if rows[1:]:
        agreement.legend(loc="lower right", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("GMACs per image; the line at a point's left is its clustering", fontsize=10)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
