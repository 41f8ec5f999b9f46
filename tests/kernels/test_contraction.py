"""Compiled sums: no product is fused with the sum it goes into where another lane adds the same the other way round.

`fma(x, d, round(y e))` rounds otherwise than its mirror image `fma(y, e, round(x d))`, and two tokens that do not agree
on what lies between them can wait for each other for ever: Ward's first costs are computed once for each of the two.
Lanes that add up products between them end with copies of a sum that differ, and race to store them. The interpreter
fuses nothing, so the PTX is read.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from tests.support.programs import ROOT, run

TARGETS = ("sm_80", "sm_90")
COSTS = (ROOT / "tpkernels" / "kernels" / "resident" / "costs.py").read_text().splitlines()
# The lines of the first costs, and the one that takes twice an entry of the Gram matrix from the sum of two norms.
FIRST = range(
    *(
        next(place for place, line in enumerate(COSTS, 1) if line.startswith(f"def {name}("))
        for name in ("_power_to_unit", "total_error")
    )
)
SUM = next(place for place, line in enumerate(COSTS, 1) if "b_new - 2 * tl.load(s.gram" in line)
MINUS_TWO = "0fC0000000"

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    done = run("-m", "tests.support.contraction", *TARGETS)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("target", TARGETS)
def test_a_cost_and_its_mirror_image_round_alike(rows: list[dict[str, Any]], target: str) -> None:
    """What is symmetric in two tokens stays so: sums of two norms or masses, products of two masses, and one fused
    operation, of which the sum of the norms is what is added.
    """
    here = [row for row in rows if row["target"] == target]
    for word in ("weighted", "cosine", "dot"):
        assert len({word in row["case"].split() for row in here}) == 2
    for row in here:
        found = {int(line): names for line, names in row["operations"].items() if int(line) in FIRST}
        assert sum(map(len, found.values())) > 10
        fused = [(line, name) for line, names in found.items() for name in names if "fma" in name]
        assert all(line == SUM and MINUS_TWO in name for line, name in fused), fused
        # It is fused, or written out for the assembler to fuse: the test looks where it should.
        euclidean = not {"cosine", "dot"} & set(row["case"].split())
        assert any(MINUS_TWO in name for name in found.get(SUM, [])) == euclidean


@pytest.mark.slow
def test_lanes_agree_on_the_sums_that_they_exchange() -> None:
    done = run("-m", "tests.support.lane_sums")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["kernel"], row["case"]) for row in rows if not row["allowed"] and row["fused"]} == set()
    # With contraction allowed it is seen, but for the attention's sum, which is masked after the product.
    seen = {row["kernel"] for row in rows if row["allowed"] and row["fused"]}
    assert seen == {row["kernel"] for row in rows} - {"query_gradient_kernel"} and len(seen) == 3
