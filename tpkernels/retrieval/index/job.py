"""Pools an index into another in pieces of bounded size."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...names import WARD_TOKENS
from .. import presets
from ..pool import pool_embeddings
from .errors import document_errors
from .source import FLOATS, Rows, Source, form_of, open_source
from .state import State, Totals, locked, partial_of
from .target import Target, check_target

# How long a run may be set back by a kill.
COMMIT_SECONDS = 2.0


@dataclass(frozen=True)
class Report:
    """What a run did: the sizes in bytes are those of the vectors."""

    source: Source
    totals: Totals
    bytes_after: int
    # The documents that an earlier run had pooled.
    continued_from: int
    seconds: float


def pool_index(
    source: Path,
    target: Path,
    arguments: dict[str, Any],
    *,
    dtype: str | None = None,
    device: torch.device | str = "cpu",
    buffer_tokens: int = 32768,
    overwrite: bool = False,
    restart: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Pools the documents of an index on disk into another, in order, as `pool_embeddings` pools them.

    Memory is bounded by `buffer_tokens` vectors or the longest document, and some 64 bytes a document. The target takes
    its name when it is whole. Until then a folder beside it, of its name and ".partial", holds what the same call
    continues from, to the same bytes.

    Args:
        source: a .safetensors or .npz file of `embeddings` [T, D] and `lengths` [B], or a folder of embeddings.npy and
            lengths.npy.
        target: the same, in any of these formats.
        arguments: those of `pool_embeddings`.
        dtype: of the target's vectors; None for the source's. They are pooled in the wider of the two.
        device: where they are pooled.
        buffer_tokens: the vectors that are read and pooled at once, more only where a single document has more.
        overwrite: whether a target that exists is replaced.
        restart: whether what an interrupted run left is dropped.
        progress: called with the tokens that are pooled and all of them, at the start and after each buffer.

    Raises:
        ValueError: a damaged or changed source, arguments out of range, a target that exists, a state of another call.
        TypeError: arguments of the wrong type.
        OSError: a file cannot be read or written; what was done so far is kept.
        ImportError: NumPy or safetensors is not installed.
    """
    # Before anything is done that would be of no use without them.
    for name in ("numpy", "safetensors"):
        importlib.import_module(name)
    began = time.monotonic()
    if buffer_tokens < 1:
        raise ValueError(f"buffer_tokens must be at least 1, got {buffer_tokens}")
    opened = open_source(source)
    out = opened.dtype if dtype is None else FLOATS[dtype]
    partial = partial_of(target)
    for path in (target, partial):
        if path.exists() and path.samefile(source):
            raise ValueError(f"{target} must not be the index that is read")
    if not partial.exists():
        check_target(target, overwrite)
    if form_of(target) != ".safetensors" and out == torch.bfloat16:
        raise ValueError(
            f"{target} cannot hold bfloat16, which NumPy lacks: --dtype float32 or float16, or .safetensors"
        )
    wide = torch.promote_types(opened.dtype, out)
    # So that wrong arguments end the run before there is anything on disk.
    none = torch.zeros(0, dtype=torch.int64, device=device)
    pool_embeddings((torch.zeros(0, opened.dim, dtype=wide, device=device), none), **arguments)
    _check_documents(opened, presets.resolve(arguments.get("preset")).fewest)
    settings = {
        **arguments,
        "format": form_of(target) or "folder",
        "dtype": str(out).removeprefix("torch."),
        "device": str(device),
        "buffer_tokens": buffer_tokens,
        "input": opened.stamp,
    }
    with locked(partial):
        state = State(partial, Target(target, partial, out, opened.dim, len(opened.lengths)), settings)
        start = len(opened.lengths)
        if restart or not state.is_placed():
            # Another process may have made it.
            check_target(target, overwrite)
            state.begin(restart)
            start = state.totals.documents
            _pool_all(opened, state, arguments, device, wide, buffer_tokens, progress)
            state.finish()
        state.remove()
    size = state.totals.vectors * opened.dim * out.itemsize
    return Report(opened, state.totals, size, start, time.monotonic() - began)


def _check_documents(source: Source, fewest: int) -> None:
    """Before anything is pooled: the first document that cannot be would end the run there."""
    lengths = source.lengths
    for document in (int(lengths.argmax()), int(lengths.argmin())) if len(lengths) else ():
        length = int(lengths[document])
        if not fewest <= length <= WARD_TOKENS:
            limits = f"{fewest} to {WARD_TOKENS}"
            raise ValueError(f"{source.path}: documents must have {limits} tokens, got {length} in document {document}")


def _pool_all(
    source: Source, state: State, arguments: dict[str, Any], device: torch.device | str, dtype: torch.dtype,
    buffer_tokens: int, progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Pools all documents that the state lacks, in a dtype."""
    with closing(Rows(source, state.totals.tokens)) as rows:
        committed = time.monotonic()
        progress(state.totals.tokens, source.tokens)
        for begin, end in _buffers(source.lengths, state.totals.documents, buffer_tokens):
            lengths = source.lengths[begin:end]
            vectors = rows.take(int(lengths.sum())).to(device, dtype)
            pooled, counts, errors = _pool(vectors, lengths.to(device), arguments)
            state.append(_narrowed(pooled, state.target.dtype), counts)
            _add(state.totals, lengths, counts, errors)
            if time.monotonic() - committed >= COMMIT_SECONDS:
                state.commit()
                committed = time.monotonic()
            progress(state.totals.tokens, source.tokens)
        rows.finish()
    # If the target cannot be written, nothing is pooled again.
    state.commit()


def _buffers(lengths: Tensor, start: int, tokens: int) -> Iterator[tuple[int, int]]:
    """Runs of documents from `start` on, each as long as its tokens allow."""
    ends = lengths.cumsum(0)
    while start < len(lengths):
        before = int(ends[start - 1]) if start else 0
        stop = int(torch.searchsorted(ends, before + tokens, right=True))
        # A document alone may be longer.
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def _pool(vectors: Tensor, lengths: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The pooled vectors of a buffer, how many each document has, and the documents' errors, on the CPU."""
    pooled, counts, labels = pool_embeddings((vectors, lengths), return_labels=True, **arguments)
    # A preset may return vectors on the CPU.
    counts, labels = counts.to(vectors.device), labels.to(vectors.device)
    errors = document_errors(vectors, lengths, labels, counts)
    return pooled.cpu(), counts.cpu(), errors.cpu()


def _narrowed(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = vectors.to(dtype)
    if narrow.dtype != vectors.dtype and bool((narrow.isinf() & vectors.isfinite()).any()):
        raise ValueError(f"the vectors exceed {str(dtype).removeprefix('torch.')}: choose a wider --dtype")
    return narrow


def _add(totals: Totals, lengths: Tensor, counts: Tensor, errors: Tensor) -> None:
    """Adds documents, given their errors [B] (NaN: not finite), to the totals."""
    finite = errors.nan_to_num(nan=-1.0)
    worst, place = finite.max(0)
    if float(worst) > totals.worst or totals.worst_document < 0 <= float(worst):
        totals.worst, totals.worst_document = float(worst), totals.documents + int(place)
    totals.documents += len(lengths)
    totals.tokens += int(lengths.sum())
    totals.vectors += int(counts.sum())
    totals.not_finite += int(errors.isnan().sum())
    totals.error += float(errors.nansum())
