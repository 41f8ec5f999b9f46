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
    q, t, d = queries.vectors.shape
    flat = queries.vectors.reshape(q * t, d).T
    lengths = documents.mask.sum(1)
    scores = flat.new_full((q, len(lengths)), -torch.inf)
    most = max(1, BLOCK_ELEMENTS // max(1, q * t * documents.mask.shape[1]))
    by_length = lengths.argsort(stable=True)
    for rows in by_length[lengths[by_length] > 0].split(most):
        width = int(lengths[rows[-1]])
        vectors, mask = documents.vectors[rows, :width], documents.mask[rows, :width, None]
        absent = torch.zeros_like(mask, dtype=flat.dtype).masked_fill(~mask, -torch.inf)
        best = torch.baddbmm(absent, vectors, flat.expand(len(rows), -1, -1)).amax(1)
        scores[:, rows] = best.view(-1, q, t).masked_fill(~queries.mask, 0).sum(2).T
    return scores


def ranks(scores: Tensor) -> Tensor:
    """Rank [Q], 1 the best, of document i for query i; documents of the same score stand before it."""
    right = scores.diagonal()[:, None]
    return (scores >= right).sum(1)
