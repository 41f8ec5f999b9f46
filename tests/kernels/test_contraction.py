"""Compiled sums: no product is fused with the sum it goes into where another lane adds the same the other way round.

`fma(x, d, round(y e))` rounds otherwise than its mirror image `fma(y, e, round(x d))`, and two clusters that do not
agree on what lies between them can wait for each other for ever. Lanes that add up products between them end with
copies of a sum that differ, and race to store them. The interpreter fuses nothing, so the PTX is read.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from tests.support.programs import ROOT, run

TARGETS = ("sm_80", "sm_90")
WARD = (ROOT / "tpkernels" / "kernels" / "resident" / "ward.py").read_text().splitlines()
# The line that adds what the mirror image has the other way round, and the line of its product by columns.
SUM, PRODUCT = (
    next(place for place, line in enumerate(WARD, 1) if text in line)
    for text in ("b_d += tl.where(m_low, b_row, b_col)", "b_col = b_u_r * (1 - b_u)")
)

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    done = run("-m", "tests.support.contraction", *TARGETS)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(params=TARGETS)
def launches(request: pytest.FixtureRequest, rows: list[dict[str, Any]]) -> dict[bool, dict[int, list[str]]]:
    """Float32 operations by line of Ward's kernel as shipped (False) and with contraction allowed (True)."""
    here = [row for row in rows if row["target"] == request.param]
    assert len(here) == 2 and len(rows) == 2 * len(TARGETS)
    return {bool(row["fused"]): {int(line): found for line, found in row["operations"].items()} for row in here}


def contracted(found: dict[int, list[str]]) -> list[tuple[int, str]]:
    """Fused operations, and those that the assembler may still fuse, since they name no rounding of their own."""
    return [(line, name) for line, names in found.items() for name in names if "fma" in name or ".rn" not in name]


def test_wards_distances_are_not_contracted(launches: dict[bool, dict[int, list[str]]]) -> None:
    found = launches[False]
    assert found[SUM] and found[PRODUCT] and sum(map(len, found.values())) > 50
    assert contracted(found) == []


def test_with_contraction_the_sum_would_be(launches: dict[bool, dict[int, list[str]]]) -> None:
    lines = {line for line, _ in contracted(launches[True])}
    assert SUM in lines and any("fma" in name for names in launches[True].values() for name in names)


@pytest.mark.slow
def test_lanes_agree_on_the_sums_that_they_exchange() -> None:
    done = run("-m", "tests.support.lane_sums")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["kernel"], row["case"]) for row in rows if not row["allowed"] and row["fused"]} == set()
    # With contraction allowed it is seen, but for the attention's sum, which is masked after the product.
    seen = {row["kernel"] for row in rows if row["allowed"] and row["fused"]}
    assert seen == {row["kernel"] for row in rows} - {"query_gradient_kernel"} and len(seen) == 3
