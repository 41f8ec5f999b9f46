"""The pooling tax: turns and ratios, from a problem to its rows."""

from __future__ import annotations

import dataclasses
import importlib.util
import platform
import shutil
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import memory, timing
from benchmarks.tax import cases as tax_cases
from benchmarks.tax import gate as tax_gate
from benchmarks.tax import models as tax_models
from benchmarks.tax import runner as tax_runner
from benchmarks.tax.cases import BASE, SLICING, Schedule
from benchmarks.tax.models import NANO, Variant
from benchmarks.tax.runner import Runner as TaxRunner
from benchmarks.timing import Budget
from tests.support.marks import gpu_only
from tests.support.programs import run
from tests.support.tax import CPU, PROBLEM, TOKENS, Changed, broken, without_times


@pytest.mark.parametrize(
    ("repeats", "seconds", "rounds"), [(5, 100.0, 5), (50, 0.1, timing.LEAST), (2, 0.1, 2), (50, 5.5, 6)]
)
def test_whole_rounds_in_a_rotating_order(repeats: int, seconds: float, rounds: int) -> None:
    seen: list[int] = []
    calls = [lambda i=i: seen.append(i) for i in range(3)]

    def measure(call: Callable[[], object]) -> float:
        call()
        return 250.0 + seen[-1] * 100

    ms = tax_runner.by_turns(calls, Budget(repeats, seconds), measure)
    assert ms == [[250.0] * rounds, [350.0] * rounds, [450.0] * rounds]
    assert [seen[turn * 3] for turn in range(rounds)] == [turn % 3 for turn in range(rounds)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_kept_memory_takes_no_page_faults_again() -> None:
    """In a process of its own: there is no way back."""
    code = """if True:
        import resource
        from benchmarks import memory
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        touch = lambda: [bytearray(48_000_000) for _ in range(2)]
        kept = memory.keep_memory()
        touch()
        before = faults()
        touch()
        print(kept, faults() - before)
    """
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    kept, count = done.stdout.strip().rsplit(" ", 1)
    assert kept == memory.KEPT
    # 96 MB are 23,437 pages.
    assert int(count) < 1000


def test_ratios_are_taken_round_by_round() -> None:
    # The second round was disturbed: all of it took ten times as long.
    sliced, base, own = [100.0, 1000.0, 110.0], [150.0, 1500.0, 165.0], [104.0, 1040.0, 114.4]
    found = without_times(status="failed: it never ran")
    tax_runner.complete(found, own, sliced, base)
    assert found.tax == pytest.approx(0.04) and found.tax_p80 == pytest.approx(0.04)
    assert found.speedup == pytest.approx(150 / 104)
    assert (found.status, found.rounds, found.p50_ms) == ("ok", 3, pytest.approx(114.4))
    unpooled = without_times(method=BASE)
    tax_runner.complete(unpooled, base, sliced, base)
    assert unpooled.tax is None and unpooled.speedup == 1
    uneven = without_times()
    tax_runner.complete(uneven, [110.0, 120.0, 130.0, 140.0, 150.0], [100.0] * 5, [120.0] * 5)
    assert (uneven.tax_p20, uneven.tax, uneven.tax_p80) == pytest.approx((0.18, 0.3, 0.42))


def test_a_problems_rows() -> None:
    runner = TaxRunner(CPU, Budget(2, 60.0))
    found = runner.run(PROBLEM, ["eager"], ["ward", "topk"])
    assert [one.method for one in found] == [BASE, SLICING, "ward", "topk"] and runner.red == 0
    for one in found:
        assert (one.status, one.mode, one.b, one.rounds, one.layers) == ("ok", "eager", 2, 2, "3 6 9")
        assert 0 < one.p20_ms <= one.p50_ms <= one.p99_ms and one.cold_ms > 0 and one.peak_mb > 0
        assert one.ward_rounds >= 1 and one.tokens == " ".join(map(str, TOKENS if one.method != BASE else (65,) * 12))
    assert found[0].speedup == 1 and found[1].tax == 0
    assert all(one.speedup_p20 <= one.speedup <= one.speedup_p80 for one in found)


def planted(monkeypatch: pytest.MonkeyPatch, **changes: Callable[[nn.Module], nn.Module]) -> None:
    """Changes the modules of variants by their names."""
    right = tax_models.variants

    def variants(*given: Any) -> list[Variant]:
        found = right(*given)
        return [dataclasses.replace(one, module=changes.get(one.name, lambda m: m)(one.module)) for one in found]

    monkeypatch.setattr(tax_runner, "variants", variants)


def test_no_time_beside_a_red_gate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    planted(monkeypatch, topk=lambda module: Changed(module, lambda y: y / 0), bipartite=broken)
    runner = TaxRunner(CPU, Budget(1, 60.0))
    base, sliced, wrong, failed = runner.run(PROBLEM, ["eager"], ["topk", "bipartite"])
    assert (base.status, sliced.status) == ("ok", "ok") and runner.red == 2
    assert wrong.status.startswith("wrong: logits: expected finite numbers") and wrong.tax is None
    assert failed.status == "failed: RuntimeError: it broke" and failed.p50_ms is None
    assert "it broke" in capsys.readouterr().err


def test_without_ward_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> float:
        raise RuntimeError("no rounds")

    monkeypatch.setattr(tax_gate, "ward_rounds", fail)
    base, sliced = TaxRunner(CPU, Budget(1)).run(PROBLEM, ["eager"], [])
    assert base.status == "failed: RuntimeError: no rounds"
    assert sliced.status == "skipped: nothing to compare with: base could not be timed"


@pytest.mark.parametrize("lost", [BASE, SLICING])
def test_nothing_is_timed_without_what_it_is_compared_with(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, **{lost: broken})
    runner = TaxRunner(CPU, Budget(1, 60.0))
    found = {one.method: one for one in runner.run(PROBLEM, ["eager"], ["topk"])}
    assert found.pop(lost).status == "failed: RuntimeError: it broke" and runner.red == 1
    assert {one.status for one in found.values()} == {f"skipped: nothing to compare with: {lost} could not be timed"}
    assert all(one.cold_ms is None for one in found.values())


def test_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    tax_models.model_of.cache_clear()
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "safetensors" else real(name))
    found = TaxRunner(CPU, Budget(1)).run(dataclasses.replace(PROBLEM, model="deit-fashion"), ["eager"], ["topk"])
    assert {one.status for one in found} == {"skipped: safetensors is not installed"}


