"""The gate of the clustering benchmarks: who can run, and that a wrong answer is never timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.clustering import peers as peer_packages
from benchmarks.clustering import providers
from benchmarks.clustering.cases import Case
from benchmarks.clustering.gate import Gate, objective
from benchmarks.clustering.inputs import make_inputs
from benchmarks.clustering.providers import Provider
from benchmarks.clustering.rows import TABLE as rows
from benchmarks.clustering.runner import Runner
from benchmarks.timing import Budget
from tests.support.clustering import CPU, SMALL, Planted
from tpkernels import reference


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("weighted", [False, True])
def test_objective_is_the_references(method: str, weighted: bool) -> None:
    x, k = torch.randn(30, 12, generator=torch.Generator().manual_seed(1)), 9
    weight = torch.rand(30, generator=torch.Generator().manual_seed(2)) if weighted else None
    label = reference.kmeans(x, k, weight, init="strided").assignment
    if method == "kmedoids":
        centers = x.double()[reference.update_medoids(x, label, k, weight)]
    else:
        centers = reference.cluster_mean(x, label, k, weight)
    expected = float(reference.objective(x, centers, weight, label))
    assert objective(method, x, weight, label, k) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("name", ["tpkernels torch", "eager torch"])
def test_right_answers_pass(method: str, name: str) -> None:
    inputs = make_inputs(SMALL[method], CPU)
    (provider,) = (provider for provider in providers.OWN if provider.name == name)
    label = provider.prepare(inputs)()
    verdict = Gate(inputs).check(label, weighted=SMALL[method].weighted, same_path=True, half_centers=False)
    assert verdict.wrong is None and verdict.ratio == pytest.approx(1, abs=2e-3) and verdict.objective > 0


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        *((method, lambda label: label.roll(1, 1), "objective: expected the reference's") for method in SMALL),
        ("kmeans", lambda label: torch.zeros_like(label), "objective: expected the reference's"),
        ("ward", lambda label: label + 1, "expected 0 to 8, got 1 to 9"),
        ("kmedoids", lambda label: label - 1, "got -1 to 7"),
        ("kmeans", lambda label: label[:, :-1], "expected the shape (3, 30), got (3, 29)"),
        ("ward", lambda label: label.float(), "expected integers"),
    ],
)
def test_a_wrong_answer_is_never_timed(method: str, change: Callable[[Tensor], Tensor], said: str) -> None:
    wrong, right = Planted(change), Planted(lambda label: label)
    runner = Runner(CPU, Budget(repeats=2))
    bad, good = runner.run("kernels", SMALL[method], [wrong, right])
    assert bad.status.startswith("wrong: ") and said in bad.status
    assert wrong.calls == 1 and all(getattr(bad, name) is None for name in rows.row.TIMES)
    assert good.status == "ok" and good.p50_ms > 0 and good.objective_ratio == pytest.approx(1, abs=2e-3)
    assert runner.red == 1


def test_another_algorithm_is_reported_but_not_held_to_the_reference() -> None:
    provider = Planted(lambda label: label.roll(1, 1))
    provider.same_path = False
    (found,) = Runner(CPU, Budget(repeats=1)).run("peers", SMALL["kmeans"], [provider])
    assert found.status == "ok" and found.objective_ratio > 1.05


def test_a_failure_costs_no_other_row(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(label: Tensor) -> Tensor:
        raise RuntimeError("it\nbroke")

    runner = Runner(CPU, Budget(repeats=1))
    bad, good = runner.run("kernels", SMALL["kmeans"], [Planted(fail), Planted(lambda label: label)])
    assert bad.status == "failed: RuntimeError: it broke" and bad.p50_ms is None and bad.cold_ms is None
    assert good.status == "ok" and runner.red == 1
    assert "Traceback" in capsys.readouterr().err


def test_large_cases_are_held_to_a_twin_that_is_held_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.clustering import gate

    monkeypatch.setattr(gate, "REFERENCE_ELEMENTS", 0)
    inputs = make_inputs(SMALL["kmeans"], CPU)
    label = providers.Library("torch").prepare(inputs)()
    assert Gate(inputs).check(label, weighted=True, same_path=True, half_centers=False).wrong is None
    monkeypatch.setattr(gate, "_loops", lambda case, x, weight, start: torch.zeros(len(x), dtype=torch.int64))
    with pytest.raises(RuntimeError, match="the reference's"):
        Gate(inputs).check(label, weighted=True, same_path=True, half_centers=False)


def test_half_centers_have_their_own_tolerance() -> None:
    half = Gate(make_inputs(dataclasses.replace(SMALL["kmeans"], dtype="bfloat16"), CPU))
    single = Gate(make_inputs(SMALL["kmeans"], CPU))
    assert half.tolerance(True) > half.tolerance(False) == single.tolerance(True)


@pytest.mark.parametrize(
    ("provider", "case", "reason"),
    [
        (providers.Library("triton"), SMALL["kmeans"], "Triton"),
        (providers.Eager(), dataclasses.replace(SMALL["kmedoids"], n=9000), "N x N"),
        (peer_packages.ScikitLearn(), dataclasses.replace(SMALL["kmeans"], n=9000), "4096 tokens"),
        (peer_packages.ScipyWard(processes=True), dataclasses.replace(SMALL["ward"], b=1), "one sample"),
        (providers.Bipartite(), SMALL["ward"], "30 to 9"),
    ],
)
def test_why_a_provider_cannot_run(provider: Provider, case: Case, reason: str) -> None:
    assert reason in provider.why_not(case, CPU)
    runner = Runner(CPU, Budget(repeats=1))
    if case.n < 100:
        (found,) = runner.run("peers", case, [provider])
        assert found.status.startswith("skipped: ") and reason in found.status
        assert found.p50_ms is None and runner.red == 0


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = peer_packages.FlashKMeans()
    monkeypatch.setattr(provider, "module", "no_such_module", raising=False)
    reason = provider.why_not(SMALL["kmeans"], CPU)
    assert reason == "flash-kmeans cannot be imported: No module named 'no_such_module'"


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers.shutil, "which", lambda name: None)
    assert providers.Compiled().why_not(SMALL["kmeans"], CPU) == "no C++ compiler"


# Without scipy on all cores: its processes take seconds to start, and run the function that the single one runs.
@pytest.mark.parametrize("provider", peer_packages.PEERS[:-1], ids=lambda provider: provider.name)
def test_peers_solve_what_they_say(provider: Provider) -> None:
    method = "ward" if "ward" in provider.methods else sorted(provider.methods)[0]
    reason = provider.why_not(SMALL[method], CPU)
    if reason is not None:
        pytest.skip(reason)
    (found,) = Runner(CPU, Budget(repeats=1)).run("peers", SMALL[method], [provider])
    assert found.status == "ok", found.status
    assert found.package.startswith(f"{provider.package} ")
