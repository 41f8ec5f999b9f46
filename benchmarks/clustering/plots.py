"""Results as pictures: bars of every case, lines of time and memory over N and B."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import results
from ..errors import Refusal
from ..markdown import ratio
from ..results import number, time_ms
from . import measured
from .measured import Measured

COLOURS = {
    "tpkernels torch": "#0b6e99",
    "tpkernels torch, swaps": "#5aa7c7",
    "tpkernels triton": "#12a594",
    "eager torch": "#d9730d",
    "torch.compile": "#ad1a72",
    "flash-kmeans": "#6940a5",
    "fast-pytorch-kmeans": "#b8a1d9",
    "scikit-learn": "#64473a",
    "kmedoids alternating": "#dfab01",
    "kmedoids fasterpam": "#e03e3e",
    "scipy Ward": "#6b7280",
    "scipy Ward, all cores": "#a8adb5",
    "bipartite (ToMe)": "#8a9a5b",
}
OURS = "tpkernels"
MARKERS = "osD^vP*X<>"
COLUMNS = 3


def draw(folder: Path, quick: bool = False) -> list[Path]:
    """Draws what is in a folder of results; the pictures' paths.

    Raises:
        Refusal: no results there, or a file of another make.
    """
    import matplotlib

    matplotlib.use("Agg")
    paths = results.files(folder, quick)
    if not paths:
        raise Refusal(f"--output: expected results as CSV in {folder}; run kernels, scaling or peers first")
    return [picture for path in paths for picture in _of_device(path)]


def _of_device(path: Path) -> list[Path]:
    found = measured.read(path)
    drawn = []
    for group in ("kernels", "peers"):
        cases = [case for case in found if case.group == group and case.ok()]
        if cases:
            drawn.append(_save(bars(cases), path.with_name(f"{path.stem}-{group}.png")))
    cases = [case for case in found if case.group == "scaling" and case.ok()]
    by_n = [case for case in cases if case.b == 1]
    if len({case.n for case in by_n}) > 1:
        drawn.append(_save(lines(by_n, "n"), path.with_name(f"{path.stem}-scaling-n.png")))
    by_b = _one_shape(cases)
    if by_b:
        drawn.append(_save(lines(by_b, "b"), path.with_name(f"{path.stem}-scaling-b.png")))
    return drawn


def _one_shape(cases: Sequence[Measured]) -> list[Measured]:
    """The cases whose batch grows at one N and K."""
    large = [case for case in cases if case.b > 1]
    shapes = {(case.case, case.n, case.k) for case in large}
    return [case for case in cases if (case.case, case.n, case.k) in shapes]


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path


def _colour(provider: str) -> str:
    return COLOURS.get(provider, "black")


def bars(cases: Sequence[Measured]) -> Any:
    """A panel for each case: every provider's time as a bar from the floor, fastest on top, its objective beside it."""
    import matplotlib.pyplot as plt

    rows = math.ceil(len(cases) / COLUMNS)
    tallest = max(len(case.ok()) for case in cases)
    columns = min(COLUMNS, len(cases))
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.2 * columns, 0.8 + (1.0 + 0.3 * tallest) * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(cases) :]:
        axis.axis("off")
    for axis, case in zip(axes.flat, cases, strict=False):
        records = sorted(case.ok(), key=time_ms, reverse=True)
        values = [number(record, "over_floor") for record in records]
        axis.barh(
            [record["provider"] for record in records], [value - 1 for value in values], left=1,
            color=[_colour(record["provider"]) for record in records],
        )  # fmt: skip
        axis.set_xscale("log")
        least, most = min(0.7, *(0.8 * value for value in values)), max(values)
        # Room for the longest bar's label, which takes a share of the panel.
        axis.set_xlim(least, most * max(6, (most / least) ** 0.4))
        axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
        for place, (record, value) in enumerate(zip(records, values, strict=True)):
            label = f" {ratio(value)}x, L {float(record['objective_ratio']):.3f}"
            axis.text(max(1, value), place, label, va="center", fontsize=8)
        axis.set_title(f"{case.case}\n{case.shape}, {case.dtype}", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Time over the floor (log scale), and the objective over the reference's (L)\n{_facts(cases)}", fontsize=10
    )
    return figure


def lines(cases: Sequence[Measured], over: str) -> Any:
    """Time per iteration and peak memory against N or B, a column for each kind of case.

    Dotted guides grow as the work (N K D B) and as the inputs (N D B) do, from this library's smallest case.
    """
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(case.case for case in cases))
    names = sorted({record["provider"] for case in cases for record in case.ok()})
    figure, axes = plt.subplots(
        2, len(kinds), figsize=(5.6 * len(kinds), 7.5), squeeze=False, sharex="col", layout="constrained"
    )
    for column, kind in enumerate(kinds):
        chosen = sorted((case for case in cases if case.case == kind), key=lambda case: (case.n, case.b))
        for row, (title, value, work) in enumerate(_measures()):
            axis = axes[row][column]
            for index, name in enumerate(names):
                points = [
                    (getattr(case, over), value(case, record))
                    for case in chosen for record in case.ok() if record["provider"] == name
                ]  # fmt: skip
                points = [(size, found) for size, found in points if found > 0]
                if points:
                    marker = MARKERS[index % len(MARKERS)]
                    axis.plot(*zip(*points, strict=True), marker=marker, color=_colour(name), label=name)
                if points and name.startswith(OURS):
                    _guide(axis, chosen, over, points[0], work)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_ylabel(title, fontsize=9)
            axis.grid(True, which="major", alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0][column].set_title(f"{kind}\nD={chosen[0].d}, {chosen[0].dtype}", fontsize=9, loc="left")
        axes[0][column].legend(fontsize=8)
        axes[1][column].set_xlabel("tokens N" if over == "n" else "batch B")
    figure.suptitle(f"Dotted: growth of the work (top) and of the inputs (bottom)\n{_facts(cases)}", fontsize=10)
    return figure


def _measures() -> list[tuple]:
    return [
        ("ms per iteration", lambda case, row: time_ms(row) / max(1, case.iters), lambda c: c.b * c.n * c.k),
        ("peak MB beyond the inputs", lambda case, row: number(row, "peak_mb") or 0.0, lambda c: c.b * c.n),
    ]


def _guide(axis: Any, cases: Sequence[Measured], over: str, first: tuple[float, float], work: Any) -> None:
    base = next(case for case in cases if getattr(case, over) == first[0])
    points = [(getattr(case, over), first[1] * work(case) / work(base)) for case in cases]
    axis.plot(*zip(*points, strict=True), linestyle=":", color="black", linewidth=0.8)


def _facts(cases: Sequence[Measured]) -> str:
    facts = measured.facts(cases)
    on_gpu = any(record["runs_on"] == "cuda" for case in cases for record in case.records)
    more = f"Triton {facts['Triton']}" if on_gpu else f"CPU threads: {facts['CPU threads']}"
    return f"{facts['device']}, {more}, torch {facts['torch']}, commit {facts['commit']}"
