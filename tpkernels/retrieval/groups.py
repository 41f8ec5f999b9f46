"""Documents of a list pooled in groups of like length: little padding, and a bounded copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .batch import pool_batch
from .budget import Budget
from .presets import Rules

# Numbers that are padded and pooled at once: on a CPU a copy that a cache holds, small beside a corpus.
CPU_ELEMENTS, ELEMENTS = 1 << 22, 1 << 28


def pool_groups(
    documents: list[Tensor], budget: Budget, rules: Rules, backend: str
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Vectors [m_i, D] and labels [n_i] int64 of documents [n_i, D], in their order."""
    vectors, labels = list(documents), list(documents)
    trained = torch.is_grad_enabled() and any(document.requires_grad for document in documents)
    for group in groups(documents, trained):
        lengths = [len(documents[place]) for place in group]
        some = [documents[place] for place in group]
        padded = pad_sequence(some, batch_first=True) if trained else _side_by_side(some, max(lengths))
        found = pool_batch(padded, None, lengths, budget, rules, backend)
        for row, place in enumerate(group):
            # Copies: a view would keep its whole group in memory, and in a file.
            vectors[place] = found.vectors[row, : found.lengths[row]].clone()
            labels[place] = found.labels[row, : lengths[row]].clone()
    return vectors, labels


def groups(documents: list[Tensor], whole: bool = False) -> Iterator[list[int]]:
    """Places of documents that are pooled at once, by length; all of them if `whole`, as a training step wants it."""
    order = sorted(range(len(documents)), key=lambda place: len(documents[place]))
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or not (whole or _fit(documents[order[end]], end + 1 - start)):
            yield order[start:end]
            start = end


def _side_by_side(documents: list[Tensor], n: int) -> Tensor:
    """Documents [n_i, D] in one tensor [B, n, D], behind them anything: what is no token is never read."""
    padded = documents[0].new_empty(len(documents), n, documents[0].shape[1])
    for row, document in zip(padded, documents, strict=True):
        row[: len(document)] = document
    return padded


def _fit(longest: Tensor, count: int) -> bool:
    """Whether so many documents, padded to the longest, are few enough numbers."""
    return count * longest.numel() <= (CPU_ELEMENTS if longest.device.type == "cpu" else ELEMENTS)
