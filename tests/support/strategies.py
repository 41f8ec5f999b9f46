"""Problems to cluster, for hypothesis and by number."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.support.marks import FOR_GPU

LAYOUTS = ("contiguous", "prefix", "transposed", "every other", "reversed batch")


class Problem(NamedTuple):
    """x [B, N, D], k, weight [B, N] or None, mask [B, N] or None."""

    x: Tensor
    k: int
    weight: Tensor | None
    mask: Tensor | None

    def sample(self, b: int) -> tuple[Tensor, Tensor | None]:
        """Valid tokens and weights of one sample."""
        valid = slice(None) if self.mask is None else self.mask[b]
        return self.x[b, valid], None if self.weight is None else self.weight[b, valid]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of x [B, N, D] with other strides."""
    b, n, d = x.shape
    if layout == "prefix":
        return torch.cat([x.new_full((b, 1, d), torch.nan), x], 1)[:, 1:]
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "every other":
        wide = x.new_full((b, n, 2 * d), torch.nan)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "reversed batch":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return x


def make(
    seed: int,
    b: int,
    n: int,
    d: int,
    k: int,
    *,
    weighted: bool = False,
    zeros: bool = False,
    duplicates: bool = False,
    masked: bool = False,
    layout: str = "contiguous",
) -> Problem:
    """A problem of normal tokens and uniform weights from a seed.

    Args:
        zeros: a third of the weights are 0, and all of the last sample's where there are several.
        duplicates: a third of the tokens are copies of others.
        masked: some tokens are masked, and hold NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, n, d, generator=generator)
    if duplicates and n > 1:
        copies = torch.randint(n, (b, max(1, n // 3)), generator=generator)
        sources = torch.randint(n, copies.shape, generator=generator)
        x = x.scatter(1, copies[..., None].expand(-1, -1, d), x.gather(1, sources[..., None].expand(-1, -1, d)))
    weight = torch.rand(b, n, generator=generator) + 0.01 if weighted else None
    if weight is not None and zeros:
        weight[torch.rand(b, n, generator=generator) < 1 / 3] = 0
        if b > 1:
            weight[-1] = 0
    mask = None
    if masked:
        mask = torch.rand(b, n, generator=generator) < 0.7
        x = x.masked_fill(~mask[..., None], torch.nan)
    return Problem(laid_out(x, layout), k, weight, mask)


def numbered(seed: int, samples: int = 4, *, small: int = 1) -> Problem:
    """The seed-th problem with N in 1..64, D in 1..48, K in 1..N; a higher `small` draws small N more often.

    On a GPU all have one kernel: odd N in 33..63, odd D in 3..47, K in 2..15.
    """
    generator = torch.Generator().manual_seed(10_000 + seed)
    u = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    n, d = 1 + int(64 * u[0] ** small), 1 + int(48 * u[1])
    k = 1 + int(n * u[2])
    if FOR_GPU:
        n, d, k = 33 + 2 * int(16 * u[0] ** small), 3 + 2 * int(23 * u[1]), 2 + int(14 * u[2])
    # Weights without zeros, with zeros, none; a third of the problems with duplicates in each.
    return make(seed, samples, n, d, k, weighted=seed % 3 > 0, zeros=seed % 3 == 2, duplicates=seed % 9 < 3)


def odd(low: int, high: int) -> st.SearchStrategy[int]:
    """Odd numbers from an odd one on."""
    return st.sampled_from(range(low, high + 1, 2))


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    max_n: int = 24,
    max_d: int = 20,
    weights: bool = True,
    masks: bool = True,
    duplicates: bool = True,
    layouts: bool = True,
) -> Problem:
    """Small problems of every kind: odd N and D, K = 1, K = N, K > N, duplicates, zero weights, masks, strides.

    On a GPU N and D are odd and not 1: its kernels are made for 1 and for multiples of 16.
    """
    n = draw(odd(3, min(max_n, 15)) if FOR_GPU else st.integers(1, max_n), label="n")
    weighted = weights and draw(st.booleans(), label="weighted")
    return make(
        draw(st.integers(0, 999), label="seed"),
        draw(st.integers(1, 4), label="b"),
        n,
        draw(odd(3, min(max_d, 15)) if FOR_GPU else st.integers(1, max_d), label="d"),
        draw(st.one_of(st.integers(1, n), st.sampled_from([1, n, n + 3])), label="k"),
        weighted=weighted,
        zeros=weighted and draw(st.booleans(), label="zeros"),
        duplicates=duplicates and draw(st.booleans(), label="duplicates"),
        masked=masks and draw(st.booleans(), label="masked"),
        layout=draw(st.sampled_from(LAYOUTS), label="layout") if layouts else "contiguous",
    )


def starts(problem: Problem, seed: int) -> Tensor:
    """Random distinct tokens [B, K], in no order."""
    b, n, _ = problem.x.shape
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(b, n, generator=generator).argsort(1)[:, : min(problem.k, n)]
