"""Which cluster every token belongs to, by a backend's primitives: what `ops.cluster` knows before it pools."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .batches import Part, parts
from .eager.metrics import rows
from .eager.samples import override_plain
from .eager.segments import segment_min
from .eager.starts import start_labels
from .problem import Found, Primitives, Samples, Spec, Tensors


class Labelled(NamedTuple):
    """What is known of samples before their tokens are pooled.

    label [B, N] int64, -1 where masked; n_iter, n_clusters [B] int64; source [B, N], the labels of the last update,
    None where they are `label`; medoids [B, K] int64, -1 where there is none; heights [B, N - 1], Ward's; kept, lost,
    plain and offset as in `Found` and `Samples`. None where the method has none.
    """

    label: Tensor
    n_iter: Tensor
    n_clusters: Tensor
    source: Tensor | None = None
    medoids: Tensor | None = None
    heights: Tensor | None = None
    kept: Tensor | None = None
    lost: Tensor | None = None
    plain: Tensor | None = None
    offset: Tensor | None = None


# What those hold beyond the tokens and clusters of a part, and for samples of parts without them.
_REST = -1, 0, 0, -1, -1, torch.inf, 0, False, False, 0


def label_parts(tensors: Tensors, spec: Spec, using: Primitives) -> Labelled:
    """Labels of a batch of any size, one part after another."""
    pieces = parts(tensors)
    b, n, _ = tensors.x.shape
    if len(pieces) == 1 and pieces[0].width == n:
        return label_tokens(tensors, spec, using)
    found = []
    for piece in pieces:
        one = label_tokens(piece.of(tensors), spec._replace(k=min(spec.k, piece.width)), using)
        if one.lost is None or not bool(one.lost.any()):
            # No center is kept: free them all before the next part is labelled.
            one = one._replace(kept=None, lost=None, offset=None)
        found.append(one)
    # Of tokens, of clusters, of mergers, or of samples alone.
    sizes = n, None, None, n, spec.k, n - 1, spec.k, spec.k, None, None
    fields = zip(zip(*found, strict=True), sizes, _REST, strict=True)
    return Labelled._make(_join(pieces, b, *field) for field in fields)


def _join(
    pieces: list[Part], b: int, values: tuple[Tensor | None, ...], size: int | None, rest: float
) -> Tensor | None:  # fmt: skip
    """The parts' values in one tensor, with so many entries a sample where parts differ; None where all are."""
    like = next((value for value in values if value is not None), None)
    if like is None:
        return None
    shape = list(like.shape[1:]) if size is None else [size, *like.shape[2:]]
    whole = like.new_full((b, *shape), rest)
    for piece, value in zip(pieces, values, strict=True):
        if value is not None:
            whole[(piece.rows, slice(value.shape[1])) if value.dim() > 1 else piece.rows] = value
    return whole


def label_tokens(tensors: Tensors, spec: Spec, using: Primitives) -> Labelled:
    """Labels of samples that are taken together: what was found, and the rules for plain samples."""
    samples, found = _found(tensors, spec, using)
    n, plain, source, medoids = tensors.x.shape[1], samples.plain, found.source, found.medoids
    n_iter = found.n_iter if plain is None else torch.where(plain, 0, found.n_iter)
    if plain is None:
        label = samples.only_valid(found.label)
    else:
        label = override_plain(samples, found.label)
        source = None if source is None else torch.where(plain[:, None], label, source)
    if spec.has_medoids:
        medoids = using.nearest_members(samples.x, label, spec.k, samples.weight) if medoids is None else medoids
        if plain is not None:
            index = torch.arange(n, device=label.device).expand_as(label)
            medoids = torch.where(plain[:, None], segment_min(index, label, spec.k, n), medoids)
        medoids = torch.where(medoids == n, -1, medoids)
    source = samples.only_valid(source) if source is not None and spec.output == "center" else None
    medoids = medoids if spec.has_medoids else None
    rest = found.heights, found.kept, found.lost, plain, samples.offset
    return Labelled(label, n_iter, samples.k, source, medoids, *rest)


def _found(tensors: Tensors, spec: Spec, using: Primitives) -> tuple[Samples, Found]:
    """The samples, with the number of clusters that there are in each, and what was found."""
    samples = using.prepare(
        tensors.x, tensors.weight, tensors.mask, spec.k, tensors.counts, cuts=spec.cuts_by_value,
        centers=spec.metric == "euclidean",
    )  # fmt: skip
    if not spec.runs_ward:
        start = start_labels(samples, spec, tensors.start)
    else:
        # Medoids are those of the tokens, whatever the clusters are made of.
        found = using.ward(rows(samples) if spec.metric == "rows" else samples, spec)
        samples = samples if found.k is None else samples._replace(k=found.k)
        if spec.method == "ward":
            return samples, found
        start = samples.only_valid(found.label)
    lloyd = using.lloyd(tensors.x, samples, start, spec)
    if using.kernels:
        # Free the centered copy before the loop, which has read what it needs of it: a slice would keep it.
        samples = samples._replace(x=samples.x.new_empty(*samples.x.shape[:2], 0))
    return samples, lloyd()
