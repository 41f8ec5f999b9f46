"""The interpreter's guard: fewer patches of the language, and the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tpkernels
from tests.support.marks import interpreter_marks
from tests.support.patching import patched_once

pytestmark = interpreter_marks("the guard is the interpreter's")


@pytest.mark.parametrize("method", ["ward", "kmeans", "kmedoids"])
def test_a_launch_patches_the_language_a_few_times_and_gives_the_same_bits(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime import interpreter

    patch = getattr(getattr(interpreter, "_patch_lang", None), "__wrapped__", None)
    if patch is None:
        pytest.skip("this Triton has other names, and no guard")
    x = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))
    patches = []

    def counted(function: Any) -> Any:
        patches.append(function)
        return patch(function)

    def run() -> tuple[Any, int]:
        patches.clear()
        return getattr(tpkernels, method)(x, 4, backend="triton"), len(patches)

    monkeypatch.setattr(interpreter, "_patch_lang", counted)
    expected, every = run()
    with patched_once(interpreter):
        found, few = run()
    assert 0 < few <= 3 < 50 < every
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or torch.equal(one, other)
