"""The cost-accuracy figure: top-1 against GMACs, a line for each way to reduce tokens, a panel for each setting."""

from __future__ import annotations

from pathlib import Path

from common.files import write_atomically
from deit.methods import METHODS
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .points import Point, Summary, panels, summarise

# A family has a colour (Okabe and Ito's), its members differ by line and marker.
COLOURS = {
    "Ward and its refinements": "#0072B2",
    "the paper's": "#D55E00",
    "pruning": "#777777",
    "other merging": "#009E73",
}
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
FAMILY = {**{method.name: method.family for method in METHODS}, "strided": "other merging"}


def style(name: str) -> dict[str, object]:
    """Colour, line and marker of a method: always the same, whatever else is drawn."""
    family = FAMILY[name]
    place = [other for other, its in FAMILY.items() if its == family].index(name)
    line, marker = STYLES[place]
    return {"color": COLOURS[family], "linestyle": line, "marker": marker, "markersize": 4, "linewidth": 1.3}


def panel(axes: Axes, rows: list[Summary], title: str) -> None:
    """One setting; bars are the deviation over the seeds."""
    for name in dict.fromkeys(row.method for row in rows):
        some = sorted((row for row in rows if row.method == name), key=lambda row: row.gmacs)
        x, y = [row.gmacs for row in some], [row.top1 for row in some]
        errors = [row.deviation or 0.0 for row in some]
        if name == "base":
            axes.errorbar(x, y, errors, color="black", marker="*", markersize=9, linestyle="none", label=some[0].label)
            axes.axhline(y[0], color="black", linewidth=0.7, linestyle=":")
            axes.axhspan(y[0] - some[0].standard_error, y[0] + some[0].standard_error, color="black", alpha=0.06)
        else:
            axes.errorbar(x, y, errors, capsize=2, label=some[0].label, **style(name))
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("GMACs per image, clustering included")
    axes.grid(alpha=0.2)


def draw(path: Path, points: list[Point]) -> None:
    """Writes the figure as PNG, atomically."""
    found = panels(points)
    figure = Figure(figsize=(6.2 * len(found), 5.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    known: dict[str, object] = {}
    for axes, (setting, model, some) in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        seeds = len({point.seed for point in some})
        panel(axes, summarise(some), f"{setting}{f', {seeds} seeds' if seeds > 1 else ''}\n{model}")
        axes.set_ylabel(f"top-1 %, {some[0].images:,} test images")
        handles, labels = axes.get_legend_handles_labels()
        known.update(zip(labels, handles, strict=True))
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
