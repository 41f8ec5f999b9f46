"""The pooling tax: the sliced model, the images, the gate, turns and ratios, rows, tables, the command line."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import platform
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import gpu_only
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import tpkernels
from benchmarks import memory, reports, timing
from benchmarks.__main__ import main
from benchmarks.errors import Refusal
from benchmarks.tax import cases as tax_cases
from benchmarks.tax import command as tax
from benchmarks.tax import gate as tax_gate
from benchmarks.tax import models as tax_models
from benchmarks.tax import report as tax_report
from benchmarks.tax import runner as tax_runner
from benchmarks.tax.cases import BASE, SLICING, Problem, Schedule
from benchmarks.tax.models import NANO, DeiT, Sliced, Variant
from benchmarks.tax.rows import TABLE as tax_rows
from benchmarks.tax.runner import Runner as TaxRunner
from benchmarks.timing import Budget

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
FEW = Schedule("three", 0.5, (1, 3))
PROBLEM = Problem("deit-nano", tax_cases.SCHEDULES["three"], 2, "float32")
TOKENS = (65, 65, 65, 46, 46, 46, 32, 32, 32, 23, 23, 23)


@pytest.fixture(autouse=True)
def inference():
    """As the command runs."""
    with torch.inference_mode():
        yield


@pytest.fixture
def model() -> DeiT:
    torch.manual_seed(0)
    return DeiT(dataclasses.replace(NANO, depth=4)).eval()


@pytest.fixture
def images() -> Tensor:
    return tax_models.fields(3, 3, 32)


# Models and images.


def test_the_sliced_model_cuts_between_attention_and_mlp(model: DeiT, images: Tensor) -> None:
    left = (65, 33, 33, 17)
    x = model.patch_embed(images)
    x = torch.cat([model.cls_token.expand(3, -1, -1), x], 1) + model.pos_embed
    for block, count in zip(model.blocks, left, strict=True):
        x = x + block.attn(block.norm1(x))
        x = x[:, :count]
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(Sliced(model, left)(images), model.head(model.norm(x)[:, 0]))
    assert torch.equal(Sliced(model, (65,) * 4)(images), model(images))


@pytest.mark.parametrize("schedule", tax_cases.SCHEDULES.values(), ids=lambda schedule: schedule.name)
def test_every_variant_has_the_counts_of_the_sliced_one(schedule: Schedule) -> None:
    model = tax_models.model_of("deit-nano", CPU, "float32")
    problem = dataclasses.replace(PROBLEM, schedule=schedule)
    images = tax_models.images_for(model, problem.model, problem.batch)
    base, sliced, *pooled = tax_models.variants(model, problem, tax_cases.METHODS)
    assert [one.name for one in (base, sliced)] == [BASE, SLICING] and len(pooled) == len(tax_cases.METHODS)
    assert base.tokens == (65,) * 12
    if schedule.name == "three":
        assert sliced.tokens == TOKENS
    for one in (base, sliced, *pooled):
        logits, wrong = tax_gate.first_call(one, images)
        assert wrong is None, one.name
        assert logits.shape == (2, NANO.num_classes)
        if one in pooled:
            assert one.tokens == sliced.tokens
            assert [1 + count for count in tpkernels.schedule_of(one.module)] == list(sliced.tokens)
    # The weights are there once, and the base model is not patched.
    assert {p.data_ptr() for p in pooled[0].module.parameters()} == {p.data_ptr() for p in model.parameters()}
    with pytest.raises(ValueError, match="must be patched"):
        tpkernels.schedule_of(model)


@pytest.mark.parametrize("name", tax_models.WIDTHS)
def test_shapes_are_those_of_deit(name: str) -> None:
    config = tax_models._config(*tax_models.WIDTHS[name])
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in DeiT(config).parameters())
    # Millions of parameters in table 5 of the paper on DeiT (arXiv 2012.12877).
    assert round(parameters / 1e6) == {"deit-ti": 6, "deit-s": 22, "deit-b": 87}[name]
    assert (config.grid_size, config.embed_dim // config.num_heads) == (14, 64)


def test_the_arithmetic_is_timms(timm: Any, model: DeiT, images: Tensor) -> None:
    other = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=48, depth=4, num_heads=3, num_classes=10
    ).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(images), model(images))
    pooled, twin = (
        tpkernels.patch(other, 0.7, layers=[1, 2]),
        tpkernels.patch(tax_models.twin(model), 0.7, layers=[1, 2]),
    )
    torch.testing.assert_close(pooled(images), twin(images))


def test_images_are_alike_where_they_are_near() -> None:
    state = torch.get_rng_state()
    found = tax_models.fields(16, 3, 64)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, tax_models.fields(16, 3, 64))
    assert not torch.equal(found, tax_models.fields(16, 3, 64, seed=1))
    torch.testing.assert_close(found.std((1, 2, 3)), torch.ones(16))
    near = (found[..., :-2] * found[..., 2:]).mean()
    far = (found[..., :-32] * found[..., 32:]).mean()
    assert near > 0.6 and near > far + 0.3


def test_models_do_not_touch_the_random_state() -> None:
    tax_models.model_of.cache_clear()
    state = torch.get_rng_state()
    first = tax_models.model_of("deit-nano", CPU, "float32")
    assert torch.equal(torch.get_rng_state(), state)
    tax_models.model_of.cache_clear()
    again = tax_models.model_of("deit-nano", CPU, "float32")
    assert first is not again
    assert all(map(torch.equal, first.parameters(), again.parameters()))


def test_the_trained_model_and_its_images() -> None:
    pytest.importorskip("safetensors")
    model = tax_models.model_of("deit-fashion", CPU, "float32")
    images = tax_models.images_for(model, "deit-fashion", 3)
    assert images.shape == (3, 1, 28, 28) and len({float(image.sum()) for image in images}) == 3
    assert float(model(images).softmax(1).max(1).values.min()) > 0.3
    more = tax_models.images_for(model, "deit-fashion", 2001)
    assert torch.equal(more[0], more[2000]) and not torch.equal(more[0], more[1])


# The gate.


class Changed(nn.Module):
    """A module whose logits a test changes."""

    def __init__(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.change = module, change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.module(images))


def test_the_gate_sees_wrong_counts_and_numbers(model: DeiT, images: Tensor) -> None:
    left = (65, 33, 33, 17)
    good = Variant("good", Sliced(model, left), model.blocks, left)
    assert tax_gate.first_call(good, images)[1] is None
    short = dataclasses.replace(good, module=Sliced(model, (65, 33, 33, 16)))
    assert (
        "tokens at the MLPs: expected [65, 33, 33, 17], got [65, 33, 33, 16]" in tax_gate.first_call(short, images)[1]
    )
    skipped = dataclasses.replace(good, module=Sliced(model, (65, 65, 65, 17)))
    assert "got [65, 65, 65, 17]" in tax_gate.first_call(skipped, images)[1]
    lost = dataclasses.replace(good, module=Changed(good.module, lambda y: y.masked_fill(y == y.max(), torch.nan)))
    assert "got 1 of 30 that are not" in tax_gate.first_call(lost, images)[1]
    assert not model.blocks[0].mlp._forward_pre_hooks


def test_the_gate_compares_logits() -> None:
    expected = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    assert tax_gate.differs(expected * (1 + 1e-4), expected) is None
    assert "got 0.01" in tax_gate.differs(expected * 1.01, expected)
    assert tax_gate.differs((expected * 1.01).bfloat16(), expected.bfloat16()) is None
    assert "finite" in tax_gate.differs(expected / 0, expected)


def test_pooling_to_every_token_must_change_nothing(
    model: DeiT, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tax_gate.changes_nothing(model, images) is None
    monkeypatch.setattr(tax_gate.tpkernels, "patch", lambda model, keep: Changed(model, lambda y: y + 1e-3))
    assert "keep=1.0: expected the base model's logits" in tax_gate.changes_nothing(model, images)


def test_rounds_of_ward(model: DeiT, images: Tensor) -> None:
    schedule = Schedule("three", 0.5, (0, 2))
    with tax_gate.inputs_of([model.blocks[0].norm2, model.blocks[2].norm2]) as seen:
        model(images)
    taken = torch.stack([tpkernels.ward(x[:, 1:], 32).n_iter for x in seen]).double()
    assert tax_gate.ward_rounds(model, images, schedule) == pytest.approx(float(taken.mean()))
    assert taken.min() > 1


# Turns and ratios.


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
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, count = done.stdout.strip().rsplit(" ", 1)
    assert kept == memory.KEPT
    # 96 MB are 23,437 pages.
    assert int(count) < 1000


def row(**changes: Any) -> tax_rows.row:
    """A row that is ok."""
    values: dict[str, Any] = {
        **dict.fromkeys(("commit", "library", "python", "torch", "triton"), "1"),
        "run": "2031-02-03T04:05:06+00:00", "device": "Box, 2", "runs_on": "cpu", "threads": 1, "load": 0.5,
        "allocator": "memory kept", "model": "deit-s", "schedule": "three", "keep": 0.7, "layers": "3 6 9",
        "tokens": "197 138", "b": 8,
        "dtype": "float32", "mode": "eager", "method": "ward", "status": "ok", "ward_rounds": 5.5, "rounds": 9,
        "p20_ms": 1.0, "p50_ms": 2.0, "p99_ms": 3.0, "cold_ms": 4.0, "peak_mb": 5.0,
        "tax": 0.034, "tax_p20": 0.03, "tax_p80": 0.05, "speedup": 1.25, "speedup_p20": 1.2, "speedup_p80": 1.3,
    }  # fmt: skip
    return tax_rows.row(**{**values, **changes})


def without_times(**changes: Any) -> tax_rows.row:
    return row(**{**dict.fromkeys(tax_rows.row.TIMES), "rounds": 0, **changes})


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


# From a problem to rows.


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


def broken(module: nn.Module) -> nn.Module:
    def fail(y: Tensor) -> Tensor:
        raise RuntimeError("it broke")

    return Changed(module, fail)


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


# Rows and tables.


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "new" / "box.csv"
    tax_rows.append(path, [row(), without_times(method="topk", status='wrong: say "no"\nagain')])
    tax_rows.append(path, [row(tax=0.123456789)])
    first, second, third = tax_rows.read(path)
    assert (first["tax"], first["keep"], first["p50_ms"]) == ("0.034", "0.7", "2")
    assert second["status"] == 'wrong: say "no" again' and second["tax"] == "" and third["tax"] == "0.123457"
    assert path.read_text().count("\n") == 4 and path.read_text().startswith("run,commit,")
    with pytest.raises(ValueError, match="must not carry times"):
        tax_rows.append(path, [row(status="wrong: it is")])
    assert len(tax_rows.read(path)) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name,value\na,1\n", "its header is not that of this version"),
        (",".join(tax_rows.columns) + "\n2031,abc", "last line is cut off"),
    ],
)
def test_files_of_another_make_are_refused_and_left_alone(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "box.csv"
    path.write_text(content)
    with pytest.raises(Refusal, match=said):
        tax_rows.append(path, [row()])
    with pytest.raises(Refusal, match=said):
        tax_rows.read(path)
    assert path.read_text() == content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of a CPU and of a GPU, made up."""
    slow = {"speedup": 0.9, "speedup_p20": 0.8, "speedup_p80": 1.1}
    # The median alone does not decide: less than four rounds of five.
    close = {"speedup": 1.01, "speedup_p20": 0.99, "speedup_p80": 1.03}
    old = row(run="2030-01-01T00:00:00+00:00", tax=9.99)
    found = [
        old,
        row(b=32),
        row(b=1, **slow),
        row(),
        row(method=BASE, tax=None, tax_p20=None, tax_p80=None, speedup=1.0),
    ]
    found += [row(method=SLICING, b=b, tax=0.0, speedup=1.4) for b in (1, 8, 32)]
    found += [row(method="kmeans", b=b, **slow) for b in (1, 8)] + [row(method="kmeans", b=32, **close)]
    found += [without_times(method="topk", b=b, status="skipped: it rains") for b in (1, 8)]
    found += [without_times(method="bipartite", status="wrong: it is"), row(method="bipartite", b=32, tax=-0.01)]
    tax_rows.append(tmp_path / "box-2-tax.csv", found)
    gpu_row = {"device": "Big GPU", "runs_on": "cuda", "dtype": "bfloat16", "schedule": "every"}
    tax_rows.append(tmp_path / "gpu-tax.csv", [row(**gpu_row, mode=mode) for mode in ("CUDA graph", "compiled")])
    # Files of the other kind are not even opened.
    (tmp_path / "gpu.csv").write_text("of another make\n")
    return tmp_path


