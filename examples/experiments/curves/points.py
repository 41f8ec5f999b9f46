"""Points of the cost-accuracy curves: one for each way to reduce tokens, budget and seed, and their summary."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from common.files import read_rows, write_csv

SHELF, TUNED = "off the shelf", "fine-tuned"


@dataclass(frozen=True)
class Point:
    """What one model did.

    setting: SHELF or TUNED; model: which one, in words; method: a name of `deit.methods`, "base" or "strided"; budget:
    the share of the base's MACs that the schedule was made for, None for base and strided; seed: of the fine-tuning,
    None off the shelf; tokens: patch tokens after each block; gmacs in all, of them clustering; images, correct: of the
    test; agree: answers that are the base model's, off the shelf alone; train_images, epochs, images_per_second: of the
    fine-tuning.
    """

    setting: str
    model: str
    method: str
    label: str
    budget: float | None
    seed: int | None
    tokens: str
    base_gmacs: float
    gmacs: float
    clustering_gmacs: float
    images: int
    correct: int
    agree: int | None = None
    train_images: int | None = None
    epochs: int | None = None
    images_per_second: float | None = None

    @property
    def top1(self) -> float:
        """Per cent."""
        return 100 * self.correct / self.images


@dataclass(frozen=True)
class Summary:
    """Points that differ by their seed alone: mean top-1 in per cent, its standard deviation over the seeds, how many.

    standard_error: of the mean over the test images, `sqrt(p (1 - p) / images)` in per cent.
    """

    setting: str
    model: str
    method: str
    label: str
    budget: float | None
    gmacs: float
    share: float
    top1: float
    deviation: float | None
    seeds: int
    standard_error: float


def summarise(points: Iterable[Point]) -> list[Summary]:
    """One summary for each setting, model, method, budget and cost, in the order in which they come."""
    groups: dict[tuple, list[Point]] = {}
    for point in points:
        groups.setdefault((point.setting, point.model, point.method, point.budget, point.tokens), []).append(point)
    found = []
    for (setting, model, method, budget, _), some in groups.items():
        values = [point.top1 for point in some]
        mean = statistics.fmean(values)
        found.append(
            Summary(
                setting, model, method, some[0].label, budget, some[0].gmacs, some[0].gmacs / some[0].base_gmacs, mean,
                statistics.stdev(values) if len(values) > 1 else None, len(values),
                100 * (mean / 100 * (1 - mean / 100) / some[0].images) ** 0.5,
            )
        )  # fmt: skip
    return found


def write(path: Path, points: Iterable[Point]) -> None:
    """The points as CSV."""
    write_csv(path, [field.name for field in fields(Point)], map(asdict, points))


def read(path: Path) -> list[Point]:
    """The points of a file that `write` wrote.

    Raises:
        ValueError: another file.
    """
    return read_rows(path, Point, "points of cost_accuracy.py")


def table(points: list[Point]) -> str:
    """Markdown: a line for each method, a column for each budget; mean and deviation over the seeds."""
    lines = []
    for setting, model, some in panels(points):
        rows = summarise(some)
        budgets = sorted({row.budget for row in rows if row.budget is not None})
        seeds = len({point.seed for point in some})
        told = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
        told += "; without ±: one seed" if seeds > 1 and min(row.seeds for row in rows) == 1 else ""
        lines += [f"**{setting.capitalize()}**: {model}; top-1 % on {some[0].images:,} test images{told}", ""]
        lines += [f"| | {' | '.join(f'{100 * b:g} % of the MACs' for b in budgets)} |", "|---|" + "---|" * len(budgets)]
        for name in dict.fromkeys(row.method for row in rows):
            some = [row for row in rows if row.method == name]
            if some[0].budget is None:
                cells = "; ".join(f"{cell(row)} at {100 * row.share:.0f} % of the MACs" for row in some)
                lines.append(f"| {some[0].label} | {cells} |{' |' * (len(budgets) - 1)}")
            else:
                by_budget = {row.budget: row for row in some}
                cells = " | ".join(cell(by_budget[b]) if b in by_budget else "" for b in budgets)
                lines.append(f"| {some[0].label} | {cells} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def panels(points: Iterable[Point]) -> list[tuple[str, str, list[Point]]]:
    """The points of each setting and model."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        found.setdefault((point.setting, point.model), []).append(point)
    return [(setting, model, some) for (setting, model), some in found.items()]


def cell(row: Summary) -> str:
    """Mean, and deviation over the seeds where there are several."""
    return f"{row.top1:.2f}" + ("" if row.deviation is None else f" ± {row.deviation:.2f}")
