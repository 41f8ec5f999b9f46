"""What bad input gets: an exception of the right type that names the argument, what was expected and what came."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch

import tpkernels
from tests.support.bad_input import CLUSTERERS, Case, X, every_clusterer
from tests.support.marks import DEVICE, runs_triton
from tests.support.programs import run
from tpkernels import TokenPool, assign, attention, chamfer_loss, cluster_mean, medoid_update, pairwise_sqdist, unpool
from tpkernels.ops import backends
from tpkernels.ops.backends import regime, why_not_triton
from tpkernels.ops.gpu.limits import Limits

ONES = torch.ones(2, 6)
LABEL = torch.zeros(2, 6, dtype=torch.int64)
MASK = torch.ones(2, 6, dtype=torch.bool)
CENTERS = X[:, :4]
HEADS = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
LONG = torch.zeros(1, 4097, 1)


def integer(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.int64)


CASES = [
    *every_clusterer("x-is-a-list", TypeError, (r"^x\b", "torch.Tensor", "list"), x=[[1.0]]),
    *every_clusterer("x-of-rank-2", ValueError, (r"^x\b", r"\[B, N, D\]", r"\[6, 3\]"), x=X[0]),
    *every_clusterer("x-of-rank-4", ValueError, (r"^x\b", r"\[B, N, D\]", r"\[1, 2, 6, 3\]"), x=X[None]),
    *every_clusterer("integer-x", TypeError, (r"^x\b", "floating-point", "float16", "torch.int64"), x=integer(2, 6, 3)),
    *every_clusterer("bool-x", TypeError, (r"^x\b", "floating-point", "torch.bool"), x=integer(2, 6, 3).bool()),
    *every_clusterer("complex-x", TypeError, (r"^x\b", "floating-point", "torch.complex64"), x=X.to(torch.complex64)),
    *every_clusterer("k-0", ValueError, (r"^k\b", "at least 1", r"\b0\b"), k=0),
    *every_clusterer("k-negative", ValueError, (r"^k\b", "at least 1", "-2"), k=-2),
    *every_clusterer("k-bool", TypeError, (r"^k\b", r"\bint\b", r"got bool"), k=True),
    *every_clusterer("k-float", TypeError, (r"^k\b", r"\bint\b", r"got float"), k=3.0),
    *every_clusterer("weight-shape", ValueError, ("^weight", r"\[2, 6\]", r"\[2, 5\]"), weight=ONES[:, :5]),
    *every_clusterer("weight-rank", ValueError, ("^weight", r"\[2, 6\]", r"got \[6\]"), weight=ONES[0]),
    *every_clusterer("weight-batch", ValueError, ("^weight", r"\[2, 6\]", r"got \[1, 6\]"), weight=ONES[:1]),
    *every_clusterer("weight-integer", TypeError, ("^weight", "floating-point", "torch.int64"), weight=integer(2, 6)),
    *every_clusterer("weight-list", TypeError, ("^weight", "torch.Tensor", "list"), weight=[1.0]),
    *every_clusterer(
        "weight-negative", ValueError, ("^weight", "negative", r"-0\.25"), weight=ONES - 1.25 * (X[..., 0] > 0)
    ),
    *every_clusterer("mask-float", TypeError, ("^mask", "bool", "torch.float32"), mask=ONES),
    *every_clusterer("mask-integer", TypeError, ("^mask", "bool", "torch.int64"), mask=LABEL),
    *every_clusterer("mask-shape", ValueError, ("^mask", r"\[2, 6\]", r"\[2, 4\]"), mask=MASK[:, :4]),
    *every_clusterer("mask-none-tensor", TypeError, ("^mask", "torch.Tensor", "list"), mask=[True]),
    *every_clusterer("backend", ValueError, ("^backend", "auto", "torch", "triton", "'cuda'"), backend="cuda"),
    *every_clusterer(
        "init-name", ValueError, ("^init", "ward", "topk", "farthest", "strided", "k-means"), init="k-means"
    ),
    *every_clusterer("init-none", ValueError, ("^init", "ward", "topk", "None"), init=None),
    *every_clusterer("init-float", TypeError, ("^init", "int64", "torch.float32"), init=torch.zeros(3)),
    *every_clusterer("init-bool", TypeError, ("^init", "int64", "torch.bool"), init=torch.tensor([True, False, True])),
    *every_clusterer("init-shape", ValueError, ("^init", r"\[3\] or \[2, 3\]", r"got \[4\]"), init=torch.arange(4)),
    *every_clusterer("init-rank", ValueError, ("^init", r"\[3\] or \[2, 3\]", r"\[1, 3\]"), init=torch.arange(3)[None]),
    *every_clusterer("init-twice", ValueError, ("^init", "distinct", "duplicate"), init=torch.tensor([0, 4, 4])),
    *every_clusterer("init-above", ValueError, ("^init", r"0\.\.5", r"1\.\.6"), init=torch.tensor([1, 6, 2])),
    *every_clusterer("init-below", ValueError, ("^init", r"0\.\.5", r"-1\.\.4"), init=torch.tensor([4, -1, 2])),
    *every_clusterer(
        "init-masked",
        ValueError,
        ("^init", "mask"),
        init=torch.tensor([0, 4, 5]),
        mask=torch.arange(6).expand(2, 6) < 5,
    ),
    *every_clusterer("max_iter-negative", ValueError, ("^max_iter", "at least 0", "-1"), max_iter=-1),
    *every_clusterer("max_iter-beyond-int64", ValueError, ("^max_iter", "at most", "1" + 30 * "0"), max_iter=10**30),
    *every_clusterer("max_iter-float", TypeError, ("^max_iter", r"\bint\b", "float"), max_iter=2.5),
    *every_clusterer("float16-init", TypeError, ("^init", "int64", "float16"), init=torch.zeros(3).half()),
    Case(
        "ward-too-long",
        lambda: tpkernels.ward(LONG, 2),
        ValueError,
        ("Ward", "4096", "4097", "kmeans", "kmedoids", '"farthest"', '"topk"', '"strided"'),
    ),
    Case(
        "kmeans-ward-start-too-long",
        lambda: tpkernels.kmeans(LONG, 2, init="ward"),
        ValueError,
        ("Ward", "4096", "4097", '"farthest"'),
    ),
    Case(
        "pool-ward-too-long",
        lambda: TokenPool(0.5, num_prefix_tokens=0)(LONG),
        ValueError,
        ("Ward", "4096", "4097", '"farthest"'),
    ),
    Case("sqdist-x", lambda: pairwise_sqdist(X[0]), ValueError, (r"^x\b", r"\[B, N, D\]", r"\[6, 3\]")),
    Case("sqdist-y-rank", lambda: pairwise_sqdist(X, X[0]), ValueError, (r"^y\b", r"\[B, N, D\]", r"\[6, 3\]")),
    Case(
        "sqdist-y-width", lambda: pairwise_sqdist(X, X[..., :2]), ValueError, (r"^y\b", r"\[2, M, 3\]", r"\[2, 6, 2\]")
    ),
    Case("sqdist-y-batch", lambda: pairwise_sqdist(X, X[:1]), ValueError, (r"^y\b", r"\[2, M, 3\]", r"\[1, 6, 3\]")),
    Case("sqdist-y-integer", lambda: pairwise_sqdist(X, integer(2, 4, 3)), TypeError, (r"^y\b", "floating", "int64")),
    Case("assign-centers", lambda: assign(X, CENTERS[0]), ValueError, ("^centers", r"\[B, N, D\]", r"\[4, 3\]")),
    Case("assign-width", lambda: assign(X, CENTERS[..., :1]), ValueError, ("^centers", r"\[2, M, 3\]", r"\[2, 4, 1\]")),
    Case("assign-none", lambda: assign(X, CENTERS[:, :0]), ValueError, ("centers", "at least 1", "got 0")),
    Case("assign-mask", lambda: assign(X, CENTERS, ONES), TypeError, ("^mask", "bool", "float32")),
    Case("chamfer-width", lambda: chamfer_loss(X, CENTERS[..., :1]), ValueError, ("^centers", r"\[2, M, 3\]")),
    Case("chamfer-none", lambda: chamfer_loss(X, CENTERS[:, :0]), ValueError, ("centers", "at least 1", "got 0")),
    Case("chamfer-weight", lambda: chamfer_loss(X, CENTERS, -ONES), ValueError, ("^weight", "negative", "-1")),
    *(
        case
        for f in (cluster_mean, medoid_update)
        for case in (
            Case(f"{f.__name__}-x", lambda f=f: f(X[0], LABEL, 2), ValueError, (r"^x\b", r"\[B, N, D\]", r"\[6, 3\]")),
            Case(f"{f.__name__}-dtype", lambda f=f: f(X, LABEL.int(), 2), TypeError, ("^assignment", "int64", "int32")),
            Case(f"{f.__name__}-list", lambda f=f: f(X, [0], 2), TypeError, ("^assignment", "torch.Tensor", "list")),
            Case(
                f"{f.__name__}-shape",
                lambda f=f: f(X, LABEL[:, :5], 2),
                ValueError,
                ("^assignment", r"\[2, 6\]", r"\[2, 5\]"),
            ),
            Case(
                f"{f.__name__}-above",
                lambda f=f: f(X, LABEL + 2, 2),
                ValueError,
                ("^assignment", r"-1\.\.1", r"2\.\.2"),
            ),
            Case(
                f"{f.__name__}-below",
                lambda f=f: f(X, LABEL - 2, 2),
                ValueError,
                ("^assignment", r"-1\.\.1", r"-2\.\.-2"),
            ),
            Case(f"{f.__name__}-k", lambda f=f: f(X, LABEL, 0), ValueError, (r"^k\b", "at least 1", "got 0")),
            Case(f"{f.__name__}-bool", lambda f=f: f(X, LABEL, True), TypeError, (r"^k\b", "int", "bool")),
            Case(f"{f.__name__}-weight", lambda f=f: f(X, LABEL, 2, -ONES), ValueError, ("^weight", "negative", "-1")),
            Case(
                f"{f.__name__}-weight-shape", lambda f=f: f(X, LABEL, 2, ONES[0]), ValueError, ("^weight", r"\[2, 6\]")
            ),
        )
    ),
    Case("unpool-y", lambda: unpool(X[0], LABEL), ValueError, (r"^y\b", r"\[B, N, D\]|\[B, K, D\]", r"\[6, 3\]")),
    Case("unpool-integer", lambda: unpool(integer(2, 6, 3), LABEL), TypeError, (r"^y\b", "floating-point", "int64")),
    Case("unpool-batch", lambda: unpool(X, LABEL[:1]), ValueError, ("^assignment", r"\[2, N\]", r"\[1, 6\]")),
    Case("unpool-dtype", lambda: unpool(X, LABEL.int()), TypeError, ("^assignment", "int64", "int32")),
    Case("unpool-list", lambda: unpool(X, [[0]]), TypeError, ("^assignment", "torch.Tensor", "list")),
    Case("unpool-range", lambda: unpool(X, LABEL + 6), ValueError, ("^assignment", r"-1\.\.5", r"6\.\.6")),
    Case("attention-q-rank", lambda: attention(X, X, X), ValueError, (r"^q\b", r"\[B, H, N, d\]", r"\[2, 6, 3\]")),
    Case(
        "attention-q-integer",
        lambda: attention(integer(2, 3, 6, 4), HEADS, HEADS),
        (TypeError, ValueError),
        (r"^q\b", "floating-point", "int64"),
    ),
    Case("attention-k-none", lambda: attention(HEADS, None, HEADS), (TypeError, ValueError), (r"^k\b", "NoneType")),
    Case(
        "attention-k-shape",
        lambda: attention(HEADS, HEADS[:, :, :5], HEADS),
        ValueError,
        (r"^k\b", r"\[2, 3, 6, 4\]", r"\[2, 3, 5, 4\]"),
    ),
    Case(
        "attention-k-channels",
        lambda: attention(HEADS, HEADS[..., :3], HEADS),
        ValueError,
        (r"^k\b", "shape of q", r"\[2, 3, 6, 4\]", r"\[2, 3, 6, 3\]"),
    ),
    Case(
        "attention-v-shape",
        lambda: attention(HEADS, HEADS, HEADS[:, :2]),
        ValueError,
        (r"^v\b", r"\[2, 3, 6", r"\[2, 2, 6, 4\]"),
    ),
    Case(
        "attention-size-shape",
        lambda: attention(HEADS, HEADS, HEADS, key_size=ONES[:, :5]),
        ValueError,
        ("^key_size", r"\[2, 6\]", r"\[2, 5\]"),
    ),
    Case(
        "attention-size-negative",
        lambda: attention(HEADS, HEADS, HEADS, key_size=-ONES),
        ValueError,
        ("^key_size", "negative", "-1"),
    ),
    Case(
        "attention-size-integer",
        lambda: attention(HEADS, HEADS, HEADS, key_size=LABEL),
        TypeError,
        ("^key_size", "floating-point", "int64"),
    ),
    Case(
        "attention-significance",
        lambda: attention(HEADS, HEADS, HEADS, need_significance=None),
        TypeError,
        ("^need_significance", r"\bbool\b", "NoneType"),
    ),
    Case("attention-mask", lambda: attention(HEADS, HEADS, HEADS, mask=ONES), TypeError, ("^mask", "bool", "float32")),
    Case(
        "attention-mask-shape",
        lambda: attention(HEADS, HEADS, HEADS, mask=MASK[:, 1:]),
        ValueError,
        ("^mask", r"\[2, 6\]", r"\[2, 5\]"),
    ),
    Case(
        "attention-mixed-dtypes",
        lambda: attention(HEADS, HEADS.double(), HEADS),
        (TypeError, ValueError),
        (r"^k\b", "float32", "float64"),
    ),
    *(
        Case(
            f"pool-keep-{keep}",
            lambda keep=keep: TokenPool(keep),
            error,
            ("^keep", "ratio", r"\(0, 1\]", "count", repr(keep)),
        )
        for keep, error in (
            (0.0, ValueError),
            (-0.5, ValueError),
            (1.5, ValueError),
            (float("nan"), ValueError),
            (0, ValueError),
            (-3, ValueError),
            (True, TypeError),
            (None, TypeError),
            ("0.7", TypeError),
        )
    ),
    Case(
        "pool-method",
        lambda: TokenPool(0.5, "dbscan"),
        ValueError,
        ("^method", "ward", "kmeans", "kmedoids", "topk", "importance", "random", "grid", "bipartite", "'dbscan'"),
    ),
    Case(
        "pool-init",
        lambda: TokenPool(0.5, "kmeans", init="k-means++"),
        ValueError,
        ("^init", "ward", "topk", r"k-means\+\+"),
    ),
    Case("pool-output", lambda: TokenPool(0.5, output="median"), ValueError, ("^output", "mean", "medoid", "'median'")),
    Case(
        "pool-backend",
        lambda: TokenPool(0.5, backend="gpu"),
        ValueError,
        ("^backend", "auto", "torch", "triton", "'gpu'"),
    ),
    Case("pool-weighted", lambda: TokenPool(0.5, weighted=1), TypeError, ("^weighted", r"\bbool\b", "int")),
    Case("pool-info", lambda: TokenPool(3)(X, return_info=ONES), TypeError, ("^return_info", r"\bbool\b", "Tensor")),
    Case("pool-max_iter-beyond-int64", lambda: TokenPool(0.5, max_iter=10**30), ValueError, ("^max_iter", "at most")),
    Case("pool-max_iter", lambda: TokenPool(0.5, max_iter=-1), ValueError, ("^max_iter", "at least 0", "-1")),
    Case(
        "pool-prefix",
        lambda: TokenPool(0.5, num_prefix_tokens=-1),
        ValueError,
        ("^num_prefix_tokens", "at least 0", "-1"),
    ),
    Case(
        "pool-prefix-float",
        lambda: TokenPool(0.5, num_prefix_tokens=1.0),
        TypeError,
        ("^num_prefix_tokens", "int", "float"),
    ),
    Case("pool-seed", lambda: TokenPool(0.5, "random", seed="zero"), TypeError, ("^seed", r"\bint\b", "str")),
    Case(
        "pool-grid-pair",
        lambda: TokenPool(0.5, "grid", grid_size=(4,)),
        (TypeError, ValueError),
        ("^grid_size", r"\(4,\)"),
    ),
    Case("pool-grid-sign", lambda: TokenPool(0.5, "grid", grid_size=(-2, -3)), ValueError, ("^grid_size", "-2", "-3")),
    Case(
        "pool-grid-fit",
        lambda: TokenPool(0.5, "grid", grid_size=(2, 3))(X),
        ValueError,
        ("^grid_size", r"\b5\b", r"\(2, 3\)|2 x 3"),
    ),
    Case("pool-x-rank", lambda: TokenPool(0.5)(X[0]), ValueError, (r"^x\b", r"\[B, N, D\]", r"\[6, 3\]")),
    Case("pool-x-integer", lambda: TokenPool(0.5)(integer(2, 6, 3)), TypeError, (r"^x\b", "floating-point", "int64")),
    Case("pool-x-short", lambda: TokenPool(0.5, num_prefix_tokens=9)(X), ValueError, (r"^x\b", r"\b9\b", r"\b6\b")),
    Case("pool-sizes", lambda: TokenPool(0.5)(X, sizes=ONES[:, 1:]), ValueError, ("^sizes", r"\[2, 6\]", r"\[2, 5\]")),
    Case(
        "pool-sizes-integer", lambda: TokenPool(0.5)(X, sizes=LABEL), TypeError, ("^sizes", "floating-point", "int64")
    ),
    Case("pool-sizes-negative", lambda: TokenPool(0.5)(X, sizes=-ONES), ValueError, ("^sizes", "negative", "-1")),
    # The prefix is there in x, so it has to be there in its scores.
    Case(
        "pool-scores", lambda: TokenPool(0.5)(X, ONES[:, 1:]), ValueError, ("^significance", r"\[2, 6\]", r"\[2, 5\]")
    ),
    Case("pool-scores-negative", lambda: TokenPool(0.5)(X, -ONES), ValueError, ("^significance", "negative", "-1")),
    Case("pool-mask", lambda: TokenPool(0.5)(X, mask=LABEL), TypeError, ("^mask", "bool", "int64")),
    Case(
        "pool-metric",
        lambda: TokenPool(0.5, "bipartite")(X, metric=X[:, 1:]),
        ValueError,
        ("^metric", "2, 6", r"\[2, 5, 3\]"),
    ),
    Case(
        "pool-metric-integer",
        lambda: TokenPool(0.5, "bipartite")(X, metric=integer(2, 6, 3)),
        TypeError,
        ("^metric", "floating-point", "int64"),
    ),
    *(
        Case(
            f"pool-{name}-without-scores",
            lambda pool=pool: pool(X),
            ValueError,
            ("^significance", r"\[B, N\]", "attention"),
        )
        for name, pool in {
            "topk": TokenPool(0.5, "topk"),
            "importance": TokenPool(0.5, "importance"),
            "weighted": TokenPool(0.5, weighted=True),
            "paper": TokenPool(0.5, "kmedoids", init="topk"),
        }.items()
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input(case: Case) -> None:
    case.check()


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_init_indices_are_checked_per_sample(method: str) -> None:
    function = getattr(tpkernels, method)
    # The same token in two samples is no duplicate, and what a short sample ignores is not looked at.
    function(X, 2, init=torch.tensor([[0, 1], [1, 0]]))
    with pytest.raises(ValueError, match="distinct"):
        function(X, 2, init=torch.tensor([[0, 1], [1, 1]]))
    function(X, 2, init=torch.tensor([0, 5]), mask=torch.arange(6).expand(2, 6) < 2)


@pytest.mark.parametrize("method", CLUSTERERS)
def test_zero_weights_masked_nan_and_k_above_n_are_no_errors(method: str) -> None:
    function = getattr(tpkernels, method)
    function(X, 3, torch.zeros(2, 6))
    # NaN is not negative: the sample is split in order instead.
    function(X, 3, torch.full((2, 6), torch.nan))
    assert torch.equal(function(X, 99).centers, X)
    assert function(X[:0], 3).centers.shape == (0, 3, 3)
    assert function(X, 3, mask=~MASK).centers.eq(0).all()


def test_a_device_that_is_not_xs_is_named() -> None:
    meta = torch.ones(2, 6, device="meta")
    with pytest.raises(ValueError, match=r"^weight must be on the device of x, cpu, got meta"):
        tpkernels.kmeans(X, 3, meta)
    with pytest.raises(ValueError, match=r"^mask must be on the device of x, cpu, got meta"):
        tpkernels.kmeans(X, 3, mask=meta.bool())
    with pytest.raises(ValueError, match=r"^centers must be on the device of x, cpu, got meta"):
        assign(X, CENTERS.to("meta"))
    with pytest.raises(ValueError, match=r"^(k|v) must be on the device of q, cpu, got meta"):
        attention(HEADS, HEADS.to("meta"), HEADS.to("meta"))
    with pytest.raises(ValueError, match=r"^metric must be on the device of x, cpu, got meta"):
        TokenPool(0.5, "bipartite")(X, metric=X.to("meta"))


WITHOUT_INTERPRETER = """
import torch, tpkernels
x = torch.randn(2, 6, 3)
calls = {
    "kmeans": lambda: tpkernels.kmeans(x, 3, backend="triton"),
    "kmedoids": lambda: tpkernels.kmedoids(x, 3, backend="triton"),
    "ward": lambda: tpkernels.ward(x, 3, backend="triton"),
    "TokenPool": lambda: tpkernels.TokenPool(0.5, "kmeans", backend="triton")(x),
    "grid": lambda: tpkernels.TokenPool(0.5, "grid", backend="triton")(x),
}
for name, call in calls.items():
    try:
        call()
    except RuntimeError as error:
        print(f"{name}: {error}")
    else:
        print(f"{name}: ran")
    getattr(tpkernels, name, tpkernels.kmeans)