def test_tables(folder: Path) -> None:
    text = tax_report.text(folder)
    box, big = text.split("### Pooling tax: Big GPU")
    assert "999" not in text and "run 2031-02-03." in box and "2030" not in box
    title = "deit-s, blocks 4, 7 and 10 keep 0.7, eager, float32"
    assert f"**{title}** (Ward takes 5.5 rounds)" in box and "| method | B=1 | B=8 | B=32 |" in box
    cell = "+3.4 % (+3.0 to +5.0), "
    assert f"| ward | {cell}0.90x | {cell}1.25x | {cell}1.25x |" in box
    assert "| slicing | 1.40x | 1.40x | 1.40x |" in box and "| base |" not in box
    assert "| bipartite | - | -1.0 % (+3.0 to +5.0), 1.25x |" in box or "| bipartite | - | - | -1.0 %" in box
    header = "| model, schedule, way to run | slicing | ward | kmeans | bipartite | topk |"
    assert header in box and f"| {title} | 1 | 8 | never | 32 | - |" in box
    assert box.index("bipartite, 1 time: wrong: it is") < box.index("topk, 2 times: skipped: it rains")
    assert f"| ward | {cell}1.25x, 2.000 ms |" in big
    assert big.index("every block keeps 0.9, compiled") < big.index("every block keeps 0.9, CUDA graph")


