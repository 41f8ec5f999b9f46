"""K-Means and K-Medoids of many tokens on the GPU: a fixed number of launches per iteration, nothing of N x K.

An iteration is one pass of `kernels.streaming.assign` for the nearest centers, a sort of the tokens by cluster, and the
means of the segments; K-Medoids then looks for the members nearest to them. Which samples still move is known on the
device alone: launches pass over those that stand still, so the host never waits.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..eager.linkage import linkage
from ..eager.lloyd import nearest
from ..eager.means import gather_tokens, nearest_members
from ..eager.samples import prepare
from ..eager.segments import canonical_order, renumber
from ..eager.ward import ward
from ..problem import Found, Primitives, Samples, Spec
from .launch import on_device, power_of_two, strides, unfused
from .limits import Limits, limits_of
from .means import cluster_mean, keys_of, labels_of, mean_config, segment_means, sort_by_cluster, token_tile
from .resident_tiles import LARGE_SHARED

# Tiles of the assignment: tokens, centers, warps, stages of loads in flight. The first that fits is taken; the large
# ones are for devices of at least LARGE_SHARED, whose tensor cores read both factors from shared memory.
LARGE_TILES = ((128, 128, 8, 3), (128, 128, 8, 2), (64, 128, 4, 2), (64, 64, 4, 2), (32, 32, 4, 2), (16, 16, 4, 1))
SMALL_TILES = ((128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), *LARGE_TILES[-2:])


def padded_width(d: int) -> int:
    """Channels that a row of halves has room for: a multiple of the tiles' channels, so that no load needs a mask."""
    return power_of_two(d, 16, 128) if d <= 128 else -(-d // 64) * 64


def assign_config(b: int, n: int, k: int, d: int, limits: Limits) -> dict[str, int | bool]:
    """Tiles of the assignment by the shared memory and the processors of a device, without spills on any."""
    width = padded_width(d)
    large, hold = limits.shared_bytes >= LARGE_SHARED, d <= 128
    step = width if hold else 64 if large else 32
    most_n, most_k = power_of_two(n, 16, 128), power_of_two(k, 16, 128)
    tiles = [tile for tile in (LARGE_TILES if large else SMALL_TILES) if tile[0] <= most_n and tile[1] <= most_k]
    chosen = tiles[-1]
    for tile in tiles:
        bn, bk, _, stages = tile
        # With wavefronts of 64 lanes the newest tile stays in registers.
        stages -= limits.warp == 64
        # High and low halves, two bytes each. Small devices hold tokens in registers and stream one half.
        need = 4 * step * ((bn if large else bn / 2) + stages * bk if hold else stages * (bn + bk))
        # Some compilers keep most of another stage of a wide loop in shared memory.
        need *= 1 if hold else 1.25
        too_wide = hold and not large and step > 64 and bn + bk > 192
        idle = bn > 64 and b * -(-n // bn) < limits.processors
        if need <= limits.shared_bytes and not too_wide and not idle:
            chosen = tile
            break
    bn, bk, warps, stages = chosen
    return {"BN": bn, "BK": bk, "BD": step, "HOLD": hold, "num_warps": warps, "num_stages": stages}


class _Search:
    """Medoids of the clusters that keys name, and the buffers that finding them takes."""

    def __init__(self, x: Tensor, weight: Tensor | None, offset: Tensor, k: int) -> None:
        b, n, d = x.shape
        self.x, self.weight, self.offset, self.k = x, weight, offset, k
        self.mean = torch.empty(b, k, d, dtype=torch.float32, device=x.device)
        self.cost = torch.empty(b, n, dtype=torch.float32, device=x.device)
        self.least = torch.empty(b, k, dtype=torch.int32, device=x.device)
        # Index N: no medoid.
        self.medoid = torch.full((b, k), n, dtype=torch.int32, device=x.device)

    def run(self, key: Tensor, moving: Tensor) -> None:
        """Finds the medoids [B, K] of samples that move; clusters without members keep theirs."""
        from ...kernels.streaming.means import MODE_MEDOIDS
        from ...kernels.streaming.medoids import medoid_kernel

        x, k = self.x, self.k
        b, n, _ = x.shape
        segment_means(
            x, self.weight, self.offset, moving, sort_by_cluster(key, k), MODE_MEDOIDS.value, self.mean,
            least=self.least, medoid=self.medoid,
        )  # fmt: skip
        _member_costs(x, self.mean, key, self.cost, self.offset, moving, self.least)
        tile = power_of_two(n, 16, 256)
        with on_device(x):
            medoid_kernel[(b * -(-n // tile),)](
                key, self.cost, self.least, moving, self.medoid, n, k, T=tile, num_warps=4
            )


def _member_costs(
    x: Tensor, center: Tensor, label: Tensor, cost: Tensor, offset: Tensor | None = None, moving: Tensor | None = None,
    least: Tensor | None = None,
) -> None:  # fmt: skip
    """Squared distances of tokens [B, N, D] to their clusters' centers [B, K, D], written to cost [B, N].

    With moving, label holds keys, the centers lack the offset, and least [B, K] takes the bits of each cluster's least.
    """
    from ...kernels.streaming.medoids import member_cost_kernel

    b, n, d = x.shape
    race = moving is not None
    off, gate, bits = (tensor if tensor is not None else cost for tensor in (offset, moving, least))
    tile, block_d = token_tile(n, d, x.is_cuda)
    with on_device(x):
        member_cost_kernel[(b * -(-n // tile),)](
            x, off, center, label, gate, cost, bits, n, d, center.shape[1], *x.stride(), *label.stride(),
            T=tile, BD=block_d, SEARCH=race, num_warps=4, **unfused(x),
        )  # fmt: skip


class _Loop:
    """The state of a batch between launches.

    moving [max_iter + 2, B] int32: whether a sample moved in the assignment before turn t; turn t looks at row t.
    keys: two times [B, N], the newest first; what stands still is the same in both.
    """

    def __init__(self, x: Tensor, samples: Samples, start: Tensor, spec: Spec) -> None:
        from ...kernels.streaming.halves import split_tokens_kernel

        b, n, d = x.shape
        k, medoids, max_iter = spec.k, spec.method == "kmedoids", spec.max_iter
        self.x, self.spec, self.k, self.weight = x, spec, k, samples.weight
        self.mask = None if samples.valid is None else samples.valid.view(torch.uint8)
        self.offset = samples.offset.reshape(b, d)
        self.width = padded_width(d)
        self.config = assign_config(b, n, k, d, limits_of(x.device))
        self.keys = [keys_of(start, k)]
        self.keys.append(self.keys[0].clone())
        self.moving = torch.zeros(max_iter + 2, b, dtype=torch.int32, device=x.device)
        self.moving[0] = 1 if samples.plain is None else ~samples.plain
        # A power of two that brings the largest coordinate to 2^14 .. 2^15: halves have 22 bits there.
        largest = torch.linalg.vector_norm(samples.x, torch.inf, dim=(1, 2))
        power = (15 - torch.frexp(largest).exponent).clamp(-120, 120)
        self.factor = torch.ldexp(torch.ones_like(largest), power)
        self.tokens = torch.empty(2, b, n, self.width, dtype=torch.float16, device=x.device)
        self.centers = torch.zeros(2, b, k, self.width, dtype=torch.float16, device=x.device)
        self.parts = 1 if medoids else -(-d // mean_config(n, k, d, x.is_cuda)["BD"])
        # A slot that no token starts has the sample's mean, as a K-Means center, and no place as a medoid.
        self.norm = torch.full((self.parts, b, k), torch.inf if medoids else 0.0, device=x.device)
        if not medoids:
            # What is no slot of a sample is nobody's nearest.
            self.norm[0].masked_fill_(torch.arange(k, device=x.device) >= samples.k[:, None], torch.inf)
        self.search = _Search(x, samples.weight, self.offset, k) if medoids else None
        tile, block_d = token_tile(n, self.width, x.is_cuda)
        with on_device(x):
            split_tokens_kernel[(b * -(-n // tile),)](
                x, self.offset, self.factor, *self.tokens, n, d, self.width, *x.stride(),
                T=tile, BD=block_d, num_warps=4,
            )  # fmt: skip

    def __call__(self) -> Found:
        """Runs all iterations: samples that stand still are passed over."""
        max_iter, k = self.spec.max_iter, self.k
        self.update(0)
        for turn in range(max_iter):
            self.assign(turn)
            self.update(turn + 1)
        self.assign(max_iter)
        n_iter = self.moving[1 : max_iter + 1].sum(0)
        label, source = (labels_of(key, k) for key in self.keys)
        order = canonical_order(label, k)
        label, source = renumber(label, order), renumber(source, order)
        if self.search is not None:
            return Found(label, n_iter, source, medoids=self.search.medoid.long().gather(1, order))
        medoids = None
        if self.spec.has_medoids:
            search = _Search(self.x, self.weight, self.offset, k)
            search.run(keys_of(label, k), self.moving[0])
            medoids = search.medoid.long()
        if self.spec.output != "center":
            return Found(label, n_iter, source, medoids)
        kept = self.center().gather(1, order[..., None].expand(-1, -1, self.x.shape[2]))
        return Found(label, n_iter, source, medoids, kept=kept)

    def assign(self, turn: int) -> None:
        """Every token of a moving sample goes to its nearest center; one launch."""
        from ...kernels.streaming.assign import assign_kernel

        b, n, _ = self.x.shape
        config = self.config
        medoid = self.keys[0] if self.search is None else self.search.medoid
        with on_device(self.x):
            assign_kernel[(b * -(-n // int(config["BN"])),)](
                *self.tokens, *self.centers, self.norm, self.mask if self.mask is not None else self.keys[0],
                medoid, *self.keys, self.moving[turn], self.moving[turn + 1],
                n, self.k, self.width, self.parts, b * self.k, int(turn == 0), *strides(self.mask, 2),
                MASKED=self.mask is not None, MEDOIDS=self.search is not None, **config,
            )  # fmt: skip
        self.keys.reverse()

    def update(self, turn: int) -> None:
        """Every center of a moving sample goes to the place that is best for its members."""
        from ...kernels.streaming.means import MODE_CENTERS
        from ...kernels.streaming.medoids import medoid_centres_kernel

        key, moving = self.keys[0], self.moving[turn]
        if self.search is None:
            segments = sort_by_cluster(key, self.k)
            segment_means(
                self.x, self.weight, self.offset, moving, segments, MODE_CENTERS.value, self.centers[0],
                low=self.centers[1], norm=self.norm, factor=self.factor,
            )  # fmt: skip
            return
        self.search.run(key, moving)
        b, n, _ = self.x.shape
        tile, block_d = token_tile(self.k, self.width, self.x.is_cuda)
        with on_device(self.x):
            medoid_centres_kernel[(b * -(-self.k // tile),)](
                *self.tokens, self.search.medoid, moving, *self.centers, self.norm, n, self.k, self.width,
                S=tile, BD=block_d, num_warps=4,
            )  # fmt: skip

    def center(self) -> Tensor:
        """The centers [B, K, D] in float32, without the offset."""
        high, low = self.centers.float()
        return ((high + low) / self.factor[:, None, None])[..., : self.x.shape[2]]


def gather(x: Tensor, _: Tensor, medoids: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, K, D] at medoids [B, K]; a token that is gathered is its own total of 1."""
    return gather_tokens(x, medoids), (medoids >= 0).float()


def loss(x: Tensor, centers: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    """`sum_i w_i ||x_i - c_i||^2` [B], from the kernel that finds the members' costs."""
    cost = torch.empty(label.shape, dtype=torch.float32, device=x.device)
    _member_costs(x, centers, label, cost)
    return (cost if weight is None else cost * torch.where(label >= 0, weight.float(), 0)).sum(1)


# Launches are queued: no value is read, so the host never waits.
STREAMING = Primitives(
    True,
    True,
    partial(prepare, looks=False),
    ward,
    _Loop,
    nearest,
    nearest_members,
    cluster_mean,
    gather,
    loss,
    linkage,
)
