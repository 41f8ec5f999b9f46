"""The benchmark harness: the gate, rows, what is skipped and why, statistics, tables, pictures, the command line."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import gpu_only
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import environment, gpu, reports, results, timing
from benchmarks.__main__ import main
from benchmarks.clustering import cases, floors, plots, providers, report
from benchmarks.clustering import peers as peer_packages
from benchmarks.clustering.cases import Case
from benchmarks.clustering.gate import Gate, objective
from benchmarks.clustering.inputs import Inputs, make_inputs
from benchmarks.clustering.providers import Provider
from benchmarks.clustering.rows import TABLE as rows
from benchmarks.clustering.rows import Row
from benchmarks.clustering.runner import Runner
from benchmarks.errors import Refusal
from benchmarks.tax import report as tax_report
from benchmarks.timing import Budget, Timed
from tpkernels import reference

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SMALL = {
    "ward": Case("ward", 3, 30, 12, 9, iters=0, weighted=False),
    "kmedoids": Case("kmedoids", 3, 30, 12, 9),
    "kmeans": Case("kmeans", 3, 30, 12, 9),
}


class Planted(Provider):
    """Does to the torch backend's labels what a test asks for."""

    name = "planted"

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change, self.calls = change, 0

    def prepare(self, inputs: Inputs) -> Callable[[], Tensor]:
        right = providers.Library("torch").prepare(inputs)

        def call() -> Tensor:
            self.calls += 1
            return self.change(right())

        return call


def row(**changes: object) -> Row:
    """A row of a K-Means that went well."""
    case = SMALL["kmeans"]
    plain = Row(
        run="2031-01-01T00:00:00+00:00", commit="abc", library="1", python="3", torch="2", triton="3", device="Box, 2",
        runs_on="cpu", threads=2, load=0.25, group="kernels", case=case.name, provider="tpkernels torch", solves="it",
        method="kmeans", init="topk", weighted=True, tokens="structured", dtype="float32", b=3, n=30, d=12, k=9,
        iters=5, status="ok", repeats=5, p20_ms=1.0, p50_ms=2.0, p99_ms=3.0, cold_ms=9.0, peak_mb=4.0,
        objective=7.0, objective_ratio=1.0, product_floor_ms=1.0, floor_ms=1.0, over_floor=2.0,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def skipped(**changes: object) -> Row:
    """A row without times."""
    return row(**{"status": "skipped: it rains", **dict.fromkeys(rows.row.TIMES), **changes})


# The gate.


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
    verdict = Gate(inputs).check(label, weighted=SMALL[method].weighted, same_path=True, half_centres=False)
    assert verdict.wrong is None and verdict.ratio == pytest.approx(1, abs=2e-3) and verdict.objective > 0


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda label: label.roll(1, 1), "objective: expected the reference's"),
        (lambda label: torch.zeros_like(label), "objective: expected the reference's"),
        (lambda label: label + 1, "expected 0 to 8, got 1 to 9"),
        (lambda label: label - 1, "got -1 to 7"),
        (lambda label: label[:, :-1], "expected the shape (3, 30), got (3, 29)"),
        (lambda label: label.float(), "expected integers"),
    ],
)  # fmt: skip
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
    assert Gate(inputs).check(label, weighted=True, same_path=True, half_centres=False).wrong is None
    monkeypatch.setattr(gate, "_loops", lambda case, x, weight, start: torch.zeros(len(x), dtype=torch.int64))
    with pytest.raises(RuntimeError, match="the reference's"):
        Gate(inputs).check(label, weighted=True, same_path=True, half_centres=False)


def test_half_centres_have_their_own_tolerance() -> None:
    half = Gate(make_inputs(dataclasses.replace(SMALL["kmeans"], dtype="bfloat16"), CPU))
    single = Gate(make_inputs(SMALL["kmeans"], CPU))
    assert half.tolerance(True) > half.tolerance(False) == single.tolerance(True)


# Who can run.


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


# Inputs and cases.


@pytest.mark.parametrize("tokens", ["structured", "random"])
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


# Times.


def test_quantiles() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [timing.quantile(values, share) for share in (0, 0.2, 0.5, 1)] == pytest.approx([1, 1.8, 3, 5])
    assert timing.quantile([2.0], 0.99) == 2
    many = np.random.default_rng(0).random(101).tolist()
    assert timing.quantile(many, 0.99) == pytest.approx(np.quantile(many, 0.99))
    for wrong in ([], [1.0]):
        with pytest.raises(ValueError, match="expected values and a share"):
            timing.quantile(wrong, 1.5 if wrong else 0.5)


