"""TokenPool, the layer that pools the tokens of a vision transformer."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import checks
from .names import BACKENDS, CLUSTERERS, METHODS, OUTPUTS
from .ops.backends import torch_primitives
from .ops.cluster import cluster
from .ops.cluster_mean import cluster_mean
from .ops.context import full_precision
from .ops.eager import baselines
from .ops.eager.distances import objective
from .ops.eager.samples import override_plain, prepare_uncentered
from .ops.eager.segments import segment_sum
from .ops.eager.starts import highest
from .ops.problem import Spec, Tensors
from .schedule.keep import tokens_kept


class PoolInfo(NamedTuple):
    """Which output token each input token became, and what the clusterer returned.

    assignment [B, N] int64: the output token of every input token, prefix included, -1 where it was dropped or masked
    (`unpool(y, assignment)` goes back); sizes [B, P + K] float32: original tokens that each output token stands for;
    medoids [B, K] int64, loss [B] and n_iter [B]: the clusterer's, over the pooled tokens without their prefix, None
    where the method has none.
    """

    assignment: Tensor
    sizes: Tensor
    medoids: Tensor | None
    loss: Tensor | None
    n_iter: Tensor | None


class Pooling(NamedTuple):
    """What `TokenPool.pool` returns: all of PoolInfo that needs no extra computation.

    tokens [B, P + K, D]; sizes [B, P + K], None where no sizes were given; label [B, N - P] int64, the cluster of every
    patch token; medoids [B, K] and n_iter [B], None where the method has none.
    """

    tokens: Tensor
    sizes: Tensor | None
    label: Tensor
    medoids: Tensor | None
    n_iter: Tensor | None


def _summed(total: Tensor, size: Tensor | None) -> Tensor | None:
    """The clusters' sizes [B, K] where the kernel that averaged by size has summed them; None where it has not."""
    if size is None or total.shape[1] == 0 or size.requires_grad:
        return None
    # The total is minus the number of members where a cluster's sizes sum to 0.
    return total.clamp(min=0).to(size.dtype)


def with_prefix(label: Tensor, prefix: int) -> Tensor:
    """The output token [B, P + N] of every token, from the patch tokens' labels [B, N]: the prefix stays in place."""
    first = torch.arange(prefix, device=label.device).expand(label.shape[0], prefix)
    return torch.cat([first, torch.where(label < 0, -1, label + prefix)], 1)


