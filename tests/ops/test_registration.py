"""The operations as PyTorch sees them: opcheck, and `torch.compile` without graph breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import tpkernels
from tests.support.marks import DEVICE, FOR_GPU, KERNELS, interpreter_marks, runs_triton, sized
from tpkernels import TokenPool
from tpkernels.ops.cluster_mean import cluster_mean_backward

cluster, cluster_mean = torch.ops.tpkernels.cluster.default, torch.ops.tpkernels.cluster_mean.default
linkage = torch.ops.tpkernels.linkage.default

BACKENDS = ["torch", pytest.param("triton", marks=KERNELS)]
# How PyTorch sees further arguments does not depend on where a kernel runs.
HERE = ["torch", pytest.param("triton", marks=interpreter_marks("another kernel to compile"))]
CLUSTERERS = ("ward", "kmeans", "kmedoids")
QUICK_METHODS, OTHERS = (*CLUSTERERS, "topk", "bipartite"), ("importance", "random", "grid")
# Ahead-of-time autograd is checked on few: it traces forward and backward under fake tensors once more.
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.fixture(autouse=True)
def cold_cache() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def draw_weight(*shape: int, seed: int = 1) -> Tensor:
    return draw(*shape, seed=seed).abs() + 0.1


def mask_of(b: int, n: int) -> Tensor:
    return torch.arange(n, device=DEVICE).expand(b, n) < n - 2 * torch.arange(b, device=DEVICE)[:, None]


def operands(dtype: torch.dtype, *, strided: bool = False, grad: bool = False) -> dict[str, Tensor]:
    # A view that begins within 16 bytes is another kernel's on a GPU.
    first = sized(1, gpu=0)
    x = draw(2, 8, 3, dtype=dtype)[:, first : first + 7] if strided else draw(2, 7, 3, dtype=dtype)
    # Weights with strides are another kernel, too.
    w = draw_weight(2, 14)[:, ::2] if strided and not FOR_GPU else draw_weight(2, 7)
    x, w = x.requires_grad_(grad), w.requires_grad_(grad)
    return {
        "x": x,
        "weight": w,
        "mask": mask_of(2, 7),
        "label": torch.tensor([[0, 2, 0, -1, 2, 2, 0]] * 2, device=DEVICE),
    }


CLUSTER_CALLS = [
    (method, output, init, flags)
    for method, output, init, flags in (
        ("ward", "center", "ward", ""),
        ("ward", "mean", "ward", "weight pool mask"),
        ("ward", "medoid", "ward", "weight"),
        ("kmeans", "center", "topk", "weight pool"),
        ("kmeans", "center", "ward", ""),
        ("kmeans", "mean", "given", "mask"),
        ("kmeans", "medoid", "strided", "pool mask"),
        ("kmedoids", "center", "topk", "weight pool mask"),
        ("kmedoids", "mean", "farthest", "pool"),
        ("kmedoids", "medoid", "given", ""),
    )
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("call", CLUSTER_CALLS, ids=lambda call: "-".join(call[:3]))
def test_opcheck_cluster(call: tuple[str, str, str, str], backend: str) -> None:
    method, output, init, flags = call
    other = torch.float16 if backend == "triton" else (torch.float64, torch.bfloat16)[CLUSTER_CALLS.index(call) % 2]
    # On a GPU a type is another kernel, and nothing of it shows in what is checked here.
    for dtype, grad, strided in ((torch.float32, True, False), (sized(other, gpu=torch.float32), False, True)):
        given = operands(dtype, strided=strided, grad=grad)
        start = torch.tensor([[4, 1, 2], [0, 3, 1]], device=DEVICE) if init == "given" else None
        arguments = (
            given["x"],
            given["weight"].detach() if "weight" in flags else None,
            given["weight"] if "pool" in flags else None,
            given["mask"] if "mask" in flags else None,
            start,
            3,
            method,
            init,
            output,
            2,
            backend,
        )
        torch.library.opcheck(cluster, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(0, 7, 3), (2, 1, 5), (2, 7, 9)], ids=["no-samples", "one-token", "k-above-n"])
def test_opcheck_cluster_at_the_edges(sizes: tuple[int, int, int], backend: str) -> None:
    b, n, k = sizes
    for method in CLUSTERERS:
        init = sized("topk", gpu="ward") if method != "ward" else "ward"
        for output in ("center", "medoid"):
            arguments = (draw(b, n, 3), None, None, None, None, k, method, init, output, 2, backend)
            torch.library.opcheck(cluster, arguments, test_utils=("test_schema", "test_faketensor"))


# Further arguments of the operation: swaps, counts, metric, cut, bound.
FURTHER = [
    ("ward", "counts", "euclidean", "count", 0.0),
    ("ward", "counts", "cosine", "distance", 0.9),
    ("kmeans", "counts", "euclidean", "error", 0.4),
    ("kmedoids", "counts", "euclidean", "count", 0.0),
    ("ward", "", "dot", "count", 0.0),
]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("further", FURTHER, ids=lambda further: "-".join(map(str, further)))
def test_opcheck_cluster_of_counts_metrics_and_cuts(further: tuple[str, str, str, str, float], backend: str) -> None:
    method, counts, *how = further
    given = operands(torch.float32, grad=True)
    k = torch.tensor([3, 2], device=DEVICE) if counts else None
    arguments = (given["x"], None, given["weight"], given["mask"], None, 4, method, "ward", "mean", 2, backend)
    torch.library.opcheck(cluster, (*arguments, False, k, *how), test_utils=CHECKS)


@pytest.mark.parametrize("backend", HERE)
def test_opcheck_linkage(backend: str) -> None:
    dtypes = (torch.float32, torch.float16) if backend == "triton" else (torch.float32, torch.float64, torch.bfloat16)
    for dtype in sized(dtypes, gpu=dtypes[:1]):
        given = operands(dtype, strided=True)
        for weight, mask, metric in ((None, None, "euclidean"), (given["weight"], given["mask"], "cosine")):
            arguments = (given["x"], weight, mask, metric, backend)
            torch.library.opcheck(linkage, arguments, test_utils=("test_schema", "test_faketensor"))
    for b, n in ((0, 7), (2, 0), (2, 1)):
        arguments = (draw(b, n, 3), None, None, "euclidean", backend)
        torch.library.opcheck(linkage, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_cluster_mean(backend: str) -> None:
    dtypes = (torch.float32, torch.float16) if backend == "triton" else (torch.float32, torch.float64, torch.bfloat16)
    for dtype in sized(dtypes, gpu=dtypes[:1]):
        for weighted in (False, True):
            for strided in (False, True):
                given = operands(dtype, strided=strided, grad=not strided)
                arguments = (given["x"], given["label"], 3, given["weight"] if weighted else None, backend)
                torch.library.opcheck(cluster_mean, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_cluster_mean_backward(backend: str) -> None:
    dtypes = (torch.float32, torch.float16) if backend == "triton" else (torch.float32, torch.float64, torch.bfloat16)
    for dtype in sized(dtypes, gpu=dtypes[:1]):
        given = operands(dtype, strided=True)
        grad, mean = draw(2, 3, 3, seed=5, dtype=dtype), draw(2, 3, 3, seed=6, dtype=dtype)
        for x, m, w in (
            (None, None, None),
            (None, None, given["weight"]),
            (given["x"], mean, given["weight"]),
        ):
            total = cluster_mean(given["x"], given["label"], 3, w, backend)[1]
            arguments = (grad, given["label"], x, m, w, total, backend)
            torch.library.opcheck(cluster_mean_backward, arguments, test_utils=("test_schema", "test_faketensor"))


def test_every_operation_has_a_gradient_or_refuses_one() -> None:
    """Without a rule of its own PyTorch would hand results on as constants."""
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("tpkernels::")}
    assert len(names) == 8
    assert {name for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, "Autograd")} == names
    x = draw(2, 7, 3).requires_grad_()
    q = x[:, None]
    chunks = torch.ops.tpkernels.attention_chunks(q, q, q, None, None, 0.5)[0]
    with pytest.raises(RuntimeError, match=r"Trying to backward through tpkernels\.attention_chunks"):
        chunks.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", CLUSTERERS)
def test_opcheck_under_ahead_of_time_autograd(method: str, backend: str) -> None:
    given = operands(torch.float32, grad=True)
    init = "ward" if method == "ward" else "topk"
    weight = sized(None, gpu=given["weight"].detach())
    arguments = (given["x"], weight, given["weight"], given["mask"], None, 3, method, init, "mean", 2, backend)
    torch.library.opcheck(cluster, arguments, test_utils=("test_aot_dispatch_dynamic",))
    if method == "kmeans":
        arguments = (given["x"], given["label"], 3, given["weight"], backend)
        torch.library.opcheck(cluster_mean, arguments, test_utils=("test_aot_dispatch_dynamic",))


def flatten(result: Any) -> list[Tensor]:
    """The tensors of a nested result."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return [tensor for part in result for tensor in flatten(part)]
    assert result is None
    return []


