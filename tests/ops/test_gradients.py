"""Gradients: against finite differences in float64, and of the kernels against plain torch in float32.

The assignment is a constant: between the places where it jumps, outputs are smooth, and random tokens lie there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tpkernels
from tests.support.marks import CUDA, DEVICE, KERNELS, runs_triton, sized
from tests.support.tolerances import assert_values
from tpkernels import TokenPool
from tpkernels.ops.cluster_mean import cluster_mean, cluster_mean_backward

cluster = torch.ops.tpkernels.cluster.default

CLUSTERERS = ("ward", "kmeans", "kmedoids")
METHODS = (*CLUSTERERS, "topk", "importance", "random", "grid", "bipartite")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def draw_weight(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return draw(*shape, seed=seed, dtype=dtype, device=device).abs() + 0.1


def leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def check(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """gradcheck, and that it had a gradient to check."""
    leaves = [leaf(value) for value in inputs]
    assert torch.autograd.gradcheck(function, leaves)
    grads = torch.autograd.grad(function(*leaves).square().sum(), leaves)
    for grad in grads:
        assert grad.isfinite().all() and grad.abs().sum() > 0


# label: 0 and 2 have members, 1 has none, -1 is left out.
LABEL = torch.tensor([[0, 2, 0, -1, 2, 2], [2, 2, 2, 2, -1, 0]])


def test_cluster_mean() -> None:
    check(lambda x: tpkernels.cluster_mean(x, LABEL, 3), draw(2, 6, 3))
    check(lambda x, w: tpkernels.cluster_mean(x, LABEL, 3, w), draw(2, 6, 3), draw_weight(2, 6))
    # One of the two alone.
    x, w = draw(2, 6, 3), draw_weight(2, 6)
    check(lambda w: tpkernels.cluster_mean(x, LABEL, 3, w), w)
    check(lambda x: tpkernels.cluster_mean(x, LABEL, 3, w), x)


def test_cluster_mean_where_weights_sum_to_zero() -> None:
    x, w = leaf(draw(2, 6, 3)), draw_weight(2, 6)
    w[0, [0, 2]] = 0
    w = leaf(w)
    mean = tpkernels.cluster_mean(x, LABEL, 3, w)
    torch.testing.assert_close(mean[0, 0], x[0, [0, 2]].mean(0))
    grad_x, grad_w = torch.autograd.grad(mean.square().sum(), (x, w))
    # Equal weights stand in there: they don't depend on the weights, and each token has its share.
    torch.testing.assert_close(grad_x[0, 0], mean[0, 0])
    assert grad_w[0, [0, 2]].eq(0).all() and grad_w[0, [1, 4, 5]].ne(0).all()
    check(lambda x: tpkernels.cluster_mean(x, LABEL, 3, w.detach()), x)
    zero = leaf(torch.zeros(2, 6, dtype=torch.float64))
    assert torch.autograd.grad(tpkernels.cluster_mean(x, LABEL, 3, zero).sum(), zero)[0].eq(0).all()


def test_label_minus_one_gets_no_gradient() -> None:
    x, w = draw(2, 6, 3), draw_weight(2, 6)
    out = LABEL == -1
    # What is left out may hold anything.
    x[out], w[out] = torch.nan, torch.inf
    x, w = leaf(x), leaf(w)
    grads = torch.autograd.grad(tpkernels.cluster_mean(x, LABEL, 3, w).square().sum(), (x, w))
    for grad in grads:
        assert grad.isfinite().all()
        assert grad[out].eq(0).all() and grad[~out].ne(0).any()
    nowhere = torch.full_like(LABEL, -1)
    assert torch.autograd.grad(tpkernels.cluster_mean(x, nowhere, 3).sum(), x)[0].eq(0).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("method", CLUSTERERS)
def test_centers(method: str, weighted: bool) -> None:
    x, w = draw(2, 7, 2), draw_weight(2, 7)
    function = getattr(tpkernels, method)
    starts = ("ward",) if method == "ward" else ("ward", "topk", "farthest", "strided")
    for init in starts:
        options = {} if method == "ward" else {"init": init, "max_iter": 2}
        if not weighted:
            check(lambda x, o=options: function(x, 3, **o).centers, x)
        elif method == "kmedoids":
            # Medoids are tokens: no weight changes them a little.
            check(lambda x, o=options: function(x, 3, w, **o).centers, x)
            loose = leaf(w)
            found = function(leaf(x), 3, loose, **options).centers
            (grad,) = torch.autograd.grad(found.sum(), loose, allow_unused=True)
            assert grad is None or grad.eq(0).all()
        else:
            check(lambda x, w, o=options: function(x, 3, w, **o).centers, x, w)


@pytest.mark.parametrize("method", CLUSTERERS)
def test_centers_with_a_mask(method: str) -> None:
    mask = torch.tensor([[True, True, False, True, True, True, False], [True, False, True, False, False, False, False]])
    x, w = draw(2, 7, 2), draw_weight(2, 7)
    x[~mask] = torch.nan
    x = leaf(x)
    centers = getattr(tpkernels, method)(x, 3, w, mask=mask).centers
    (grad,) = torch.autograd.grad(centers.square().sum(), x)
    assert grad.isfinite().all() and grad[~mask].eq(0).all()
    # Fewer tokens than clusters: each is its own center.
    torch.testing.assert_close(grad[1, [0, 2]], 2 * x[1, [0, 2]].detach())


def test_only_the_centers_are_differentiable() -> None:
    found = tpkernels.ward(leaf(draw(2, 7, 2)), 3)
    assert found.centers.requires_grad
    assert not (found.loss.requires_grad or found.assignment.requires_grad or found.merge_heights.requires_grad)


@pytest.mark.parametrize("output", ["mean", "medoid"])
@pytest.mark.parametrize("method", METHODS)
def test_token_pool(method: str, output: str) -> None:
    pool = TokenPool(0.5, method, init="ward", output=output, max_iter=2, num_prefix_tokens=1)
    x, significance, sizes = draw(2, 8, 2), draw_weight(2, 8, seed=2), draw_weight(2, 8, seed=3)
    check(lambda x: pool(x, significance), x)
    check(lambda x: pool(x, significance, sizes=sizes)[0], x)
    # The sizes that come out are sums of those that came in.
    check(lambda s: pool(x, significance, sizes=s)[1], sizes)
    averages = output == "mean" if method in CLUSTERERS else method in ("grid", "bipartite")
    if averages:
        check(lambda x, s: pool(x, significance, sizes=s)[0], x, sizes)
    else:
        loose = leaf(sizes)
        (grad,) = torch.autograd.grad(pool(leaf(x), significance, sizes=loose)[0].sum(), loose, allow_unused=True)
        assert grad is None or grad.eq(0).all()


@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids", "topk", "importance"])
def test_significance_gets_no_gradient(method: str) -> None:
    x, significance = leaf(draw(2, 8, 2)), leaf(draw_weight(2, 8))
    pool = TokenPool(0.5, method, weighted=method in CLUSTERERS)
    grad_x, grad = torch.autograd.grad(pool(x, significance).sum(), (x, significance), allow_unused=True)
    assert grad_x.ne(0).any()
    assert grad is None or grad.eq(0).all()


def test_chamfer_loss() -> None:
    x, centers, w = draw(2, 6, 3), draw(2, 4, 3, seed=4), draw_weight(2, 6)
    check(tpkernels.chamfer_loss, x, centers)
    check(tpkernels.chamfer_loss, x, centers, w)
    # A center on a token is at distance 0, where a square root would have no gradient.
    exact = leaf(x[:, :4])
    (grad,) = torch.autograd.grad(tpkernels.chamfer_loss(x[:, :4], exact).sum(), exact)
    assert grad.eq(0).all()


def test_pairwise_sqdist() -> None:
    x, y = draw(2, 5, 3), draw(2, 4, 3, seed=4)
    check(tpkernels.pairwise_sqdist, x)
    check(tpkernels.pairwise_sqdist, x, y)
    twins = leaf(x[:, :1].expand(2, 5, 3))
    (grad,) = torch.autograd.grad(tpkernels.pairwise_sqdist(twins).sum(), twins)
    assert grad.abs().max() < 1e-12


def test_unpool() -> None:
    check(lambda y: tpkernels.unpool(y, LABEL), draw(2, 3, 2))
    y = leaf(draw(2, 3, 2))
    (grad,) = torch.autograd.grad(tpkernels.unpool(y, LABEL).sum(), y)
    # A row counts as often as it is used.
    assert grad[..., 0].tolist() == [[2, 0, 3], [1, 0, 4]]


def test_attention() -> None:
    q, k, v = (draw(2, 2, 5, 3, seed=seed) for seed in (5, 6, 7))
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    size = draw_weight(2, 5)
    check(lambda *qkv: tpkernels.attention(*qkv)[0], q, k, v)
    check(lambda *qkv: tpkernels.attention(*qkv, key_size=size, mask=mask, scale=0.3)[0], q, k, v)
    leaves = [leaf(value) for value in (q, k, v)]
    assert not tpkernels.attention(*leaves)[1].requires_grad
    broken = q.clone()
    broken[1, :, 2] = torch.nan
    broken = leaf(broken)
    (grad,) = torch.autograd.grad(tpkernels.attention(broken, k, v, mask=mask)[0].sum(), broken)
    assert grad.isfinite().all() and grad[1, :, 2].eq(0).all()


BACKENDS = ["torch", pytest.param("triton", marks=KERNELS)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_mean_backward_equals_autograd_of_the_equation(backend: str, dtype: torch.dtype) -> None:
    b, n, d, k = 2, 37, 35, 34
    x = draw(b, n, d, dtype=dtype, device=DEVICE)
    weight = draw_weight(b, n, dtype=dtype, device=DEVICE)
    label = torch.randint(-1, k, (b, n), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    weight[0, :9] = 0
    label[0, :9] = torch.tensor([5, 5, 5, 6, 6, 7, 7, -1, -1], device=DEVICE)
    label[0, 9:][label[0, 9:] == 5] = 8
    # On a GPU halves with weights alone: without them is another kernel.
    for w in (None, weight) if dtype == torch.float32 else sized((None, weight), gpu=(weight,)):
        a, wanted = leaf(x), leaf(x.double())
        v, wanted_v = (None, None) if w is None else (leaf(w), leaf(w.double()))
        out = cluster_mean(a, label, k, v, backend)[0]
        member = torch.nn.functional.one_hot(label + 1, k + 1)[..., 1:].double()
        share = member if wanted_v is None else member * wanted_v[..., None]
        share = torch.where(share.sum(1, keepdim=True) > 0, share, member)
        expected = (share.mT @ wanted) / share.sum(1).clamp(min=1e-30)[..., None]
        # Large losses in half precision would only test rounding.
        up = draw(b, k, d, seed=9, dtype=dtype, device=DEVICE)
        leaves, wants = ([a], [wanted]) if w is None else ([a, v], [wanted, wanted_v])
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 4e-3, "atol": 4e-3}
        torch.testing.assert_close(out.double(), expected, **tolerance)
        grads = torch.autograd.grad(out, leaves, up)
        for grad, want in zip(grads, torch.autograd.grad(expected, wants, up.double()), strict=True):
            assert grad.dtype == dtype
            # In half precision the mean that the weights' gradient subtracts was rounded, too.
            scale = float(want.abs().max())
            torch.testing.assert_close(grad.double(), want, rtol=tolerance["rtol"], atol=tolerance["atol"] * scale)


@runs_triton
@pytest.mark.parametrize("output", ["center", "mean", "medoid"])
@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_backends_have_the_same_gradients(method: str, output: str) -> None:
    b, n, d, k = 2, sized(19, gpu=15), 5, 6
    init = sized("topk", gpu={"kmeans": "strided"}.get(method, "topk"))
    x = draw(b, n, d, dtype=torch.float32, device=DEVICE)
    weight = draw_weight(b, n, dtype=torch.float32, device=DEVICE)
    mask = torch.arange(n, device=DEVICE).expand(b, n) < torch.tensor([[n], [n - 4]], device=DEVICE)
    cases = ((None, None), (weight, None), (weight, mask))
    for pool_weight, there in sized(cases, gpu=cases[:1] if method == "kmeans" else cases[2:]):
        results = {}
        for backend in ("torch", "triton"):
            a, w = leaf(x), None if pool_weight is None else leaf(pool_weight)
            tokens, source, label, *_ = cluster(a, weight, w, there, None, k, method, init, output, 2, backend)
            leaves = [a] if w is None else [a, w]
            grads = torch.autograd.grad(tokens.square().sum(), leaves, allow_unused=True)
            results[backend] = (label, source, tokens.detach(), *grads)
        for name, one, two in zip(("label", "source", "tokens", "x", "w"), *results.values(), strict=False):
            assert (one is None) == (two is None), name
            if one is not None:
                torch.testing.assert_close(
                    one, two, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
                )


def assert_alike(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """What two kernels make of the same numbers: the same bits in the interpreter, close on a GPU."""
    for one, two in zip(found, expected, strict=True):
        if CUDA:
            assert_values(one, two)
        else:
            assert torch.equal(one, two)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_sum_have_stride_zero(backend: str) -> None:
    x, w = draw(2, 9, 4, dtype=torch.float32, device=DEVICE), draw_weight(2, 9, dtype=torch.float32, device=DEVICE)
    label = (torch.arange(9, device=DEVICE) % 3).expand(2, 9)
    grads = []
    for expanded in (True, False):
        a, v = leaf(x), leaf(w)
        out = cluster_mean(a, label, 3, v, backend)[0]
        up = torch.ones((), device=DEVICE).expand_as(out)
        assert up.stride() == (0, 0, 0)
        grads.append(torch.autograd.grad(out, (a, v), up if expanded else up.contiguous()))
        # Through autograd's own sum, too.
        out = cluster_mean(a, label, 3, v, backend)[0]
        grads.append(torch.autograd.grad(out.sum(), (a, v)))
    for grad in grads[1:]:
        assert_alike(grad, grads[0])
    torch.testing.assert_close(grads[0][0].sum(1), torch.full((2, 4), 3.0, device=DEVICE))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_incoming_gradient_may_be_strided(backend: str) -> None:
    x = draw(2, 9, 4, dtype=torch.float32, device=DEVICE)
    label = (torch.arange(9, device=DEVICE) % 3).expand(2, 9)
    up = draw(4, 3, 2, dtype=torch.float32, device=DEVICE).permute(2, 1, 0)
    a = leaf(x)
    (one,) = torch.autograd.grad(cluster_mean(a, label, 3, None, backend)[0], a, up)
    (two,) = torch.autograd.grad(cluster_mean(a, label, 3, None, backend)[0], a, up.contiguous())
    assert_alike([one], [two])
    # The operation itself takes strided tokens, labels and weights.
    w = draw_weight(2, 18, dtype=torch.float32, device=DEVICE)[:, ::2]
    wide = draw(2, 10, 4, dtype=torch.float32, device=DEVICE)[:, 1:]
    mean, total = cluster_mean(wide, label, 3, w, backend)
    strided = cluster_mean_backward(up.contiguous(), label, wide, mean, w, total, backend)
    dense = (up.contiguous(), label.contiguous(), wide.contiguous(), mean, w.contiguous(), total, backend)
    dense = cluster_mean_backward(*dense)
    assert_alike(strided, dense)


class Block(nn.Module):
    """Two layers around a pool, as in a transformer."""

    def __init__(self, pool: TokenPool, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.pool, self.second = nn.Linear(width, width), pool, nn.Linear(width, 1)

    def forward(self, x: Tensor, significance: Tensor, sizes: Tensor) -> Tensor:
        tokens, sizes = self.pool(self.first(x), significance, sizes=sizes)
        return self.second(tokens).squeeze(-1) * sizes


def clumps(b: int, n: int, d: int) -> Tensor:
    """Tokens in pairs far apart: rounding to bfloat16 changes no cluster."""
    center = 4 * draw(b, n // 2, d, seed=3).repeat_interleave(2, 1)
    return (center + 0.2 * draw(b, n, d, seed=4)).float()


@pytest.mark.parametrize("method", METHODS)
def test_backward_under_bfloat16_autocast(method: str) -> None:
    with torch.random.fork_rng():
        block = Block(TokenPool(9 if method in CLUSTERERS else 0.5, method, num_prefix_tokens=1))
    x = torch.cat([draw(2, 1, 6).float(), clumps(2, 18, 6)], 1)
    significance, sizes = draw_weight(2, 19).float(), torch.ones(2, 19)
    grads = []
    for enabled in (False, True):
        block.zero_grad()
        tokens = leaf(x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            inner = block.pool(block.first(tokens), significance)
            assert inner.dtype == (torch.bfloat16 if enabled else torch.float32)
            out = block(tokens, significance, sizes)
        out.float().square().mean().backward()
        grads.append([tokens.grad, *(p.grad for p in block.parameters())])
        assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads[-1])
    if method in CLUSTERERS:
        # Baselines such as bipartite matching choose between near equals: their clusters may differ.
        for full, half in zip(*grads, strict=True):
            assert (full - half).norm() <= 0.05 * full.norm()


@runs_triton
@pytest.mark.parametrize("method", CLUSTERERS)
def test_backward_under_autocast_through_the_kernel(method: str) -> None:
    # float16: the interpreter's bfloat16 dot is known to be wrong.
    pool = TokenPool(6, method, init="strided", num_prefix_tokens=1, backend="triton")
    x = leaf(torch.cat([draw(2, 1, 6).float(), clumps(2, 12, 6)], 1).to(DEVICE))
    weight = leaf(torch.eye(6, device=DEVICE))
    with torch.autocast(DEVICE, dtype=torch.float16):
        out = pool(torch.nn.functional.linear(x, weight))
        assert out.dtype == torch.float16
        out.float().square().mean().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32
    assert x.grad.isfinite().all() and x.grad.ne(0).any() and weight.grad.isfinite().all()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_activation_checkpointing(method: str, reentrant: bool) -> None:
    with torch.random.fork_rng():
        block = Block(TokenPool(0.5, method, num_prefix_tokens=1))
    x, significance, sizes = draw(2, 9, 6).float(), draw_weight(2, 9).float(), draw_weight(2, 9, seed=2).float()
    grads = []
    for checkpointed in (False, True):
        block.zero_grad()
        tokens, loose = leaf(x), leaf(sizes)
        if checkpointed:
            out = checkpoint(block, tokens, significance, loose, use_reentrant=reentrant)
        else:
            out = block(tokens, significance, loose)
        out.square().sum().backward()
        grads.append([tokens.grad, loose.grad, *(p.grad for p in block.parameters())])
    for one, two in zip(*grads, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("method", METHODS)
def test_a_bad_sample_spoils_no_other_gradient(method: str) -> None:
    # At k >= n tokens pass unchanged: gradient 1, NaN or not.
    pool = TokenPool(0.5, method, num_prefix_tokens=1)
    x, significance = draw(3, 9, 2), draw_weight(3, 9)
    alone = leaf(x[[0, 2]])
    (wanted,) = torch.autograd.grad(pool(alone, significance[[0, 2]]).square().sum(), alone)
    x[1, 4] = torch.nan
    x = leaf(x)
    (grad,) = torch.autograd.grad(pool(x, significance).square().sum(), x)
    torch.testing.assert_close(grad[[0, 2]], wanted)


def test_k_at_least_n_passes_gradients_unchanged() -> None:
    for method in METHODS:
        x = leaf(draw(2, 5, 2))
        up = draw(2, 5, 2, seed=8)
        (grad,) = torch.autograd.grad(TokenPool(1.0, method)(x, torch.ones(2, 5)), x, up)
        torch.testing.assert_close(grad, up, msg=method)


def test_an_empty_batch_has_an_empty_gradient() -> None:
    for method in METHODS:
        x = leaf(draw(0, 5, 2))
        (grad,) = torch.autograd.grad(TokenPool(0.5, method)(x, torch.ones(0, 5)).sum(), x)
        assert grad.shape == (0, 5, 2), method
