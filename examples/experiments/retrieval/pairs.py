"""Documents and the queries that ask for them, in two parts: one to train with, and one that is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .documents import Ragged, ragged

# One of so many documents is held out.
ONE_OF = 3


@dataclass(frozen=True)
class Pairs:
    """documents: vectors [n_i, D] of each; queries: of every kind, vectors [m_i, D] of one for each document."""

    documents: list[Tensor]
    queries: list[list[Tensor]]

    def some(self, numbers: Sequence[int]) -> Pairs:
        """The documents of these numbers with their queries."""
        return Pairs([self.documents[i] for i in numbers], [[kind[i] for i in numbers] for kind in self.queries])

    def batch(self, numbers: Sequence[int], kind: int) -> tuple[Ragged, Ragged]:
        """The documents of these numbers, padded to the longest of them, and their queries of one kind."""
        found = self.some(numbers)
        return ragged(found.documents), ragged(found.queries[kind])

    def split(self) -> tuple[Pairs, Pairs]:
        """What is trained with, and what is held out: every third document, none of which is in the first part."""
        numbers = range(len(self.documents))
        return self.some([i for i in numbers if i % ONE_OF]), self.some(numbers[::ONE_OF])

    def to(self, device: torch.device) -> Pairs:
        documents, *queries = ([one.to(device) for one in part] for part in (self.documents, *self.queries))
        return Pairs(documents, queries)


def unpadded(batch: Ragged) -> list[Tensor]:
    """The vectors [n_i, D] that are there."""
    return [vectors[there] for vectors, there in zip(*batch, strict=True)]
