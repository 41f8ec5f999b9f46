"""Token Pooling in float64 and plain loops, one sample at a time: the specification, never a fallback.

Tokens x [N, D], weights w [N] >= 0 (1 where not given), K clusters with centers c. Every clusterer lowers the
asymmetric Chamfer divergence of Marin et al. (Token Pooling in Vision Transformers, arXiv 2110.03860):

    L = sum_i w_i min_k ||x_i - c_k||^2

Rules: the lowest index wins a tie (Ward's are settled by `ward_mergers`); a cluster whose weights sum to 0 uses equal
weights; K >= N leaves every token its own cluster; clusters are numbered by their lowest token, empty ones last. The
functions take valid tokens only; `batched` handles masks, padding and non-finite samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Start = str | Tensor | Sequence[int]
Maybe = Tensor | None


class ReferenceClusters(NamedTuple):
    """What a clusterer returns for one sample (`batched` puts a batch dimension before every field)."""

    assignment: Tensor  # [N] int64
    centers: Tensor  # [K, D] float64
    medoids: Tensor  # [K] int64, -1 for an empty cluster
    loss: Tensor  # [] float64, sum_i w_i ||x_i - c_{a_i}||^2
    n_iter: Tensor  # [] int64, updates; for Ward mergers
    merge_heights: Maybe = None  # [N - 1] ascending, +inf where not carried out; Ward's only


def _float64(x: Tensor, weight: Maybe) -> tuple[Tensor, Tensor]:
    return x.double(), x.new_ones(len(x), dtype=torch.float64) if weight is None else weight.double()


def _members(assignment: Tensor, slot: int) -> list[int]:
    return [i for i, label in enumerate(assignment.tolist()) if label == slot]


def _effective(weight: Tensor) -> Tensor:
    return weight if weight.sum() > 0 else torch.ones_like(weight)


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    weight = _effective(weight)
    # Measured from the first token, so that equal tokens average to exactly themselves and ties stay ties.
    return x[0] + (weight[:, None] * (x - x[0])).sum(0) / weight.sum()


def _highest(score: Sequence[float], count: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda i: (-score[i], i))[:count])


def pairwise_sqdist(x: Tensor, y: Maybe = None) -> Tensor:
    """||x_i - y_j||^2 [N, M] of x [N, D] and y [M, D] (x itself where not given)."""
    y = x if y is None else y
    return ((x.double()[:, None] - y.double()[None]) ** 2).sum(-1)


def assign_tokens(x: Tensor, centers: Tensor) -> Tensor:
    """Label [N] of each token x [N, D]: its nearest center of [K, D], argmin_s ||x_i - c_s||^2."""
    rows = pairwise_sqdist(x, centers).tolist()
    return torch.tensor([row.index(min(row)) for row in rows], dtype=torch.int64)


def assign_to_medoids(x: Tensor, medoids: Tensor) -> Tensor:
    """As `assign_tokens` with the tokens medoids [K] as centers, but a medoid always stays in its own cluster."""
    assignment = assign_tokens(x, x[medoids])
    assignment[medoids] = torch.arange(len(medoids))
    return assignment


def cluster_mean(x: Tensor, assignment: Tensor, k: int, weight: Maybe = None) -> Tensor:
    """Weighted mean [K, D] of each cluster, sum_C w_j x_j / sum_C w_j; zeros without members, label -1 is ignored."""
    x, w = _float64(x, weight)
    members = [_members(assignment, slot) for slot in range(k)]
    return torch.stack([_mean(x[c], w[c]) if c else x.new_zeros(x.shape[1]) for c in members])


def update_means(x: Tensor, assignment: Tensor, centers: Tensor, weight: Maybe = None) -> Tensor:
    """Lloyd's update: the weighted mean [K, D] of each cluster; an empty one keeps its center."""
    means = cluster_mean(x, assignment, len(centers), weight)
    return torch.stack([means[s] if _members(assignment, s) else centers[s].double() for s in range(len(centers))])


