"""The picture: attention's distance from the Gaussian filter, the tokens' spectra, their redundancy, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from common.files import write_atomically
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .redundancy import KEPT
from .report import Row

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers and dashes tell them apart in grey.
DISTANCES = {
    "tv_uniform": ("equal weights", "#777777", ":", "s"),
    "tv_normalised": ("attention, norms made equal", "#0072B2", "--", "^"),
    "tv_gaussian": ("Gaussian filter of the same q, k", "#D55E00", "-", "o"),
}
SPECTRA = {
    "values": ("values v", "#009E73", "--", "s"),
    "attended": ("A v, attention's output", "#D55E00", "-", "o"),
    "before": ("tokens before", "#777777", ":", "D"),
    "update": ("update, A v projected", "#0072B2", "-", "^"),
    "after_attention": ("tokens after attention", "#000000", "-", "."),
}


def style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw_lines(axes: Axes, rows: Sequence[Row], prefix: str, lines: dict[str, tuple[str, str, str, str]]) -> None:
    """One line a field over the blocks, its legend below the panel."""
    blocks = [row["block"] for row in rows]
    for field, (label, colour, dashes, marker) in lines.items():
        values = [row[prefix + field] for row in rows]
        axes.plot(blocks, values, dashes, color=colour, marker=marker, markersize=5, linewidth=1.5, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend(
        fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.16), ncol=2, columnspacing=1.0
    )  # fmt: skip


def draw_errors(figure: Figure, axes: Axes, curves: Sequence[Row], tokens: int) -> None:
    """Error against tokens kept, one line a block, dark to light with depth."""
    last = max(len(curves) - 1, 1)
    # Short of the palest yellow, which vanishes on white.
    shades = [matplotlib.colormaps["viridis"](0.92 * place / last) for place in range(len(curves))]
    kept = [tokens * share for share in KEPT]
    for shade, curve in zip(shades, curves, strict=True):
        axes.plot(kept, [curve[str(share)] for share in KEPT], color=shade, linewidth=1.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    edges = [place - 0.5 for place in range(len(curves) + 1)]
    scale = ScalarMappable(BoundaryNorm(edges, len(shades)), ListedColormap(shades))
    bar = figure.colorbar(scale, ax=axes, pad=0.02, aspect=30)
    bar.set_label("block", fontsize=10)
    bar.set_ticks(range(0, len(curves), max(1, len(curves) // 6)))
    bar.minorticks_off()


def draw(path: Path, rows: Sequence[Row], curves: Sequence[Row], tokens: int, white: float, title: str) -> None:
    """Writes the picture as PNG, atomically.

    Args:
        rows: `measure.summarise` of every block. curves: its "error at kept" line of the tokens after attention.
        tokens: patch tokens of an image. white: the share of energy above the median frequency of noise on the grid.
    """
    figure = Figure(figsize=(13.5, 5.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    distance, spectrum, error = figure.subplots(1, 3)

    style(distance, "How far is attention from ...", "block", "total variation, mean over rows")
    draw_lines(distance, rows, "", DISTANCES)
    worst = [max(row[f"identity_{dtype}"] for row in rows) for dtype in ("float64", "float32")]
    note = f"norms made equal: softmax and Gaussian\ndiffer by {worst[0]:.0e} (float64), {worst[1]:.0e} (float32)"
    distance.text(0.03, 0.97, note, transform=distance.transAxes, va="top", fontsize=9)
    distance.set_ylim(top=1.25 * distance.get_ylim()[1])

    style(spectrum, "High frequencies on the patch grid", "block", "energy above the median frequency")
    draw_lines(spectrum, rows, "high_grid_", SPECTRA)
    # Noise lies far above the panel: a line there would press the rest together.
    spectrum.text(
        0.97, 0.97, f"white noise: {white:.0%}", transform=spectrum.transAxes, ha="right", va="top", fontsize=9
    )
    spectrum.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    style(error, "Redundancy of tokens after attention", f"tokens kept of {tokens}", "error, share of the variance")
    draw_errors(figure, error, curves, tokens)
    figure.suptitle(title, fontsize=10)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