def assert_same(found: Any, expected: Any) -> None:
    one, two = flatten(found), flatten(expected)
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Counter:
    """A backend of torch.compile that counts the graphs it is given."""

    def __init__(self, name: str) -> None:
        self.inner, self.graphs = torch._dynamo.backends.registry.lookup_backend(name), 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return self.inner(graph, inputs)


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "kmeans": lambda x: tpkernels.kmeans(x, 3, x[..., 0].detach().abs(), max_iter=2),
    "kmeans-given": lambda x: tpkernels.kmeans(x, 3, init=torch.arange(3, device=x.device)),
    "kmedoids": lambda x: tpkernels.kmedoids(x, 3, init="topk", weight=x[..., 0].detach().abs(), max_iter=2),
    "ward": lambda x: tpkernels.ward(x, 3, mask=x[..., 0] > -1),
    "ward-counts": lambda x: tpkernels.ward(x, (x[:, :3, 0] > 0).sum(1) + 1, k_max=4, metric="cosine"),
    "linkage": lambda x: tpkernels.linkage(x, x[..., 1].abs(), mask=x[..., 0] > -1),
    "pairwise_sqdist": tpkernels.pairwise_sqdist,
    "pairwise_sqdist-y": lambda x: tpkernels.pairwise_sqdist(x, x[:, :4] + 1),
    "assign": lambda x: tpkernels.assign(x, x[:, :4], x[..., 0] > 0),
    "medoid_update": lambda x: tpkernels.medoid_update(x, (x[..., 0] > 0).long(), 3),
    "cluster_mean": lambda x: tpkernels.cluster_mean(x, (x[..., 0] > 0).long(), 3, x[..., 1].abs()),
    "unpool": lambda x: tpkernels.unpool(x[:, :3], (x[..., 0] > 0).long() - 1),
    "chamfer_loss": lambda x: tpkernels.chamfer_loss(x, x[:, :3] * 0.9, x[..., 1].detach().abs()),
    "attention": lambda x: tpkernels.attention(
        *(x[:, None] * s for s in (1.0, 0.5, 2.0)), key_size=x[..., 0].detach().abs(), mask=x[..., 1] > -1
    ),
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_public_function_compiles_as_one_graph(name: str) -> None:
    function = FUNCTIONS[name]
    count = Counter("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=count)
    x = draw(2, 8, 4)[:, 1:]
    assert_same(compiled(x), function(x))
    assert count.graphs == 1


def test_all_functions_are_compiled_here() -> None:
    public = {name for name in tpkernels.__all__ if hasattr(getattr(tpkernels, name), "__code__")}
    of_models = {"patch", "unpatch", "schedule_of", "count_macs", "resolve_keep", "resolve_budget", "tokens_kept"}
    of_models |= {"summary", "trace", "reconstruction_errors", "solve_schedule", "save_schedule", "load_schedule"}
    assert {name.split("-")[0] for name in FUNCTIONS} == public - of_models - {"explain_backend"}


@pytest.mark.parametrize(
    "name",
    ["kmeans", "kmedoids", "ward", "ward-counts", "linkage", "cluster_mean", "assign", "chamfer_loss", "attention"],
)
def test_functions_take_a_dynamic_batch(name: str) -> None:
    function = FUNCTIONS[name]
    count = Counter("eager")
    compiled = torch.compile(function, fullgraph=True, backend=count, dynamic=True)
    for b in (3, 5, 2):
        x = draw(b, 7, 4, seed=b)
        assert_same(compiled(x), function(x))
    assert count.graphs == 1


@pytest.mark.parametrize("method", [*QUICK_METHODS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_token_pool_compiles_as_one_graph(method: str) -> None:
    pool = TokenPool(0.5, method, max_iter=2, num_prefix_tokens=1)
    significance, sizes, mask = draw_weight(2, 9), draw_weight(2, 9, seed=2), mask_of(2, 9)

    def run(x: Tensor, call: Callable) -> tuple[Any, Tensor]:
        x = x.detach().requires_grad_()
        result = call(x, significance, sizes=sizes, mask=mask, return_info=True)
        (grad,) = torch.autograd.grad(result[0].square().sum(), x)
        return result, grad

    count = Counter("aot_eager")
    compiled = torch.compile(pool, fullgraph=True, backend=count)
    x = draw(2, 9, 4)
    assert_same(run(x, compiled), run(x, pool))
    assert count.graphs == 1


@pytest.mark.parametrize("method", QUICK_METHODS)
def test_token_pool_takes_a_dynamic_batch_and_strided_tokens(method: str) -> None:
    pool = TokenPool(0.5, method, max_iter=2, num_prefix_tokens=0)
    count = Counter("aot_eager")
    compiled = torch.compile(pool, fullgraph=True, backend=count)
    for b in (3, 5):
        # Without their prefix, as in a model that has none to give: not contiguous.
        x, significance = draw(b, 10, 4, seed=b)[:, 1:], draw_weight(b, 10)[:, 1:]
        assert not x.is_contiguous()
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(significance, 0)
        assert_same(compiled(x, significance), pool(x.contiguous(), significance.contiguous()))
    assert count.graphs == 1


@pytest.mark.parametrize("method", CLUSTERERS)
@runs_triton
def test_the_kernel_compiles_into_a_graph(method: str) -> None:
    pool = TokenPool(4, method, init="strided", max_iter=2, backend="triton")
    count = Counter("aot_eager")
    compiled = torch.compile(pool, fullgraph=True, backend=count)
    results = []
    for call in (compiled, pool):
        x = draw(2, 10, 4)[:, 1:].requires_grad_()
        out = call(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    assert_same(*results)
    assert count.graphs == 1


def test_a_schedule_of_k_recompiles_a_bounded_number_of_times() -> None:
    x = draw(2, 24, 4)
    count = Counter("eager")

    def run(x: Tensor, k: int) -> Tensor:
        return tpkernels.kmeans(x, k, init="strided", max_iter=1).centers

    compiled = torch.compile(run, fullgraph=True, backend=count)
    for k in (3, 2, 5, 7, 8, 10, 11, 13, 15, 17, 20, 23):
        assert_same(compiled(x, k), run(x, k))
    # One for the first k, one for any k.
    assert count.graphs <= 2


def test_compiled_results_hold_for_the_edges() -> None:
    compiled = torch.compile(TokenPool(0.5), fullgraph=True, backend="eager")
    assert compiled(draw(0, 9, 4)).shape == (0, 5, 4)
    assert compiled(draw(2, 1, 4)).shape == (2, 1, 4)
    bad = draw(2, 9, 4)
    bad[0, 3] = torch.nan
    assert torch.equal(compiled(bad)[1], TokenPool(0.5)(bad)[1])


@pytest.mark.slow
def test_inductor() -> None:
    pool = TokenPool(0.5, "kmeans", max_iter=2)
    linear = torch.nn.Linear(4, 4).to(DEVICE)

    def run(x: Tensor) -> Tensor:
        return pool(linear(x).relu()).square()

    results = []
    for call in (torch.compile(run, fullgraph=True), run):
        x = draw(2, 9, 4).requires_grad_()
        out = call(x)
        results.append((out, *torch.autograd.grad(out.sum(), x)))
    assert_same(*results)
