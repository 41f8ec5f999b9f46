"""Where the tests run kernels, and the marks that say so: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from tpkernels.ops.backends import TRITON_NEEDED, TRITON_RELEASE, interpreting

CUDA = torch.cuda.is_available()
if not CUDA:
    # Triton reads this when a kernel is defined, so it comes before the first import of one.
    os.environ.setdefault("TRITON_INTERPRET", "1")
DEVICE = "cuda" if CUDA else "cpu"
# What compilations.py sets: tests are chosen and sized as for a GPU, and run here.
FOR_GPU = CUDA or os.environ.get("TPKERNELS_TESTS_FOR_GPU") == "1"

RUNS_TRITON = TRITON_RELEASE is not None and TRITON_RELEASE >= TRITON_NEEDED and (CUDA or interpreting())
# Of tests that run a kernel, wherever they do.
KERNELS = [
    pytest.mark.gpu if FOR_GPU else pytest.mark.interpreter,
    pytest.mark.skipif(not RUNS_TRITON, reason="needs Triton, and its interpreter or a GPU"),
]
Test = TypeVar("Test", bound=Callable[..., object])
Size = TypeVar("Size")


def sized(here: Size, *, gpu: Size) -> Size:
    """A size, or what else makes another kernel; the GPU's is one that other tests compile, too."""
    return gpu if FOR_GPU else here


def runs_triton(test: Test) -> Test:
    """Marks a test that runs a kernel."""
    return _marked(test, KERNELS)


def gpu_only(test: Test) -> Test:
    """Marks a test of what there is on a GPU alone."""
    return _marked(test, [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs a CUDA device")])


def interpreter_only(reason: str) -> Callable[[Test], Test]:
    """Marks a test that means nothing on a GPU, where it is skipped for this reason."""
    return lambda test: _marked(test, interpreter_marks(reason))


def interpreter_marks(reason: str) -> list[pytest.MarkDecorator]:
    """The marks of `interpreter_only`, for a whole file."""
    return [
        pytest.mark.interpreter,
        pytest.mark.skipif(FOR_GPU, reason=reason),
        pytest.mark.skipif(not RUNS_TRITON, reason="needs Triton's interpreter"),
    ]


def _marked(test: Test, marks: list[pytest.MarkDecorator]) -> Test:
    for mark in marks:
        test = mark(test)
    return test
