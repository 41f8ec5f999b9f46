"""The interpreter's guards: fewer patches of the language, fewer types made, and the same bits."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from typing import Any

import pytest
import torch

import tpkernels
from tests.support.marks import interpreter_marks
from tools.quick_interpreter import quickened

pytestmark = interpreter_marks("the guard is the interpreter's")


@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
def test_a_launch_does_little_twice_and_gives_the_same_bits(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import interpreter

    core, semantic, builder = interpreter.tl.core, interpreter.TritonSemantic, interpreter.interpreter_builder
    guarded = {
        "patch": (interpreter, "_patch_lang"),
        "dtype": (interpreter, "_get_np_dtype"),
        "type": (core.block_type, "__init__"),
        "tensor": (core.tensor, "__init__"),
        "conversion": (semantic, "binary_op_type_checking_impl"),
        "broadcast": (semantic, "broadcast_impl_value"),
        "cast": (semantic, "cast"),
    }
    if not all(hasattr(vars(owner).get(name), "__wrapped__") for owner, name in guarded.values()):
        pytest.skip("this Triton has other names, and no guards")
    x = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))
    calls: Counter[str] = Counter()

    def counted(idea: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[idea] += 1
            return function(*args, **kwargs)

        return call

    def run() -> tuple[Any, Counter[str]]:
        calls.clear()
        return getattr(tpkernels, method)(x, 4, backend="triton"), calls.copy()

    # What the session's guards stand before, as Triton has it.
    for idea, (owner, name) in guarded.items():
        monkeypatch.setattr(owner, name, counted(idea, inspect.unwrap(vars(owner)[name])))
    monkeypatch.setattr(builder, "options", type(builder.options)())
    assert builder.options.sanitize_overflow
    expected, every = run()
    with quickened(interpreter):
        found, few = run()
    assert 0 < few["patch"] <= 3 < 50 < every["patch"]
    assert all(few[idea] < every[idea] / 2 for idea in guarded)
    assert few["type"] + few["tensor"] + few["dtype"] < 200 < 10_000 < every["type"] + every["tensor"] + every["dtype"]
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.usefixtures("sanitizer")
def test_types_that_differ_are_not_mistaken() -> None:
    from triton.runtime import interpreter

    core = interpreter.tl.core
    made = [
        core.block_type(element, shape)
        for element in (core.float32, core.int32, core.pointer_type(core.float32), core.pointer_type(core.float16))
        for shape in ([2, 4], [4, 2], [8], [core.constexpr(8)], core.tuple([core.constexpr(2), core.constexpr(4)]))
    ]
    assert len({type.name for type in made}) == 4 * 3
    for type in made:
        assert type == core.block_type(type.element_ty, type.shape)
        value = core.tensor("handle", type)
        assert (value.type, value.dtype, value.handle) == (type, type.element_ty, "handle")
        assert [int(size) for size in value.shape] == list(type.shape)
        assert math.prod(type.shape) == value.numel == type.numel
    with pytest.raises(ValueError, match="power of 2"):
        core.block_type(core.float32, [3])
