"""The streaming kernels' clusters: the torch twin, the reference, and the rules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.chain import assert_chain
from tests.support.marks import CUDA, DEVICE, KERNELS, sized
from tests.support.strategies import LAYOUTS, Problem, laid_out, make, problems, starts
from tests.support.streaming import FEW, METHODS, assert_alike, assert_same, assert_total, run
from tests.support.tolerances import assert_same_labels, assert_values, assignment_regret, regret_limit
from tpkernels import Clusters
from tpkernels.ops import cluster
from tpkernels.ops.gpu import means, streaming
from tpkernels.ops.problem import Results, Spec, Tensors

pytestmark = KERNELS


CALLS = [
    (method, output, init, *flags)
    for method in METHODS
    for output, init, flags in (
        ("center", "topk", ("weighted", "pool_weighted")),
        ("mean", "farthest", ("masked", "pool_weighted")),
        ("medoid", "strided", ("weighted", "masked")),
    )
]


@pytest.mark.parametrize("call", CALLS, ids="-".join)
def test_the_twin_gives_the_same(call: tuple[str, ...], poisoned: None) -> None:
    method, output, init, *flags = call
    x, k, weight, mask = make(7, 3, 50, sized(19, gpu=13), 9, weighted="weighted" in flags, masked="masked" in flags)
    pool_weight = torch.rand(3, 50, generator=torch.Generator().manual_seed(1)) if "pool_weighted" in flags else None
    # A bad number that shows, and a sample with fewer tokens than clusters.
    x[1, 5 if mask is None else int(mask[1].nonzero()[2]), 3] = torch.inf
    if mask is not None:
        mask[2, 6:] = False
    options = {"weight": weight, "pool_weight": pool_weight, "mask": mask}
    found = run(x, k, method, output, init, **options)
    twin = run(x, k, method, output, init, twin=True, **options)
    same = assert_same_labels(found.assignment, twin.assignment, x, weight)
    assert 1 in same, "a sample with a bad number is split in order"
    for name in ("source", "medoids") if CUDA else ("source", "medoids", "n_iter"):
        assert torch.equal(getattr(found, name)[same], getattr(twin, name)[same]), name
    assert found.tokens.dtype == twin.tokens.dtype and found.loss.dtype == twin.loss.dtype
    good = [b for b in same if b != 1]
    assert_values(found.tokens[good], twin.tokens[good])
    assert torch.equal(found.tokens[1].isfinite(), twin.tokens[1].isfinite())
    if output == "center":
        assert_values(found.loss[good], twin.loss[good])
    w = pool_weight if output == "mean" or (method, output) == ("kmeans", "center") else None
    assert_total(found.total, found.source, w)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_half_types_compute_in_float32(method: str, dtype: torch.dtype) -> None:
    # On a GPU each method in one type: another is another kernel of the same lines.
    dtype = sized(dtype, gpu={"kmeans": torch.float16, "kmedoids": torch.bfloat16}[method])
    # More channels than are held: several steps, several parts of the norms.
    x, k, weight, _ = make(3, 2, 40, 150, 7, weighted=True)
    x, weight = x.to(dtype), weight.to(dtype)
    found, twin = (run(x, k, method, "mean", weight=weight, pool_weight=weight, twin=twin) for twin in (False, True))
    assert found.tokens.dtype == dtype
    same = assert_same_labels(found.assignment, twin.assignment, x, weight)
    assert CUDA or torch.equal(found.n_iter, twin.n_iter)
    assert_values(found.tokens[same], twin.tokens[same])


@FEW
@given(problem=problems(max_n=20, masks=False, layouts=False), method=st.sampled_from(METHODS))
def test_every_step_follows_from_the_one_before(problem: Problem, method: str) -> None:
    """By regret, against the reference's equations: ties may fall either way."""
    start = starts(problem, 1)
    states = []
    for max_iter in range(3):
        w = problem.weight
        found = run(problem.x, problem.k, method, init=start, max_iter=max_iter, weight=w, pool_weight=w)
        medoids = found.medoids if method == "kmedoids" else None
        states.append(Clusters(found.assignment, found.tokens, medoids, found.loss, found.n_iter))
    for b in range(len(problem.x)):
        assert_chain(problem, start, states, b)