def medoid_cost(x: Tensor, members: list[int], candidate: int, weight: Maybe = None) -> float:
    """sum_{j in C} w_j ||x_i - x_j||^2 of the candidate i for the cluster C of these members."""
    x, w = _float64(x, weight)
    return float((_effective(w[members]) * ((x[members] - x[candidate]) ** 2).sum(1)).sum())


def update_medoids(x: Tensor, assignment: Tensor, k: int, weight: Maybe = None) -> Tensor:
    """Medoid [K] of each cluster: the member of least `medoid_cost`, -1 without members.

    The cost is W ||x_i - mu||^2 + const: this is the member nearest to the weighted mean. This form keeps ties exact.
    """
    medoids = []
    for slot in range(k):
        members = _members(assignment, slot)
        medoids.append(min(members, key=lambda i: (medoid_cost(x, members, i, weight), i), default=-1))
    return torch.tensor(medoids, dtype=torch.int64)


def objective(x: Tensor, centers: Tensor, weight: Maybe = None, assignment: Maybe = None) -> Tensor:
    """L = sum_i w_i ||x_i - c_{a_i}||^2, with the nearest center where no assignment [N] is given."""
    x, w = _float64(x, weight)
    assignment = assign_tokens(x, centers) if assignment is None else assignment
    return (w * ((x - centers.double()[assignment]) ** 2).sum(1)).sum()


def chamfer_loss(x: Tensor, centers: Tensor, weight: Maybe = None) -> Tensor:
    """sum_i w_i min_k ||x_i - c_k||^2, the asymmetric Chamfer divergence from x [N, D] to centers [K, D]."""
    return objective(x, centers, weight)


def unpool(y: Tensor, assignment: Tensor) -> Tensor:
    """Each token's cluster row, y[a_i] [N, D] of y [K, D]; zeros for label -1."""
    return torch.where(assignment[:, None] >= 0, y[assignment.clamp_min(0)], 0.0)


def _canonical(labels: Sequence[int], k: int) -> list[int]:
    """The slots ordered by their lowest token; empty ones last, in slot order."""
    return sorted(range(k), key=lambda slot: labels.index(slot) if slot in labels else len(labels))


def _result(
    x: Tensor, weight: Tensor, assignment: Tensor, centers: Tensor, n_iter: int, heights: Maybe, medoids: Maybe = None
) -> ReferenceClusters:
    medoids = update_medoids(x, assignment, len(centers), weight) if medoids is None else medoids
    order = _canonical(assignment.tolist(), len(centers))
    assignment = torch.tensor([order.index(label) for label in assignment.tolist()], dtype=torch.int64)
    loss = objective(x, centers[order], weight, assignment)
    return ReferenceClusters(assignment, centers[order], medoids[order], loss, torch.tensor(n_iter), heights)


def split_in_order(x: Tensor, k: int, weight: Maybe = None, by_medoid: bool = False) -> ReferenceClusters:
    """No clustering at all: label_i = i K // N. The result for K >= N, and for samples with NaN or Inf.

    Medoids are the first members; they are the centers too with by_medoid, else the weighted means are.
    """
    x, w = _float64(x, weight)
    n, k = len(x), min(k, len(x))
    assignment = torch.arange(n) * k // max(n, 1)
    first = torch.tensor([_members(assignment, slot)[0] for slot in range(k)], dtype=torch.int64)
    centers = x[first] if by_medoid or n == k else cluster_mean(x, assignment, k, w)
    return _result(x, w, assignment, centers, 0, None, first)


