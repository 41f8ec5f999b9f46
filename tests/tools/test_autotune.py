"""`python -m benchmarks autotune`: what it measures, refuses and keeps, and all of it in the interpreter."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.clustering import cases, providers
from benchmarks.clustering.inputs import Inputs, make_inputs
from tests.support.programs import run
from tools.autotune import command as autotune
from tools.autotune import tuner
from tools.autotune.tuner import configs_of, key_of
from tpkernels.ops.gpu import tuning, tuning_cache
from tpkernels.ops.gpu.limits import Limits

CPU = torch.device("cpu")
HOPPER = Limits(132, 227 << 10, 50 << 20, 32)
TINY = ["--device", "cpu", "--n", "24", "--k", "8", "--d", "8", "--b", "2"]
KEY = "resident/kmeans/float32/n32/k16/d16"
CASE = autotune._case("kmeans", 2, 24, 8, 8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The interpreter's file, in an empty folder."""
    monkeypatch.setenv(tuning_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return tuning_cache.path_of(CPU)


def kept(path: Path) -> dict[str, dict[str, int]]:
    return json.loads(path.read_text())["configs"]


class Planted:
    """A backend whose right answers take as long as a test says, by the configuration that it is given."""

    def __init__(self, behave: Callable[[int, Tensor], Tensor]) -> None:
        self.behave = behave

    def prepare(self, inputs: Inputs) -> Callable[[], Tensor]:
        label = providers.Library("torch").prepare(inputs)()
        configs = [config._asdict() for config in configs_of(inputs.case, CPU)]

        def call() -> Tensor:
            return self.behave(configs.index(tuning.lookup(key_of(inputs.case), CPU)), label)

        return call


def plant(
    monkeypatch: pytest.MonkeyPatch, behave: Callable[[int, Tensor], Tensor], forms: Callable[[int], None] | None = None
) -> list[dict[str, int]]:
    """Puts a backend in the place of the kernels; the configurations that it may be given."""
    monkeypatch.setattr(tuner, "Library", lambda backend: Planted(behave))
    configs = [config._asdict() for config in configs_of(CASE, CPU)]
    assert len(configs) >= 3

    def form() -> None:
        place = configs.index(tuning.lookup(KEY, CPU))
        if forms is not None:
            forms(place)

    monkeypatch.setattr(tuner, "forms", lambda inputs, device: [form])
    return configs


def sleeps(*ms: float) -> Callable[[int, Tensor], Tensor]:
    """Right answers after so many milliseconds by configuration; the last is for all others."""

    def behave(place: int, label: Tensor) -> Tensor:
        time.sleep(ms[min(place, len(ms) - 1)] / 1e3)
        return label

    return behave


def tune(*more: str) -> int:
    return autotune.main([*TINY, "--method", "kmeans", "--repeats", "5", *more])


# What is kept.


def test_the_fastest_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    configs = plant(monkeypatch, sleeps(30, 1, 30))
    assert tune() == 0
    assert kept(cache) == {KEY: configs[1]}
    out = capsys.readouterr().out
    assert "wrote tile=" in out and KEY in out and str(cache) in out
    # Each is told as it comes, for a run that is cut short.
    assert out.count("  tried tile=") == len(configs) and out.rindex("  tried tile=") < out.index("heuristic = 1")


def test_the_heuristic_stays_where_little_is_gained(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = plant(monkeypatch, sleeps(30, 20, 30))
    other = KEY.replace("kmeans", "ward")
    tuning.store(CPU, {KEY: configs[2], other: configs[1]})
    # What an earlier run found does not hold any more; other keys are not touched.
    assert tune("--gain", "9") == 0
    assert kept(cache) == {other: configs[1]}


def test_the_heuristic_stays_where_it_is_the_fastest(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plant(monkeypatch, sleeps(1, 30))
    assert tune() == 0
    assert kept(cache) == {}
    assert "kept the heuristic: the best gains 0.0%, expected more than 2.0%" in capsys.readouterr().out


def test_a_wrong_answer_is_never_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    right = sleeps(30, 1, 10)
    configs = plant(monkeypatch, lambda place, label: right(place, label.roll(1, 1) if place == 1 else label))
    assert tune() == 1
    assert kept(cache) == {KEY: configs[2]}
    out = capsys.readouterr().out
    assert out.count("wrong: objective: expected the reference's") == 1 and "1 cases wrong or failed" in out


@pytest.mark.parametrize("place", [0, 1])
def test_what_does_not_compile_is_told_and_left_out(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, place: int
) -> None:
    right = sleeps(30, 1, 10)

    def behave(given: int, label: Tensor) -> Tensor:
        if given == place:
            raise RuntimeError("out of resource: shared memory,\n Required: 300000, Hardware limit: 232448")
        return right(given, label)

    configs = plant(monkeypatch, behave)
    # That the library's own choice fails is an error, even though another can be kept.
    assert tune() == (1 if place == 0 else 0)
    assert kept(cache) == {KEY: configs[1 if place == 0 else 2]}
    said = "RuntimeError: out of resource: shared memory, Required: 300000, Hardware limit: 232448"
    assert capsys.readouterr().out.count(said) == 1


def test_the_winner_can_run_whatever_shares_its_key(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forms(place: int) -> None:
        if place == 1:
            raise RuntimeError("out of resource")

    configs = plant(monkeypatch, sleeps(30, 1, 10), forms)
    assert tune() == 0
    assert kept(cache) == {KEY: configs[2]}


def test_a_launcher_that_takes_no_advice_is_an_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tuner, "Library", lambda backend: providers.Library("torch"))
    assert tune() == 1
    assert kept(cache) == {}
    out = capsys.readouterr().out
    assert f"did not ask for {KEY}" in out and "kept nothing" in out


def test_the_heuristic_is_what_the_best_is_compared_with(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = plant(monkeypatch, sleeps(1, 30))
    # Not with what an earlier run kept.
    tuning.store(CPU, {KEY: configs[1]})
    assert tune() == 0 and kept(cache) == {}


# What is measured.


def options(*arguments: str) -> object:
    return autotune.parser().parse_args(arguments)


def test_default_cases_are_the_speed_tables_and_vits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "limits_of", lambda device: HOPPER)
    chosen = autotune.plan(options(), torch.device("cuda", 0))
    keys = [key_of(case) for case in chosen]
    assert len(set(keys)) == len(keys)
    found = {(case.method, case.b, case.n, case.d, case.k) for case in chosen}
    for method in ("ward", "kmedoids", "kmeans"):
        assert {(method, 256, 196, 384, 98), (method, 256, 196, 768, 98), (method, 64, 576, 1024, 288)} <= found
    assert {("ward", 256, 196, 384, 137), ("ward", 256, 96, 768, 67)} <= found
    assert {case.dtype for case in chosen} == {"bfloat16"}


def test_arguments_choose_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "limits_of", lambda device: HOPPER)
    chosen = autotune.plan(
        options("--n", "300", "--k", "150", "--d", "64", "--dtype", "float16"), torch.device("cuda", 0)
    )
    assert [(case.method, case.b, case.n, case.d, case.k, case.dtype) for case in chosen] == [
        (method, 256, 300, 64, 150, "float16") for method in ("ward", "kmedoids", "kmeans")
    ]
    (case,) = autotune.plan(options(*TINY, "--method", "ward"), CPU)
    assert (case.b, case.n, case.d, case.k, case.dtype) == (2, 24, 8, 8, "float32")


def test_the_heuristic_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from tpkernels.ops.gpu.resident_tiles import candidates, resident_config

    monkeypatch.setattr(tuner, "limits_of", lambda device: HOPPER)
    for case in cases.kernels("cuda"):
        configs = configs_of(case, torch.device("cuda", 0))
        assert configs[0] == resident_config(case.n, case.k, getattr(torch, case.dtype), HOPPER)
        assert set(configs) == set(candidates(case.n, case.k, getattr(torch, case.dtype), HOPPER))
        assert len(configs) > 1


@pytest.mark.parametrize("method", ["ward", "kmedoids", "kmeans"])
def test_forms_share_the_key(cache: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    from tpkernels.ops.gpu import resident
    from tpkernels.ops.problem import Spec, Tensors

    asked: list[tuple] = []

    def run(tensors: Tensors, spec: Spec) -> None:
        _, n, d = tensors.x.shape
        key = tuning.resident_key(n, spec.k, d, tensors.x.dtype, spec.method)
        asked.append((key, tensors.mask is not None, spec.init, spec.output))
        raise StopIteration

    monkeypatch.setattr(resident, "cluster", run)
    case = autotune._case(method, 2, 24, 8, 8)
    for call in tuner.forms(make_inputs(case, CPU), CPU):
        with pytest.raises(StopIteration):
            call()
    assert {key for key, *_ in asked} == {key_of(case)}
    assert {output for *_, output in asked} == {"center", "medoid", "mean"}
    starts = {"ward"} if method == "ward" else {"ward", "farthest", "strided"}
    assert {init for *_, init, _ in asked} >= starts and all(masked for _, masked, *_ in asked)


# The command line.


def test_a_cpu_has_nothing_to_tune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert autotune.main(["--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "expected a GPU, got the CPU" in error and "TRITON_INTERPRET=1" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--n", "24"], "--n, --k, --d: expected all three or none, got (24, None, None)"),
        (["--n", "24", "--k", "25", "--d", "8"], "--k: expected less than --n = 24"),
        (["--n", "24", "--k", "24", "--d", "8"], "got 24"),
        (["--n", "5000", "--k", "24", "--d", "8"], "--n: expected as many tokens as the resident kernels take"),
        (["--n", "0", "--k", "1", "--d", "8"], "--n: expected at least 1, got 0"),
        (["--b", "0"], "--b: expected at least 1, got 0"),
        (["--repeats", "0"], "--repeats: expected at least 1, got 0"),
        (["--budget", "0"], "--budget: expected seconds above 0, got 0.0"),
        (["--budget", "nan"], "--budget: expected seconds above 0, got nan"),
        (["--gain", "-0.1"], "--gain: expected a share from 0, got -0.1"),
    ],
)
def test_refusals(cache: Path, capsys: pytest.CaptureFixture, arguments: list[str], said: str) -> None:
    assert autotune.main(["--device", "cpu", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not cache.exists()


def test_dry_run_lists_and_measures_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tuner.Tuner, "run", lambda *arguments: pytest.fail("a case was run"))
    assert tune("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(KEY) and len(lines) == 1 + len(configs_of(CASE, CPU))
    assert not cache.parent.exists()


@pytest.mark.parametrize("kind", ["file in the way", "read-only"])
def test_a_cache_that_cannot_be_written_ends_it_before_the_work(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, kind: str
) -> None:
    configs = plant(monkeypatch, sleeps(0))
    monkeypatch.setattr(tuner.Tuner, "run", lambda *arguments: pytest.fail("a case was run"))
    if kind == "file in the way":
        cache.parent.write_text("")
    else:
        tuning.store(CPU, {KEY: configs[0]})
        real = os.open

        def refuse(path: object, flags: int, *more: int) -> int:
            if flags & os.O_CREAT:
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return real(path, flags, *more)

        # The administrator, whom tests may run as, writes everywhere.
        monkeypatch.setattr(os, "open", refuse)
    assert tune() == 2
    error = capsys.readouterr().err
    assert "TPKERNELS_CACHE: expected a folder to write tuned configurations to, got" in error
    assert str(cache.parent) in error
    if kind == "read-only":
        assert tuning_cache.read(CPU) == {KEY: configs[0]}


@pytest.mark.slow
@pytest.mark.interpreter
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton has no wheel for this platform")
@pytest.mark.parametrize("method", ["ward", "kmeans"])
def test_all_of_it_in_the_interpreter(tmp_path: Path, method: str) -> None:
    arguments = [
        "--device",
        "cpu",
        "--n",
        "12",
        "--k",
        "5",
        "--d",
        "4",
        "--b",
        "2",
        "--repeats",
        "2",
        "--method",
        method,
    ]
    variables = {"TRITON_INTERPRET": "1", "TPKERNELS_CACHE": str(tmp_path)}
    done = run("-m", "benchmarks", "autotune", *arguments, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    case = dataclasses.replace(CASE, n=12, k=5, d=4, method=method)
    assert key_of(case) in done.stdout
    (path,) = tmp_path.glob("*.json")
    configs = [config._asdict() for config in configs_of(case, CPU)]
    # Every configuration has its time.
    assert len(re.findall(r"^ +\d+ .* \d+\.\d{4}  \d+\.\d{3}$", done.stdout, re.MULTILINE)) == len(configs)
    found = kept(path)
    if "wrote" in done.stdout:
        assert list(found) == [key_of(case)] and found[key_of(case)] in configs[1:]
    else:
        assert "kept the heuristic" in done.stdout and not found
