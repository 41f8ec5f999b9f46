"""Late interaction: MaxSim scores of queries against documents, and how high the right document ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from .documents import Ragged

# Similarities at once: 32 MB of them.
BLOCK_ELEMENTS = 1 << 23


def max_sim(queries: Ragged, documents: Ragged) -> Tensor:
    """Scores [Q, B]: `sum_i max_j <q_i, d_j>` over a query's vectors i and a document's vectors j.

    Documents go by length, so that a block of them is padded to its own longest one. A document without vectors scores
    -inf.
    """
    flat, owner = queries.vectors[queries.mask].T, queries.mask.nonzero()[:, 0]
    lengths = documents.mask.sum(1)
    scores = flat.new_full((len(lengths), len(queries.mask)), -torch.inf)
    most = max(1, BLOCK_ELEMENTS // max(1, len(owner) * documents.mask.shape[1]))
    by_length = lengths.argsort(stable=True)
    for rows in by_length[lengths[by_length] > 0].split(most):
        width = int(lengths[rows[-1]])
        vectors, mask = documents.vectors[rows, :width], documents.mask[rows, :width, None]
        absent = torch.zeros_like(mask, dtype=flat.dtype).masked_fill(~mask, -torch.inf)
        best = torch.baddbmm(absent, vectors, flat.expand(len(rows), -1, -1)).amax(1)
        scores[rows] = best.new_zeros(len(rows), len(queries.mask)).index_add_(1, owner, best)
    return scores.T


def ranks(scores: Tensor, right: Tensor | None = None) -> Tensor:
    """Rank [Q], 1 the best, of document right[i] for query i, or of document i; equal scores stand before it."""
    right = torch.arange(len(scores), device=scores.device) if right is None else right
    return (scores >= scores.gather(1, right[:, None])).sum(1)
