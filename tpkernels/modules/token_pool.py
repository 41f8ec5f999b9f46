"""The layer: its settings, and what is around the pooling of patch tokens (prefix, sizes, checks)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import checks
from ..names import BACKENDS, CLUSTERERS, METHODS, METRICS, OUTPUTS
from ..ops.eager.distances import objective
from ..ops.eager.segments import segment_sum
from ..schedule.keep import tokens_kept
from .methods import Patches, pool_patches, weight_of
from .results import PoolInfo, Pooling, with_prefix


class TokenPool(nn.Module):
    """Pools the patch tokens of a vision transformer; no parameters (Marin et al., arXiv 2110.03860).

    Goes between attention and MLP of a block, or between blocks.

    Args:
        keep: patch tokens to keep: a count (int) or a ratio in (0, 1] (float), `max(1, floor(keep * n + 0.5))`; where
            each sample has its own number, the most.
        method: "ward", "kmeans", "kmedoids", or a baseline: "topk" (PoWER-BERT), "importance", "random", "grid",
            "bipartite" (ToMe).
        init: start of kmeans and kmedoids, as in `tpkernels.kmeans`. The paper's is "topk".
        output: "mean" (members averaged by their sizes) or "medoid" (the member nearest to the center). Pruning methods
            return the tokens they keep.
        max_iter: updates of kmeans and kmedoids.
        refine: "swap" refines kmedoids by swaps, as in `tpkernels.kmedoids`; None for no other method.
        distance_threshold: each sample keeps the clusters that lie farther apart than this, as in `tpkernels.ward`, and
            `keep` at most: for ward, and kmeans and kmedoids from Ward's start.
        metric: of ward, as in `tpkernels.ward`.
        weighted: cluster with the significance as weight (the paper's WK-Means and WK-Medoids). Otherwise Ward weighs
            tokens with their sizes, the others equally.
        num_prefix_tokens: class, distillation and register tokens at the front: never pooled.
        grid_size: (rows, columns) of the patch grid, for "grid"; a square where None.
        seed: of "random" and "importance".
        min_tokens: batches with fewer patch tokens than this (B x N) pass unpooled, where pooling takes longer than it
            saves. docs/benchmarks.md has the sizes at which it pays.
        backend: "auto", "torch" or "triton".
    """

    def __init__(
        self,
        keep: int | float,
        method: str = "ward",
        *,
        init: str = "ward",
        output: str = "mean",
        max_iter: int = 5,
        refine: str | None = None,
        distance_threshold: float | None = None,
        metric: str = "euclidean",
        weighted: bool = False,
        num_prefix_tokens: int = 1,
        grid_size: tuple[int, int] | None = None,
        seed: int = 0,
        min_tokens: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        tokens_kept(keep, 1)
        checks.one_of("method", method, METHODS)
        checks.resolve_init(init, 0)
        checks.one_of("output", output, OUTPUTS)
        checks.count("max_iter", max_iter, 0)
        if checks.resolve_refine(refine, 0) and method != "kmedoids":
            raise ValueError(f"refine must be None for method {method!r}, only kmedoids is refined; got {refine!r}")
        by_ward = method == "ward" or (method in CLUSTERERS and init in ("auto", "ward"))
        checks.cut(distance_threshold, None, by_ward=by_ward)
        checks.one_of("metric", metric, METRICS)
        if metric != "euclidean" and method != "ward":
            raise ValueError(f'metric must be "euclidean" for method {method!r}, got {metric!r}')
        checks.flag("weighted", weighted)
        checks.count("num_prefix_tokens", num_prefix_tokens, 0)
        checks.grid_size(grid_size)
        checks.integer("seed", seed)
        checks.count("min_tokens", min_tokens, 0)
        checks.one_of("backend", backend, BACKENDS)
        self.keep = keep
        self.method = method
        self.init = init
        self.output = output
        self.max_iter = max_iter
        self.refine = refine
        self.distance_threshold = distance_threshold
        self.metric = metric
        self.weighted = weighted
        self.num_prefix_tokens = num_prefix_tokens
        self.grid_size = grid_size
        self.seed = seed
        self.min_tokens = min_tokens
        self.backend = backend

    def extra_repr(self) -> str:
        start = f", init={self.init!r}" if self.method in ("kmeans", "kmedoids") else ""
        start += f", refine={self.refine!r}" if self.refine else ""
        start += "" if self.distance_threshold is None else f", distance_threshold={self.distance_threshold}"
        start += "" if self.metric == "euclidean" else f", metric={self.metric!r}"
        return f"keep={self.keep}, method={self.method!r}{start}, output={self.output!r}, weighted={self.weighted}"

    @property
    def needs_significance(self) -> bool:
        """Whether forward requires a significance."""
        starts = self.method in ("kmeans", "kmedoids") and self.init == "topk"
        return self.weighted or starts or self.method in ("topk", "importance")

    def output_len(self, n: int, batch_size: int = 1) -> int:
        """Output tokens for n input tokens a sample, both with the prefix."""
        patches = n - self.num_prefix_tokens
        return n if patches < 1 else self.num_prefix_tokens + self._kept(batch_size, patches)

    def pools(self, batch_size: int, patches: int) -> bool:
        """Whether samples of this many patch tokens are reduced."""
        kept = self._kept(batch_size, patches) if patches > 0 else patches
        return kept < patches or (self.distance_threshold is not None and batch_size * patches >= self.min_tokens)

    def _kept(self, batch_size: int, patches: int) -> int:
        return patches if batch_size * patches < self.min_tokens else tokens_kept(self.keep, patches)

    def forward(
        self,
        x: Tensor,
        significance: Tensor | None = None,
        *,
        sizes: Tensor | None = None,
        mask: Tensor | None = None,
        metric: Tensor | None = None,
        k: int | Tensor | None = None,
        return_info: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, PoolInfo] | tuple[Tensor, Tensor, PoolInfo]:
        """Pools x.

        Args:
            x: tokens [B, N, D], prefix first, any strides.
            significance: attention that each token received [B, N], prefix included; see `tpkernels.attention`.
            sizes: how many original tokens each one stands for [B, N]; ones where None.
            mask: bool [B, N], False for padding; prefix tokens are always valid.
            metric: [B, N, M], what "bipartite" matches by (ToMe uses the keys); x where None.
            k: patch tokens to keep, at most as many as `keep` does: an int, or int64 [B] for each sample. The width of
                the output stays `keep`'s. Where that is all tokens, more than there are keep all of them.
            return_info: also return a PoolInfo.

        Returns:
            tokens [B, P + K, D]; with sizes, (tokens, sizes [B, P + K]); with return_info a PoolInfo at the end. Where
            a sample keeps fewer than K, the others are zeros of size 0, after its own.

        Raises:
            TypeError, ValueError: an argument of the wrong type or shape, a k above what `keep` keeps (a tensor's: seen
                on the CPU), or a significance that is missing.
        """
        checks.flag("return_info", return_info)
        found = self.pool(x, significance, sizes=sizes, mask=mask, metric=metric, k=k)
        if not return_info:
            return found.tokens if found.sizes is None else (found.tokens, found.sizes)
        p = self.num_prefix_tokens
        patches, label = x[:, p:].detach(), found.label
        pooled_sizes = self._sizes(x, sizes, label, found.tokens.shape[1] - p) if found.sizes is None else found.sizes
        loss = None
        if self.method in CLUSTERERS:
            score = None if significance is None else significance[:, p:].detach()
            weight = weight_of(self, score, None if sizes is None else sizes[:, p:])
            loss = objective(patches, found.tokens[:, p:].detach(), label, weight)
        info = PoolInfo(with_prefix(label, p), pooled_sizes, found.medoids, loss, found.n_iter, found.n_clusters)
        return (found.tokens, info) if found.sizes is None else (found.tokens, found.sizes, info)

    def pool(
        self,
        x: Tensor,
        significance: Tensor | None = None,
        *,
        sizes: Tensor | None = None,
        mask: Tensor | None = None,
        metric: Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
        k: int | Tensor | None = None,
    ) -> Pooling:
        """As `forward`, and returns the labels too, which cost nothing more. Arguments and errors are `forward`'s.

        Args:
            grid_size: of these tokens, in place of the layer's own.
        """
        grid_size = self.grid_size if grid_size is None else grid_size
        self._check(x, significance, sizes, mask, metric, grid_size)
        p = self.num_prefix_tokens
        patches = x[:, p:]
        b, n = patches.shape[:2]
        width = self._kept(b, n) if n else 1
        most = "what keep keeps" if width < n else None
        counts = None if k is None else checks.clusters_wanted(k, width, patches, most=most)[1]
        cuts = self.distance_threshold is not None and self.pools(b, n)
        if mask is None and width >= n and counts is None and not cuts:
            label = torch.arange(n, device=x.device).expand(b, n)
            clusters = self.method in CLUSTERERS
            keeps_tokens = self.method == "kmedoids" or (clusters and self.output == "medoid")
            medoids, n_iter = label if keeps_tokens else None, label.new_zeros(b) if clusters else None
            return Pooling(x, sizes, label, medoids, n_iter, label.new_full((b,), n))
        score = None if significance is None else significance[:, p:].detach()
        size = None if sizes is None else sizes[:, p:]
        valid = None if mask is None else mask[:, p:]
        metric = None if metric is None else metric[:, p:]
        found = pool_patches(self, Patches(patches, score, size, valid, metric, width, counts, grid_size))
        tokens = torch.cat([x[:, :p], found.tokens], 1)
        if sizes is None:
            return found._replace(tokens=tokens, sizes=None)
        if found.sizes is None:
            return found._replace(tokens=tokens, sizes=self._sizes(x, sizes, found.label, found.tokens.shape[1]))
        return found._replace(tokens=tokens, sizes=torch.cat([sizes[:, :p], found.sizes], 1))

    def _check(
        self, x: Tensor, significance: Tensor | None, sizes: Tensor | None, mask: Tensor | None, metric: Tensor | None,
        grid_size: tuple[int, int] | None,
    ) -> None:  # fmt: skip
        checks.tokens(x)
        checks.per_token("significance", significance, x)
        checks.per_token("sizes", sizes, x)
        checks.mask(mask, x)
        checks.metric(metric, x)
        n = max(x.shape[1] - self.num_prefix_tokens, 0)
        if self.method == "grid" and grid_size is not None and n not in (0, math.prod(grid_size)):
            raise ValueError(f"grid_size must cover the {n} patch tokens of x, got {grid_size}")
        if self.needs_significance and significance is None:
            raise ValueError(
                f"significance must be given for {self!r}: the attention that each token received [B, N], "
                f"as tpkernels.attention returns it"
            )
        if x.shape[1] < self.num_prefix_tokens:
            raise ValueError(
                f"x must hold at least its {self.num_prefix_tokens} prefix tokens, got {x.shape[1]} tokens"
            )

    def _sizes(self, x: Tensor, sizes: Tensor | None, label: Tensor, k: int) -> Tensor:
        """Sizes [B, P + K] of the pooled tokens; input tokens count as ones where no sizes were given."""
        p = self.num_prefix_tokens
        sizes = x.new_ones(x.shape[:2], dtype=torch.float32) if sizes is None else sizes
        return torch.cat([sizes[:, :p], segment_sum(sizes[:, p:], label, k)], 1)
