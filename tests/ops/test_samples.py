"""A sample and its batch: masks, bad numbers and degenerate tokens stay in the sample that has them."""

from __future__ import annotations

import pytest
import torch

from tests.support.marks import interpreter_marks, sized
from tests.support.pooled import PRUNERS, Case, canonical, case_of_each_method, each_case, each_clusterer, pool
from tests.support.strategies import make
from tests.support.tolerances import assert_values
from tpkernels import TokenPool, reference


@each_case
def test_a_sample_does_not_depend_on_its_batch(case: Case, backend: str, device: torch.device) -> None:
    x, k, weight, mask = make(9, 4, 15, 4, 6, weighted=True, masked=True)
    whole = pool(case, x, k, weight, mask, backend=backend, device=device)
    for b in range(4):
        alone = pool(case, x[b : b + 1], k, weight[b : b + 1], mask[b : b + 1], backend=backend, device=device)
        assert torch.equal(alone.label[0], whole.label[b])
        assert_values(alone.tokens[0], whole.tokens[b])
        if case.clusters:
            assert alone.info.n_iter[0] == whole.info.n_iter[b]


@each_case
def test_a_mask_is_slicing(case: Case, backend: str, device: torch.device) -> None:
    """Masked tokens hold NaN. Methods that go by a token's place are masked at the end only."""
    # On a GPU no count of tokens makes a sample of whole sixteens, which is another kernel.
    n, d = sized((19, 4), gpu=(15, 5))
    x, k, weight, mask = make(10, 4, n, d, 6, weighted=True, masked=True)
    if case.method in ("grid", "random", "importance"):
        # No square number is left, which a grid would take for an image.
        mask = torch.arange(n) < torch.tensor([[n], [12], [7], [3]])
        x = x.nan_to_num().masked_fill(~mask[..., None], torch.nan)
    weight = weight.masked_fill(~mask, torch.nan)
    found = pool(case, x, k, weight, mask, backend=backend, device=device)
    for b in range(4):
        valid = mask[b]
        alone = pool(case, x[b : b + 1, valid], k, weight[b : b + 1, valid], backend=backend, device=device)
        count = alone.tokens.shape[1]
        assert torch.equal(found.label[b, valid], alone.label[0])
        assert bool((found.label[b, ~valid] == -1).all())
        assert_values(found.tokens[b, :count], alone.tokens[0])
        assert bool((found.tokens[b, count:] == 0).all()) and bool((found.info.sizes[b, count:] == 0).all())
        if case.clusters:
            assert found.info.n_iter[b] == alone.info.n_iter[0]
            torch.testing.assert_close(found.info.loss[b], alone.info.loss[0], rtol=1e-4, atol=1e-5)


@each_case
def test_a_mask_that_keeps_everything_is_none(case: Case, backend: str, device: torch.device) -> None:
    n = sized(16, gpu=15)
    x, k, weight, _ = make(12, 2, n, 4, 6, weighted=True)
    mask = torch.ones(2, n, dtype=torch.bool)
    plain = pool(case, x, k, weight, backend=backend, device=device)
    masked = pool(case, x, k, weight, mask, backend=backend, device=device)
    assert torch.equal(plain.label, masked.label)
    assert_values(masked.tokens, plain.tokens)


@each_case
def test_fully_masked_samples_give_zeros(case: Case, backend: str, device: torch.device) -> None:
    x, k, weight, _ = make(13, 3, 12, sized(4, gpu=5), 5, weighted=True)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1] = False
    x[1], weight[1] = torch.nan, torch.inf
    for output in ("mean", "medoid"):
        found = pool(case, x, k, weight, mask, backend=backend, device=device, output=output)
        assert bool((found.label[1] == -1).all())
        assert bool((found.tokens[1] == 0).all()) and bool((found.info.sizes[1] == 0).all())
        if case.clusters:
            assert found.info.loss[1] == 0 and found.info.n_iter[1] == 0
        assert bool(found.tokens.isfinite().all())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@each_case