def test_compiled_models_have_code_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(torch, "compile", lambda call, **how: seen.append((call, how)) or call)
    first, second = tax_runner.compiled(nn.Identity()), tax_runner.compiled(nn.Hardtanh())
    x = torch.tensor([3.0])
    assert float(first(x)) == 3 and float(second(x)) == 1
    assert seen[0][0].__code__ is not seen[1][0].__code__
    assert all(how == {"fullgraph": True, "dynamic": False} for _, how in seen)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = TaxRunner(CPU, Budget(1)).run(PROBLEM, ["eager", "compiled"], ["topk"])
    assert [one.status for one in found] == ["ok"] * 3 + ["skipped: no C++ compiler"] * 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two blocks: the compiler takes seconds for each one.
    monkeypatch.setattr(tax_models, "NANO", dataclasses.replace(NANO, depth=2))
    tax_models.model_of.cache_clear()
    runner = TaxRunner(CPU, Budget(2))
    problem = dataclasses.replace(PROBLEM, schedule=Schedule("three", 0.5, (1,)))
    found = runner.run(problem, ["compiled"], ["ward"])
    tax_models.model_of.cache_clear()
    assert [one.status for one in found] == ["ok"] * 3 and runner.red == 0
    assert all(one.cold_ms > one.p99_ms for one in found) and found[2].tokens == "65 33"


def test_what_a_gpu_run_puts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of modes on a GPU, with stand-ins for what needs one: graphs hold the compiled call."""

    class Watch:
        def __init__(self, device: object) -> None: ...

        def event_ms(self, call: Callable[[], object]) -> float:
            return timing.wall_ms(call)

    held: list[object] = []

    def captured(call: Callable[[], Tensor], device: object) -> Callable[[], Tensor]:
        held.append(call)
        logits = call() + (1 if len(held) == 3 else 0)
        return lambda: logits

    monkeypatch.setattr(tax_runner.gpu, "Stopwatch", Watch)
    monkeypatch.setattr(tax_runner.gpu, "peak_mb", lambda call, device: 7.0)
    monkeypatch.setattr(tax_runner.environment, "device_name", lambda device: "GPU")
    monkeypatch.setattr(tax_runner.torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(tax_runner, "model_of", lambda name, device, dtype: tax_models.model_of(name, CPU, "float32"))
    compiles: list[nn.Module] = []
    monkeypatch.setattr(tax_runner, "compiled", lambda module: compiles.append(module) or module)
    monkeypatch.setattr(tax_runner, "captured", captured)
    runner = TaxRunner(types.SimpleNamespace(type="cuda"), Budget(2))
    found = runner.run(PROBLEM, tax_cases.modes("cuda", 1, True), ["topk"])
    assert [one.mode for one in found] == ["eager"] * 3 + ["compiled"] * 3 + ["CUDA graph"] * 3
    assert [one.status for one in found[:8]] == ["ok"] * 8 and runner.red == 1
    # The third graph gave other logits.
    assert found[8].status.startswith("wrong: logits: expected those of the eager model")
    assert len(compiles) == len(held) == 3
    assert [one.peak_mb for one in found[2::3]] == [7.0, 7.0, None] and found[0].runs_on == "cuda"


@gpu_only
def test_rows_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    runner = TaxRunner(device, Budget(3))
    problem = dataclasses.replace(PROBLEM, batch=1, dtype="bfloat16")
    found = runner.run(problem, tax_cases.modes("cuda", 1, True), ["ward", "bipartite"])
    assert [one.status for one in found] == ["ok"] * 12 and runner.red == 0
    eager, graph = found[2], found[10]
    assert (eager.mode, graph.mode, graph.method) == ("eager", "CUDA graph", "ward") and graph.p50_ms < eager.p50_ms


def test_what_is_run_where() -> None:
    assert tax_cases.modes("cpu", 1, True) == ["eager", "compiled"] and tax_cases.modes("cuda", 1, False) == ["eager"]
    assert tax_cases.modes("cuda", 8, True) == ["eager", "compiled"]
    assert tax_cases.modes("cuda", 1, True) == ["eager", "compiled", "CUDA graph"]
    every = tax_cases.problems("cuda", models=["deit-s"], schedules=["every"])
    assert [(one.batch, one.dtype) for one in every] == [(b, "bfloat16") for b in (1, 8, 32, 64, 256)]
    assert len(tax_cases.problems("cpu")) == 4 * 2 * 3
    (one,) = tax_cases.problems("cpu", small=True, schedules=["three"], batches=[5])
    assert one.title == "deit-nano, blocks 4, 7 and 10 keep 0.7, B=5, float32"
