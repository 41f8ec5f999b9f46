"""Constants that a kernel hides from the compiler: zeros that it stores and loads again."""

from __future__ import annotations

from .pointers import Pointers, Slice
from .ttgir import Function, Value, walk


def zeros_of(function: Function) -> frozenset[Value]:
    """Scalars loaded from places that the kernel stores a 0 to and nothing else."""
    pointers = Pointers(function)
    stored: dict[frozenset[Slice], bool] = {}
    loads = []
    for op in walk([op for ops in function.blocks.values() for op in ops]):
        if op.name == "tt.store" and "tensor<" not in op.text:
            place = pointers.slices(op.operands[0])
            stored[place] = stored.get(place, True) and pointers.constant(op.operands[1]) == 0
        elif op.name == "tt.load" and "tensor<" not in op.text:
            loads.append(op)
    return frozenset(
        op.result for op in loads if op.result is not None and stored.get(pointers.slices(op.operands[0]), False)
    )