@pytest.mark.parametrize("method", METHODS)
def test_the_lowest_index_wins_ties(method: str) -> None:
    """Small integers without a mean: all distances are exact, and many are equal."""
    half = torch.randint(-2, 3, (2, 20, 3), generator=torch.Generator().manual_seed(0)).float()
    x = torch.cat([half, -half], 1)
    start = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(b))[:18] for b in range(2)])
    assert all(len(sample[index].unique(dim=0)) < 18 for sample, index in zip(x, start, strict=True))
    for max_iter in (0, 1):
        found, twin = (run(x, 18, method, init=start, max_iter=max_iter, twin=twin) for twin in (False, True))
        assert torch.equal(found.assignment, twin.assignment) and torch.equal(found.medoids, twin.medoids)
        if method == "kmedoids":
            assert torch.equal(found.assignment.gather(1, found.medoids), torch.arange(18).expand(2, 18))
    # More members by center are another kernel on a GPU.
    center, *later = sized((5, 9, 30), gpu=(5, 9, 20, 30, 31))
    everywhere = run(torch.ones(1, 40, 3), 1 + len(later), method, init=torch.tensor([[center, *later]]), max_iter=2)
    others = torch.ones(40, dtype=torch.bool)
    others[later] = method == "kmeans"
    assert everywhere.assignment[0, others].eq(0).all() and everywhere.loss.item() == 0


def test_an_emptied_cluster_keeps_its_center() -> None:
    """Tokens 0 to 2 are equal: the second start loses its only member to the first, and nothing comes near again."""
    x = torch.tensor([[4.0, 0], [4, 0], [4, 0], [-4, 1], [-5, 1], [-4, 2], [-6, 0]])[None]
    start = torch.tensor([[0, 1, 3]])
    found = run(x, 3, "kmeans", init=start, max_iter=4)
    assert found.assignment.tolist() == [[0, 0, 0, 1, 1, 1, 1]] and found.total.tolist() == [[3, 4, 0]]
    assert_values(found.tokens[0], torch.tensor([[4, 0], [-19 / 4, 1], [4, 0]]))
    assert run(x, 3, "kmeans", "mean", start).tokens[0, 2].tolist() == [0, 0]
    # A center without members that comes to be the nearest has members again.
    x[0, 2, 0] = 5
    again = run(x, 3, "kmeans", init=start, max_iter=4)
    assert again.assignment.tolist() == [[0, 0, 1, 2, 2, 2, 2]] and again.total.tolist() == [[2, 1, 4]]


@pytest.mark.parametrize("method", METHODS)
def test_weights_count_by_their_ratio(method: str) -> None:
    x, k, weight, _ = make(5, 2, 40, sized(6, gpu=7), 8, weighted=True)
    plain = run(x, k, method)
    for equal in (torch.zeros(2, 40), torch.full((2, 40), 1e30), torch.full((2, 40), 1e-30)):
        assert_same_labels(run(x, k, method, weight=equal).assignment, plain.assignment, x)
    expected = run(x, k, method, init="topk", weight=weight, pool_weight=weight)
    scaled = run(x, k, method, init="topk", weight=weight * 2.0**100, pool_weight=weight * 2.0**100)
    assert torch.equal(scaled.assignment, expected.assignment) and torch.equal(scaled.n_iter, expected.n_iter)
    assert_values(scaled.tokens, expected.tokens)


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_is_alone(method: str) -> None:
    """NaN, Inf, masks and neighbours that need more turns change nothing in other samples, to the last bit."""
    x, k, weight, _ = make(11, 4, 50, 7, sized(6, gpu=8), weighted=True)
    x[3] = torch.cat([torch.zeros(25, 7), torch.ones(25, 7)])
    bad = x.clone()
    bad[1, 17, 2] = torch.nan
    bad_weight = weight.clone()
    bad_weight[2, 4] = torch.inf
    mask = torch.ones(4, 50, dtype=torch.bool)
    options = {"weight": weight, "pool_weight": weight}
    expected = run(x, k, method, **options, mask=mask)
    found = run(bad, k, method, weight=bad_weight, pool_weight=weight, mask=mask)
    assert_same(found, expected, [0, 3])
    split = torch.arange(50) * k // 50
    assert torch.equal(found.assignment[1:3], split.expand(2, 50)) and found.n_iter[1:3].tolist() == [0, 0]
    assert found.loss[1].isnan() and found.tokens[1, 3:].isfinite().all()
    # On a GPU a mask is another kernel.
    alone = {"weight": weight[:1], "pool_weight": weight[:1], "mask": sized(None, gpu=mask[:1])}
    assert_same(run(x[:1], k, method, **alone), expected, [0])
    # One stood still long before the other.
    assert len(expected.n_iter.unique()) > 1


