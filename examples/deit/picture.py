"""The cost-accuracy picture: one point per row, top-1 over GMACs, with the clustering's share drawn as a tail."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .checkpoint import write_atomically
from .rows import Row

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#999999", "#009E73")


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


def draw(path: Path, rows: list[Row], images: int, title: str) -> None:
    """Writes the picture as PNG, atomically."""
    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    base, pooled = rows[0], rows[1:]
    top1 = {row.name: 100 * row.correct / images for row in rows}
    families = list(dict.fromkeys(row.family for row in rows))
    colours = dict(zip(families, COLOURS, strict=False))

    axes.axhline(top1[base.name], color=colours[base.family], linewidth=0.8, linestyle=":")
    for row in rows:
        cost, total = row.macs.model / 1e9, row.macs.total / 1e9
        axes.plot([cost, total], [top1[row.name]] * 2, color=colours[row.family], linewidth=1)
        axes.plot(total, top1[row.name], "*" if row is base else "o", color=colours[row.family], markersize=7)
    for family in families[1:]:
        axes.plot([], [], "o", color=colours[family], label=family)

    values = list(top1.values())
    margin = max(1.0, 0.08 * (max(values) - min(values)))
    axes.set_ylim(min(values) - margin, max(values) + margin)
    right = max([row.macs.total / 1e9 for row in pooled], default=base.macs.base / 1e9)
    left = min([row.macs.model / 1e9 for row in pooled], default=right)
    width = max(base.macs.base / 1e9, right) - left or right
    # Labels stand in a column between the pooled rows and the base model, each joined to its point.
    column = right + 0.12 * width
    order = sorted(pooled, key=lambda row: top1[row.name])
    places = spread([top1[row.name] for row in order], 0.045 * (max(values) - min(values) + 2 * margin))
    for row, place in zip(order, places, strict=True):
        axes.annotate(
            f"{row.label}  {top1[row.name]:.1f}",
            (row.macs.total / 1e9, top1[row.name]),
            (column, place),
            va="center",
            fontsize=8,
            color=colours[row.family],
            arrowprops={
                "arrowstyle": "-",
                "color": colours[row.family],
                "linewidth": 0.4,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )
    axes.annotate(
        f"{base.label}  {top1[base.name]:.1f}", (base.macs.base / 1e9, top1[base.name]), (0, 7),
        textcoords="offset points", ha="right", fontsize=8,
    )  # fmt: skip
    axes.set_xlim(left - 0.08 * width, left + 1.1 * width)
    axes.set_xlabel("GMACs per image, clustering (the line at each point's left) included")
    axes.set_ylabel(f"top-1 %, {images:,} images")
    axes.set_title(title, fontsize=10)
    if pooled:
        axes.legend(loc="lower right", fontsize=8, frameon=False)
    axes.grid(alpha=0.2)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
