"""Exact Ward against scipy's, on random and on real tokens, and where the parallel rounds could go wrong.

On a CPU there are two implementations, by torch operations and by numba's compiled loop; each test takes both, and the
kernel where float32 is enough.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from common.data import load_idx
from deit.checkpoint import load_model
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor

import tpkernels
from tests.support.marks import CUDA, DEVICE, KERNELS, sized
from tests.support.programs import EXAMPLES
from tests.support.strategies import laid_out, make
from tests.support.tolerances import TOLERANCES, assert_same_labels, assert_values, regret_limit, total_variance
from tpkernels import Clusters, reference
from tpkernels.ops import backends

# The objective may be so much above scipy's, relatively: rounding breaks other ties.
EXACT = 1e-4

# In float64, or what tests/kernels/test_resident.py asks of the kernel on smaller problems: the interpreter is slow.
without_kernel = pytest.mark.parametrize("rounds", ["operations", "compiled"], indirect=True)
# The kernel's loss is a sum of differences of Gram entries: what it is off by is a share of the total variance.
KERNEL_LOSS = 1e-7


@pytest.fixture(params=["operations", "compiled", pytest.param("kernel", marks=KERNELS)], autouse=True)
def rounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which implementation runs."""
    if request.param == "operations":
        monkeypatch.setattr(backends, "has_numba", lambda: False)
    elif request.param == "compiled" and not backends.has_numba():
        pytest.skip("numba is not installed")
    elif request.param == "compiled" and CUDA:
        pytest.skip("the compiled loop is for CPUs")
    return request.param


@pytest.fixture
def ward(device: torch.device, rounds: str):
    """`tpkernels.ward` on the tests' device, with its results on the CPU."""
    backend = "triton" if rounds == "kernel" else "torch"

    def call(x: Tensor, k: int, weight: Tensor | None = None, mask: Tensor | None = None) -> Clusters:
        weight, mask = (None if tensor is None else tensor.to(device) for tensor in (weight, mask))
        found = tpkernels.ward(x.to(device), k, weight, mask=mask, backend=backend)
        return Clusters(*(None if field is None else field.cpu() for field in found))

    return call


def cuts(n: int) -> list[int]:
    return [n // 4, n // 2, int(0.7 * n), int(0.9 * n)]


def within_clusters(x: Tensor, label: Tensor) -> float:
    """`sum_i ||x_i - mu_{a_i}||^2` in float64, K-Means' objective of any labels [N]."""
    x = x.double()
    k = int(label.max()) + 1
    members = torch.nn.functional.one_hot(label, k).double()
    return float((x - members @ (members.T @ x / members.sum(0)[:, None])).square().sum())


def photo_patches() -> Tensor:
    """Four crops of a photo as a ViT's 196 patches of 16 x 16 pixels, [4, 196, 768] in 0..1."""
    datasets = pytest.importorskip("sklearn.datasets")
    image = torch.from_numpy(np.array(datasets.load_sample_image("china.jpg"))).permute(2, 0, 1) / 255
    crops = torch.stack([image[:, y : y + 224, x : x + 224] for y in (0, 200) for x in (0, 400)])
    patches = torch.nn.functional.unfold(crops, 16, stride=16).mT
    return sized(patches, gpu=patches.contiguous())


def model_tokens() -> Tensor:
    """Patch tokens of the shipped model before blocks 1, 4, 7 and 10 of two test images, [8, 196, 96]."""
    if not (EXAMPLES / "weights" / "deit_fashion.safetensors").exists():
        pytest.skip("examples/weights holds no weights")
    model, _ = load_model(EXAMPLES / "weights" / "deit_fashion.safetensors")
    images, _ = load_idx(EXAMPLES / "data" / "fashion-mnist-test-2000", "test")
    x = (images[:2, None].float() / 255 - model.cfg.mean) / model.cfg.std
    seen: list[Tensor] = []
    for block in (1, 4, 7, 10):
        model.blocks[block].register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 1:]))
    with torch.no_grad():
        model(x)
    return torch.cat(seen)


def random_tokens() -> Tensor:
    return torch.randn(4, 197, 48, generator=torch.Generator().manual_seed(0))


