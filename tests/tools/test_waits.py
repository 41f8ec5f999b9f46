"""What the meter says that a warp waits for: the bits of an instruction, by hand."""

from __future__ import annotations

import pytest

from tools.meter import waits
from tools.meter.code import Code, Instruction
from tools.meter.flow import flow

FREE = 7


def one(
    name: str, *, stall: int = 1, writes: int = FREE, reads: int = FREE, on: int = 0, text: str = ""
) -> Instruction:
    """An instruction that holds the scoreboards `writes` and `reads`, and waits on those in the mask `on`."""
    return Instruction(name, text or name, control=stall | writes << 5 | reads << 8 | on << 11)


def run(*rows: Instruction) -> list[tuple[str, float]]:
    warp = waits.Warp()
    return [warp.issue(row) for row in rows]


def test_a_result_is_waited_for() -> None:
    found = run(one("LDG.E", writes=0), one("IADD3", on=1), one("FADD", stall=4))
    assert found == [(waits.ISSUE, 1), (waits.LOADS, waits.LOAD), (waits.ISSUE, 4)]


def test_loads_that_are_on_their_way_together_are_waited_for_once() -> None:
    found = run(one("LDG.E", writes=0), one("LDG.E", writes=1), one("IADD3", on=1), one("IADD3", on=2))
    assert found[2] == (waits.LOADS, waits.LOAD - 1) and found[3][1] == 1
    apart = run(one("LDG.E", writes=0), one("IADD3", on=1), one("LDG.E", writes=1), one("IADD3", on=2))
    assert sum(cycles for _, cycles in apart) == pytest.approx(2 * waits.LOAD, rel=0.02)


def test_the_longest_of_what_is_waited_for_counts() -> None:
    found = run(one("SHFL.BFLY", writes=0), one("LDG.E", writes=1), one("IADD3", on=3))
    assert found[2][0] == waits.LOADS
    found = run(one("SHFL.BFLY", writes=0), one("IADD3", on=1))
    assert found[1] == (waits.REST, waits.latency("SHFL.BFLY"))


def test_operands_are_held_until_they_are_read() -> None:
    assert run(one("STG.E", reads=2), one("IADD3", on=4))[1] == (waits.REST, waits.OPERANDS)


def test_copies_arrive_by_groups() -> None:
    copies = [one("LDGSTS.E"), one("LDGDEPBAR"), one("IADD3", stall=15), one("LDGSTS.E"), one("LDGDEPBAR")]
    first = run(*copies, one("DEPBAR.LE", text="DEPBAR.LE SB0, 0x1 ;"))[-1]
    both = run(*copies, one("DEPBAR.LE", text="DEPBAR.LE SB0, 0x0 ;"))[-1]
    assert first[0] == both[0] == waits.COPIES
    assert both[1] - first[1] == 15 + 1 + 1


def test_products_follow_each_other_and_the_last_is_waited_for() -> None:
    products = [one("HGMMA.64x64x16.F32.BF16")] * 4
    why, cycles = run(*products, one("WARPGROUP.DEPBAR.LE"))[-1]
    expected = waits.latency("HGMMA") + 3 * waits.PRODUCT
    assert why == waits.PRODUCTS and cycles == pytest.approx(expected, abs=5)


def test_a_barrier_takes_its_time() -> None:
    assert run(one("BAR.SYNC.DEFER_BLOCKING"))[0] == (waits.BARRIERS, waits.BARRIER + 1)


def test_a_turn_finds_what_the_turn_before_left_on_its_way() -> None:
    loop = [one("IADD3", on=1), *[one("FADD", stall=10)] * 10, one("LDG.E", writes=0)]
    back = Instruction("BRA", "BRA", to="head", control=1 | FREE << 5 | FREE << 8)
    found = flow(Code([one("MOV"), *loop, back, Instruction("EXIT", "EXIT", falls=False)], {"head": 1}))
    counts = [1.0, 10.0, 1.0]
    why, cycles = waits.waits(found, counts)[1][0]
    assert why == waits.LOADS and cycles == waits.LOAD - 1
    total = waits.alone(found, counts)
    assert total[waits.LOADS] == 10 * cycles
    assert sum(total.values()) == pytest.approx(10 * (waits.LOAD + 102), rel=0.02)


def test_code_without_bits_has_no_time() -> None:
    plain = flow(Code([Instruction("s_mov", "s_mov"), Instruction("s_endpgm", "s_endpgm", falls=False)], {}))
    assert not waits.alone(plain, [1.0])
