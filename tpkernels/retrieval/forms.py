"""The forms that documents come in, checked: lists, padded batches with a mask, packed rows with lengths, tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..checks.tensors import is_tensor, shape_of
from ..names import WARD_TOKENS

EXPECTED = (
    "a list of tensors [n, D], (padded [B, N, D], mask [B, N]), (packed [T, D], lengths [B]), or a tensor [B, N, D] or "
    "[N, D]"
)


def form_of(embeddings: Any) -> str:
    """The form: "list", "padded", "packed" or "tensor".

    Raises:
        TypeError: it is none of them.
    """
    if isinstance(embeddings, Tensor):
        return "tensor"
    if isinstance(embeddings, tuple) and len(embeddings) == 2 and isinstance(embeddings[0], Tensor):
        x, other = embeddings
        if x.dim() == 3:
            return "padded"
        # Two documents in a tuple have rows of vectors both.
        if not (isinstance(other, Tensor) and other.is_floating_point() and other.dim() == 2):
            return "packed"
    if isinstance(embeddings, (list, tuple)):
        return "list"
    raise TypeError(f"embeddings must be {EXPECTED}, got {type(embeddings).__name__}")


def is_array(value: Any) -> bool:
    """Whether it is an array of NumPy, which need not be there."""
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"


def as_tensor(document: Any) -> Any:
    """An array of NumPy as a tensor of the same memory, and everything else as it is."""
    return torch.from_numpy(document) if is_array(document) else document


def check_documents(documents: list[Tensor], fewest: int) -> None:
    """documents are float tensors [n_i, D] of one width, dtype and device, with as many tokens as can be clustered.

    Raises:
        TypeError, ValueError: naming the first document that is not.
    """
    for place, document in enumerate(documents):
        check_document(document, documents[0], place, "embeddings", fewest)


def check_document(document: Tensor, first: Tensor, place: int, of: str, fewest: int) -> None:
    """A document at its place is as `check_documents` says, and like the first of them."""
    name = f"{of}[{place}]"
    is_tensor(name, document)
    if document.dim() != 2:
        raise ValueError(f"{name} must have shape [n, D], got {shape_of(document)}")
    checks.tokens(document[None], name)
    if document.shape[1] != first.shape[1]:
        raise ValueError(f"{name} must have the {first.shape[1]} channels of {of}[0], got {document.shape[1]}")
    if document.dtype != first.dtype:
        raise TypeError(f"{name} must have the dtype of {of}[0], {first.dtype}, got {document.dtype}")
    checks.same_device(name, document, first, f"{of}[0]")
    check_length(name, len(document), fewest)


def check_length(name: str, length: int, fewest: int) -> None:
    """A document has no more tokens than can be clustered, and no fewer than a preset takes."""
    if length > WARD_TOKENS:
        raise ValueError(f"{name} must have at most {WARD_TOKENS} tokens, got {length}")
    if length < fewest:
        raise ValueError(f'{name} must have at least {fewest} tokens with preset="colpali", got {length}')


def check_padded(x: Tensor, mask: Tensor) -> None:
    """x [B, N, D] are float vectors and mask [B, N] tells which are tokens."""
    checks.tokens(x, "embeddings[0]")
    checks.mask(mask, x, "embeddings[1], the mask,", "embeddings[0]")


def split_packed(x: Tensor, lengths: Any) -> list[Tensor]:
    """The documents, of these lengths, one behind the other in x [T, D].

    Raises:
        TypeError, ValueError: naming what is wrong.
    """
    if x.dim() != 2:
        raise ValueError(f"embeddings[0] must have shape [T, D] beside lengths, got {shape_of(x)}")
    counts = lengths
    if isinstance(lengths, Tensor):
        if lengths.dim() != 1:
            raise ValueError(f"embeddings[1], the lengths, must have shape [B], got {shape_of(lengths)}")
        counts = lengths.tolist()
    if not isinstance(counts, (list, tuple)) or not all(type(count) is int for count in counts):
        raise TypeError(f"embeddings[1], the lengths, must be an int tensor [B] or a list of ints, got {lengths!r}")
    if min(counts, default=0) < 0:
        raise ValueError(f"embeddings[1], the lengths, must not be negative, got {min(counts)}")
    if sum(counts) != len(x):
        raise ValueError(
            f"embeddings[1], the lengths, must sum to the {len(x)} rows of embeddings[0], got {sum(counts)}"
        )
    return list(x.split(list(counts)))