def clustered_tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    # On a GPU of whole sixteens, as the random ones.
    d = sized(24, gpu=32)
    centers = 5 * torch.randn(4, 20, d, generator=generator)
    owner = torch.randint(20, (4, 180), generator=generator)
    spread = 0.3 * torch.rand(4, 180, 1, generator=generator)
    x = centers.gather(1, owner[..., None].expand(-1, -1, d)) + spread * torch.randn(4, 180, d, generator=generator)
    # A channel with a large offset, as trained models have them.
    x[..., 3] += 100
    return x


@pytest.mark.parametrize("tokens", [random_tokens, clustered_tokens, photo_patches, model_tokens])
def test_equals_scipys_ward(tokens, ward, rounds: str) -> None:
    x = tokens()
    n = x.shape[1]
    wanted = cuts(n)
    if rounds == "kernel":
        x, wanted = x[:1], wanted[1:2]
    trees = [linkage(sample.double().numpy(), "ward") for sample in x]
    for k in wanted:
        found = ward(x, k)
        for b, tree in enumerate(trees):
            expected = within_clusters(x[b], torch.from_numpy(cut_tree(tree, k)[:, 0].astype(np.int64)))
            label = found.assignment[b]
            assert sorted(set(label.tolist())) == list(range(k))
            assert within_clusters(x[b], label) == pytest.approx(expected, rel=EXACT)
            slack = KERNEL_LOSS * total_variance(x[b]) if rounds == "kernel" else 0
            assert float(found.loss[b]) == pytest.approx(expected, rel=EXACT, abs=slack)


@pytest.mark.parametrize("tokens", [random_tokens, clustered_tokens, photo_patches, model_tokens])
def test_heights_price_every_number_of_clusters(tokens, ward, rounds: str) -> None:
    x = tokens()[: 1 if rounds == "kernel" else 2]
    n = x.shape[1]
    found = ward(x, 1)
    assert found.merge_heights.shape == (len(x), n - 1)
    assert bool((found.merge_heights.diff(dim=1) >= 0).all())
    price = found.merge_heights.double().cumsum(1)
    for b in range(len(x)):
        # scipy's height is sqrt(2 cost).
        expected = (torch.from_numpy(linkage(x[b].double().numpy(), "ward")[:, 2]) ** 2 / 2).cumsum(0)
        torch.testing.assert_close(price[b], expected, rtol=EXACT, atol=1e-6 * total_variance(x[b]))
    for k in cuts(n)[1:2] if rounds == "kernel" else cuts(n):
        cut = ward(x, k)
        for b in range(len(x)):
            # Small heights carry the rounding of the tokens' norms.
            atol = 1e-6 * total_variance(x[b])
            torch.testing.assert_close(cut.loss[b].double(), price[b, n - k - 1], rtol=EXACT, atol=atol)
        heights = cut.merge_heights
        # On a GPU by another kernel, whose small heights carry the rounding of the tokens' norms as well.
        atol = max(map(regret_limit, x)) if CUDA else 0
        torch.testing.assert_close(heights[:, : n - k], found.merge_heights[:, : n - k], rtol=EXACT, atol=atol)
        assert bool((heights[:, n - k :] == math.inf).all())


def test_heights_of_weighted_tokens_are_in_the_weights_units(ward) -> None:
    problem = make(0, 3, 40, sized(6, gpu=7), 5, weighted=True)
    for factor in (1.0, 1e-3, 50.0):
        found = ward(problem.x, 5, problem.weight * factor)
        paid = found.merge_heights[:, : 40 - 5].double().sum(1)
        torch.testing.assert_close(paid, found.loss.double(), rtol=EXACT, atol=0)