print("auto:", tpkernels.kmeans(x, 3).assignment.shape[1])
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_on_a_cpu_says_why_not() -> None:
    done = run("-c", WITHOUT_INTERPRETER, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    *refused, automatic = done.stdout.splitlines()
    assert len(refused) == 5
    for line in refused:
        assert re.search(r': backend="triton" cannot take this call: .*(on the CPU|no kernel)', line), line
    # What was not asked for falls back.
    assert automatic == "auto: 6"


@runs_triton
def test_triton_says_what_it_cannot_take() -> None:
    with pytest.raises(RuntimeError, match=r'backend="triton" cannot take this call: .*float64'):
        tpkernels.kmeans(X.double().to(DEVICE), 3, backend="triton")
    with pytest.raises(RuntimeError, match=r"cannot take this call: x: expected.* 384\.0 MiB, got 440\.5 MiB for"):
        tpkernels.ward(torch.zeros(1, 1, 1, device=DEVICE).expand(1, 4096, 20000), 3, backend="triton")
    assert why_not_triton(DEVICE, torch.float32, 20000, 1030, "ward") is None
    assert "up to 4096 tokens, got 4097" in (why_not_triton(DEVICE, torch.float32, 4, 4097, "ward") or "")


def test_a_triton_too_old_for_the_kernels_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpkernels.ops.backends.TRITON_RELEASE", (3, 4))
    with pytest.raises(RuntimeError, match=r"need Triton 3\.5, 3\.4 is installed"):
        tpkernels.kmeans(X, 3, backend="triton")


def test_the_choice_of_a_backend_can_be_asked() -> None:
    backend, reason = tpkernels.explain_backend(X, "ward")
    assert backend == "torch" and "CPU" in reason
    with pytest.raises(ValueError, match="method must be one of ward, kmeans, kmedoids; got 'pam'"):
        tpkernels.explain_backend(X, "pam")


def test_the_boundary_between_the_regimes_is_the_devices() -> None:
    limits = Limits(processors=132, shared_bytes=227 << 10, l2_bytes=50 << 20, warp=32)
    for method in ("kmeans", "kmedoids"):
        assert [regime(n, 384, method, limits) for n in (1, 1024, 1025, 10**6)] == ["resident"] * 2 + ["streaming"] * 2
        assert regime(400, 384, method, limits._replace(l2_bytes=512 << 10)) == "streaming"
    cacheless = limits._replace(l2_bytes=1)
    assert [regime(n, 384, "ward", cacheless) for n in (1024, 1025, 4096, 4097)] == ["resident"] * 3 + [None]
    # Two matrices of 64 MiB and the centered tokens fit 384 MiB.
    assert [regime(4096, d, "ward", limits) for d in (16384, 16385)] == ["resident", None]


def test_auto_takes_torch_where_wards_scratch_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "TRITON_RELEASE", (3, 7))
    monkeypatch.setattr(backends, "limits_of", lambda device: Limits(132, 232448, 50 << 20, 32))
    backend, reason = backends.explain_backend("cuda", torch.float32, 20000, 4096, "ward")
    assert backend == "torch"
    assert re.search(r"expected .* fits 384\.0 MiB, got 440\.5 MiB for 4096 tokens of 20000 channels", reason)
    backend, reason = backends.explain_backend("cuda", torch.float32, 128, 1030, "ward")
    assert backend == "triton" and reason == "the resident kernels take this call, with 8.6 MiB of scratch a sample"
    assert backends.explain_backend("cuda", torch.float32, 128, 1030)[1] == "the streaming kernels take this call"
