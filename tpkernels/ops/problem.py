"""The types of the clustering operation: what comes in, what is asked for, what is found, what a backend brings."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .context import compute_dtype


class Tensors(NamedTuple):
    """The tensors of a problem, all of which begin with the batch.

    x [B, N, D]; weight [B, N], what the clustering weighs tokens with; pool_weight [B, N], what pooled tokens are
    averaged with (both None for equal weights); mask [B, N] bool, True for tokens that are there; start [B, K] int64,
    initial tokens where init is "given"; counts [B] int64, clusters of each sample, None for `Spec.k` in all.
    """

    x: Tensor
    weight: Tensor | None = None
    pool_weight: Tensor | None = None
    mask: Tensor | None = None
    start: Tensor | None = None
    counts: Tensor | None = None


class Spec(NamedTuple):
    """What is asked for: names as in `tpkernels.names`; at most k clusters, at most max_iter updates, swaps or not.

    output: "center" (Lloyd's centers, Ward's means, the medoids), "mean" or "medoid" of the final clusters. metric:
    what Ward's first costs are made of. cut: where Ward's dendrogram is cut, at a "count" of clusters, at a "distance"
    (bound: the highest; inside the operation the highest merge height) or at an "error" (bound: the highest share of
    the error of one cluster).
    """

    k: int
    method: str
    init: str
    output: str
    max_iter: int
    swaps: bool = False
    metric: str = "euclidean"
    cut: str = "count"
    bound: float = 0.0

    @property
    def gathers(self) -> bool:
        """Whether the pooled tokens are tokens that came."""
        return self.output == "medoid" or (self.output == "center" and self.method == "kmedoids")

    @property
    def has_medoids(self) -> bool:
        """Whether the results name medoids."""
        return self.output == "medoid" or self.method == "kmedoids"

    @property
    def runs_ward(self) -> bool:
        """Whether Ward's rounds run, as the method or as the start."""
        return "ward" in (self.method, self.init)

    @property
    def cuts_by_value(self) -> bool:
        """Whether the heights decide how many clusters there are."""
        return self.cut != "count"


class Samples(NamedTuple):
    """Tokens and weights that are safe to compute with.

    x [B, N, D], centered for the Euclidean metric; weight [B, N] or None (equal weights); valid [B, N] bool or None
    (all valid); n_valid [B] int64, valid tokens; k [B] int64, clusters of each sample; finite [B] bool; plain [B] bool,
    samples that are not clustered (bad numbers, or no more tokens than clusters), None where none is known to be;
    offset [B, 1, D], what was subtracted from the tokens; scale [B], what the weights were divided by.
    """

    x: Tensor
    weight: Tensor | None
    valid: Tensor | None
    n_valid: Tensor
    k: Tensor
    finite: Tensor
    plain: Tensor | None
    offset: Tensor
    scale: Tensor

    @property
    def rank(self) -> Tensor:
        """Position [B, N] int64 of each token among the valid ones."""
        if self.valid is not None:
            return self.valid.cumsum(1) - 1
        b, n = self.x.shape[:2]
        return torch.arange(n, device=self.x.device).expand(b, n)

    def only_valid(self, label: Tensor) -> Tensor:
        """Labels [B, N] with -1 where a token is masked."""
        return label if self.valid is None else label.masked_fill(~self.valid, -1)


class Found(NamedTuple):
    """What a clusterer ends with, clusters numbered by their lowest token; for plain samples, anything.

    label [B, N] int64; n_iter [B] int64, updates or Ward's rounds; source [B, N] int64, the labels of the last update,
    None where they are `label`; medoids [B, K] int64, N where there is none; heights [B, N - 1] (Ward); kept [B, K, D],
    the centers of clusters without a token in source, centered as the samples are and of no meaning elsewhere
    (K-Means); lost [B, K] bool, which clusters those are, where the backend's means do not tell; k [B] int64, clusters
    of each sample where a cut by value chose them, else None.
    """

    label: Tensor
    n_iter: Tensor
    source: Tensor | None = None
    medoids: Tensor | None = None
    heights: Tensor | None = None
    kept: Tensor | None = None
    lost: Tensor | None = None
    k: Tensor | None = None