@without_kernel
def test_tree_is_the_references(ward) -> None:
    """Float64, where rounding breaks no tie: the same clusters, the same heights."""
    for seed in range(12):
        n = 5 + 3 * seed
        problem = make(seed, 2, n, 1 + seed % 5, 1 + n // (2 + seed % 3), weighted=seed % 2 == 1)
        x, weight = problem.x.double(), None if problem.weight is None else problem.weight.double()
        found = ward(x, problem.k, weight)
        assert found.loss.dtype == found.centers.dtype == found.merge_heights.dtype == torch.float64
        for b in range(2):
            w = None if weight is None else weight[b]
            expected = reference.ward(x[b], problem.k, w)
            assert torch.equal(found.assignment[b], expected.assignment)
            assert_values(found.centers[b], expected.centers)
            torch.testing.assert_close(found.loss[b], expected.loss, rtol=1e-9, atol=1e-12)
            # The reference's are in units of the largest weight.
            heights = expected.merge_heights * (1 if w is None else w.max())
            torch.testing.assert_close(found.merge_heights[b], heights, rtol=1e-9, atol=1e-12)


@without_kernel
def test_float64_keeps_digits_that_float32_has_not(ward) -> None:
    """Two pairs on a line, 1 and 1 - 1e-9 apart: the narrower merges first."""
    x = torch.tensor([0, 1, 10, 11 - 1e-9], dtype=torch.float64)[None, :, None]
    assert ward(x, 3).assignment.tolist() == [[0, 1, 2, 2]]


@without_kernel
@pytest.mark.parametrize("d", [1, 3, 64, 384])
def test_equal_tokens_merge_in_few_rounds(d: int, ward) -> None:
    """Every token ties with every other: pairs by `i XOR j` halve them in each round."""
    for n, most in ((196, 9), (128, 8), (7, 4)):
        row = torch.randn(3, 1, d, generator=torch.Generator().manual_seed(d))
        for x in (row.expand(3, n, d), torch.zeros(3, n, d)):
            found = ward(x, 1)
            assert int(found.n_iter.max()) <= most
            assert_values(found.centers, x[:, :1])
            assert float(found.loss.max()) <= TOLERANCES[torch.float32].regret * float(row.square().sum())
            found = ward(x, n // 2)
            assert sorted(set(found.assignment[0].tolist())) == list(range(n // 2))


def test_duplicates_merge_first(ward, rounds: str) -> None:
    x = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(3))
    x = torch.cat([x, x, x[:, :15]], 1)[:, torch.randperm(75, generator=torch.Generator().manual_seed(4))]
    found = ward(x, 30)
    for b in range(2):
        same = (x[b][:, None] == x[b][None]).all(-1)
        assert torch.equal(found.assignment[b][:, None] == found.assignment[b][None], same)
    assert float(found.loss.max()) <= (KERNEL_LOSS * total_variance(x[0]) if rounds == "kernel" else 1e-8)


@without_kernel
@pytest.mark.parametrize("n", [2, 3, 17, 40])
def test_chains(n: int, ward) -> None:
    """Gaps of 1.5, 1.5^2...: one merger a round, since each token's nearest neighbour is the chain before it.

    In float64: in float32, a long chain's first tokens are one token.
    """
    for x in (1.5 ** torch.arange(n).double(), 1.5 ** torch.arange(n).double().flip(0)):
        x = x[None, :, None]
        expected = linkage(x[0].double().numpy(), "ward")
        for k in sorted({1, n // 2, n - 1}):
            found = ward(x, k)
            label = torch.from_numpy(cut_tree(expected, k)[:, 0].astype(np.int64))
            assert within_clusters(x[0], found.assignment[0]) == pytest.approx(within_clusters(x[0], label), rel=EXACT)
            assert int(found.n_iter) <= n - k


def test_equally_spaced_tokens(ward) -> None:
    """All neighbours tie: the result is some exact Ward, no dearer than the reference's."""
    for n in (8, 21, sized(64, gpu=31)):
        x = torch.arange(n, dtype=torch.float32)[None, :, None]
        for k in (1, 3, n // 2):
            found = ward(x, k)
            assert sorted(set(found.assignment[0].tolist())) == list(range(k))
            assert_same_labels(found.assignment, reference.ward(x[0], k).assignment[None], x)


@without_kernel
def test_weight_two_is_the_token_twice(ward) -> None:
    """Float64: rounding settles nothing."""
    for seed in range(6):
        x = make(seed, 1, 14, 3, 5).x.double()
        weight = 1 + (torch.rand(1, 14, generator=torch.Generator().manual_seed(seed)) < 0.4).double()
        heavy = ward(x, 5, weight)
        rows = torch.arange(14).repeat_interleave(weight[0].long())
        twice = ward(x[:, rows], 5)
        assert torch.equal(heavy.assignment[:, rows], twice.assignment)
        assert_values(heavy.centers, twice.centers)
        torch.testing.assert_close(heavy.loss, twice.loss)
        # Its copies merge at no cost.
        extra = len(rows) - 14
        assert twice.merge_heights[0, :extra].abs().max() <= 1e-12
        torch.testing.assert_close(heavy.merge_heights[0, :9], twice.merge_heights[0, extra : extra + 9])


def test_zero_weights(ward, rounds: str) -> None:
    """A token without weight joins at almost no cost, and moves no center."""
    problem = make(5, 1, 20, sized(4, gpu=5), 6, weighted=True)
    x, weight = problem.x, problem.weight.clone()
    weight[0, ::2] = 0
    found = ward(x, 6, weight)
    assert bool(found.centers.isfinite().all())
    for slot in range(6):
        members = found.assignment[0] == slot
        w = weight[0, members]
        w = w if w.sum() > 0 else torch.ones_like(w)
        assert_values(found.centers[0, slot], (w[:, None] * x[0, members]).sum(0) / w.sum())
    expected = reference.ward(x[0].double(), 6, weight[0].double())
    assert float(found.loss) == pytest.approx(float(expected.loss), rel=EXACT)
    # All of them 0: as if all were 1.
    none, plain = ward(x, 6, torch.zeros_like(weight)), ward(x, 6)
    assert_same_labels(none.assignment, plain.assignment, x)
    assert torch.equal(none.centers, plain.centers) or (CUDA and rounds == "kernel")
    assert none.loss.tolist() == [0.0]


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e15])
def test_weights_count_by_their_ratio(scale: float, ward) -> None:
    problem = make(6, 2, 33, 5, 9, weighted=True)
    found, scaled = ward(problem.x, 9, problem.weight), ward(problem.x, 9, problem.weight * scale)
    assert_same_labels(scaled.assignment, found.assignment, problem.x, problem.weight)
    # The shares that weights are of their largest are rounded, on a GPU to 2 ulp.
    rtol, atol = (TOLERANCES[torch.float32].value, 0) if CUDA else (None, None)
    torch.testing.assert_close(scaled.loss, found.loss * scale, rtol=rtol, atol=atol)


@without_kernel
def test_weights_of_many_magnitudes_end(ward) -> None:
    """Rounding may leave no mutual pair: the rounds go on all the same, and the tree is complete."""
    generator = torch.Generator().manual_seed(7)
    for seed in range(4):
        x = torch.randn(4, 90, 2 + seed, generator=generator) * 10.0 ** torch.randint(
            -3, 4, (4, 90, 1), generator=generator
        )
        weight = 10.0 ** (12 * torch.rand(4, 90, generator=generator) - 9)
        for k in (1, 20):
            found = ward(x, k, weight)
            assert [sorted(set(label.tolist())) for label in found.assignment] == [list(range(k))] * 4
            assert int(found.n_iter.max()) <= 90 - k
            assert bool(found.merge_heights[:, : 90 - k].isfinite().all())


def test_both_implementations_agree(rounds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if rounds != "compiled":
        pytest.skip("compared once")
    x, mask = clustered_tokens(), torch.rand(4, 180, generator=torch.Generator().manual_seed(8)) < 0.8
    weight = torch.rand(4, 180, generator=torch.Generator().manual_seed(9))
    for w, m in itertools.product((None, weight), (None, mask)):
        loops = tpkernels.ward(x, 50, w, mask=m)
        with monkeypatch.context() as patch:
            patch.setattr(backends, "has_numba", lambda: False)
            operations = tpkernels.ward(x, 50, w, mask=m)
        torch.testing.assert_close(loops.loss, operations.loss, rtol=EXACT, atol=0)
        assert torch.equal(loops.assignment, operations.assignment)
        assert torch.equal(loops.n_iter, operations.n_iter)


@pytest.mark.parametrize("layout", ["prefix", "transposed", "every other", "reversed batch"])
def test_strides_do_not_count(layout: str, ward) -> None:
    # Copies to a device have strides of their own.
    x = random_tokens()[:, :50].to(DEVICE)
    found, other = ward(x, 20), ward(laid_out(x, layout), 20)
    assert_same_labels(other.assignment, found.assignment, x)


def test_more_tokens_than_it_takes() -> None:
    with pytest.raises(ValueError, match="4097"):
        tpkernels.ward(torch.zeros(1, 4097, 2), 3)
