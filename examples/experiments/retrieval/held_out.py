"""How trained heads find documents that they have not seen, pooled by every factor: rows with standard errors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .compare import BYTES_PER_NUMBER
from .documents import Ragged, ragged
from .head import Training, near_loss, new_head, pool, project, train
from .maxsim import max_sim, ranks
from .outcome import mean_and_error, rounded
from .pairs import Pairs


class Way(NamedTuple):
    """A way to come by a head: pooled, None for no training, else whether documents are; near, the second loss' weight.

    channels: of its vectors, 0 for as many as the tokens have, which are left as they are.
    """

    name: str
    label: str
    channels: int
    pooled: bool | None = None
    near: float = 0.0


# What the others are compared with, query by query.
BASE = "whole"


def ways(channels: int, nears: Sequence[float]) -> list[Way]:
    return [
        Way("none", "no head", 0),
        Way("start", "not trained", channels),
        Way(BASE, "trained with whole documents", channels, False),
        Way("pooled", "with pooled ones", channels, True),
        *(Way(f"near-{near:g}", f"with pooled ones, near {near:g}", channels, True, near) for near in nears),
    ]


@dataclass(frozen=True)
class Row:
    """One way at one factor. recall_at_1 in per cent; each `_se` a standard error over documents.

    A document's queries of all kinds, asked of the heads of all seeds, are one observation, their mean. mrr_to_whole:
    difference to the head that was trained with whole documents, at the same factor, paired; seeds_sd: standard
    deviation of the mean reciprocal rank over seeds; far: mean of `1 - cos(token, its vector)`; step_ms: the
    median of training's steps.
    """

    way: str
    label: str
    pool_factor: float
    documents: int
    vectors_per_document: float
    index_mb: float
    recall_at_1: float
    recall_at_1_se: float
    mrr: float
    mrr_se: float
    mrr_to_whole: float
    mrr_to_whole_se: float
    seeds: int
    seeds_sd: float | None
    far: float
    step_ms: float | None


class Found(NamedTuple):
    """Of one head: ranks [kinds, B] of the documents by factor, `1 - cos` by factor, and vectors by factor."""

    ranks: dict[float, Tensor]
    far: dict[float, float]
    vectors: dict[float, int]


@torch.inference_mode()
def search(head: nn.Module, pairs: Pairs, factors: Sequence[float], protected: int) -> Found:
    """Asks for every document with its own queries."""
    tokens = project(head, ragged(pairs.documents))
    asked = [project(head, ragged(kind)) for kind in pairs.queries]
    found = Found({}, {}, {})
    for factor in factors:
        pooled = pool(tokens, factor, protected)
        documents = Ragged(pooled.vectors, pooled.mask)
        found.ranks[factor] = torch.stack([ranks(max_sim(queries, documents)) for queries in asked]).double().cpu()
        found.far[factor] = float(near_loss(tokens, pooled))
        found.vectors[factor] = int(pooled.mask.sum())
    return found


def compare(pairs: Pairs, some: list[Way], factors: list[float], seeds: int, how: Training) -> list[Row]:
    """Trains every way's head once a seed, from the same start in the same batches, and asks for what is held out."""
    trained, asked = pairs.split()
    every, width = [1.0, *factors], pairs.documents[0].shape[1]
    found: dict[str, list[Found]] = {way.name: [] for way in some}
    seconds: dict[str, list[float]] = {way.name: [] for way in some}
    learning = [way for way in some if way.pooled is not None]
    with tqdm(total=seeds * how.steps * len(learning), unit="step", mininterval=0.5) as bar:
        for seed in range(seeds):
            # What has no head is the same for every seed.
            for way in (way for way in some if way.channels or seed == 0):
                head = make_head(way, trained, factors, seed, how, seconds[way.name], bar)
                found[way.name].append(search(head, asked, every, how.protected))
    return [
        row(way, factor, found[way.name], found[BASE], width, seconds[way.name]) for factor in every for way in some
    ]


def make_head(
    way: Way, pairs: Pairs, factors: list[float], seed: int, how: Training, seconds: list[float], bar: tqdm
) -> nn.Module:  # fmt: skip
    """A way's head, trained where it is; the seconds of each step are appended."""
    if not way.channels:
        return nn.Identity()
    first = pairs.documents[0]
    head = new_head(first.shape[1], way.channels, seed).to(first.device)
    if way.pooled is not None:
        bar.set_postfix_str(f"{way.name}, seed {seed}")
        started = time.perf_counter()
        for _ in train(head, pairs, factors if way.pooled else [1.0], way.near, how, seed):
            seconds.append(time.perf_counter() - started)
            bar.update()
            started = time.perf_counter()
    return head


def row(
    way: Way, factor: float, found: list[Found], base: list[Found], width: int, seconds: list[float]
) -> Row:  # fmt: skip
    """The row of a way's heads, one a seed, beside the base's."""
    rank = torch.stack([one.ranks[factor] for one in found])
    reciprocal = rank.reciprocal().mean((0, 1))
    to_base = reciprocal - torch.stack([one.ranks[factor] for one in base]).reciprocal().mean((0, 1))
    by_seed = rank.reciprocal().mean((1, 2))
    vectors, count = found[0].vectors[factor], rank.shape[2]
    size = vectors * (way.channels or width) * BYTES_PER_NUMBER / 1e6
    return Row(
        way.name, way.label, factor, count, round(vectors / count, 2), round(size, 3),
        *rounded(2, *mean_and_error(100 * (rank == 1).double().mean((0, 1)))),
        *rounded(5, *mean_and_error(reciprocal), *mean_and_error(to_base)),
        len(found), *rounded(5, float(by_seed.std()) if len(found) > 1 else None),
        round(sum(one.far[factor] for one in found) / len(found), 5),
        round(1e3 * median(seconds), 2) if seconds else None,
    )  # fmt: skip


HEAD = ("", "p", "vectors/doc", "MB", "recall@1 %", "MRR", "to whole x 1000", "1 - cos", "ms/step")


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """The rows as the terminal shows them, under their head."""
    return [list(HEAD), *map(cells, rows)]


def change_of(row: Row) -> str:
    return f"{1000 * row.mrr_to_whole:+.1f} ± {1000 * row.mrr_to_whole_se:.1f}"


def cells(row: Row) -> list[str]:
    """A row as tables show it."""
    return [
        row.label, f"{row.pool_factor:g}", f"{row.vectors_per_document:.1f}", f"{row.index_mb:.2f}",
        f"{row.recall_at_1:.1f} ± {row.recall_at_1_se:.1f}", f"{row.mrr:.3f} ± {row.mrr_se:.3f}",
        "" if row.way == BASE else change_of(row), f"{row.far:.3f}",
        "" if row.step_ms is None else f"{row.step_ms:.0f}",
    ]  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """A table with a line for every way: the MRR by factor, and in brackets its change in thousandths."""
    factors = list(dict.fromkeys(row.pool_factor for row in rows))
    shown: dict[str, list[str]] = {}
    for row in rows:
        change = "" if row.way == BASE else f" ({change_of(row)})"
        shown.setdefault(row.label, []).append(f"{row.mrr:.3f} ± {row.mrr_se:.3f}{change}")
    last = {row.label: [f"{row.far:.3f}", "" if row.step_ms is None else f"{row.step_ms:.0f}"] for row in rows}
    head = ["", *(f"p = {factor:g}" for factor in factors), f"1 - cos, p = {factors[-1]:g}", "ms/step"]
    table = [head, ["---"] * len(head), *([label, *line, *last[label]] for label, line in shown.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)