class Results(NamedTuple):
    """What the operation returns, with K = min(k, N).

    tokens [B, K, D] in x's dtype; source [B, N], the labels that tokens were averaged over, -1 for none; assignment
    [B, N], -1 where masked; medoids [B, K], -1 where none ([B, 0] if nothing asks for them); loss [B] of "center", else
    [0]; n_iter [B]; heights [B, N - 1], Ward's mergers ([B, 0] for others); total [B, K], what the shares of the
    members of `source` are taken of, as `cluster_mean` has it ([B, 0] from torch); n_clusters [B], the clusters that
    there are in each sample, without members or not.
    """

    tokens: Tensor
    source: Tensor
    assignment: Tensor
    medoids: Tensor
    loss: Tensor
    n_iter: Tensor
    heights: Tensor
    total: Tensor
    n_clusters: Tensor


def allocate(x: Tensor, spec: Spec, *, totals: bool) -> Results:
    """Results that nothing was written to yet, for k <= N; totals: whether the backend has them."""
    b, n, d = x.shape
    dtype = compute_dtype(x)
    label = x.new_empty(b, n, dtype=torch.int64)
    medoids = label.new_empty(b, spec.k if spec.has_medoids else 0)
    loss = x.new_empty(b if spec.output == "center" else 0, dtype=dtype)
    heights = x.new_empty(b, torch.sym_max(n - 1, 0) if spec.method == "ward" else 0, dtype=dtype)
    total = x.new_empty(b, spec.k if totals else 0, dtype=dtype)
    source, n_iter, n_clusters = torch.empty_like(label), label.new_empty(b), label.new_empty(b)
    return Results(x.new_empty(b, spec.k, d), source, label, medoids, loss, n_iter, heights, total, n_clusters)


class Primitives(NamedTuple):
    """What a backend brings to `ops.cluster`. N stands for a token that there is not, -1 for a cluster.

    kernels: whether kernels compute it, which take the batch at once, tell totals and leave `samples.x` behind.
    pools_at_once: whether means of tokens in the dtype to compute in take no memory beside the result.
    prepare(x, weight, mask, k, counts, *, cuts, centers): the Samples. cuts: whether values cut the dendrogram, so that
    samples of few tokens are clustered too; centers: whether to subtract the mean.
    ward(samples, spec): Found of Ward's rounds.
    lloyd(x, samples, start, spec): Lloyd's iterations from labels [B, N], to be run by a call without arguments.
    nearest(x, centers, dead): slot [B, N] of the nearest center [B, K, D], the lowest on ties, never a dead one [B, K].
    nearest_members(x, label, k, weight): the medoids [B, K] of clusters of centered tokens.
    mean(x, label, k, weight): means [B, K, D] in x's dtype, and `Results.total` where the backend has it.
    gather(x, source, medoids): tokens [B, K, D] at medoids [B, K], which source [B, N] numbers; and the total.
    objective(x, centers, label, weight): `sum_i w_i ||x_i - c_i||^2` [B].
    linkage(samples, metric): the whole dendrogram [B, N - 1, 4] float64.
    mean_and_loss(x, label, k, shares, weight): `mean` by shares and its objective at once, where a backend can.
    """

    kernels: bool
    pools_at_once: bool
    prepare: Callable[..., Samples]
    ward: Callable[[Samples, Spec], Found]
    lloyd: Callable[[Tensor, Samples, Tensor, Spec], Callable[[], Found]]
    nearest: Callable[[Tensor, Tensor, Tensor], Tensor]
    nearest_members: Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
    mean: Callable[[Tensor, Tensor, int, Tensor | None], tuple[Tensor, Tensor | None]]
    gather: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
    objective: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    linkage: Callable[[Samples, str], Tensor]
    mean_and_loss: Callable[[Tensor, Tensor, int, Tensor | None, Tensor | None], tuple[Tensor, Tensor]] | None = None
