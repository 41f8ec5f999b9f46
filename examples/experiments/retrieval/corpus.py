"""Text as documents of many vectors, and queries for them: what `text` reads, as `encoder` sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from common.images import evenly_spaced
from torch import Tensor

from . import text
from .cache import embed_all, fingerprint
from .documents import Ragged, ragged, unit
from .encoder import Encoder, find_model

# The kinds of queries, by the fields of `text.Document`.
QUERIES = ("summary", "sentence")


@dataclass(frozen=True)
class Corpus:
    """documents: vectors [n_i, D] of each; queries: by their kind, vectors of those for documents `asked`.

    name: tells this corpus from others; available: documents of which these were chosen.
    """

    documents: list[Tensor]
    queries: dict[str, Ragged]
    asked: list[int]
    name: str
    available: int

    def describe(self, keep_punctuation: bool) -> dict[str, str]:
        """The header's lines."""
        lengths = torch.tensor([len(document) for document in self.documents])
        marks = "with punctuation" if keep_punctuation else "punctuation left out"
        tokens = {kind: f"{queries.mask.sum(1).double().mean():.1f}" for kind, queries in self.queries.items()}
        channels = self.documents[0].shape[1]
        return {
            "model": f"answerai-colbert-small-v1 in 8 bits, last hidden states of {channels} channels",
            "documents": f"{len(lengths):,} of {self.available:,} docstrings of {text.versions()}, "
            f"{int(lengths.min())} to {int(lengths.max())} tokens, {lengths.double().mean():.1f} on average, {marks}",
            "queries": f"{len(self.asked):,} of each kind, "
            + ", ".join(f"{kind} {mean} tokens" for kind, mean in tokens.items()),
            "vectors": self.name,
        }


def load(
    model: Path | None, folder: Path, limit: int | None, asked: int | None, keep_punctuation: bool, threads: int
) -> Corpus:
    """The corpus, its vectors from the file in `folder` as far as it holds them.

    Args:
        limit: evenly spaced documents; None for all.
        asked: evenly spaced documents of these that are asked for; None for all.
        keep_punctuation: ColBERT leaves a document's punctuation out, once it has been encoded.

    Raises:
        ValueError, FileError, OSError: with a message for the user.
    """
    encoder = Encoder(find_model(model), threads)
    found = text.corpus()
    chosen = [found[number] for number in evenly_spaced(len(found), limit)]
    numbers = evenly_spaced(len(chosen), asked)
    ids = [encoder.tokens(document.text, "document") for document in chosen]
    questions = [encoder.tokens(getattr(chosen[number], kind), "query") for kind in QUERIES for number in numbers]
    vectors = [unit(part.float()) for part in embed_all(encoder, ids + questions, folder)]
    documents, queries = vectors[: len(ids)], vectors[len(ids) :]
    if not keep_punctuation:
        marks = torch.tensor(encoder.punctuation)
        documents = [one[~torch.isin(torch.tensor(i), marks)] for one, i in zip(documents, ids, strict=True)]
    by_kind = {kind: ragged(queries[at * len(numbers) :][: len(numbers)]) for at, kind in enumerate(QUERIES)}
    return Corpus(documents, by_kind, numbers, fingerprint(encoder, ids + questions), len(found))
