"""The streaming kernels, in tiles so small that few tokens make many: the torch twin, the reference, and the rules."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import CUDA, DEVICE, FOR_GPU, KERNELS, sized
from strategies import LAYOUTS, Problem, laid_out, make, problems, starts
from test_agreement import assert_chain
from test_launch import alone
from tolerances import assert_same_labels, assert_values, assignment_regret, regret_limit
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tpkernels import Clusters
from tpkernels.ops import cluster
from tpkernels.ops.cluster_mean import mean_backward_torch
from tpkernels.ops.eager.means import cluster_mean
from tpkernels.ops.eager.primitives import EAGER
from tpkernels.ops.gpu import means, streaming
from tpkernels.ops.gpu.limits import Limits
from tpkernels.ops.problem import Spec, Tensors

pytestmark = KERNELS
METHODS = ("kmeans", "kmedoids")
NAMES = {
    "means": ("chunk_mean_kernel", "segment_mean_kernel"),
    "halves": ("split_tokens_kernel",),
    "assign": ("assign_kernel",),
    "medoids": ("member_cost_kernel", "medoid_kernel", "medoid_centres_kernel"),
    "means_backward": ("cluster_mean_backward_kernel",),
}
FEW = settings(max_examples=6)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 places, tiles of 32 tokens and 16 centres: all loops go round, all remainders show."""
    monkeypatch.setattr(means, "CHUNK", 16)
    for tiles in ("SMALL_TILES", "LARGE_TILES"):
        monkeypatch.setattr(streaming, tiles, ((32, 16, 4, 2), (16, 16, 4, 1)))


class Found(NamedTuple):
    tokens: Tensor
    source: Tensor
    label: Tensor
    medoids: Tensor
    loss: Tensor
    n_iter: Tensor
    heights: Tensor
    total: Tensor


def run(
    x: Tensor,
    k: int,
    method: str,
    output: str = "center",
    init: str | Tensor = "strided",
    max_iter: int = 3,
    weight: Tensor | None = None,
    pool_weight: Tensor | None = None,
    mask: Tensor | None = None,
    twin: bool = False,
) -> Found:
    """The streaming kernels, or their torch twin, on the device; the results on the CPU."""
    there = [None if t is None else t.to(DEVICE) for t in (weight, pool_weight, mask)]
    start = init.to(DEVICE) if isinstance(init, Tensor) else None
    name = "given" if isinstance(init, Tensor) else init
    here = x if x.device.type == DEVICE else x.to(DEVICE)
    spec = Spec(min(k, x.shape[1]), method, name, output, max_iter)
    found = cluster.run(Tensors(here, *there, start), spec, EAGER if twin else streaming.STREAMING)
    return Found(*(field.cpu() for field in found))


def assert_same(one: Found, two: Found, samples: slice | list[int] = slice(None)) -> None:
    """Bitwise equality, of some samples only."""
    for name, a, b in zip(Found._fields, one, two, strict=True):
        assert torch.allclose(a[samples], b[samples], rtol=0, atol=0, equal_nan=True), name


def assert_alike(one: Found, two: Found, x: Tensor, weight: Tensor) -> None:
    """What two kernels make of a problem: the same bits in the interpreter, the same up to ties on a GPU."""
    if not CUDA:
        assert_same(one, two)
        return
    same = assert_same_labels(one.label, two.label, x, weight)
    for name in ("source", "medoids"):
        assert torch.equal(getattr(one, name)[same], getattr(two, name)[same]), name
    assert_values(one.tokens[same], two.tokens[same])
    assert_values(one.total[same], two.total[same])


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
    same = assert_same_labels(found.label, twin.label, x, weight)
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


def assert_total(total: Tensor, source: Tensor, weight: Tensor | None) -> None:
    """The sums of the members' weights; minus their number where these are 0; 0 without members."""
    b, k = total.shape
    for sample in range(b):
        for slot in range(k):
            members = source[sample] == slot
            count, mass = int(members.sum()), 0.0
            if count:
                mass = count if weight is None else float(weight[sample, members].double().sum())
            expected = mass if mass > 0 else -count
            assert abs(float(total[sample, slot]) - expected) <= 1e-5 * abs(expected)


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
    same = assert_same_labels(found.label, twin.label, x, weight)
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
        states.append(Clusters(found.label, found.tokens, medoids, found.loss, found.n_iter))
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
        assert torch.equal(found.label, twin.label) and torch.equal(found.medoids, twin.medoids)
        if method == "kmedoids":
            assert torch.equal(found.label.gather(1, found.medoids), torch.arange(18).expand(2, 18))
    everywhere = run(torch.ones(1, 40, 3), 3, method, init=torch.tensor([[5, 9, 30]]), max_iter=2)
    others = torch.ones(40, dtype=torch.bool)
    others[[9, 30]] = method == "kmeans"
    assert everywhere.label[0, others].eq(0).all() and everywhere.loss.item() == 0