def test_bad_numbers_stay_in_their_sample(case: Case, backend: str, value: float, device: torch.device) -> None:
    x, k, weight, mask = make(14, 4, 13, 4, 5, weighted=True)
    mask = torch.ones(4, 13, dtype=torch.bool)
    mask[2, [0, 4]] = False
    clean = pool(case, x, k, weight, mask, backend=backend, device=device)
    x[1, 12, 2] = value
    x[2, 1] = value
    reads_weights = case.clusters or case.method in ("topk", "importance")
    if reads_weights:
        weight[3, 5] = abs(value)
    found = pool(case, x, k, weight, mask, backend=backend, device=device)
    assert torch.equal(found.label[0], clean.label[0]) and torch.equal(found.tokens[0], clean.tokens[0])
    bad = [1, 2, 3] if reads_weights else [1, 2]
    for b in bad:
        valid = mask[b]
        n = int(valid.sum())
        assert torch.equal(found.label[b, valid], torch.arange(n) * k // n)
        assert bool((found.label[b, ~valid] == -1).all())
        if case.clusters:
            assert found.info.n_iter[b] == 0
    # Only the bad token's own cluster shows it.
    own = int(found.label[1, 12])
    others = [slot for slot in range(k) if slot != own]
    assert bool(found.tokens[1, others].isfinite().all()) and not bool(found.tokens[1, own].isfinite().all())
    assert bool(found.tokens[3].isfinite().all())


@each_clusterer
def test_medoids_of_bad_samples_are_members(case: Case, backend: str, device: torch.device) -> None:
    x, k, weight, _ = make(15, 2, 11, 4, 4, weighted=True)
    x[0, 3] = torch.nan
    found = pool(case, x, k, weight, backend=backend, device=device, output="medoid")
    assert found.label[0, found.info.medoids[0]].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("scale", [1e18, 1e25])
@each_case
def test_huge_tokens_end_in_range(case: Case, scale: float, backend: str, device: torch.device) -> None:
    """Squares of 1e18 reach float32's end, those of 1e25 pass it: clustered or split, but never out of range."""
    x, k, weight, _ = make(16, 2, 9, 3, 4, weighted=True)
    x[1] *= scale
    clean = pool(case, x[:1], k, weight[:1], backend=backend, device=device)
    found = pool(case, x, k, weight, backend=backend, device=device)
    assert torch.equal(found.label[0], clean.label[0])
    assert int(found.label.max()) < k and int(found.label.min()) >= -1
    assert torch.equal(found.label[1], canonical(found.label[1]))


@pytest.mark.parametrize("zero", [False, True])
@each_case
def test_equal_tokens(case: Case, zero: bool, backend: str, device: torch.device) -> None:
    row = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(17)) * (0 if zero else 1)
    x = row.expand(2, 13, 5)
    weight = torch.rand(2, 13, generator=torch.Generator().manual_seed(18)) + 0.1
    for w in (None, weight):
        found = pool(case, x, 4, w, backend=backend, device=device)
        for b in range(2):
            assert torch.equal(found.label[b], canonical(found.label[b]))
            live = found.info.sizes[b] > 0
            assert_values(found.tokens[b, live], row[b].expand(int(live.sum()), 5))
            assert case.method in PRUNERS or float(found.info.sizes[b].sum()) == 13
            if case.method != "kmeans":
                assert bool(live.all())
        if case.clusters:
            assert float(found.info.loss.max()) <= 1e-9


@each_clusterer
def test_weights_of_zero_are_equal_weights(case: Case, backend: str, device: torch.device) -> None:
    """What the reference does with them, start included; and the loss is 0."""
    x, k, _, _ = make(19, 2, 14, 4, 5)
    weight = torch.zeros(2, 14)
    found = pool(case, x, k, weight, backend=backend, device=device)
    options = {} if case.method == "ward" else {"init": case.init}
    for b in range(2):
        expected = getattr(reference, case.method)(x[b], k, weight[b], **options)
        assert torch.equal(found.label[b], expected.assignment)
    assert found.info.loss.tolist() == [0, 0]
    assert bool(found.tokens.isfinite().all())


@case_of_each_method
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 1, 3), (2, 5, 0)])
def test_empty_shapes(case: Case, shape: tuple[int, int, int], backend: str, device: torch.device) -> None:
    b, n, d = shape
    x = torch.ones(shape)
    weight = torch.ones(b, n)
    for output in sized(("mean", "medoid"), gpu=("mean",)):
        found = pool(case, x, 2, weight, backend=backend, device=device, output=output)
        width = min(2, n)
        assert found.tokens.shape == (b, width, d)
        assert found.label.shape == (b, n) and found.info.sizes.shape == (b, width)
        if found.label.numel():
            assert 0 <= int(found.label.max()) < width
        if case.clusters:
            assert found.info.n_iter.shape == found.info.loss.shape == (b,)


ONE_MORE = interpreter_marks("another form of the kernel to compile")


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=ONE_MORE)])
def test_a_cluster_of_tokens_without_size_has_none(backend: str, device: torch.device) -> None:
    x = torch.tensor([0.0, 0.1, 0.2, 10.0, 10.1, 10.2], device=device)[None, :, None]
    sizes = torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0, 0.0]], device=device)
    pool = TokenPool(2, "kmeans", num_prefix_tokens=0, backend=backend)
    tokens, pooled = pool(x, sizes=sizes)
    assert pooled.tolist() == [[6.0, 0.0]]
    # Its members count equally.
    torch.testing.assert_close(tokens.cpu()[0, 1], torch.tensor([10.1]))
