"""Inputs and cases of the clustering benchmarks, and a run from a case to its row."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import gpu, timing
from benchmarks.clustering import cases, floors, providers
from benchmarks.clustering.cases import Case
from benchmarks.clustering.inputs import Inputs, make_inputs
from benchmarks.clustering.runner import Runner
from benchmarks.errors import Refusal
from benchmarks.timing import Budget
from tests.support.clustering import CPU, SMALL, Planted
from tests.support.marks import gpu_only
from tpkernels import reference


@pytest.mark.parametrize("tokens", ["structured", "outlying", "random"])
def test_inputs_repeat_and_start_as_the_reference_does(tokens: str) -> None:
    case = dataclasses.replace(SMALL["kmeans"], tokens=tokens)
    first, again, other = (make_inputs(case, CPU, seed) for seed in (0, 0, 1))
    assert torch.equal(first.x, again.x) and torch.equal(first.weight, again.weight)
    assert not torch.equal(first.x, other.x)
    assert first.weight.min() > 0
    for sample in range(case.b):
        expected = reference.start_indices(first.x[sample], case.k, first.weight[sample], "topk")
        assert torch.equal(first.start[sample], expected)
    strided = make_inputs(dataclasses.replace(case, init="strided"), CPU).start[0]
    assert torch.equal(strided, reference.start_indices(first.x[0], case.k, None, "strided"))


def test_outlying_tokens_take_the_exact_matrix_in_every_sample() -> None:
    """As `tpkernels/kernels/resident/gram.py` counts: entries less the pivot that bfloat16 does not hold."""
    case = Case("ward", 16, 196, 384, 98, weighted=False, tokens="outlying", dtype="bfloat16")
    x = make_inputs(case, CPU).x.float()
    sampled = x[:, torch.arange(16) * case.n // 16]
    pivot = sampled.mean(1, keepdim=True).bfloat16().float()
    spread = (sampled - pivot).abs().amax(1, keepdim=True)
    less = x - torch.where(2 * spread < pivot.abs(), pivot, 0.0)
    inexact = (less.bfloat16().float() != less).sum((1, 2))
    # On a trained ViT-S in bfloat16 500 to 5,400 of 75,264.
    assert int(inexact.min()) >= 500 and int(inexact.max()) <= 5400


def test_structured_tokens_are_alike_where_they_are_near() -> None:
    x = make_inputs(Case("ward", 8, 196, 64, 98, iters=0, weighted=False), CPU).x
    grid = (x - x.mean(1, keepdim=True)).view(8, 14, 14, 64)
    near = (grid[:, :, 1:] - grid[:, :, :-1]).square().sum(-1).mean()
    far = (grid[:, :, 7:] - grid[:, :, :-7]).square().sum(-1).mean()
    assert near < 0.8 * far
    spectrum = torch.linalg.svdvals(grid.flatten(1, 2)).square()
    assert (spectrum[:, :16].sum(1) / spectrum.sum(1)).min() > 0.5


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_group_has_cases(device: str) -> None:
    for group in cases.GROUPS:
        found = cases.select(group, device)
        assert len({(case.name, case.shape, case.iters) for case in found}) == len(found)
        assert {case.dtype for case in found} == {"float32" if device == "cpu" else "bfloat16"}
        assert all(case.n <= 48 and case.b <= 2 for case in cases.select(group, device, small=True))
    named = {(case.method, case.b, case.n, case.d, case.k) for case in cases.select("kernels", "cuda")}
    assert {("ward", 256, 196, 384, 98), ("kmeans", 256, 196, 768, 98), ("kmedoids", 64, 576, 1024, 288)} <= named
    with pytest.raises(Refusal, match="no such case"):
        cases.select("kernels", device, only="no such case")


def test_floors_of_the_design() -> None:
    case = Case("kmeans", 256, 196, 384, 98, dtype="bfloat16")
    tokens = 256 * (196 + 98) * 384 * 2
    assert tokens == pytest.approx(58e6, rel=0.01)
    assert tokens < floors.memory_bytes(case) < 1.02 * tokens
    assert floors.memory_floor_ms(case, 3000) == pytest.approx(0.0195, rel=0.02)
    assert floors.product_is_gram(case) and floors.products(case) == 1
    large = Case("kmeans", 1, 4096, 64, 256, iters=10)
    assert not floors.product_is_gram(large) and floors.products(large) == 11
    inputs = make_inputs(dataclasses.replace(large, n=64, k=4, iters=1), CPU)
    assert floors.distance_product(inputs).shape == (1, 4, 64)


def test_what_a_gpu_run_puts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.clustering import inputs as inputs_module
    from benchmarks.clustering import runner as module

    class Watch:
        """Times by the wall clock; graphs hold at most two calls, or none of a provider that was asked for."""

        def __init__(self, device: object) -> None: ...

        def event_ms(self, call: Callable[[], object]) -> float:
            return timing.wall_ms(call)

        def graph_ms(self, calls: list[Callable[[], object]], budget: Budget) -> list[float]:
            if calls[0]() is None:
                raise RuntimeError("it cannot be captured\nat all")
            return [0.25, 0.5, 0.75]

    monkeypatch.setattr(module.gpu, "Stopwatch", Watch)
    monkeypatch.setattr(module.gpu, "bandwidth_gbs", lambda device: 1e-3)
    monkeypatch.setattr(module.gpu, "peak_mb", lambda call, device: 5.0)
    monkeypatch.setattr(module.gpu, "count_launches", lambda call, device: 7)
    monkeypatch.setattr(module.gpu, "input_sets", lambda device, size: 6)
    monkeypatch.setattr(module.environment, "device_name", lambda device: "GPU")
    monkeypatch.setattr(module.environment, "is_lost", lambda device: False)
    monkeypatch.setattr(inputs_module, "make_inputs", lambda case, device, seed=0: make_inputs(case, CPU, seed))
    monkeypatch.setattr(module.Runner, "_wait", lambda self: None)
    monkeypatch.setattr(module.Runner, "_load_libraries", lambda self: None)

    class Uncapturable(Planted):
        """Its calls give labels at first and nothing afterwards, which Watch takes for a call that cannot be held."""

        def prepare(self, inputs: Inputs) -> Callable[[], Tensor | None]:
            right = super().prepare(inputs)
            return lambda: right() if self.calls == 0 else None

    seen: list[int] = []

    class Seen(Planted):
        """Tells which inputs it gets."""

        def prepare(self, inputs: Inputs) -> Callable[[], Tensor]:
            right = super().prepare(inputs)
            return lambda: (seen.append(inputs.x.data_ptr()), right())[1]

    runner = Runner(types.SimpleNamespace(type="cuda"), Budget(repeats=12))
    case = SMALL["kmeans"]
    plain, host, refused = Seen(lambda label: label), Planted(lambda label: label), Uncapturable(lambda label: label)
    host.on_cpu = True
    first, second, third = runner.run("kernels", case, [plain, host, refused])
    assert [found.status for found in (first, second, third)] == ["ok"] * 3
    assert len(set(seen)) == 6
    assert (first.graph_p50_ms, first.launches, first.peak_mb, first.runs_on) == (0.5, 7, 5.0, "cuda")
    # The memory floor at 1 MB/s is far above the product's.
    assert first.product_floor_ms == 0.5 and first.floor_ms == first.memory_floor_ms
    assert first.memory_floor_ms == pytest.approx(floors.memory_bytes(case) / 1e3)
    assert first.over_floor == pytest.approx(0.5 / first.floor_ms)
    assert (second.runs_on, second.graph_p50_ms, second.launches) == ("cpu", None, None)
    assert second.over_floor == pytest.approx(second.p50_ms / second.floor_ms)
    assert third.graph_p50_ms is None and third.note == "no CUDA graph: it cannot be captured"
    assert third.p50_ms > 0


@gpu_only
def test_times_and_launches_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    x = torch.randn(512, 512, device=device)
    watch = gpu.Stopwatch(device)
    # Other processes of the suite are on the device: of either only the undisturbed end can be compared.
    replayed = watch.graph_ms([lambda: x.add(1)] * 4, Budget(repeats=20))
    called = [watch.event_ms(lambda: x.add(1)) for _ in range(20)]
    assert 0 < min(replayed) < max(called)
    assert gpu.count_launches(lambda: x.add(1).mul(2), device) == 2
    assert gpu.peak_mb(lambda: x.add(1).sum(), device) >= 1
    assert gpu.bandwidth_gbs(device) > 10
    found = Runner(device, Budget(repeats=3)).run("kernels", SMALL["kmeans"], [providers.Library("torch")])
    assert found[0].status == "ok" and found[0].graph_p50_ms > 0 and found[0].launches > 0
