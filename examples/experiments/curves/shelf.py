"""Off the shelf: every method at every budget, in a model that never saw pooled tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common.distributed import World
from common.images import ImageSet, batches, evenly_spaced
from deit.evaluate import evaluate
from deit.methods import Method
from deit.rows import Row, build_rows, tokens_per_block
from deit.subjects import Subject
from tqdm import tqdm

from .points import SHELF, Point


def measure(
    subject: Subject, source: ImageSet, methods: Sequence[Method], budgets: Sequence[float],
    layers: Sequence[int] | None, limit: int | None, batch_size: int,
) -> list[Point]:  # fmt: skip
    """The base model's point, then those of every method at every budget: the same tokens, the same images."""
    numbers = evenly_spaced(len(source.labels), limit)
    rows: list[Row] = []
    budget_of: dict[str, float] = {}
    for budget in budgets:
        tokens = tokens_per_block(subject.model, None, budget, layers)
        base, *pooled = build_rows(subject.model, methods, tokens, False)
        for row in pooled:
            # `evaluate` tells rows apart by their name.
            row.name = f"{row.name}@{budget:g}"
            budget_of[row.name] = budget
        rows += pooled if rows else [base, *pooled]
    chunks = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
    with tqdm(total=len(numbers) * len(rows), unit="img", desc=SHELF, mininterval=5) as bar:
        seen = evaluate(
            rows, batches(source, subject.transform, chunks, 0), World(0, 1, torch.device("cpu")), torch.float32, bar
        )
    return [
        Point(
            SHELF, subject.name, row.name.split("@")[0], row.label, budget_of.get(row.name), None,
            " ".join(map(str, row.tokens)),
            row.macs.base / 1e9, row.macs.total / 1e9, row.macs.clustering / 1e9, seen.images, row.correct, row.agree,
        )
        for row in rows
    ]  # fmt: skip
