"""Multiply-accumulates (MACs) of a vision transformer, pooled or not, with the clustering's own listed apart.

One MAC is one multiply and one add. Counted are matrix products, distances and means; not counted, as in the Token
Pooling paper (Marin et al., arXiv 2110.03860), are biases, normalisations, softmax, activations and comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..names import INITS, METHODS, POSITIONS, WARD_TOKENS
from .shapes import ViTShape, check_integer, vit_shape


@dataclass(frozen=True)
class LayerMacs:
    """One block's row: its patch tokens before and after pooling, and the MACs of its three parts.

    Of many images each but `layer` is a tensor or an array of one entry per image.
    """

    layer: int
    tokens_in: Any
    tokens_out: Any
    attention: Any
    mlp: Any
    clustering: Any


@dataclass(frozen=True)
class Macs:
    """MACs for one image; or for many, where all but `base` are tensors or arrays of one entry per image.

    Args:
        base: the model without pooling.
        model: the pooled model without its clustering.
        clustering: what the clustering itself costs; an upper bound, since iterations may end early.
        per_layer: one row per block; the patch embedding and the head are in `base` and `model` only.
    """

    base: int
    model: Any
    clustering: Any
    per_layer: tuple[LayerMacs, ...]

    @property
    def total(self) -> Any:
        """The pooled model with its clustering."""
        return self.model + self.clustering

    @property
    def ratio(self) -> Any:
        """`total / base`."""
        return self.total / self.base


def count_macs(
    model_or_shape: Any,
    schedule: Any = None,
    *,
    method: str = "ward",
    init: str | Sequence[int] = "ward",
    max_iter: int = 5,
    position: str = "attention",
) -> Macs:
    """Counts the MACs for an image, with and without pooling between each block's attention and its MLP.

    Block l takes N = n_in + P tokens, P of them prefix tokens, and leaves M = n_out + P, with d channels:
    `attention = 4 N d^2 + 2 N^2 d`, `mlp = 2 mlp_ratio M d^2` (N tokens where blocks pool at their end). The patch
    embedding is `n patch_dim d`, the head `d num_classes`: 1.254 G for DeiT-Ti and 4.599 G for DeiT-S at 224 px. For
    the clustering see `clustering_macs`.

    Args:
        model_or_shape: a `ViTShape`, or a vision transformer of timm, torchvision or transformers (see `vit_shape`).
        schedule: patch tokens left after each block, from `resolve_keep` or `resolve_budget`; None for no pooling. Or
            those of M images that keep different numbers, an integer tensor or array [M, L]: the Macs are then those of
            each image.
        method, init, max_iter: as `TokenPool` takes them.
        position: where a block pools, "attention" (after it) or "block" (at its end).

    Raises:
        TypeError: a model whose shape cannot be read, or a schedule that does not hold integers.
        ValueError: an unknown method, init or position; a schedule of the wrong length, out of range or rising.
    """
    if position not in POSITIONS:
        raise ValueError(f"position must be one of {', '.join(POSITIONS)}; got {position!r}")
    max_iter = _check_clustering(method, init, max_iter)
    shape = vit_shape(model_or_shape)
    kept = _check_counts(schedule, shape) if getattr(schedule, "ndim", 1) == 2 else _check_schedule(schedule, shape)
    ends = shape.num_patches * shape.patch_dim * shape.dim + shape.dim * shape.num_classes
    # Of many images a count of each.
    rows, n_in = [], kept[0] * 0 + shape.num_patches
    for layer, n_out in enumerate(kept):
        clustering = _clustering(n_in, n_out, shape.dim, method, init, max_iter)
        in_mlp = n_out if position == "attention" else n_in
        rows.append(LayerMacs(layer, n_in, n_out, _attention(shape, n_in), _mlp(shape, in_mlp), clustering))
        n_in = n_out
    return Macs(
        base=ends + shape.depth * (_attention(shape, shape.num_patches) + _mlp(shape, shape.num_patches)),
        model=ends + sum(row.attention + row.mlp for row in rows),
        clustering=sum(row.clustering for row in rows),
        per_layer=tuple(rows),
    )


def clustering_macs(
    n: int, k: int, dim: int, *, method: str = "ward", init: str | Sequence[int] = "ward", max_iter: int = 5
) -> int:
    """MACs of pooling n tokens of d channels to k, the means of the clusters (n d) included; 0 where k = n.

    - ward: `n^2 d + LW + n d`. `LW = 3 (n - k)(n + k - 3) / 2` are the Lance-Williams updates: of m live clusters a
      merger touches m - 2 pairs, for m = n down to k + 1, at three products each
      (`(m_a + m_c) d_ac + (m_b + m_c) d_bc - m_c d_ab`).
    - kmedoids: start + `n^2 d + max_iter n d + n d`: the Gram matrix once, then medoids by their cluster's mean. Swaps
      compare and add what that matrix holds, and are not counted.
    - kmeans: start + `(max_iter + 1) n k d + max_iter n d + n d`: assignments (one more than updates), means.
    - the start of those two: ward `n^2 d + LW + n d`, less `n^2 d` where K-Medoids already has the Gram matrix;
      farthest `k n d`, nothing where K-Medoids has the Gram matrix; topk, strided and given indices nothing.
    - grid: `n d`. topk, importance, random: nothing, they only select.
    - bipartite: `ceil(m/2) floor(m/2) d + m d` for each round's m tokens; one round at most halves them.

    Raises:
        ValueError: an unknown method or init, or k outside [1, n].
    """
    max_iter = _check_clustering(method, init, max_iter)
    n, dim, k = check_integer("n", n, 1), check_integer("dim", dim, 1), check_integer("k", k, 1)
    if k > n:
        raise ValueError(f"k must be at most n = {n}, got {k}")
    return int(_clustering(n, k, dim, method, init, max_iter))


def _check_clustering(method: str, init: str | Sequence[int], max_iter: int) -> int:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if isinstance(init, str) and init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, or token indices; got {init!r}")
    return check_integer("max_iter", max_iter, 0)


def block_macs(
    shape: ViTShape, n_in: int, n_out: Any, *, method: str = "ward", init: str | Sequence[int] = "ward",
    max_iter: int = 5, position: str = "attention",
) -> Any:  # fmt: skip
    """MACs of one block, its clustering included, for many counts at once: for the search over schedules.

    Args:
        shape: the model that the block is of.
        n_in: patch tokens that enter.
        n_out: an int, or an int64 tensor or array of counts in [1, n_in]: patch tokens that leave. Not checked.
        method, init, max_iter, position: as `count_macs` takes them.

    Returns:
        MACs, of the type of `n_out`: for each count the sum of what `count_macs` lists for such a block.
    """
    mlp = _mlp(shape, n_out if position == "attention" else n_in)
    return _attention(shape, n_in) + mlp + _clustering(n_in, n_out, shape.dim, method, init, max_iter)


def _clustering(n: Any, k: Any, dim: int, method: str, init: str | Sequence[int], max_iter: int) -> Any:
    """`clustering_macs` of checked arguments: of int n and k, or of many at once."""
    if isinstance(init, str) and init == "auto":
        by_ward = _clustering(n, k, dim, method, "ward", max_iter)
        return by_ward * (n <= WARD_TOKENS) + _clustering(n, k, dim, method, "farthest", max_iter) * (n > WARD_TOKENS)
    # Multiplied by `k < n` instead of a branch, since k may be a tensor; k * 0 is a zero of its type.
    if method in ("topk", "importance", "random"):
        return k * 0
    means = n * dim
    if method == "grid":
        return (k < n) * means
    if method == "bipartite":
        return _bipartite(n, k, dim)
    gram = n * n * dim
    ward = _lance_williams(n, k) + means
    if method == "ward":
        return (k < n) * (gram + ward)
    start = init if isinstance(init, str) else "given"
    if method == "kmedoids":
        return (k < n) * (gram + max_iter * means + means + (ward if start == "ward" else 0))
    lloyd = (max_iter + 1) * n * k * dim + max_iter * means + means
    return (k < n) * (lloyd + {"ward": gram + ward, "farthest": k * means}.get(start, 0))


def _attention(shape: ViTShape, patches: Any) -> Any:
    tokens = patches + shape.num_prefix_tokens
    return 4 * tokens * shape.dim**2 + 2 * tokens**2 * shape.dim


def _mlp(shape: ViTShape, patches: Any) -> Any:
    # Rounded, since mlp_ratio is a quotient, and the number of weights behind it an integer.
    return (patches + shape.num_prefix_tokens) * round(2 * shape.mlp_ratio * shape.dim**2)


def _lance_williams(n: Any, k: Any) -> Any:
    # (n - k) and (n + k - 3) differ in parity, so the half is exact.
    return 3 * ((n - k) * (n + k - 3) // 2)


def _bipartite(n: Any, k: Any, dim: int) -> Any:
    macs, tokens = k * 0, n
    # A round leaves half of its tokens, rounded down, but for the last one, which leaves k.
    for _ in range(int(n.max() if hasattr(n, "max") else n).bit_length() - 1):
        sources = (tokens + 1) // 2
        macs = macs + (k < tokens) * (sources * (tokens - sources) * dim + tokens * dim)
        tokens = tokens - sources
    return macs


def _check_schedule(schedule: Sequence[int] | None, shape: ViTShape) -> list[int]:
    if schedule is None:
        return [shape.num_patches] * shape.depth
    if isinstance(schedule, (str, bytes)) or not isinstance(schedule, Sequence):
        raise TypeError(
            f"schedule must list the patch tokens left after each of {shape.depth} blocks, got {schedule!r}"
        )
    if len(schedule) != shape.depth:
        raise ValueError(f"schedule must hold {shape.depth} counts, one per block, got {len(schedule)}")
    left, kept = shape.num_patches, []
    for layer, count in enumerate(schedule):
        count = check_integer(f"schedule[{layer}]", count, 1)
        if count > left:
            raise ValueError(f"schedule[{layer}] must be at most the {left} tokens that are left, got {count}")
        left = count
        kept.append(count)
    return kept


def _check_counts(counts: Any, shape: ViTShape) -> list[Any]:
    """The columns of an integer tensor or array [M, L]: what each of M images keeps after a block."""
    kind = str(counts.dtype).removeprefix("torch.")
    if not kind.startswith(("int", "uint")):
        raise TypeError(f"schedule must hold integers, got {kind}")
    if counts.shape[0] < 1 or counts.shape[1] != shape.depth:
        raise ValueError(f"schedule must have shape [M, {shape.depth}], images and blocks, got {list(counts.shape)}")
    # MACs are more than 32 bits hold.
    counts = counts.long() if hasattr(counts, "long") else counts.astype("int64")
    columns = [counts[:, layer] for layer in range(shape.depth)]
    left = columns[0] * 0 + shape.num_patches
    for layer, column in enumerate(columns):
        if bool(((column < 1) | (column > left)).any()):
            raise ValueError(
                f"schedule[:, {layer}] must be at least 1 and at most the tokens that are left of each image, got "
                f"{int(column.min())} to {int(column.max())}"
            )
        left = column
    return columns