class TokenPool(nn.Module):
    """Pools the patch tokens of a vision transformer; no parameters (Marin et al., arXiv 2110.03860).

    Goes between attention and MLP of a block, or between blocks.

    Args:
        keep: patch tokens to keep: a count (int) or a ratio in (0, 1] (float), `max(1, floor(keep * n + 0.5))`.
        method: "ward", "kmeans", "kmedoids", or a baseline: "topk" (PoWER-BERT), "importance", "random", "grid",
            "bipartite" (ToMe).
        init: start of kmeans and kmedoids, as in `tpkernels.kmeans`. The paper's is "topk".
        output: "mean" (members averaged by their sizes) or "medoid" (the member nearest to the center). Pruning methods
            return the tokens they keep.
        max_iter: updates of kmeans and kmedoids.
        refine: "swap" refines kmedoids by swaps, as in `tpkernels.kmedoids`; None for no other method.
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
        self.weighted = weighted
        self.num_prefix_tokens = num_prefix_tokens
        self.grid_size = grid_size
        self.seed = seed
        self.min_tokens = min_tokens
        self.backend = backend

    def extra_repr(self) -> str:
        start = f", init={self.init!r}" if self.method in ("kmeans", "kmedoids") else ""
        start += f", refine={self.refine!r}" if self.refine else ""
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
        return patches > 0 and self._kept(batch_size, patches) < patches

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
        return_info: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, PoolInfo] | tuple[Tensor, Tensor, PoolInfo]:
        """Pools x.

        Args:
            x: tokens [B, N, D], prefix first, any strides.
            significance: attention that each token received [B, N], prefix included; see `tpkernels.attention`.
            sizes: how many original tokens each one stands for [B, N]; ones where None.
            mask: bool [B, N], False for padding; prefix tokens are always valid.
            metric: [B, N, M], what "bipartite" matches by (ToMe uses the keys); x where None.
            return_info: also return a PoolInfo.

        Returns:
            tokens [B, P + K, D]; with sizes, (tokens, sizes [B, P + K]); with return_info a PoolInfo at the end.

        Raises:
            TypeError, ValueError: an argument of the wrong type or shape, or a significance that is missing.
        """
        checks.flag("return_info", return_info)
        found = self.pool(x, significance, sizes=sizes, mask=mask, metric=metric)
        if not return_info:
            return found.tokens if found.sizes is None else (found.tokens, found.sizes)
        p = self.num_prefix_tokens
        patches, label = x[:, p:].detach(), found.label
        pooled_sizes = self._sizes(x, sizes, label, found.tokens.shape[1] - p) if found.sizes is None else found.sizes
        loss = None
        if self.method in CLUSTERERS:
            score = None if significance is None else significance[:, p:].detach()
            weight = self._weight(score, None if sizes is None else sizes[:, p:])
            loss = objective(patches, found.tokens[:, p:].detach(), label, weight)
        info = PoolInfo(with_prefix(label, p), pooled_sizes, found.medoids, loss, found.n_iter)
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
        k = self._kept(b, n) if n else 1
        if mask is None and k >= n:
            label = torch.arange(n, device=x.device).expand(b, n)
            clusters = self.method in CLUSTERERS
            keeps_tokens = self.method == "kmedoids" or (clusters and self.output == "medoid")
            return Pooling(x, sizes, label, label if keeps_tokens else None, label.new_zeros(b) if clusters else None)
        score = None if significance is None else significance[:, p:].detach()
        size = None if sizes is None else sizes[:, p:]
        valid = None if mask is None else mask[:, p:]
        metric = None if metric is None else metric[:, p:]
        found = self._pool(patches, score, size, valid, metric, k, grid_size)
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

    def _weight(self, score: Tensor | None, size: Tensor | None) -> Tensor | None:
        """The clustering's weights. A significance under proportional attention already counts sizes."""
        if self.weighted:
            return score
        return size if self.method == "ward" else None

    def _pool(
        self, x: Tensor, score: Tensor | None, size: Tensor | None, mask: Tensor | None, metric: Tensor | None, k: int,
        grid_size: tuple[int, int] | None,
    ) -> Pooling:  # fmt: skip
        """Pools the patch tokens alone; returns their sizes where a kernel has summed them."""
        if self.method not in CLUSTERERS:
            with full_precision(x):
                label = self._baseline(x, score, size, mask, metric, k, grid_size)
            k = min(k, x.shape[1])
            tokens, total = cluster_mean(x, label, k, size, checks.backend(self.backend, x, "mean"))
            return Pooling(tokens, _summed(total, size), label, None, None)
        n = x.shape[1]
        init = checks.resolve_init(self.init, n)
        if "ward" in (self.method, init):
            checks.ward_fits(n)
        swaps = checks.resolve_refine(self.refine, n)
        chosen = checks.backend(self.backend, x, "swap" if swaps else self.method)
        start = None
        weight = self._weight(score, size)
        if init == "topk" and self.method != "ward" and not self.weighted and score is not None:
            # The paper's unweighted methods still start from the most significant tokens.
            score = score.nan_to_num()
            score = score if mask is None else score.masked_fill(~mask, -torch.inf)
            start, init = highest(score, min(k, n)), "given"
        mass = None if weight is None else weight.detach()
        spec = Spec(k, self.method, init, self.output, self.max_iter, swaps)
        found = cluster(Tensors(x, mass, size, mask, start), spec, chosen)
        summed = _summed(found.total, size) if self.output == "mean" else None
        medoids = found.medoids if found.medoids.shape[1] else None
        return Pooling(found.tokens, summed, found.assignment, medoids, found.n_iter)

    def _baseline(
        self, x: Tensor, score: Tensor | None, size: Tensor | None, mask: Tensor | None, metric: Tensor | None, k: int,
        grid_size: tuple[int, int] | None,
    ) -> Tensor:  # fmt: skip
        """Labels [B, N] of the methods that do not cluster."""
        k = min(k, x.shape[1])
        x = x.detach()
        weight = {"topk": score, "importance": score, "bipartite": size}.get(self.method)
        if self.method == "bipartite":
            primitives = torch_primitives(x)
            # Without a metric the tokens are matched by themselves, and so centered first.
            prepare = primitives.prepare if metric is None else prepare_uncentered
            samples = prepare(x, weight, mask, k)
            metric = None if metric is None else metric.detach()
            return override_plain(samples, baselines.bipartite(samples, k, metric, primitives.mean))
        samples = prepare_uncentered(x, weight, mask, k)
        if self.method == "grid":
            return override_plain(samples, baselines.grid(samples, k, grid_size))
        if self.method == "topk":
            label = baselines.topk(samples, k)
        elif self.method == "importance":
            label = baselines.importance(samples, k, self.seed)
        else:
            label = baselines.random(samples, k, self.seed)
        return override_plain(samples, label)
