"""The compile gate: every kernel compiles for GPUs that need not be there, and what it takes of them is read right.

`python -m benchmarks compile` goes through every configuration for every target and is part of `.ci/run`; here a few
calls of the launchers go through it, for one NVIDIA and one AMD GPU, and kernels that do not fit.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.compiled import compiled
from tests.support.once import once
from tests.support.programs import ROOT, run
from tools.compile_gate import command

TARGETS = {"sm_80", "sm_90", "sm_100", "gfx942", "sm_80-99k", "sm_80-64k"}
TENSOR_CORES = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "mfma"}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def names_of_kernels() -> set[str]:
    """The kernels that there are to launch, by the package's own text."""
    text = "".join(path.read_text() for path in (ROOT / "tpkernels" / "kernels").rglob("*.py"))
    return set(re.findall(r"^def (\w+_kernel)\(", text, flags=re.M))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the gate says of a few calls."""
    return compiled(tmp_path_factory)


def compile_hungry(folder: Path) -> None:
    done = run("-m", "tests.support.hungry", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "rows.json").write_text(done.stdout)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What the kernels of `hungry.py` take, by case and target."""
    text = (once(tmp_path_factory, "hungry", compile_hungry) / "rows.json").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return {(row["case"], row["target"]): row for row in found}


def test_the_calls_cover_what_there_is() -> None:
    from tools.compile_gate.calls import calls
    from tools.compile_gate.launchers import LAUNCHERS

    assert {call.launcher for call in calls()} == set(LAUNCHERS)
    assert len({call.name for call in calls()}) == len(calls())
    for launcher, methods in (("resident", {"ward", "kmeans", "kmedoids"}), ("streaming", {"kmeans", "kmedoids"})):
        some = [call for call in calls() if call.launcher == launcher]
        assert {call.dtype for call in some} == {"float32", "float16", "bfloat16"}
        assert {call.options["method"] for call in some} == methods
        assert {call.options["output"] for call in some} == {"center", "mean", "medoid"}
        for flag in ("weighted", "pool_weighted", "masked"):
            assert {call.options.get(flag, False) for call in some} == {True, False}
    resident = [call for call in calls() if call.launcher == "resident"]
    assert {call.options["init"] for call in resident} == {"ward", "topk", "farthest", "strided", "given"}
    assert len({(call.options["method"], call.options["output"]) for call in resident}) == 9


def test_the_targets_have_the_limits_that_configurations_are_for() -> None:
    from tools.compile_gate.targets import TARGETS as known

    assert set(known) == TARGETS
    kilobytes = {name: target.limits.shared_bytes // 1024 for name, target in known.items()}
    assert kilobytes == {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64, "sm_80-99k": 99, "sm_80-64k": 64}


def test_faults_of_a_row() -> None:
    from tools.compile_gate.gate import faults

    row = {"target": "gfx942", "error": None, "shared": 65536, "spilled": 0, "registers": 255, "num_warps": 8}
    assert faults(row) == []
    assert faults(row | {"shared": 65537}) == ["shared memory: expected at most 65536 bytes, got 65537"]
    assert faults(row | {"target": "sm_80-99k", "shared": 101377}) != []
    assert "got 513" in faults(row | {"target": "sm_100", "tensor_memory": 513})[0]
    assert "got 8 bytes" in faults(row | {"spilled": 8})[0]
    assert faults(row | {"target": "sm_90"}) == []
    assert "cannot be launched, got 131072" in faults(row | {"target": "sm_90", "num_warps": 16})[0]
    assert "cannot be launched, got 69632" in faults(row | {"target": "sm_90", "num_warps": 16, "registers": 129})[0]
    assert "does not compile: no" in faults({"target": "sm_90", "error": "no"})[0]


@pytest.mark.slow
@pytest.mark.compile
def test_nothing_to_compile_is_a_failure() -> None:
    done = run("-m", "tools.compile_gate", "--calls", "^mean", "--targets", "sm_90", "--kernels", "no_such_kernel")
    assert done.returncode == 1
    assert "no_such_kernel" in done.stderr


def test_a_target_that_there_is_not_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--targets", "sm_12"])
    assert "sm_12" in capsys.readouterr().err


@pytest.mark.compile
@pytest.mark.parametrize("target", sorted(TENSOR_CORES))
def test_what_a_kernel_takes_is_read(taken: dict[tuple[str, str], dict[str, Any]], target: str) -> None:
    from tools.compile_gate.targets import family

    product, copy, spills = (taken[case, target] for case in ("product", "copy", "spills"))
    assert family(product["instructions"]) == TENSOR_CORES[target]
    assert family(copy["instructions"]) == family(spills["instructions"]) == "-"
    assert product["spilled"] == copy["spilled"] == 0
    assert spills["spilled"] > 100
    assert copy["registers"] < product["registers"]
    assert copy["shared"] < product["shared"] <= spills["shared"] == 65536


def test_the_kernels_of_launchers_are_found() -> None:
    assert names_of_kernels() == {
        "resident_kernel", "center_kernel", "gram_kernel", "cluster_kernel", "pool_kernel", "linkage_kernel",
        "merge_kernel", "tree_kernel", "split_tokens_kernel", "assign_kernel",
        "chunk_mean_kernel", "segment_mean_kernel", "member_cost_kernel", "medoid_kernel",
        "medoid_centres_kernel", "cluster_mean_backward_kernel", "attend_rows_kernel", "attend_stream_kernel",
        "received_kernel", "sum_parts_kernel", "query_gradient_kernel", "key_gradient_kernel",
    }  # fmt: skip


@pytest.mark.compile
@pytest.mark.slow
def test_every_kernel_compiles(rows: list[dict[str, Any]]) -> None:
    for target in ("sm_90", "gfx942"):
        assert {row["kernel"] for row in rows if row["target"] == target} == names_of_kernels()
    faults = {(row["kernel"], row["case"], row["target"]): row["faults"] for row in rows if row["faults"]}
    assert not faults
    # Products are on tensor cores wherever there are any.
    for row in rows:
        if row["kernel"] in ("resident_kernel", "gram_kernel", "assign_kernel"):
            assert row["tensor_cores"] != "-" and row["config"].get("PRECISION") != "0", row
        # A kernel without products is given 0.
        if row["config"].get("PRECISION", "0") != "0":
            assert row["config"]["PRECISION"] == ("'ieee'" if row["target"] == "gfx942" else "'tf32x3'")