@pytest.mark.parametrize("method", METHODS)
def test_masked_tokens_are_not_there(method: str) -> None:
    x, k, _, mask = make(2, 2, 45, 5, 6, masked=True)
    mask[1] = False
    found = run(x, k, method, init="farthest", mask=mask)
    there = mask[0]
    short = run(x[:1, there], k, method, init="farthest")
    same = assert_same_labels(found.assignment[:1, there], short.assignment, x[:1, there])
    assert found.assignment[0, ~there].eq(-1).all()
    assert_values(found.tokens[same], short.tokens[same])
    assert found.assignment[1].eq(-1).all() and found.tokens[1].eq(0).all() and found.total[1].eq(0).all()


@pytest.mark.parametrize("method", METHODS)
def test_standing_still_ends_a_sample(method: str) -> None:
    d = sized(4, gpu=5)
    x, k, _, _ = make(4, 3, 40, d, 5)
    x[0] = torch.arange(5).repeat(8)[:, None] * 10.0 + torch.zeros(d)
    start = torch.arange(5).expand(3, 5)
    short, long = (run(x, k, method, init=start, max_iter=turns) for turns in (8, 12))
    assert short.n_iter[0] == 1 and short.n_iter.max() < 8
    assert_same(short, long)
    # A start that the first assignment does not change: its update counts all the same.
    ward, twin = (run(x, k, method, init="ward", max_iter=4, twin=twin) for twin in (False, True))
    assert ward.n_iter[0] == 1 and (CUDA or torch.equal(ward.n_iter, twin.n_iter))
    assert_same_labels(ward.assignment, twin.assignment, x)
    none = run(x, k, method, init=start, max_iter=0)
    assert none.n_iter.eq(0).all()
    assert torch.equal(none.tokens, x.gather(1, start[..., None].expand(3, 5, d)))


@pytest.mark.parametrize("method", METHODS)
def test_offsets_and_scales_change_nothing(method: str) -> None:
    """Multiples of 1/16 below 4: moved by hundreds and scaled by powers of two they are still the same numbers."""
    x = torch.randint(-63, 64, (1, *sized((48, 20), gpu=(47, 13))), generator=torch.Generator().manual_seed(0)) / 16
    plain = run(x, 7, method)
    moved = x.clone()
    moved[..., 3] += 100
    moved[..., 11] -= 1000
    for other in (moved, x * 2.0**40, x * 2.0**-40):
        found = run(other, 7, method)
        assert_same_labels(found.assignment, plain.assignment, x)
        assert CUDA or torch.equal(found.n_iter, plain.n_iter)
        assert assignment_regret(other[0], found.tokens[0], found.assignment[0]) <= 1e-2 * regret_limit(other[0])