def test_an_emptied_cluster_keeps_its_centre() -> None:
    """Tokens 0 to 2 are equal: the second start loses its only member to the first, and nothing comes near again."""
    x = torch.tensor([[4.0, 0], [4, 0], [4, 0], [-4, 1], [-5, 1], [-4, 2], [-6, 0]])[None]
    start = torch.tensor([[0, 1, 3]])
    found = run(x, 3, "kmeans", init=start, max_iter=4)
    assert found.label.tolist() == [[0, 0, 0, 1, 1, 1, 1]] and found.total.tolist() == [[3, 4, 0]]
    assert_values(found.tokens[0], torch.tensor([[4, 0], [-19 / 4, 1], [4, 0]]))
    assert run(x, 3, "kmeans", "mean", start).tokens[0, 2].tolist() == [0, 0]
    # A centre without members that comes to be the nearest has members again.
    x[0, 2, 0] = 5
    again = run(x, 3, "kmeans", init=start, max_iter=4)
    assert again.label.tolist() == [[0, 0, 1, 2, 2, 2, 2]] and again.total.tolist() == [[2, 1, 4]]


@pytest.mark.parametrize("method", METHODS)
def test_weights_count_by_their_ratio(method: str) -> None:
    x, k, weight, _ = make(5, 2, 40, sized(6, gpu=7), 8, weighted=True)
    plain = run(x, k, method)
    for equal in (torch.zeros(2, 40), torch.full((2, 40), 1e30), torch.full((2, 40), 1e-30)):
        assert_same_labels(run(x, k, method, weight=equal).label, plain.label, x)
    expected = run(x, k, method, init="topk", weight=weight, pool_weight=weight)
    scaled = run(x, k, method, init="topk", weight=weight * 2.0**100, pool_weight=weight * 2.0**100)
    assert torch.equal(scaled.label, expected.label) and torch.equal(scaled.n_iter, expected.n_iter)
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
    assert torch.equal(found.label[1:3], split.expand(2, 50)) and found.n_iter[1:3].tolist() == [0, 0]
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
    same = assert_same_labels(found.label[:1, there], short.label, x[:1, there])
    assert found.label[0, ~there].eq(-1).all()
    assert_values(found.tokens[same], short.tokens[same])
    assert found.label[1].eq(-1).all() and found.tokens[1].eq(0).all() and found.total[1].eq(0).all()


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
    assert_same_labels(ward.label, twin.label, x)
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
        assert_same_labels(found.label, plain.label, x)
        assert CUDA or torch.equal(found.n_iter, plain.n_iter)
        assert assignment_regret(other[0], found.tokens[0], found.label[0]) <= 1e-2 * regret_limit(other[0])


@pytest.mark.parametrize("method", METHODS)
def test_halves_hold_what_float32_does(method: str) -> None:
    """Two centres a 2^-12 apart, which one float16 would hold for one: tokens on both sides tell them apart."""
    x = torch.randn(1, 34, 5, generator=torch.Generator().manual_seed(0))
    x[0, :, 0] = torch.where(torch.arange(34) % 2 == 0, 3.0, -3.0)
    x[0, :2] = torch.tensor([1.0, 0.5, 0.25, 0.125, 0])
    x[0, :2, 0] += torch.tensor([-(2.0**-13), 2.0**-13])
    assert x[0, 0].half().equal(x[0, 1].half())
    found = run(x, 2, method, init=torch.tensor([[0, 1]]), max_iter=0)
    right, left = found.label[0, 2:4]
    assert right != left and torch.equal(found.label[0, 2:], torch.stack([right, left]).repeat(16))
    # The centres themselves are nearer to each other than float32 can tell; a token on the wrong side costs 2^-10.
    centers = found.tokens[0]
    assert assignment_regret(x[0], centers, found.label[0]) <= 2.0**-23
    # And two tokens as near to each other, on both sides of the middle between two centres.
    x[0, :2, 1:] = 0
    x[0, :2, 0] = torch.tensor([2.25, 0.25])
    x[0, 2:, 1:] = 0
    x[0, 2:, 0] = torch.where(torch.arange(32) % 2 == 0, 1.25 + 2.0**-15, 1.25 - 2.0**-15)
    x[0, 2:18] *= -1
    found = run(x, 2, method, init=torch.tensor([[0, 1]]), max_iter=0)
    assert found.label[0, 18:].tolist() == [0, 1] * 8
    assert assignment_regret(x[0], found.tokens[0], found.label[0]) <= 2.0**-23


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
    assert_alike(Found(*(field.cpu() for field in found)), expected, x, weight)


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
        for name, one, two in zip(Found._fields[:-1], found, twin, strict=False):
            assert one.shape == two.shape and one.dtype == two.dtype, name
            assert_values(one.float(), two.float())
        assert found.total.shape == (b, k) and found.total.dtype == torch.float32


