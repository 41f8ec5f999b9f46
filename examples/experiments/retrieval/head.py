"""A linear head over frozen token vectors, trained so that documents are found by the means of their clusters.

For the documents d of a batch, with tokens x_di, one query q for each, and the head's weight W [C, D]:

    t_di = W x_di / |W x_di|                            tokens, and a query's alike
    c_dk = (sum_{i in k} t_di) / |sum_{i in k} t_di|    the means of Ward's clusters k of t_d
    s_qd = sum_i max_k <t_qi, c_dk>                     MaxSim
    loss = mean_q (log sum_d exp(s_qd) - s_qq)          in-batch negatives
           + near * mean_di (1 - <t_di, c_dk(i)>)       k(i): the cluster of token i

Which tokens are a cluster is a constant of each step. The gradient goes through all else: the tokens, their means, and
the lengths of both. A protected token is its own mean. To the sum of the second part a cluster of n tokens adds n minus
the length of their sum: no vector of length 1 is nearer to them than their mean, so what this part moves is the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpkernels
from tpkernels.retrieval import pool_embeddings

from .documents import Pooled, Ragged
from .maxsim import max_sim
from .pairs import Pairs

BATCH = 64


class Training(NamedTuple):
    """steps: of BATCH documents each; rate: Adam's at the start, from where it falls to 0; protected: first tokens."""

    steps: int
    rate: float
    protected: int


def new_head(width: int, channels: int, seed: int) -> nn.Linear:
    """A projection without bias that keeps angles as well as one can that knows nothing of the data."""
    head = nn.Linear(width, channels, bias=False)
    nn.init.orthogonal_(head.weight, generator=torch.Generator().manual_seed(seed))
    return head


def project(head: nn.Module, batch: Ragged) -> Ragged:
    """Vectors [B, N, C] of length 1, zeros for padding."""
    return Ragged(F.normalize(head(batch.vectors), dim=-1).masked_fill(~batch.mask[..., None], 0), batch.mask)


def pool(tokens: Ragged, factor: float, protected: int) -> Pooled:
    """The documents of a batch, pooled in one clustering call; a factor of 1 takes none and leaves them as they are."""
    if factor == 1:
        places = torch.arange(tokens.mask.shape[1], device=tokens.mask.device)
        return Pooled(*tokens, places.where(tokens.mask, -1))
    return Pooled(*pool_embeddings(tuple(tokens), factor, protected=protected, return_labels=True))


def contrastive_loss(queries: Ragged, documents: Ragged) -> Tensor:
    """Cross-entropy of every query's MaxSim scores: its own document against the others of the batch."""
    scores = max_sim(queries, documents)
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def near_loss(tokens: Ragged, pooled: Pooled) -> Tensor:
    """Mean over tokens of `1 - cos(token, the vector that it became)`, of vectors of length 1."""
    became = tpkernels.unpool(pooled.vectors, pooled.labels)
    return 1 - (tokens.vectors * became).sum(-1)[tokens.mask].mean()


def batch_loss(
    head: nn.Module, documents: Ragged, queries: Ragged, factor: float, near: float, protected: int
) -> Tensor:  # fmt: skip
    """The loss above of a batch whose documents are pooled by `factor`."""
    tokens = project(head, documents)
    pooled = pool(tokens, factor, protected)
    loss = contrastive_loss(project(head, queries), Ragged(pooled.vectors, pooled.mask))
    return loss + near * near_loss(tokens, pooled) if near else loss


def train(
    head: nn.Module, pairs: Pairs, factors: Sequence[float], near: float, how: Training, seed: int
) -> Iterator[float]:
    """Trains the head, and yields the loss of every step.

    Each batch is pooled by one of the factors and asked for by one kind of queries, both drawn by chance.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(head.parameters(), how.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)
    order: list[int] = []
    for _ in range(how.steps):
        if len(order) < BATCH:
            order = torch.randperm(len(pairs.documents), generator=generator).tolist()
        numbers, order = order[:BATCH], order[BATCH:]
        kind, which = (int(torch.randint(len(some), (), generator=generator)) for some in (pairs.queries, factors))
        documents, queries = pairs.batch(numbers, kind)
        loss = batch_loss(head, documents, queries, factors[which], near, how.protected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()