def ward_mergers(x: Tensor, count: int, weight: Maybe = None) -> list[tuple[float, int, int]]:
    """The first `count` mergers of Ward's greedy agglomeration, as (height, i, j): cluster j joins cluster i.

    Ward (1963): merge the pair of least m_a m_b / (m_a + m_b) ||c_a - c_b||^2, the rise of the objective. A cluster is
    named by its lowest token; ties go to the least i XOR j, then the lowest i. Masses are m = max(w / max w, 1e-6), so
    heights are in units of max w; a height is at least its children's.
    """
    x, w = _float64(x, weight)
    top = max(w.tolist(), default=0.0)
    mass = {i: max(value / top, 1e-6) if top > 0 else 1.0 for i, value in enumerate(w.tolist())}
    center, height = dict(enumerate(x)), dict.fromkeys(range(len(x)), 0.0)

    def cost(i: int, j: int) -> float:
        return mass[i] * mass[j] / (mass[i] + mass[j]) * float(((center[i] - center[j]) ** 2).sum())

    costs = {(i, j): cost(i, j) for j in range(len(x)) for i in range(j)}
    mergers = []
    for _ in range(count):
        i, j = min(costs, key=lambda pair: (costs[pair], pair[0] ^ pair[1], pair))
        height[i] = max(costs[i, j], height[i], height[j])
        center[i] = center[i] + mass[j] / (mass[i] + mass[j]) * (center[j] - center[i])
        mass[i] += mass[j]
        mergers.append((height[i], i, j))
        costs = {pair: value for pair, value in costs.items() if j not in pair}
        costs.update({pair: cost(*pair) for pair in costs if i in pair})
    return mergers


def ward(x: Tensor, k: int, weight: Maybe = None, *, full: bool = False) -> ReferenceClusters:
    """Ward's agglomeration of x [N, D] cut at K clusters; full goes on to the root, for all N - 1 heights."""
    x, w = _float64(x, weight)
    n, k = len(x), min(k, len(x))
    mergers = ward_mergers(x, max(n - 1, 0) if full else n - k, w)
    heights = torch.full((max(n - 1, 0),), math.inf, dtype=torch.float64)
    heights[: len(mergers)] = torch.tensor(sorted(height for height, _, _ in mergers), dtype=torch.float64)
    if n == k:
        return split_in_order(x, k, w)._replace(merge_heights=heights)
    root = list(range(n))
    for _, kept, absorbed in mergers[: n - k]:
        root = [kept if label == absorbed else label for label in root]
    assignment = torch.tensor([sorted(set(root)).index(label) for label in root])
    return _result(x, w, assignment, cluster_mean(x, assignment, k, w), n - k, heights)


