"""colpali-engine's `HierarchicalTokenPooler`, with one clustering call for all documents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import stand_ins
from .optional import find
from .pool import pool_embeddings

_THEIRS = find("colpali_engine.compression.token_pooling", "BaseTokenPooler", "TokenPoolingOutput")
_Base: Any
_Base, TokenPoolingOutput = _THEIRS or (stand_ins.BaseTokenPooler, stand_ins.TokenPoolingOutput)


class HierarchicalTokenPooler(_Base):
    """Ward's clusters of each document's tokens, as colpali-engine's class of this name finds them, a batch at a time.

        HierarchicalTokenPooler().pool_embeddings(embeddings, pool_factor=3)

    It derives from colpali-engine's `BaseTokenPooler` where that can be imported. What differs: clusters are numbered
    by their first tokens, equal distances do not make them fewer than asked for, gradients flow through the means, and
    a document has at most 4,096 tokens.

    Args:
        distance: "rows" of the square `1 - x . y`, as there, or another that `pool_embeddings` takes: "euclidean" loses
            less of the tokens.
        backend: "auto", "torch" or "triton".
    """

    def __init__(self, *, distance: str = "rows", backend: str = "auto") -> None:
        super().__init__()
        self.distance, self.backend = distance, backend

    def _pool_embeddings_impl(
        self, embeddings: list[Tensor], pool_factor: int, num_workers: int | None = None
    ) -> tuple[list[Tensor], list[stand_ins.Members]]:
        """Pools documents [n_i, D] to `max(n_i // pool_factor, 1)` vectors of length 1.

        Args:
            embeddings: of any type and device, which the vectors keep.
            pool_factor: at least 1, which returns the documents themselves, each with all its tokens as cluster 0.
            num_workers: None or at least 1; it changes nothing, since the batch is one call.

        Returns:
            The vectors, and for each document its tokens' indices by the number of their cluster.

        Raises:
            ValueError: a document that is not 2D or has fewer than two tokens, a factor that is no int of at least 1,
                or a number of workers below 1.
        """
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers must be None or at least 1, got {num_workers}")
        for document in embeddings:
            if document.dim() != 2 or len(document) < 2:
                shape = tuple(document.shape)
                raise ValueError(f"embeddings must be 2D tensors of more than one token each, got one of shape {shape}")
        if pool_factor == 1:
            return list(embeddings), [{0: (torch.arange(len(document)),)} for document in embeddings]
        pooled, labels = pool_embeddings(
            list(embeddings),
            pool_factor,
            distance=self.distance,
            return_labels=True,
            preset="colpali",
            backend=self.backend,
        )
        return pooled, _members(labels)


def _members(labels: list[Tensor]) -> list[stand_ins.Members]:
    """The indices of each cluster's tokens, for each document."""
    # One copy from the device for all documents.
    flat = torch.cat(labels).cpu()
    members = []
    for label in flat.split([len(one) for one in labels]):
        clusters = label.argsort(stable=True).split(label.bincount().tolist())
        members.append({number: (indices,) for number, indices in enumerate(clusters)})
    return members
