"""Ward's ways to run its rounds give one answer: numba's loop, torch with lists or with fixed shapes, the kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.marks import CUDA, runs_triton, sized
from tests.support.tolerances import assert_same_labels, regret_limit
from tpkernels.ops import backends
from tpkernels.ops.eager.samples import override_plain, prepare
from tpkernels.ops.eager.ward import merge_tree, ward
from tpkernels.ops.problem import Found, Samples, Spec

cluster = torch.ops.tpkernels.cluster.default


def spec(k: int) -> Spec:
    return Spec(k, "ward", "ward", "center", 5)


def compiled(samples: Samples, k: int) -> Found:
    from tpkernels.ops.cpu.ward import ward

    return ward(samples, spec(k))


def problems() -> dict[str, tuple[Tensor, Tensor | None, Tensor | None]]:
    """Tokens, weights and mask, each a case of its own."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mask = torch.rand(4, 33, generator=generator) > 0.3
    mask[1] = False
    weight = torch.rand(4, 33, generator=generator)
    weight[2] = 0
    weight[3, ::2] = 0
    spoilt = normal(4, 33, 5)
    spoilt[2, 7] = torch.nan
    return {
        "normal": (normal(4, 33, 5), None, None),
        "double": (normal(4, 33, 5).double(), None, None),
        "weights": (normal(4, 33, 5), weight, None),
        "mask": (normal(4, 33, 5), None, mask),
        "weights and mask": (normal(4, 33, 5), weight, mask),
        "bad sample": (spoilt, None, None),
        "equal tokens": (torch.ones(2, 33, 3), None, None),
        "integer grid": (torch.randint(0, 3, (4, 33, 2), generator=generator).float(), None, None),
        "chain": (2.0 ** torch.arange(16).reshape(1, 16, 1).double(), None, None),
        "two tokens": (normal(3, 2, 4), None, None),
    }


@pytest.mark.parametrize("k", [1, 2, 11, 23, 32])
@pytest.mark.parametrize("name", problems())
def test_all_ways_agree(name: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, mask = problems()[name]
    k = min(k, x.shape[1])
    samples = prepare(x, weight, mask, k)
    results = {}
    if backends.has_numba():
        results["compiled"] = compiled(samples, k)
    results["lists"] = ward(samples, spec(k))
    fixed = torch.where(samples.finite, samples.n_valid - samples.k, 0)
    monkeypatch.setattr(
        "tpkernels.ops.eager.ward.merge_tree", lambda s, wanted, how, *, waits: merge_tree(s, fixed, how, waits=False)
    )
    results["fixed shapes"] = ward(samples, spec(k))
    first = results["lists"]
    assert first.n_iter.max() <= x.shape[1] - 1
    for way, result in results.items():
        assert torch.equal(override_plain(samples, result.label), override_plain(samples, first.label)), way
        assert torch.equal(result.n_iter, first.n_iter), way
        torch.testing.assert_close(result.heights, first.heights, rtol=1e-4, atol=1e-5, msg=way)


@runs_triton
@pytest.mark.parametrize("k", [1, 11])
@pytest.mark.parametrize("name", problems())
def test_the_kernel_agrees(name: str, k: int, device: torch.device) -> None:
    """The kernel keeps distances, the others keep costs: on a grid their rounding settles ties apart."""
    x, weight, mask = problems()[name]
    x, k = x.float(), min(k, x.shape[1])
    samples = prepare(x, weight, mask, k)
    expected = ward(samples, spec(k))
    there = [None if tensor is None else tensor.to(device) for tensor in (x, weight, weight, mask)]
    found = [
        result.cpu() for result in cluster(*there, None, k, "ward", "ward", sized("mean", gpu="center"), 5, "triton")
    ]
    if name != "integer grid" or k > 9:
        assert_same_labels(found[2], override_plain(samples, expected.label), x, weight)
        rounds = expected.n_iter if samples.plain is None else torch.where(samples.plain, 0, expected.n_iter)
        assert CUDA or torch.equal(found[5], rounds)
    # A tie settled otherwise changes what comes after it, but not the number of mergers.
    assert torch.equal(found[6].isfinite(), expected.heights.isfinite())
    if name != "integer grid":
        atol = 1e-5 * float(x.nan_to_num().abs().max())
        if CUDA:
            # A product keeps 22 bits there, of norms far above a chain's first heights.
            atol = max(atol, max(map(regret_limit, x.nan_to_num())))
        torch.testing.assert_close(found[6], expected.heights, rtol=1e-4, atol=atol)


def test_compiled_loop_is_the_same_on_any_number_of_threads() -> None:
    if not backends.has_numba():
        pytest.skip("numba is not installed")
    samples = prepare(torch.randn(7, 40, 6, generator=torch.Generator().manual_seed(0)), None, None, 13)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(compiled(samples, 13))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result.label, results[0].label)
        assert torch.equal(result.heights, results[0].heights)