@pytest.mark.parametrize("method", METHODS)
def test_halves_hold_what_float32_does(method: str) -> None:
    """Two centers a 2^-12 apart, which one float16 would hold for one: tokens on both sides tell them apart."""
    x = torch.randn(1, 34, 5, generator=torch.Generator().manual_seed(0))
    x[0, :, 0] = torch.where(torch.arange(34) % 2 == 0, 3.0, -3.0)
    x[0, :2] = torch.tensor([1.0, 0.5, 0.25, 0.125, 0])
    x[0, :2, 0] += torch.tensor([-(2.0**-13), 2.0**-13])
    assert x[0, 0].half().equal(x[0, 1].half())
    found = run(x, 2, method, init=torch.tensor([[0, 1]]), max_iter=0)
    right, left = found.assignment[0, 2:4]
    assert right != left and torch.equal(found.assignment[0, 2:], torch.stack([right, left]).repeat(16))
    # The centers themselves are nearer to each other than float32 can tell; a token on the wrong side costs 2^-10.
    centers = found.tokens[0]
    assert assignment_regret(x[0], centers, found.assignment[0]) <= 2.0**-23
    # And two tokens as near to each other, on both sides of the middle between two centers.
    x[0, :2, 1:] = 0
    x[0, :2, 0] = torch.tensor([2.25, 0.25])
    x[0, 2:, 1:] = 0
    x[0, 2:, 0] = torch.where(torch.arange(32) % 2 == 0, 1.25 + 2.0**-15, 1.25 - 2.0**-15)
    x[0, 2:18] *= -1
    found = run(x, 2, method, init=torch.tensor([[0, 1]]), max_iter=0)
    assert found.assignment[0, 18:].tolist() == [0, 1] * 8
    assert assignment_regret(x[0], found.tokens[0], found.assignment[0]) <= 2.0**-23


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_strides_change_nothing(layout: str) -> None:
    # Rows of 16 bytes: a token further on is another token, not another kernel.
    x, k, weight, mask = make(9, 2, sized(35, gpu=34), sized(6, gpu=4), 5, weighted=True, masked=True)
    wide = torch.stack([weight, weight], 2).to(DEVICE)[..., 0]
    expected = run(x, k, "kmedoids", "mean", weight=weight, pool_weight=weight, mask=mask)
    twice = torch.stack([mask, ~mask], 2).to(DEVICE)[..., 0]
    there = laid_out(x.to(DEVICE), layout)
    tensors, spec = Tensors(there, wide, wide, twice), Spec(k, "kmedoids", "strided", "mean", 3)
    found = cluster.run(tensors, spec, streaming.STREAMING)
    assert_alike(Results(*(field.cpu() for field in found)), expected, x, weight)


def test_wide_keys_sort_as_narrow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys past 2^31 take 64 bits."""
    assert means.first_keys(2**10, 2**21 - 1, torch.device("meta")).dtype == torch.int64
    assert means.first_keys(2**10, 2**21 - 2, torch.device("meta")).dtype == torch.int32
    x, k, weight, _ = make(6, 2, 40, 5, 6, weighted=True)
    narrow = run(x, k, "kmedoids", "mean", weight=weight)
    first_keys = means.first_keys
    monkeypatch.setattr(means, "first_keys", lambda *arguments: first_keys(*arguments).long())
    assert_alike(run(x, k, "kmedoids", "mean", weight=weight), narrow, x, weight)


@pytest.mark.parametrize(("b", "n", "k"), [(0, 9, 4), (2, 0, 0), (2, 1, 1), (2, 6, 6), (1, 33, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_the_smallest_and_the_emptiest(b: int, n: int, k: int, method: str) -> None:
    x = torch.randn(b, n, 3, generator=torch.Generator().manual_seed(0))
    for output in ("center", "medoid"):
        found, twin = (run(x, k, method, output, twin=twin) for twin in (False, True))
        for name, one, two in zip(Results._fields, found, twin, strict=True):
            if name == "total":
                continue
            assert one.shape == two.shape and one.dtype == two.dtype, name
            assert_values(one.float(), two.float())
        assert found.total.shape == (b, k) and found.total.dtype == torch.float32
