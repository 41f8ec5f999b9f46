"""The picture: mean reciprocal rank against the size of the index, a line for each way, a panel for each kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.files import write_atomically
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from .outcome import BOTH, Row

# Okabe and Ito's colours, which colour-blind readers can tell apart; dashes and markers tell them apart in grey.
STYLES = {
    "default": ("#0072B2", "-", "o", "Ward, the default"),
    "error": ("#56B4E9", "--", "^", "Ward, max_error"),
    "dot": ("#009E73", "-", "s", "Ward of 1 - x.y"),
    "rows": ("#E69F00", "-", "D", "Ward of 1 - x.y rows"),
    "raw": ("#D55E00", ":", "P", "Ward, normalize=False"),
    "runs": ("#CC79A7", "--", "v", "runs, averaged"),
    "every": ("#777777", ":", "x", "every p-th token"),
}
TITLES = {"summary": "asked by the summary", "sentence": "asked by a sentence"}


def panel(axes: Axes, rows: Sequence[Row]) -> None:
    """One kind of queries; bars are one standard error of the difference to the corpus as it is."""
    base = next(row for row in rows if row.way == "none")
    axes.axhline(base.mrr, color="black", linewidth=1, linestyle=(0, (1, 1)), label="not pooled")
    for way, (colour, dashes, marker, label) in STYLES.items():
        some = sorted((row for row in rows if row.way == way), key=lambda row: row.index_mb)
        axes.errorbar(
            [row.index_mb for row in some], [row.mrr for row in some], [row.mrr_to_unpooled_se for row in some],
            color=colour, linestyle=dashes, marker=marker, markersize=5, linewidth=1.5, elinewidth=0.9, capsize=2.5,
            label=label,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    sizes = sorted({row.index_mb for row in rows if row.way == "default"})
    axes.set_xticks(sizes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:.0f}\n1/{base.index_mb / size:.1f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("index, MB of float16, and its share of the corpus as it is", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Writes the figure as PNG, atomically."""
    kinds = [kind for kind in dict.fromkeys(row.queries for row in rows) if kind != BOTH]
    figure = Figure(figsize=(4.6 * len(kinds), 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        panel(axes, [row for row in rows if row.queries == kind])
        axes.set_title(TITLES.get(kind, kind), fontsize=10, loc="left")
        axes.set_ylabel("mean reciprocal rank", fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
