"""Batches whose samples want different numbers of clusters, and the calls that the samples are compared with."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

import tpkernels
from tpkernels import Clusters

INITS = ("ward", "topk", "farthest", "strided", "given")
# Every method with every start.
CALLS = [("ward", "ward"), *product(("kmeans", "kmedoids"), INITS)]
WEIGHED, MASKED = ("", "weight"), ("", "mask")


class Ragged(NamedTuple):
    """x [B, N, D], k [B], weight [B, N] or None, mask [B, N] or None, start [B, N]: tokens that are there first."""

    x: Tensor
    k: Tensor
    weight: Tensor | None
    mask: Tensor | None
    start: Tensor

    def call(self, method: str, init: str = "ward", **options: object) -> Clusters:
        """All samples in one call of a method."""
        return self._call(method, init, self.k, slice(None), **options)

    def alone(self, b: int, method: str, init: str = "ward", **options: object) -> Clusters:
        """One sample in a call of its own, by a plain number of clusters."""
        return self._call(method, init, int(self.k[b]), slice(b, b + 1), **options)

    def _call(self, method: str, init: str, k: int | Tensor, rows: slice, **options: object) -> Clusters:
        weight, mask = (None if one is None else one[rows] for one in (self.weight, self.mask))
        widest = min(k if isinstance(k, int) else int(k.max()), self.x.shape[1])
        if method != "ward":
            options["init"] = self.start[rows, : options.get("k_max", widest)] if init == "given" else init
        return getattr(tpkernels, method)(self.x[rows], k, weight, mask=mask, backend="torch", **options)


def ragged(
    seed: int = 0,
    n: int = 21,
    d: int = 16,
    *,
    flags: str = "",
    dtype: torch.dtype = torch.float32,
    bad: bool = False,
    copies: bool = True,
) -> Ragged:
    """Seven samples that want 1, few, most, n, more than n, and, masked, more than there are, and some of none.

    Args:
        d: of a multiple of 16, samples begin with a cache line: products of matrices may round by where those begin.
        flags: holds "weight", some of which are 0, and "mask": tokens anywhere are NaN that is not there.
        bad: one sample holds NaN that is there.
        copies: a fifth of the tokens are one.
    """
    generator = torch.Generator().manual_seed(seed)
    k = torch.tensor([1, 3, n - 2, n, n + 4, 6, 2])
    b = len(k)
    x = torch.randn(b, n, d, generator=generator)
    if copies:
        x[:, 1::5] = x[:, :1]
    weight = torch.rand(b, n, generator=generator) * (torch.rand(b, n, generator=generator) > 0.2)
    mask = torch.rand(b, n, generator=generator) < 0.7
    mask[5:] = False
    mask[5, 2:6] = True
    # Tokens that are there, then the others, both in random order.
    order = torch.rand(b, n, generator=generator)
    start = (order + (~mask if "mask" in flags else 0)).argsort(1)
    if bad:
        x[1, int(mask[1].nonzero()[2])] = torch.nan
    if "mask" in flags:
        x = x.masked_fill(~mask[..., None], torch.nan)
    return Ragged(
        x.to(dtype), k, weight.to(dtype) if "weight" in flags else None, mask if "mask" in flags else None, start
    )


def same(one: Tensor | None, two: Tensor | None) -> bool:
    """To the last bit, NaN included."""
    if one is None or two is None:
        return one is two
    return one.dtype == two.dtype and torch.equal(one.nan_to_num(nan=7.25), two.nan_to_num(nan=7.25))


def differences(found: Clusters, alone: Clusters, b: int) -> list[str]:
    """The fields in which sample b of a call is not its own call's to the last bit, and blank beyond its clusters."""
    k = alone.centers.shape[1]
    wrong = [
        name
        for name in ("assignment", "loss", "n_iter", "merge_heights", "n_clusters")
        if not same(None if getattr(found, name) is None else getattr(found, name)[b : b + 1], getattr(alone, name))
    ]
    if not same(found.centers[b : b + 1, :k], alone.centers) or bool(found.centers[b, k:].ne(0).any()):
        wrong.append("centers")
    rest = found.medoids if found.medoids is None else found.medoids[b, k:]
    medoids = found.medoids if found.medoids is None else found.medoids[b : b + 1, :k]
    if not same(medoids, alone.medoids) or (rest is not None and bool(rest.ne(-1).any())):
        wrong.append("medoids")
    return wrong
