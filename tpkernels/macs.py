"""Multiply-accumulates (MACs) of a vision transformer, pooled or not, with the clustering's own listed apart.

One MAC is one multiply and one add. Counted are matrix products, distances and means; not counted, as in the Token
Pooling paper (Marin et al., arXiv 2110.03860), are biases, normalisations, softmax, activations and comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

METHODS = ("ward", "kmeans", "kmedoids", "topk", "importance", "random", "grid", "bipartite")
INITS = ("auto", "ward", "topk", "farthest", "strided")

# Ward takes up to this many tokens; `init="auto"` is its start up to there and farthest-first above.
WARD_TOKENS = 4096


@dataclass(frozen=True)
class ViTShape:
    """What the MACs of a plain vision transformer depend on.

    Args:
        depth: blocks.
        dim: channels of a token.
        num_patches: patch tokens that enter the first block.
        num_prefix_tokens: class, distillation and register tokens; they are never pooled.
        mlp_ratio: hidden channels of the MLP over `dim`.
        patch_dim: numbers in a patch (3 * 16 * 16 at DeiT's patch size).
        num_classes: outputs of the head, or of all heads; 0 for none.

    Raises:
        TypeError: a field that is not a number of its kind.
        ValueError: a field out of range.
    """

    depth: int
    dim: int
    num_patches: int
    num_prefix_tokens: int = 1
    mlp_ratio: float = 4.0
    patch_dim: int = 768
    num_classes: int = 1000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "mlp_ratio":
                if isinstance(value, bool) or not isinstance(value, Real):
                    raise TypeError(f"mlp_ratio must be a positive number, got {value!r}")
                if not 0 < float(value) < math.inf:
                    raise ValueError(f"mlp_ratio must be a positive number, got {value!r}")
            else:
                least = 0 if field.name in ("num_prefix_tokens", "num_classes") else 1
                check_integer(field.name, value, least)


@dataclass(frozen=True)
class LayerMacs:
    """One block's row: its patch tokens before and after pooling, and the MACs of its three parts."""

    layer: int
    tokens_in: int
    tokens_out: int
    attention: int
    mlp: int
    clustering: int


@dataclass(frozen=True)
class Macs:
    """MACs for one image.

    Args:
        base: the model without pooling.
        model: the pooled model without its clustering.
        clustering: what the clustering itself costs; an upper bound, since iterations may end early.
        per_layer: one row per block; the patch embedding and the head are in `base` and `model` only.
    """

    base: int
    model: int
    clustering: int
    per_layer: tuple[LayerMacs, ...]

    @property
    def total(self) -> int:
        """The pooled model with its clustering."""
        return self.model + self.clustering

    @property
    def ratio(self) -> float:
        """`total / base`."""
        return self.total / self.base


def check_integer(name: str, value: object, least: int) -> int:
    """Returns `value` as an int; raises where it is no integer (TypeError) or less than `least` (ValueError)."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer of at least {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value}")
    return int(value)


def count_macs(
    model_or_shape: Any,
    schedule: Sequence[int] | None = None,
    *,
    method: str = "ward",
    init: str | Sequence[int] = "ward",
    max_iter: int = 5,
) -> Macs:
    """Counts the MACs for one image, with and without pooling between each block's attention and its MLP.

    Block l takes N = n_in + P tokens, P of them prefix tokens, and leaves M = n_out + P, with d channels:
    `attention = 4 N d^2 + 2 N^2 d`, `mlp = 2 mlp_ratio M d^2`. The patch embedding is `n patch_dim d`, the head
    `d num_classes`: 1.254 G for DeiT-Ti and 4.599 G for DeiT-S at 224 px. For the clustering see `clustering_macs`.

    Args:
        model_or_shape: a `ViTShape`, or a vision transformer that carries timm's names (see `vit_shape`).
        schedule: patch tokens left after each block, from `resolve_keep` or `resolve_budget`; None for no pooling.
        method, init, max_iter: as `TokenPool` takes them.

    Raises:
        TypeError: a model whose shape cannot be read, or a schedule that does not hold integers.
        ValueError: an unknown method or init; a schedule of the wrong length, out of range or rising.
    """
    shape = vit_shape(model_or_shape)
    kept = _check_schedule(schedule, shape)
    ends = shape.num_patches * shape.patch_dim * shape.dim + shape.dim * shape.num_classes
    rows, n_in = [], shape.num_patches
    for layer, n_out in enumerate(kept):
        clustering = clustering_macs(n_in, n_out, shape.dim, method=method, init=init, max_iter=max_iter)
        rows.append(LayerMacs(layer, n_in, n_out, _attention(shape, n_in), _mlp(shape, n_out), clustering))
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
    - kmedoids: start + `n^2 d + max_iter n d + n d`: the Gram matrix once, then medoids by their cluster's mean.
    - kmeans: start + `(max_iter + 1) n k d + max_iter n d + n d`: assignments (one more than updates), means.
    - the start of those two: ward `n^2 d + LW + n d`, less `n^2 d` where K-Medoids already has the Gram matrix;
      farthest `k n d`, nothing where the Gram matrix is there; topk, strided and given indices nothing.
    - grid: `n d`. topk, importance, random: nothing, they only select.
    - bipartite: `ceil(m/2) floor(m/2) d + m d` for each round's m tokens; one round at most halves them.

    Raises:
        ValueError: an unknown method or init, or k outside [1, n].
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if isinstance(init, str) and init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, or token indices; got {init!r}")
    n, dim = check_integer("n", n, 1), check_integer("dim", dim, 1)
    k, max_iter = check_integer("k", k, 1), check_integer("max_iter", max_iter, 0)
    if k > n:
        raise ValueError(f"k must be at most n = {n}, got {k}")
    if k == n or method in ("topk", "importance", "random"):
        return 0
    means = n * dim
    if method == "grid":
        return means
    if method == "bipartite":
        return _bipartite(n, k, dim)
    gram = n * n * dim
    ward = _lance_williams(n, k) + means
    if method == "ward":
        return gram + ward
    start = init if isinstance(init, str) else "given"
    if start == "auto":
        start = "ward" if n <= WARD_TOKENS else "farthest"
    if method == "kmedoids":
        return gram + max_iter * means + means + (ward if start == "ward" else 0)
    lloyd = (max_iter + 1) * n * k * dim + max_iter * means + means
    return lloyd + {"ward": gram + ward, "farthest": k * means}.get(start, 0)


def vit_shape(model_or_shape: Any) -> ViTShape:
    """The `ViTShape` given, or read from a model that carries timm's names, without importing timm.

    Read are `blocks` (each with an `mlp` of the same size), `patch_embed.proj`, `patch_embed.num_patches` or
    `.grid_size` or else `pos_embed`, `num_prefix_tokens` or else `cls_token`, `dist_token`, `reg_token`, and `head`
    (with `head_dist`). The MLP's size is that of its weight matrices, so gated MLPs count in full.

    Raises:
        TypeError: what is given has no such parts; the message names its class.
    """
    if isinstance(model_or_shape, ViTShape):
        return model_or_shape
    try:
        return _read_shape(model_or_shape)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise TypeError(
            "model_or_shape must be a ViTShape or a vision transformer with timm's names (blocks, patch_embed.proj, "
            f"pos_embed, cls_token, head), got {type(model_or_shape).__name__} ({error})"
        ) from error


def _attention(shape: ViTShape, patches: int) -> int:
    tokens = patches + shape.num_prefix_tokens
    return 4 * tokens * shape.dim**2 + 2 * tokens**2 * shape.dim


def _mlp(shape: ViTShape, patches: int) -> int:
    # Rounded once, so that a hidden size read from a model comes back whole.
    return (patches + shape.num_prefix_tokens) * round(2 * shape.mlp_ratio * shape.dim**2)


def _lance_williams(n: int, k: int) -> int:
    # (n - k) and (n + k - 3) differ in parity, so the half is exact.
    return 3 * ((n - k) * (n + k - 3) // 2)


def _bipartite(n: int, k: int, dim: int) -> int:
    macs, tokens = 0, n
    while tokens > k:
        sources = (tokens + 1) // 2
        macs += sources * (tokens - sources) * dim + tokens * dim
        tokens -= min(tokens - k, sources)
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


def _read_shape(model: Any) -> ViTShape:
    projection = model.patch_embed.proj.weight
    dim, patch_dim = int(projection.shape[0]), math.prod(projection.shape[1:])
    weights = {_matrix_size(block.mlp) for block in model.blocks}
    if len(weights) != 1:
        raise ValueError(f"its blocks' MLPs have {sorted(weights)} weights, not one number")
    prefix = getattr(model, "num_prefix_tokens", None)
    if not isinstance(prefix, int):
        tokens = (getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token"))
        prefix = sum(int(token.shape[1]) for token in tokens if token is not None)
    return ViTShape(
        depth=len(model.blocks),
        dim=dim,
        num_patches=_read_num_patches(model, prefix),
        num_prefix_tokens=prefix,
        mlp_ratio=weights.pop() / (2 * dim**2),
        patch_dim=patch_dim,
        num_classes=sum(_read_outputs(model, name) for name in ("head", "head_dist")),
    )


def _matrix_size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)


def _read_num_patches(model: Any, prefix: int) -> int:
    count = getattr(model.patch_embed, "num_patches", None)
    if isinstance(count, int):
        return count
    grid = getattr(model.patch_embed, "grid_size", None)
    if grid is not None:
        return math.prod(grid)
    # timm's no_embed_class keeps positions for the patches alone.
    return int(model.pos_embed.shape[1]) - (0 if getattr(model, "no_embed_class", False) else prefix)


def _read_outputs(model: Any, name: str) -> int:
    head = getattr(model, name, None)
    weight = getattr(head, "weight", None)
    if weight is not None:
        return int(weight.shape[0])
    # timm's headless models carry an Identity; anything else with parameters is a head we cannot count.
    if head is not None and any(True for _ in head.parameters()):
        raise TypeError(f"its {name} is a {type(head).__name__}, not a linear layer")
    return 0
