"""`pytest -m gpu` runs on a GPU what `-m interpreter` runs here, and compiles few kernels for it."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys

import pytest

from tests.support import compilations
from tests.support.marks import RUNS_TRITON
from tests.support.programs import ROOT

COLLECT = """
import sys

import pytest
import torch

torch.cuda.is_available = lambda: {cuda}
raise SystemExit(pytest.main(["--collect-only", "-q", "-n0", "-p", "no:cacheprovider", "-m", {mark!r}, "tests"]))
"""
OTHER_STARTS = "another start of the same method is another kernel, and reads tokens by the same lines"
OTHER_FORM = "another form of a kernel to compile, for one rule"
OWN_PROCESS = "it starts the interpreter in a process of its own, with a GPU beside it, too"
# Tests that stay in the interpreter, and why.
INTERPRETER_ONLY = {
    "test_sanitizer.py::*": "the memory checker watches the interpreter",
    "test_interpreter.py::*": "the guard is the interpreter's",
    "ops/test_agreement.py::test_every_step_of_1000_problems_in_the_interpreter[*]": "on a GPU problems are larger",
    "tools/test_autotune.py::test_all_of_it_in_the_interpreter[*]": OWN_PROCESS,
    "benchmarks/device/test_steps.py::*": OWN_PROCESS,
    "kernels/test_resident_ties.py::*": OTHER_FORM,
    "kernels/test_resident_wide.py::test_more_tokens_than_a_vector_has[*]": OTHER_FORM,
    "kernels/test_resident_wide.py::test_parts_of_vectors_and_of_rows_change_no_bit[*]": OTHER_FORM,
    "kernels/test_resident_wide.py::test_equal_tokens_in_two_parts_of_a_vector": OTHER_FORM,
    "kernels/streaming/test_counts.py::*": OTHER_FORM,
    "ops/test_registration.py::test_opcheck_cluster_of_counts_metrics_and_cuts[*]": OTHER_FORM,
    "ops/test_registration.py::test_opcheck_linkage[*]": OTHER_FORM,
    "ops/test_samples.py::test_a_cluster_of_tokens_without_size_has_none[*]": OTHER_FORM,
    "ops/test_samples.py::test_empty_shapes[*]": OTHER_STARTS,
    "ops/test_models_tokens.py::test_channels[*]": OTHER_STARTS,
    "ops/test_models_tokens.py::test_half_types_compute_in_float32[*]": OTHER_STARTS,
    "ops/test_models_tokens.py::test_weights_of_half_types[*]": OTHER_STARTS,
    "ops/test_models_tokens.py::test_strides_do_not_count[*]": OTHER_STARTS,
    "ops/test_hostile.py::test_one_token_and_one_channel[*]": OTHER_STARTS,
}
# Kernels that the whole selection compiles: some 10 s of a core each for those of whole samples, 2 s for the others.
MOST_LARGE, MOST = 200, 420


def collect(mark: str, cuda: bool) -> subprocess.Popen[str]:
    """Starts collecting the tests of a mark, as on a machine with CUDA or without; no device can be touched."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_"))}
    env |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", COLLECT.format(cuda=cuda, mark=mark)]
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not RUNS_TRITON, reason="needs Triton, and its interpreter or a GPU")
def test_a_gpu_has_the_interpreters_tests() -> None:
    runs = collect("interpreter", False), collect("gpu", True)
    found = []
    for run in runs:
        output = run.communicate(timeout=300)[0]
        assert run.returncode == 0, output[-3000:]
        found.append({line.removeprefix("tests/") for line in output.splitlines() if "::" in line})
    here, there = found
    assert len(here) > 900
    missing = here - there
    unnamed = [test for test in missing if not any(fnmatch.fnmatchcase(test, escaped(one)) for one in INTERPRETER_ONLY)]
    assert not unnamed, "tests that a GPU would not run"
    for one in INTERPRETER_ONLY:
        assert any(fnmatch.fnmatchcase(test, escaped(one)) for test in missing), f"{one} runs on a GPU"
    # Of each method, one start is there.
    for test in missing:
        assert INTERPRETER_ONLY.get(re.sub(r"\[.*", "[*]", test)) != OTHER_STARTS or re.search(
            r"(kmeans-ward|kmedoids-farthest)-triton", test
        )


def escaped(pattern: str) -> str:
    """The pattern with its brackets as they stand."""
    return pattern.replace("[*]", "[[]*]")


@pytest.mark.slow
@pytest.mark.skipif(not RUNS_TRITON, reason="needs Triton, and its interpreter or a GPU")
def test_a_gpu_compiles_few_kernels() -> None:
    """What every test that a GPU would run hands to a kernel, without running it."""
    done = compilations.count(["tests"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    large, every = map(int, re.search(r"compilations: (\d+) large, (\d+) in all", done.stdout).groups())
    assert 100 < large <= MOST_LARGE, done.stdout[-6000:]
    assert 200 < every <= MOST, done.stdout[-6000:]
