"""PyLate's pooling of encoded documents, replaced by one clustering call."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .pool import pool_embeddings

_METHOD = "pool_embeddings_hierarchical"


def patch_pylate(*, distance: str | None = None, backend: str = "auto") -> None:
    """Has `pylate.models.ColBERT` pool all documents of a batch in one call: the same clusters and outputs, sooner.

        patch_pylate()
        model.encode(texts, is_query=False, pool_factor=3)

    `encode` and `pool_embeddings_hierarchical` take the arguments that they took, and documents are clustered on the
    device they are on. Another call changes the options. Subclasses that pool in their own way are left alone, and so
    are other processes: those of PyLate's `start_multi_process_pool` pool as before. What differs: equal tokens, whose
    distance may round below 0, do not fail, and a document has at most 4,096 tokens.

    Args:
        distance: None for `1 - x . y`, as there, or another that `pool_embeddings` takes: "euclidean" loses less of the
            tokens.
        backend: "auto", "torch" or "triton".

    Raises:
        ImportError: PyLate cannot be imported, or has no such method.
    """
    try:
        colbert = importlib.import_module("pylate.models").ColBERT
    # PyLate imports much that can fail in any way.
    except Exception as error:
        message = f"patch_pylate() needs pylate, whose import fails: {type(error).__name__}: {error}"
        raise ImportError(message, name="pylate") from error
    if _METHOD not in vars(colbert):
        raise ImportError(f"patch_pylate() needs a pylate whose ColBERT has a method {_METHOD}", name="pylate")
    unpatch_pylate()
    setattr(colbert, _METHOD, _replacement(vars(colbert)[_METHOD], distance, backend))


def unpatch_pylate() -> None:
    """Gives `pylate.models.ColBERT` its own method back; nothing happens where `patch_pylate` did not replace it."""
    colbert = getattr(sys.modules.get("pylate.models"), "ColBERT", None)
    replaced = getattr(getattr(colbert, _METHOD, None), "_replaced", None)
    if replaced is not None:
        setattr(colbert, _METHOD, replaced)


def _replacement(replaced: Any, distance: str | None, backend: str) -> Any:
    """The method that stands for PyLate's, which it holds."""

    @functools.wraps(replaced)
    def pool(
        self: Any, documents_embeddings: Iterable[Tensor], pool_factor: float = 1, protected_tokens: int = 1
    ) -> list[Tensor]:
        return pool_embeddings(
            list(documents_embeddings),
            pool_factor,
            protected=protected_tokens,
            distance=distance,
            preset="pylate",
            backend=backend,
        )

    pool._replaced = replaced  # type: ignore[attr-defined]
    return pool
