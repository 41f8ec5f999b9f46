"""A kernel is compiled once for a bucket of tiles and a class of alignment: sizes inside one never compile it again."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.support.programs import run

# Shapes [B, N, D, K] of one bucket each.
BUCKETS = {
    "resident": [(1, 130, 384, 65), (2, 196, 384, 98), (300, 208, 384, 112), (4000, 256, 384, 128)],
    "resident, three launches": [(1, 257, 1024, 129), (7, 400, 1024, 200), (64, 512, 1024, 256)],
    "resident, few channels": [(1, 17, 3, 9), (5, 30, 3, 16), (900, 31, 3, 11)],
    "streaming": [(8, 30000, 128, 1000), (9, 32768, 128, 1024), (16, 40000, 128, 1333)],
}
# Another bucket, and another alignment.
OTHERS = {"resident, others": [(2, 128, 384, 98), (2, 196, 384, 98), (2, 196, 383, 98)]}
PROGRAM = """
import json, sys
from tools.compile_gate.calls import Call
from tools.compile_gate.launches import key, launches
from tools.compile_gate.targets import TARGETS

found = {}
for bucket, shapes in json.loads(sys.argv[1]).items():
    kind = bucket.split(",")[0]
    for method in ("kmeans", "kmedoids") if kind == "streaming" else ("ward", "kmeans", "kmedoids"):
        init = "strided" if method != "ward" else "ward"
        options = {"method": method, "init": init, "output": "mean"}
        variants = {}
        for shape in shapes:
            for launch in launches(TARGETS["sm_90"], [Call(kind, tuple(shape), options=options)]):
                variants.setdefault(launch.kernel.__name__, set()).add(key(launch))
        found[f"{bucket}: {method}"] = {name: len(keys) for name, keys in variants.items()}
print(json.dumps(found))
"""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.compile,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.fixture(scope="module")
def variants() -> dict[str, dict[str, int]]:
    """How often each kernel is compiled for the shapes of a bucket, by bucket and method."""
    alone = {f"{bucket}, alone": shapes[1:2] for bucket, shapes in BUCKETS.items()}
    # Where Triton interprets kernels they have no variants.
    done = run("-c", PROGRAM, json.dumps({**BUCKETS, **alone, **OTHERS}), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_one_compile_for_a_bucket(variants: dict[str, dict[str, int]]) -> None:
    alone = {case.replace(", alone", ""): kernels for case, kernels in variants.items() if ", alone" in case}
    assert len(alone) == 11 and all(alone.values())
    for case, kernels in alone.items():
        # What one shape compiles, a kernel with and without the sample's mean for example, is all that there is.
        assert variants[case] == kernels
        assert case.startswith("streaming") or set(kernels.values()) == {1}


def test_other_buckets_and_alignments_are_other_variants(variants: dict[str, dict[str, int]]) -> None:
    found = {case: kernels["resident_kernel"] for case, kernels in variants.items() if ", others" in case}
    assert found == {"resident, others: ward": 3, "resident, others: kmeans": 3, "resident, others: kmedoids": 3}