class Spy:
    """Stands in for a kernel and keeps its grids; runs it outside the modes of a test, or not at all."""

    def __init__(self, kernel: Any, launches: list[tuple[str, tuple]], runs: bool) -> None:
        self.kernel, self.launches, self.runs = kernel, launches, runs

    def __getitem__(self, grid: tuple) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            self.launches.append((self.kernel.__name__, grid))
            if self.runs:
                with _disable_current_modes():
                    self.kernel[grid](*args, **kwargs)

        return call


def spy(monkeypatch: pytest.MonkeyPatch, runs: bool) -> list[tuple[str, tuple]]:
    launches: list[tuple[str, tuple]] = []
    for module, names in NAMES.items():
        kernels = importlib.import_module(f"tpkernels.kernels.streaming.{module}")
        for name in names:
            monkeypatch.setattr(kernels, name, Spy(getattr(kernels, name), launches, runs))
    return launches


class Operations(TorchDispatchMode):
    """Keeps the names of all operations, and the elements and bytes of the largest tensor that one made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.largest = max(self.largest, one.untyped_storage().nbytes() // one.element_size())
                self.bytes = max(self.bytes, one.untyped_storage().nbytes())
        return out


def counted(method: str, b: int, n: int, d: int, k: int, max_iter: int, launches: list) -> tuple[list, Operations]:
    launches.clear()
    x, weight = torch.zeros(b, n, d, device=DEVICE), torch.ones(b, n, device=DEVICE)
    with Operations() as seen:
        spec = Spec(k, method, "strided", "center", max_iter)
        cluster.run(Tensors(x, weight, weight, weight > 0), spec, streaming.STREAMING)
    return list(launches), seen


@pytest.mark.parametrize("method", METHODS)
def test_an_iteration_is_a_fixed_number_of_launches(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = spy(monkeypatch, runs=False)
    per_iteration = set()
    for shape in ((1, 300, 5, 7), (3, 1000, 40, 200), (2, 4096, 200, 2048)):
        (two, before), (three, after) = (counted(method, *shape, turns, launches) for turns in (2, 3))
        assert all(len(grid) == 1 for _, grid in three)
        names = [name for name, _ in three]
        per_iteration.add((len(three) - len(two), len(after.names) - len(before.names), names.count("assign_kernel")))
        # Nothing asks the device what it found.
        assert not {"_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero"} & set(after.names)
    assert len(per_iteration) == 1
    ((kernels, operations, assigned),) = per_iteration
    assert kernels == (6 if method == "kmedoids" else 3) and assigned == 4
    assert 0 < operations <= 20


@pytest.mark.parametrize("method", METHODS)
def test_memory_is_of_the_size_of_tokens_and_centres(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = spy(monkeypatch, runs=False)
    n, d, k = 4096, 16, 1024
    for b in (1, 3):
        _, seen = counted(method, b, n, d, k, 2, launches)
        # Both halves of the tokens are one tensor; a sort's places take 8 bytes.
        assert seen.largest <= 2 * b * n * d < b * n * k
        assert seen.bytes <= b * n * d * 4


def test_backward_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = spy(monkeypatch, runs=True)
    x, label = torch.randn(2, 70, 5, device=DEVICE), torch.arange(70, device=DEVICE).expand(2, 70) % 4
    weight = torch.rand(2, 70, device=DEVICE)
    mean, total = means.cluster_mean(x, label, 4, weight)
    assert [name for name, _ in launches] == ["chunk_mean_kernel", "segment_mean_kernel"]
    launches.clear()
    means.cluster_mean_backward(torch.ones_like(mean), label, x, mean, weight, total)
    assert [name for name, _ in launches] == ["cluster_mean_backward_kernel"]


def labels(generator: torch.Generator, b: int, n: int, k: int, kind: str) -> Tensor:
    """Labels with -1 among them: even, one cluster with nearly all of the tokens, or pairs."""
    if kind == "skewed":
        return torch.where(torch.rand(b, n, generator=generator) < 0.9, k // 2, torch.randint(-1, k, (b, n)))
    if kind == "pairs":
        return torch.stack([torch.randperm(n, generator=generator) for _ in range(b)]) // 2 % k
    return torch.randint(-1, k, (b, n), generator=generator)


@pytest.mark.parametrize("weights", [None, "rand", "zeros", "huge"])
@settings(max_examples=3)
@given(
    seed=st.integers(0, 99),
    kind=st.sampled_from(["even", "skewed", "pairs"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_means_and_gradients_are_the_twins(seed: int, kind: str, weights: str | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    b, n, d = 2, 30 + seed, 1 + seed % 40
    k = n // 2 if kind == "pairs" else 1 + seed % 9
    if FOR_GPU:
        # Few kernels: clusters of two or of many, and one width for each type.
        dtype = torch.bfloat16 if weights == "rand" else torch.float32
        n, d = 31 + 4 * (seed % 25), 37 if dtype == torch.float32 else 5
        k = n // 2 if kind == "pairs" else 2 + seed % 2
    label = labels(generator, b, n, k, kind)
    x = torch.randn(b, n, d, generator=generator).to(dtype)
    up = torch.randn(b, k, d, generator=generator).to(dtype)
    weight = None if weights is None else torch.rand(b, n, generator=generator)
    if weights == "zeros":
        weight[:, ::2] = 0
        weight[label == 0] = 0
    if weights == "huge":
        weight *= 1e30
    wants = weight is not None
    mean, total = means.cluster_mean(x.to(DEVICE), label.to(DEVICE), k, weight if weight is None else weight.to(DEVICE))
    assert_values(mean.cpu(), cluster_mean(x.double(), label, k, None if weight is None else weight.double()).to(dtype))
    assert_total(total.cpu(), label, weight)
    # Gradients arrive with any strides, all equal among them.
    up = up.to(DEVICE)
    for grad in (up, up.mT.contiguous().mT, up[:, :1, :1].expand(b, k, d)):
        inputs = (x, mean.cpu(), weight) if wants else (None, None, weight)
        expected = mean_backward_torch(grad.cpu().contiguous(), label, *inputs)
        there = (None if t is None else t.to(DEVICE) for t in (label, *inputs))
        found = means.cluster_mean_backward(grad, *there, total)
        assert_values(found[0].cpu(), expected[0])
        assert found[1].shape == expected[1].shape
        assert_values(
            found[1].cpu() * (1e30 if weights == "huge" else 1), expected[1] * (1e30 if weights == "huge" else 1)
        )


def test_a_bad_number_stays_in_its_cluster(poisoned: None) -> None:
    x = torch.ones(2, 90, 5)
    label = torch.arange(90).expand(2, 90) // 30
    x[0, 47, 2] = torch.nan
    x[1, 3, 4] = torch.inf
    mean, _ = means.cluster_mean(x.to(DEVICE), label.to(DEVICE), 4, None)
    expected = torch.ones(2, 4, 5)
    expected[:, 3] = 0
    expected[0, 1, 2], expected[1, 0, 4] = torch.nan, torch.inf
    assert torch.allclose(mean.cpu(), expected, rtol=1e-6, atol=0, equal_nan=True)


def test_sums_do_not_depend_on_the_batch() -> None:
    """Bit for bit: chunks begin where samples do."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 101, 6, generator=generator), torch.rand(3, 101, generator=generator)
    label = labels(generator, 3, 101, 5, "skewed")
    x, weight, label = x.to(DEVICE), weight.to(DEVICE), label.to(DEVICE)
    whole = means.cluster_mean(x, label, 5, weight)
    for b in range(3):
        one, total = means.cluster_mean(alone(x, b), alone(label, b), 5, alone(weight, b))
        assert torch.equal(one[0], whole[0][b]) and torch.equal(total[0], whole[1][b])


def test_tiles_fit_every_device() -> None:
    for shared, warp in ((64, 64), (64, 32), (99, 32), (163, 32), (227, 32)):
        limits = Limits(100, shared << 10, 4 << 20, warp)
        for d in (1, 17, 64, 65, 128, 129, 768, 2048):
            for n, k in ((16, 1), (1000, 16), (131072, 16384)):
                found = streaming.assign_config(4, n, k, d, limits)
                width, step = streaming.padded_width(d), found["BD"]
                assert width >= d and width % step == 0 and found["HOLD"] == (width == step)
                held = 4 * step * (found["BN"] if found["HOLD"] and shared > 200 else 0)
                assert held + 4 * step * found["BK"] <= shared << 10
                assert min(found["BN"], found["BK"]) >= 16
