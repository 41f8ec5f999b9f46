"""Fewer vectors for every document of a multi-vector index, in clustering calls of many documents each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..names import BACKENDS
from . import budget as budgets
from . import forms, presets
from .batch import Pooled, pool_batch
from .budget import Budget
from .groups import pool_groups
from .presets import Rules


def pool_embeddings(
    embeddings: Any,
    pool_factor: float | None = None,
    *,
    max_tokens: int | None = None,
    distance_threshold: float | None = None,
    max_error: float | None = None,
    protected: int | None = None,
    protected_at: str | None = None,
    distance: str | None = None,
    rounding: str | None = None,
    normalize: bool | str | None = None,
    return_labels: bool = False,
    preset: str | None = None,
    backend: str = "auto",
) -> Any:
    """Fewer vectors for every document: the means of Ward's clusters of its tokens (Clavié et al., arXiv 2409.14683).

    A document's first `protected` tokens are kept as they are, the others clustered and averaged, all documents of a
    batch in one call of `tpkernels.ward`. The output has the form of the input. Rows are in the order of their
    clusters' first tokens. Differentiable through the means, with the clusters held constant; on a GPU, `distance_
    threshold` and `max_error` wait for the number of clusters, and a mask for the number of tokens.

    Args:
        embeddings: float vectors of documents: a list of [n_i, D]; a pair of padded [B, N, D] and mask bool [B, N],
            False for padding, wherever it stands; a pair of packed [T, D], one document behind the other, and lengths
            int [B]; or a tensor [B, N, D] or [N, D] whose rows all are tokens. A list of NumPy arrays gives arrays. A
            document has at most 4,096 tokens.
        pool_factor: unprotected tokens for each cluster, at least 1: n of them become max(n // pool_factor, 1).
        max_tokens: the most vectors of a document, protected ones counted; more than `protected`.
        distance_threshold: clusters merge up to this distance, as by scipy's `fcluster(Z, t, "distance")`.
        max_error: as few clusters as lose at most this share of the variance of the unprotected tokens, in [0, 1).
        protected: first tokens of a document that are kept; None for the preset's, or 0.
        protected_at: "start" (None without a preset) or "end", whether they are in front of the clusters or behind.
        distance: what is clustered by, a metric of `tpkernels.ward`: "euclidean" (None without a preset; of unit
            vectors the one with the least error), "cosine", "dot", "clipped" or "rows".
        rounding: "floor" (None without a preset), as Python's `n // pool_factor`, or "nearest", `floor(n / pool_factor
            + 0.5)`.
        normalize: True (None without a preset) makes the clusters' means unit vectors, "all" every vector that is
            returned, False none.
        return_labels: append the row that each token became.
        preset: "colpali", "pylate", "sentence-transformers", "colbert" or "next-plaid", the way of that package (see
            `PRESETS`); arguments given beside it win.
        backend: "auto", "torch" or "triton".

    Returns:
        A list of [m_i, D]; a pair of vectors [B, M, D] and mask [B, M], or of packed [S, D] and lengths [B]; or a
        tensor [B, M, D] (zeros behind a document's rows where those differ) or [M, D]. With `return_labels` one more,
        int64: a list of [n_i], [B, N], [T] or [N], the row in the token's own document, -1 for padding.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, documents of several widths, dtypes or devices, a document of more than 4,096 tokens;
            none or several of the four budgets, or one out of its range; `max_error` with another distance than
            "euclidean"; with preset="colpali" a document of fewer than two tokens, or a factor that is no int.
        RuntimeError: backend="triton" cannot run this call.
    """
    given: dict[str, Any] = {
        "protected": protected, "protected_at": protected_at, "distance": distance, "rounding": rounding,
        "normalize": normalize,
    }  # fmt: skip
    rules = presets.resolve(preset, **given)
    checks.flag("return_labels", return_labels)
    checks.one_of("backend", backend, BACKENDS)
    values = (pool_factor, max_tokens, distance_threshold, max_error)
    budget = budgets.resolve(dict(zip(budgets.BUDGETS, values, strict=True)), rules)
    if rules.as_colpali and budget == ("pool_factor", 1):
        rules = rules._replace(normalize=False)
    found = _FORMS[forms.form_of(embeddings)](embeddings, budget, rules, backend)
    found = found if return_labels else found[:-1]
    return found if len(found) > 1 else found[0]


def _list(embeddings: Any, budget: Budget, rules: Rules, backend: str) -> tuple[Any, ...]:
    arrays = len(embeddings) > 0 and all(map(forms.is_array, embeddings))
    documents = [forms.as_tensor(document) if arrays else document for document in embeddings]
    forms.check_documents(documents, rules.fewest)
    found = pool_groups(documents, budget, rules, backend)
    if arrays:
        return tuple([one.numpy() for one in part] for part in found)
    return tuple([one.cpu() for one in part] for part in found) if rules.on_cpu else found


def _packed(embeddings: Any, budget: Budget, rules: Rules, backend: str) -> tuple[Any, ...]:
    x, lengths = embeddings
    documents = forms.split_packed(x, lengths)
    if not documents:
        return x, torch.empty(0, dtype=torch.int64, device=x.device), torch.empty(0, dtype=torch.int64, device=x.device)
    vectors, labels = _list(documents, budget, rules, backend)
    counts = torch.tensor([len(one) for one in vectors], device=vectors[0].device)
    return torch.cat(vectors), counts, torch.cat(labels)


def _padded(embeddings: Any, budget: Budget, rules: Rules, backend: str) -> tuple[Any, ...]:
    x, mask = embeddings
    forms.check_padded(x, mask)
    found = _batch(x, mask, mask.sum(1).tolist(), budget, rules, backend)
    row = torch.arange(found.vectors.shape[1], device=x.device)
    return found.vectors, row < torch.tensor(found.lengths, device=x.device)[:, None], found.labels


def _tensor(embeddings: Any, budget: Budget, rules: Rules, backend: str) -> tuple[Any, ...]:
    if embeddings.dim() == 2:
        vectors, labels = _tensor(embeddings[None], budget, rules, backend)
        return vectors[0], labels[0]
    checks.tokens(embeddings, "embeddings")
    b, n, _ = embeddings.shape
    found = _batch(embeddings, None, [n] * b, budget, rules, backend)
    return found.vectors, found.labels


def _batch(x: Tensor, mask: Tensor | None, lengths: list[int], budget: Budget, rules: Rules, backend: str) -> Pooled:
    for place, length in enumerate(lengths):
        forms.check_length(f"document {place} of embeddings", length, rules.fewest)
    return pool_batch(x, mask, lengths, budget, rules, backend)


_FORMS = {"list": _list, "packed": _packed, "padded": _padded, "tensor": _tensor}