def test_a_timed_call_follows_one_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a pause before both."""
    told: list[object] = []
    monkeypatch.setattr(timing.time, "sleep", told.append)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: told.append("clock") or 0.25 * len(told))
    assert timing.settled_ms(lambda: told.append("call")) == 500.0
    assert told == [timing.SETTLE_SECONDS, "call", "clock", "call", "clock"]


def test_entries_take_turns_within_their_budget() -> None:
    order: list[str] = []
    fast, slow = Timed(lambda turn: order.append("fast")), Timed(lambda turn: order.append("slow"))

    def measure(call: Callable[[], object]) -> float:
        call()
        return 600.0 if order[-1] == "slow" else 1.0

    timing.alternate([fast, slow], Budget(repeats=6, seconds=1.0), measure)
    # Two calls spend the slow one's second; it still gets its least number of times.
    assert len(fast.ms) == 6 and len(slow.ms) == timing.LEAST
    assert order[:6] == ["fast", "slow", "slow", "fast", "fast", "slow"]


def test_peak_memory_sees_tensors_and_arrays() -> None:
    def tensors() -> Tensor:
        return torch.zeros(1_000_000).add(1)

    def arrays() -> np.ndarray:
        zeros = np.zeros(1_000_000, dtype=np.float32)
        return zeros + np.float32(1)

    for call in (tensors, arrays):
        assert timing.peak_cpu_mb(call) == pytest.approx(8, rel=0.1)


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
    replayed = timing.quantile(watch.graph_ms([lambda: x.add(1)] * 4, Budget(repeats=5)), 0.5)
    assert 0 < replayed < watch.event_ms(lambda: x.add(1))
    assert gpu.count_launches(lambda: x.add(1).mul(2), device) == 2
    assert gpu.peak_mb(lambda: x.add(1).sum(), device) >= 1
    assert gpu.bandwidth_gbs(device) > 10
    found = Runner(device, Budget(repeats=3)).run("kernels", SMALL["kmeans"], [providers.Library("torch")])
    assert found[0].status == "ok" and found[0].graph_p50_ms > 0 and found[0].launches > 0


# Rows.


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "new" / "box.csv"
    rows.append(path, [row(), skipped(provider="a, b", note='say "no"\nagain')])
    rows.append(path, [row(p50_ms=0.123456789)])
    first, second, third = rows.read(path)
    assert first["p50_ms"] == "2" and first["graph_p50_ms"] == "" and first["weighted"] == "True"
    assert second["provider"] == "a, b" and second["note"] == 'say "no" again' and second["p50_ms"] == ""
    assert third["p50_ms"] == "0.123457"
    assert path.read_text().count("\n") == 4 and path.read_text().startswith("run,commit,")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name,value\na,1\n", "its header is not that of this version"),
        (",".join(rows.columns[:-1]) + "\n", "its header is not that of this version"),
        (",".join(rows.columns) + "\n2031,abc", "last line is cut off"),
    ],
)
def test_files_of_another_make_are_refused_and_left_alone(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "box.csv"
    path.write_text(content)
    with pytest.raises(Refusal, match=said):
        rows.append(path, [row()])
    with pytest.raises(Refusal, match=said):
        rows.read(path)
    assert path.read_text() == content


def test_no_time_beside_a_red_gate(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not carry times"):
        rows.append(tmp_path / "box.csv", [row(status="wrong: it is")])
    assert not (tmp_path / "box.csv").exists()


# Where rows come from.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        (" AMD EPYC, 2 cores ", "amd-epyc-2-cores"),
        ("x/../y", "x-y"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert environment.slug(name) == expected


def test_slug_of_nothing() -> None:
    with pytest.raises(ValueError, match="letters or digits"):
        environment.slug("//")


def test_commit_says_whether_the_code_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPKERNELS_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.commit(tmp_path) == "unknown"

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@e"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "code.py").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "one")
    clean = environment.commit(tmp_path)
    assert len(clean) == 12 and int(clean, 16) > 0
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "box.csv").write_text("rows\n")
    assert environment.commit(tmp_path) == clean
    (tmp_path / "code.py").write_text("2\n")
    assert environment.commit(tmp_path) == f"{clean}+dirty"
    (tmp_path / "code.py").write_text("1\n")
    (tmp_path / "more.py").write_text("new\n")
    assert environment.commit(tmp_path) == f"{clean}+dirty"
    monkeypatch.setenv("TPKERNELS_COMMIT", "stated")
    assert environment.commit(tmp_path) == "stated"


def test_versions_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.version_of("no-such-package") == ""
    monkeypatch.setattr(environment, "version_of", lambda package: "")
    assert environment.library_version()[0].isdigit()


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:99"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(Refusal, match="--device"):
        environment.find_device(name)


# Tables and pictures.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of a CPU and of a GPU, made up."""
    old = row(run="2030-01-01T00:00:00+00:00", provider="forgotten", over_floor=999.0)
    cpu = [old, row(), row(provider="peer", p50_ms=7.0, over_floor=7.0, objective_ratio=1.25)]
    cpu += [skipped(provider="absent"), skipped(provider="bad", status="wrong: it is")]
    rows.append(tmp_path / "box-2.csv", cpu)
    gpu_row = {"device": "Big GPU", "runs_on": "cuda", "memory_floor_ms": 0.5}
    found = [row(**gpu_row, provider="tpkernels triton", graph_p50_ms=0.5, over_floor=0.5, launches=1)]
    found.append(row(**gpu_row, provider="flash", p50_ms=8.0, over_floor=8.0, launches=40))
    large = {"group": "scaling", "case": "kmeans from strided, structured", "iters": 5, **gpu_row}
    for n in (1024, 2048):
        found += [row(**large, b=1, n=n, k=n // 32, p50_ms=n / 100, provider=p) for p in ("tpkernels triton", "flash")]
    found += [row(**large, b=b, n=4096, k=100, p50_ms=float(b), provider="tpkernels triton") for b in (1, 2, 4)]
    rows.append(tmp_path / "gpu.csv", found)
    # Files of the other kind are not even opened.
    (tmp_path / "gpu-tax.csv").write_text("of another make\n")
    return tmp_path


def test_tables(folder: Path) -> None:
    text = report.text(folder)
    box, big = text.split("### Big GPU")
    assert "### Box, 2" in box and "forgotten" not in text and "999" not in text
    assert "| tpkernels torch | 2.00 | 1.00 | 1.0000 | 4.0 |" in box
    assert "| peer | 7.00 | 3.50 | 1.2500 | 4.0 |" in box and "p50 ms" not in box
    assert box.index("bad, 1 case: wrong") < box.index("absent, 1 case: skipped: it rains")
    assert "| tpkernels triton | 0.50 | 1.00 | 1.0000 | 4.0 | 2.000 | 0.5000 | 1 |" in big
    assert "| flash | 8.00 | 16.0 | 1.0000 | 4.0 | 8.000 | - | 40 |" in big
    assert "| 1 | 2,048 | 64 | 4.096 ms, 2.00x, 4 MB | 4.096 ms, 2.00x, 4 MB |" in big
    assert "| 4 | 4,096 | 100 | 0.8000 ms, 2.00x, 4 MB | - |" in big


def test_tables_go_between_the_markers(folder: Path, tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        reports.write([report], folder, document)
        text = document.read_text()
        assert text.startswith("before\n") and text.endswith(f"{report.END}\nafter\n")
        assert "old" not in text and text.count("### Box") == 1
    document.write_text("no markers")
    with pytest.raises(Refusal, match="--document: expected one"):
        reports.write([report], folder, document)
    with pytest.raises(Refusal, match="--document: no file"):
        reports.write([report], folder, tmp_path / "none.md")
    with pytest.raises(Refusal, match="--output"):
        reports.write([report], tmp_path / "nothing", None)


def test_a_report_of_both_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committed = ROOT / "benchmarks" / "results"
    document = tmp_path / "doc.md"
    fresh = f"{report.BEGIN}{report.END}\nbetween\n{tax_report.BEGIN}{tax_report.END}"
    folder = tmp_path / "results"
    folder.mkdir()
    command = ["report", "--output", str(folder), "--document", str(document)]
    document.write_text(fresh)
    assert main(command) == 2 and document.read_text() == fresh
    (plain,) = results.files(committed)
    (folder / plain.name).write_bytes(plain.read_bytes())
    assert main(command) == 0
    first, second = document.read_text().split("\nbetween\n")
    assert "### AMD EPYC, 2 cores" in first and second == f"{tax_report.BEGIN}{tax_report.END}"
    (tax,) = results.files(committed, kind="tax")
    (folder / tax.name).write_bytes(tax.read_bytes())
    capsys.readouterr()
    assert main(command) == 0
    again, second = document.read_text().split("\nbetween\n")
    assert again == first and "### Pooling tax: AMD EPYC, 2 cores" in second
    shown = capsys.readouterr().out
    assert shown.index("#### Large samples") < shown.index("### Pooling tax")
    # A document that lacks one kind's markers keeps all that it has.
    half = f"{report.BEGIN}{report.END}"
    document.write_text(half)
    assert main(command) == 2 and document.read_text() == half
    assert "expected one <!-- tax:begin -->" in capsys.readouterr().err
    (folder / plain.name).unlink()
    document.write_text(f"{tax_report.BEGIN}{tax_report.END}")
    assert main(command) == 0 and document.read_text() == second


def test_pictures(folder: Path) -> None:
    drawn = plots.draw(folder)
    names = {path.name for path in drawn}
    assert names == {"box-2-kernels.png", "gpu-kernels.png", "gpu-scaling-n.png", "gpu-scaling-b.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    with pytest.raises(Refusal, match="--output"):
        plots.draw(folder / "nothing")


def test_the_documents_markers_stand() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert "\n\nmade anew\n\n" in reports.replace_between(text, "made anew", report.BEGIN, report.END)


# The command line.


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_kernels_from_end_to_end(tmp_path: Path) -> None:
    # Ward would compile its loop for many seconds where numba is installed.
    chosen = ["--quick", "--device", "cpu", "--threads", "1", "--provider", "tpkernels", "--case", "from topk"]
    done = run("kernels", *chosen, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "skipped: Triton" in done.stdout and "p50" in done.stdout and "STAGE" not in done.stderr
    (path,) = tmp_path.glob("*-quick.csv")
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert {record["status"] for record in found if record["provider"] == "tpkernels torch"} == {"ok"}
    assert {record["method"] for record in found} == {"kmedoids", "kmeans"}
    assert all(float(record["objective_ratio"]) < 1.01 for record in found if record["status"] == "ok")
    assert main(["report", "--quick", "--output", str(tmp_path)]) == 0
    assert main(["plots", "--quick", "--output", str(tmp_path)]) == 0
    assert list(tmp_path.glob("*-quick-kernels.png"))


def test_a_red_row_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "OWN", (Planted(lambda label: label.roll(1, 1)),))
    arguments = ["kernels", "--quick", "--device", "cpu", "--case", "kmeans from topk", "--provider", "planted"]
    assert main([*arguments, "--output", str(tmp_path)]) == 1
    assert rows.read(next(tmp_path.glob("*.csv")))[0]["status"].startswith("wrong: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kernels", "--device", "cuda:99"], "torch sees"),
        (["kernels", "--device", "cpu", "--case", "nothing"], "--case: none of"),
        (["peers", "--device", "cpu", "--provider", "nobody"], "--provider: none of"),
        (["plots"], "run kernels, scaling or peers first"),
        (["report"], "run kernels, scaling, peers, device or tax first"),
        (["kernels", "--deadline", "0"], "--deadline: expected seconds above 0"),
        (["kernels", "--limit", "-1"], "--limit: expected seconds above 0"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main([*arguments, "--output", str(tmp_path)]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("benchmarks: ") and said in line and "\n" not in line


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--budget", "0"], ["--threads", "0"]])
def test_numbers_out_of_range(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=arguments[0]):
        main(["kernels", *arguments])


@pytest.mark.parametrize(("name", "tool"), [("compile", "compile_gate"), ("autotune", "autotune")])
@pytest.mark.parametrize(("given", "expected"), [(None, 0), (0, 0), (3, 3)])
def test_tools_get_their_arguments(
    name: str, tool: str, given: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    command = importlib.import_module(f"tools.{tool}.command")
    monkeypatch.setattr(command, "main", lambda arguments: seen.append(arguments) or given)
    assert main([name, "--help", "--targets", "sm_90"]) == expected
    assert seen == [["--help", "--targets", "sm_90"]]