def start_indices(x: Tensor, k: int, weight: Maybe = None, init: Start = "ward") -> Tensor:
    """The K < N tokens that a clusterer starts from, ascending (Ward's medoids in the order of their clusters).

    Raises:
        ValueError: an unknown `init`, or indices that are not K different tokens.
    """
    x, w = _float64(x, weight)
    n = len(x)
    if not isinstance(init, str):
        chosen = sorted(int(i) for i in init)
        if len(chosen) != k or len(set(chosen)) != k or not set(chosen) <= set(range(n)):
            raise ValueError(f"init: expected {k} different indices in 0..{n - 1}, got {chosen}")
    elif init == "ward":
        return ward(x, k, w).medoids
    elif init == "topk":
        chosen = _highest(w.tolist(), k)
    elif init == "strided":
        chosen = [s * n // k for s in range(k)]
    elif init == "farthest":
        chosen, least = [], ((x - _mean(x, w)) ** 2).sum(1)
        while len(chosen) < k:
            score = (w * least).tolist()
            chosen.append(max((i for i in range(n) if i not in chosen), key=lambda i: (score[i], -i)))
            least = pairwise_sqdist(x, x[chosen]).amin(1)
        chosen.sort()
    else:
        raise ValueError(f"init: expected ward, topk, farthest, strided or indices, got {init!r}")
    return torch.tensor(chosen, dtype=torch.int64)


def _alternate(assign: Callable, update: Callable, state: Tensor, max_iter: int) -> tuple[Tensor, Tensor, int]:
    """(assign, update)... until the assignment stands still, then a last assign: (assignment, state, updates)."""
    previous, n_iter = None, 0
    while n_iter < max_iter:
        assignment = assign(state)
        if previous is not None and torch.equal(assignment, previous):
            break
        state, previous, n_iter = update(assignment, state), assignment, n_iter + 1
    return assign(state), state, n_iter


def kmeans(x: Tensor, k: int, weight: Maybe = None, *, init: Start = "ward", max_iter: int = 5) -> ReferenceClusters:
    """Weighted K-Means (Lloyd) of x [N, D] from the tokens of `start_indices`, or from the means of Ward's clusters."""
    x, w = _float64(x, weight)
    if len(x) <= k:
        return split_in_order(x, k, w)
    by_ward = isinstance(init, str) and init == "ward"
    start = ward(x, k, w).centers if by_ward else x[start_indices(x, k, w, init)]
    assignment, centers, n_iter = _alternate(
        lambda c: assign_tokens(x, c), lambda a, c: update_means(x, a, c, w), start, max_iter
    )
    return _result(x, w, assignment, centers, n_iter, None)


def swap_medoids(x: Tensor, medoids: Tensor, weight: Maybe = None, passes: int = 8) -> tuple[Tensor, int]:
    """Medoids [K] after swaps, the first that helps each time, and how many there were.

    FasterPAM (Schubert and Rousseeuw, arXiv 2008.05171). Tokens are tried in their order, at most `passes` times each:
    token i takes the place of the medoid whose loss makes the objective least, the lowest slot on ties, if that is less
    than before by more than rounding.
    """
    x, w = _float64(x, weight)
    distance, medoids = pairwise_sqdist(x), medoids.clone()

    def loss(chosen: Tensor) -> float:
        return float((w * distance[:, chosen].amin(1)).sum())

    now, swaps = loss(medoids), 0
    for _ in range(passes):
        before = swaps
        for i in range(len(x)):
            swapped = [medoids.index_fill(0, torch.tensor(slot), i) for slot in range(len(medoids))]
            slot, least = min(enumerate(map(loss, swapped)), key=lambda pair: (pair[1], pair[0]))
            if now - least > 2.0**-44 * now:
                medoids, now, swaps = swapped[slot], least, swaps + 1
        if swaps == before:
            break
    return medoids, swaps


def kmedoids(
    x: Tensor, k: int, weight: Maybe = None, *, init: Start = "ward", max_iter: int = 5, refine: str | None = None
) -> ReferenceClusters:
    """Weighted K-Medoids of x [N, D] from the tokens of `start_indices`, by alternating (Voronoi) updates, not PAM.

    refine: "swap" has `swap_medoids` follow.
    """
    x, w = _float64(x, weight)
    if len(x) <= k:
        return split_in_order(x, k, w)
    start = start_indices(x, k, w, init)
    assignment, medoids, n_iter = _alternate(
        lambda m: assign_to_medoids(x, m), lambda a, m: update_medoids(x, a, k, w), start, max_iter
    )
    if refine is not None:
        medoids, swaps = swap_medoids(x, medoids[_canonical(assignment.tolist(), k)], w)
        assignment, n_iter = assign_to_medoids(x, medoids), n_iter + swaps
    return _result(x, w, assignment, x[medoids], n_iter, None, medoids)


def _pruned(n: int, kept: Sequence[int]) -> Tensor:
    return torch.tensor([kept.index(i) if i in kept else -1 for i in range(n)], dtype=torch.int64)


def topk(x: Tensor, k: int, weight: Maybe = None) -> Tensor:
    """Labels [N] that keep the K tokens of highest weight (PoWER-BERT), in raster order; the others get -1."""
    return _pruned(len(x), _highest(_float64(x, weight)[1].tolist(), k))


def uniform(seed: int, i: int) -> float:
    """A number in (0, 1) for (seed, i): SplitMix64 (Steele, Lea and Flood, 2014) of a counter."""
    z = (seed * 0x9E3779B97F4A7C15 + (i + 1) * 0xBF58476D1CE4E5B9) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    z = z ^ (z >> 31)
    return ((z >> 12) + 0.5) / 2**52


def importance(
    x: Tensor, k: int, weight: Maybe = None, *, seed: int = 0, places: Sequence[int] | None = None
) -> Tensor:
    """Labels [N] that keep K tokens drawn without replacement with p_i ~ w_i (zero weights last); the others get -1.

    Gumbel top-K (Kool et al., arXiv 1903.06059): the K highest of log w_i - log(-log u_i), with u_i of the token's
    place in the batch (i where `places` [N] is not given), so that every sample has the same.
    """
    w = _float64(x, weight)[1].tolist()
    gumbel = [-math.log(-math.log(uniform(seed, place))) for place in (range(len(x)) if places is None else places)]
    return _pruned(
        len(x), _highest([math.log(p) + g if p > 0 else -math.inf for p, g in zip(w, gumbel, strict=True)], k)
    )


def random(x: Tensor, k: int, weight: Maybe = None, *, seed: int = 0, places: Sequence[int] | None = None) -> Tensor:
    """As `importance` with all tokens alike; the weights are not read."""
    return importance(x, k, None, seed=seed, places=places)


def grid(x: Tensor, k: int, weight: Maybe = None, *, grid_size: tuple[int, int] | None = None) -> Tensor:
    """Labels [N] of K cells over the h x w patch grid: a bands of rows, band j cut into K_j cells.

    a is the count in [ceil(K / w), min(h, K)] nearest to sqrt(K h / w), the lower on ties;
    K_j = (j + 1) K // a - j K // a <= ceil(K / a) <= w.
    Without grid_size: the square if N is one, otherwise a strip, i K // N.
    """
    n, k = len(x), min(k, len(x))
    side = math.isqrt(n)
    h, w = grid_size or ((side, side) if side * side == n else (1, n))
    if h * w != n:
        raise ValueError(f"grid_size: expected h * w = {n} tokens, got {h} x {w}")
    bands = min(range(-(-k // w), min(h, k) + 1), key=lambda a: (abs(a - math.sqrt(k * h / w)), a)) if n else 0
    labels = []
    for y in range(h):
        first, after = (y * bands // h) * k // bands, (y * bands // h + 1) * k // bands
        labels += [first + column * (after - first) // w for column in range(w)]
    return torch.tensor(labels, dtype=torch.int64)


def bipartite(x: Tensor, k: int, weight: Maybe = None, *, metric: Maybe = None) -> Tensor:
    """Labels [N] of bipartite soft matching (ToMe, Bolya et al., arXiv 2210.09461), in rounds until K are left.

    Tokens at even positions are sources, the others destinations. The sources whose cosine to their best destination is
    highest merge into it. A merged token has the mean `metric` [N, E] (x where not given) by token size (weight), and
    the next round takes the tokens in canonical order.
    """
    metric = x if metric is None else metric
    labels, count = list(range(len(x))), len(x)
    while count > k:
        unit = cluster_mean(metric, torch.tensor(labels), count, weight)
        unit = unit / unit.norm(dim=1, keepdim=True).clamp_min(1e-30)
        similarity = (unit @ unit.T).tolist()
        sources, destinations = range(0, count, 2), range(1, count, 2)
        best = {s: max(destinations, key=lambda d: (similarity[s][d], -d)) for s in sources}
        merged = sorted(sources, key=lambda s: (-similarity[s][best[s]], s))[: count - k]
        labels = [best[label] if label in merged else label for label in labels]
        order = _canonical(labels, count)
        labels, count = [order.index(label) for label in labels], count - len(merged)
    return torch.tensor(labels, dtype=torch.int64)


def attention(
    q: Tensor, k: Tensor, v: Tensor, key_size: Maybe = None, mask: Maybe = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of one sample, and the significance of its keys.

    p_hij = softmax_j(scale q_hi . k_hj + log size_j) over valid keys j, out_hi = sum_j p_hij v_hj,
    significance_j = sum_h sum_{valid i} size_i p_hij.

    Args:
        q, k, v: [H, N, d]; scale is 1 / sqrt(d) where not given.
        key_size: [N] >= 0; a key of size 0 is ignored. None: 1, plain attention.
        mask: [N] bool, True = valid. A masked token is no key, and no query either.

    Returns:
        out [H, N, d] (zeros for masked queries and without a valid key), significance [N] without gradient.
    """
    q, k, v = q.double(), k.double(), v.double()
    size = _float64(q[0], key_size)[1]
    valid = torch.ones_like(size, dtype=torch.bool) if mask is None else mask
    keys = valid & (size > 0)
    factor = q.shape[2] ** -0.5 if scale is None else scale
    share = (factor * q[:, valid] @ k[:, keys].mT + size[keys].log()).softmax(-1)
    out, significance = v.new_zeros(v.shape), torch.zeros_like(size)
    out[:, valid] = share @ v[:, keys]
    significance[keys] = torch.einsum("i,hij->j", size[valid], share.detach())
    return out, significance


BASELINES = (topk, importance, random, grid, bipartite)


def batched(function: Callable, x: Tensor, k: int, weight: Maybe = None, mask: Maybe = None, **options: Any) -> Any:
    """Applies a clusterer or baseline to each sample's valid tokens and pads the results.

    A sample with NaN or Inf in its valid tokens or weights gets `split_in_order`, and so does `grid` where tokens are
    masked. Padding: label -1 for invalid tokens; zero centers and medoid -1 for the clusters that a sample lacks.

    Args:
        function: ward, kmeans, kmedoids, or one of BASELINES.
        x, weight, mask: [B, N, D], [B, N], [B, N] bool (True = valid).
        options: the function's own; indices as `init` are [K] or [B, K] and count all tokens, `metric` is [B, N, E].

    Returns:
        ReferenceClusters with K' = min(K, N) clusters, indices counting all tokens; a baseline's labels [B, N].
    """
    (batch, n, dim), k = x.shape, min(k, x.shape[1])
    labels, medoids = torch.full((batch, n), -1), torch.full((batch, k), -1)
    centers, loss = torch.zeros(batch, k, dim, dtype=torch.float64), torch.zeros(batch, dtype=torch.float64)
    n_iter, heights = torch.zeros(batch, dtype=torch.int64), torch.full((batch, max(n - 1, 0)), math.inf).double()
    for b in range(batch):
        valid = torch.arange(n) if mask is None else mask[b].nonzero().flatten()
        sample, w, own = x[b, valid], None if weight is None else weight[b, valid], dict(options)
        if own.get("metric") is not None:
            own["metric"] = own["metric"][b, valid]
        if isinstance(own.get("init"), Tensor) and len(valid) > k:
            own["init"] = [valid.tolist().index(i) for i in own["init"].expand(batch, k)[b].tolist()]
        if function in (importance, random):
            own["places"] = valid.tolist()
        read = [tensor for tensor in (sample, w, own.get("metric")) if tensor is not None]
        finite = all(bool(tensor.isfinite().all()) for tensor in read)
        whole = function is not grid or len(valid) == n
        result = (
            function(sample, k, w, **own) if finite and whole else split_in_order(sample, k, w, function is kmedoids)
        )
        if isinstance(result, Tensor):
            labels[b, valid] = result
            continue
        found, count = result.medoids >= 0, len(result.medoids)
        labels[b, valid], centers[b, :count] = result.assignment, result.centers
        medoids[b, :count][found] = valid[result.medoids[found]]
        loss[b], n_iter[b] = result.loss, result.n_iter
        if result.merge_heights is not None:
            heights[b, : len(result.merge_heights)] = result.merge_heights
    if function in BASELINES:
        return labels
    return ReferenceClusters(labels, centers, medoids, loss, n_iter, heights if function is ward else None)
