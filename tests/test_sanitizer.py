"""The memory checker sees what it is there for."""

from __future__ import annotations

import pytest
import torch

from tests.support.marks import interpreter_marks

pytestmark = interpreter_marks("the memory checker watches the interpreter")


def copy(source: torch.Tensor, target: torch.Tensor, read: int, written: int, shift: int = 0) -> None:
    """Copies numbers by a kernel that reads and writes as many as it is told to, `shift` places further on."""
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(p_source, p_target, read, written, shift, WIDTH: tl.constexpr):
        place = tl.arange(0, WIDTH) + shift
        value = tl.load(p_source + place, mask=place < read, other=0)
        tl.store(p_target + place, value, mask=place < written)

    kernel[(1,)](source, target, read, written, shift, WIDTH=16)


def test_accesses_within_the_tensors_pass(sanitizer: object) -> None:
    source, target = torch.arange(9.0), torch.zeros(9)
    before = sanitizer.accesses
    copy(source, target, 9, 9)
    assert torch.equal(source, target)
    assert sanitizer.accesses == before + 2


@pytest.mark.parametrize("layout", ["whole", "part of a storage"])
def test_a_read_or_a_write_beyond_is_seen(layout: str) -> None:
    """Part of a larger storage ends where the tensor does, though the memory behind it is the process's own."""
    source, target = torch.zeros(9), torch.zeros(9)
    if layout != "whole":
        source, target = torch.zeros(40)[10:19], torch.zeros(40)[10:19]
    with pytest.raises(Exception, match="a load of 4 bytes, 1 bytes from the end"):
        copy(source, target, 10, 9)
    with pytest.raises(Exception, match="a store of 4 bytes, 1 bytes from the end"):
        copy(source, target, 9, 10)
    with pytest.raises(Exception, match="a load of 4 bytes"):
        copy(source, target, 9, 9, shift=-1)


def test_masked_lanes_may_point_anywhere() -> None:
    copy(torch.zeros(9), torch.zeros(9), 9, 9, shift=5)
    copy(torch.zeros(0), torch.zeros(0), 0, 0)
