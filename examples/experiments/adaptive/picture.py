"""The picture: divergence against mean MACs, in the mean and in the worst images, a line for each way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.files import write_atomically
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .rows import Row, grouped
from .ways import WAYS

# Okabe and Ito's colours, which colour-blind readers can tell apart; dashes and markers tell them apart in grey.
STYLES = {
    "constant": ("#777777", "-", "o"),
    "searched": ("#E69F00", "-", "s"),
    "distance": ("#0072B2", "-", "^"),
    "searched-all": ("#E69F00", "--", "D"),
    "distance-all": ("#0072B2", "--", "v"),
}
MEASURES = {"divergence": "mean", "divergence_p99": "99th percentile"}
SETS = {"plain": "images as they are", "mixed": "harder mix"}


def panel(axes: Axes, rows: Sequence[Row], measure: str) -> None:
    """One measure of one set; bars at distances are one standard error of their gap to the searched tokens."""
    for way in WAYS:
        some = sorted((row for row in rows if row.way == way.name), key=lambda row: row.share)
        if not some:
            continue
        colour, line, marker = STYLES[way.name]
        errors = [getattr(row, f"{measure}_own_se") or 0.0 for row in some]
        axes.errorbar(
            [100 * row.share for row in some], [getattr(row, measure) for row in some], errors if any(errors) else None,
            color=colour, linestyle=line, marker=marker, markersize=5, linewidth=1.5, elinewidth=0.9, capsize=2.5,
            label=way.label if way.everywhere else f"{way.label}, three blocks",
        )  # fmt: skip
    axes.set_xticks(sorted({100 * row.budget for row in rows}))
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Writes the figure as PNG, atomically: a column for each set and size, a row for each measure."""
    settings = grouped(rows, lambda row: (row.images_set, row.side))
    figure = Figure(figsize=(3.4 * max(3, len(settings)), 7.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(MEASURES), len(settings), squeeze=False, sharex=True, sharey="row")
    known: dict[str, object] = {}
    for column, some in enumerate(settings):
        first = some[0]
        grid[0][column].set_title(
            f"{SETS[first.images_set]}, {first.patches} tokens\n{first.images} images", fontsize=10, loc="left"
        )
        for axes, measure in zip(grid[:, column], MEASURES, strict=True):
            panel(axes, some, measure)
            handles, labels = axes.get_legend_handles_labels()
            known.update(zip(labels, handles, strict=True))
        grid[-1][column].set_xlabel("mean MACs, of the unpooled model's", fontsize=9)
    for axes, (measure, name) in zip(grid[:, 0], MEASURES.items(), strict=True):
        axes.set_yscale("log")
        # Bars may reach zero, which a logarithm has no place for.
        values = [getattr(row, measure) for row in rows if getattr(row, measure) > 0]
        if values:
            axes.set_ylim(min(values) / 2, 2 * max(values))
        axes.set_ylabel(f"divergence from the unpooled model,\n{name}, nats", fontsize=10)
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