def test_tables_go_between_the_markers(folder: Path, tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{tax_report.BEGIN}\nold\n{tax_report.END}\nafter\n")
    for _ in range(2):
        reports.write([tax_report], folder, document)
        text = document.read_text()
        assert text.startswith("before\n") and text.endswith(f"{tax_report.END}\nafter\n")
        assert "old" not in text and text.count("### Pooling tax: Box") == 1
    document.write_text("no markers")
    with pytest.raises(Refusal, match="--document: expected one"):
        reports.write([tax_report], folder, document)
    with pytest.raises(Refusal, match="--document: no file"):
        reports.write([tax_report], folder, tmp_path / "none.md")
    with pytest.raises(Refusal, match="--output"):
        reports.write([tax_report], tmp_path / "nothing", None)


def test_the_documents_markers_stand() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert text.count(tax_report.BEGIN) == text.count(tax_report.END) == 1
    assert text.index(tax_report.BEGIN) < text.index(tax_report.END)


# The command line.


def test_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    chosen = ["tax", "--quick", "--device", "cpu", "--threads", "1", "--batch", "2", "--output", str(tmp_path)]
    assert main([*chosen, "--method", "topk", "bipartite", "topk"]) == 0
    torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert "deit-nano, every block keeps 0.9, B=2" in shown and "#### From which batch on pooling pays" in shown
    (path,) = tmp_path.glob("*-tax-quick.csv")
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(one["schedule"], one["method"], one["status"]) for one in found] == [
        (schedule, method, "ok") for schedule in ("every", "three") for method in (BASE, SLICING, "topk", "bipartite")
    ]
    document = tmp_path / "doc.md"
    document.write_text(f"{tax_report.BEGIN}{tax_report.END}")
    again = ["tax", "--quick", "--report", "--output", str(tmp_path)]
    assert main([*again, "--document", str(document)]) == 0 and main(again) == 0
    assert "| topk |" in document.read_text() and "3 rounds" not in capsys.readouterr().out
    assert len(tax_rows.read(path)) == len(found)


def test_a_red_row_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, topk=lambda module: Changed(module, lambda y: y / 0))
    chosen = ["--quick", "--device", "cpu", "--batch", "1", "--method", "topk", "--schedule", "three"]
    assert main(["tax", *chosen, "--output", str(tmp_path)]) == 1
    found = {one["method"]: one["status"] for one in tax_rows.read(next(tmp_path.glob("*-tax-quick.csv")))}
    assert found.pop("topk").startswith("wrong: ") and found == {BASE: "ok", SLICING: "ok"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cuda:99"], "torch sees"),
        (["--device", "cpu", "--model", "resnet"], "--model: expected names of deit-ti"),
        (["--device", "cpu", "--quick", "--model", "deit-s"], "--model: expected names of deit-nano"),
        (["--batch", "0"], "--batch: expected at least 1, got 0"),
        (["--budget", "0"], "--budget: expected seconds above 0"),
        (["--repeats", "0"], "--repeats: expected at least 1, got 0"),
        (["--report"], "run tax first"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert tax.main([*arguments, "--output", str(tmp_path)]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("benchmarks tax: ") and said in line and "\n" not in line


def test_help_says_what_all_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "no part of all" in " ".join(capsys.readouterr().out.split())
