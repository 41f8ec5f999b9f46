"""A corpus pooled as it is read, one buffer of documents after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch import Tensor

from .. import checks
from . import presets
from .forms import as_tensor, check_document
from .pool import pool_embeddings


def stream_pooled(
    documents: Iterable[Tensor],
    pool_factor: float | None = None,
    *,
    buffer_tokens: int = 1 << 16,
    progress: bool = False,
    **options: Any,
) -> Iterator[Any]:
    """Pooled documents in their order, as a generator: a corpus may be larger than memory.

    Documents are read until a buffer is full, and those of like length in it are pooled at once.

    Args:
        documents: float vectors [n_i, D], of any iterable.
        pool_factor, options: as `pool_embeddings` takes them.
        buffer_tokens: tokens that are read before some are pooled, at least 1.
        progress: show a bar on standard error, by tqdm.

    Yields:
        vectors [m_i, D], with `return_labels` pairs of those and labels [n_i].

    Raises:
        TypeError, ValueError, RuntimeError: those of `pool_embeddings`, about options at once and about documents where
            they are pooled.
        ImportError: progress without tqdm.
    """
    checks.count("buffer_tokens", buffer_tokens, 1)
    checks.flag("progress", progress)
    pool_embeddings([], pool_factor, **options)
    if progress:
        from tqdm import tqdm

        total = len(documents) if isinstance(documents, Sized) else None
        documents = tqdm(documents, total=total, unit=" documents", smoothing=0)
    return _stream(documents, pool_factor, buffer_tokens, options)


def _stream(
    documents: Iterable[Tensor], pool_factor: float | None, buffer_tokens: int, options: dict[str, Any]
) -> Iterator[Any]:  # fmt: skip
    buffer: list[Tensor] = []
    tokens, first = 0, None
    fewest = presets.resolve(options.get("preset")).fewest
    for place, document in enumerate(documents):
        tensor = as_tensor(document)
        first = tensor if first is None else first
        check_document(tensor, first, place, "documents", fewest)
        buffer.append(document)
        tokens += len(document)
        if tokens >= buffer_tokens:
            yield from _pooled(buffer, pool_factor, options)
            buffer, tokens = [], 0
    yield from _pooled(buffer, pool_factor, options)


def _pooled(buffer: list[Tensor], pool_factor: float | None, options: dict[str, Any]) -> Iterator[Any]:
    found = pool_embeddings(buffer, pool_factor, **options)
    yield from zip(*found, strict=True) if options.get("return_labels") else found
