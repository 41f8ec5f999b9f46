"""Rows of the measurement: one for each set of images, image size, budget and way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from common.files import read_rows, write_csv
from torch import Tensor

import tpkernels

from .measure import Answers, Change, bootstrapped, compare, paired, worst
from .ways import Way


@dataclass(frozen=True)
class Row:
    """What a way did at a budget, over all images.

    images_set: a name of `images.SETS`; side: of the images in pixels; calibration: how many images it was calibrated
    on. Shares are of the unpooled model's MACs, clustering counted: calibrated, in the mean of those images; share, in
    the mean of the evaluated ones, with the least and the most of an image. A way that leaves all images the same
    tokens gets what distances at the same blocks took of the evaluated ones. top1: share of the right answers, of
    images with one label; agreement: share of the answers that are the unpooled model's. divergence and feature: as
    `measure.Change` has them, mean, 99th percentile and maximum. A `_gain` is the way's value less the constant
    ratio's at the same mean MACs, image by image, `_se` its standard error. blocks: those that pool; the four columns
    of tokens: after each of them, over the images. kind_tokens and kind_divergence: means over the images of each kind,
    tokens after the last block; fewest, most: the kind and the tokens after `blocks` of the image that keeps the
    fewest and the most at the end.
    """

    images_set: str
    side: int
    patches: int
    images: int
    calibration: int
    budget: float
    way: str
    calibrated: float
    share: float
    least_share: float
    most_share: float
    base_gmacs: float
    top1_unpooled: float
    top1: float
    agreement: float
    agreement_gain: float
    agreement_se: float
    agreement_own: float | None
    agreement_own_se: float | None
    divergence: float
    divergence_gain: float
    divergence_se: float
    divergence_own: float | None
    divergence_own_se: float | None
    divergence_p99: float
    divergence_p99_gain: float
    divergence_p99_se: float
    divergence_p99_own: float | None
    divergence_p99_own_se: float | None
    divergence_max: float
    feature: float
    feature_gain: float
    feature_se: float
    feature_own: float | None
    feature_own_se: float | None
    feature_p99: float
    feature_p99_gain: float
    feature_p99_se: float
    feature_p99_own: float | None
    feature_p99_own_se: float | None
    feature_max: float
    blocks: str
    tokens_mean: str
    tokens_least: str
    tokens_most: str
    tokens_deviation: str
    kind_tokens: str
    kind_divergence: str
    fewest: str
    most: str


@dataclass(frozen=True)
class Setting:
    """The images and the unpooled model's answers to them: what the ways of one set and size share."""

    images_set: str
    side: int
    calibration: int
    kinds: list[str]
    labels: Tensor
    unpooled: Answers
    shape: tpkernels.ViTShape

    def share(self, pooled: Answers) -> float:
        """Mean MACs of the images over the unpooled model's, clustering counted."""
        macs = tpkernels.count_macs(self.shape, pooled.counts)
        return float(macs.total.double().mean()) / macs.base

    def row(
        self, way: Way, budget: float, pooled: Answers, calibrated: float, others: Mapping[str, Change]
    ) -> tuple[Row, Change]:
        """A way's row and what it did to every image; `others` is what the ways before it did, by their name."""
        change = compare(self.unpooled, pooled)
        constant, alike = others.get("constant", change), others.get(way.alike or "")
        counts = pooled.counts
        macs = tpkernels.count_macs(self.shape, counts)
        shares = macs.total.double() / macs.base
        layers = [row.layer for row in macs.per_layer if bool((row.tokens_out < row.tokens_in).any())]
        kept = counts[:, layers]
        last = counts[:, -1]
        values: dict[str, float | None] = {"agreement": float(change.agrees.double().mean())}
        values["top1_unpooled"], values["top1"] = self._top1(self.unpooled), self._top1(pooled)
        for name in ("divergence", "feature"):
            mine = getattr(change, name)
            values[name], values[f"{name}_max"] = float(mine.mean()), float(mine.max())
            values[f"{name}_p99"] = worst(mine)
        for end, other in (("gain", constant), ("own", alike)):
            error = "se" if end == "gain" else "own_se"
            for name, gap in _gaps(change, other).items():
                values[f"{name}_{end}"], values[f"{name}_{error}"] = gap
        found = Row(
            images_set=self.images_set, side=self.side, patches=macs.per_layer[0].tokens_in.max().item(),
            images=len(counts), calibration=self.calibration, budget=budget, way=way.name, calibrated=calibrated,
            share=float(shares.mean()), least_share=float(shares.min()), most_share=float(shares.max()),
            base_gmacs=macs.base / 1e9, blocks=_line(layers), tokens_mean=_line(kept.double().mean(0).tolist()),
            tokens_least=_line(kept.amin(0).tolist()), tokens_most=_line(kept.amax(0).tolist()),
            tokens_deviation=_line(kept.double().std(0).tolist()), kind_tokens=self._by_kind(last.double()),
            kind_divergence=self._by_kind(change.divergence), fewest=self._image(kept, int(last.argmin())),
            most=self._image(kept, int(last.argmax())), **values,
        )  # fmt: skip
        return found, change

    def _top1(self, answers: Answers) -> float:
        single = torch.tensor([kind != "four" for kind in self.kinds])
        return float((answers.logits.argmax(1) == self.labels)[single].double().mean())

    def _by_kind(self, values: Tensor) -> str:
        means = {}
        for kind in dict.fromkeys(self.kinds):
            means[kind] = values[[place for place, one in enumerate(self.kinds) if one == kind]].mean()
        return " ".join(f"{kind} {float(mean):.4g}" for kind, mean in means.items())

    def _image(self, kept: Tensor, place: int) -> str:
        return f"{self.kinds[place]} {_line(kept[place].tolist())}"


def _gaps(change: Change, other: Change | None) -> dict[str, tuple[float | None, float | None]]:
    """Each measure of a change less another's, with its standard error."""
    if other is None:
        return dict.fromkeys(("agreement", "divergence", "divergence_p99", "feature", "feature_p99"), (None, None))
    found = {"agreement": paired(change.agrees, other.agrees)}
    for name in ("divergence", "feature"):
        mine, its = getattr(change, name), getattr(other, name)
        found[name], found[f"{name}_p99"] = paired(mine, its), bootstrapped(worst, mine, its)
    return found  # type: ignore[return-value]


def _line(values: Iterable[float]) -> str:
    return " ".join(str(value) if isinstance(value, int) else f"{value:.1f}" for value in values)


def write(path: Path, rows: Iterable[Row]) -> None:
    """The rows as CSV, with six digits."""
    lines = [
        {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in asdict(row).items()}
        for row in rows
    ]
    write_csv(path, [field.name for field in fields(Row)], lines)


def read(path: Path) -> list[Row]:
    """The rows of a file that `write` wrote.

    Raises:
        ValueError: another file, or a damaged one.
        OSError: it cannot be read.
    """
    return read_rows(path, Row, "rows of adaptive_tokens.py")


def grouped(rows: Iterable[Row], key: Callable[[Row], object]) -> list[list[Row]]:
    """The rows by what `key` says of them, in the order in which that comes first."""
    found: dict[object, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())
