"""What other releases of torch, Triton and NumPy cannot do, and what is done about it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

import tpkernels
from tpkernels import TokenPool, functional
from tpkernels.ops import backends

X = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["ward", "topk", "bipartite"])
def test_compiled_code_does_not_ask_for_autocast(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 cannot trace the question, so that a graph would break there."""

    @torch.compiler.disable
    def untraceable(kind: str) -> bool:
        return True

    monkeypatch.setattr(torch.amp, "is_autocast_available", untraceable)
    torch._dynamo.reset()
    pool, significance = TokenPool(0.5, method, num_prefix_tokens=0), X[..., 0].abs()
    compiled = torch.compile(lambda x: pool(x, significance), fullgraph=True, backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(X), pool(X, significance), rtol=0, atol=0)


def test_autocast_is_left_everywhere() -> None:
    """On a kind of device that autocast does not know there is nothing to leave."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(functional.pairwise_sqdist(X.half()), functional.pairwise_sqdist(X.half().float()))
    assert functional.pairwise_sqdist(X.to("meta")).shape == (2, 12, 12)


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [((3, 6), (2, 3), True), ((3, 6), (2, 4), False), ((3, 5), (2, 5), False), ((3, 7), (2, 5), True)],
)
def test_an_interpreter_that_fails_with_this_numpy_is_refused(
    triton: tuple[int, int], numpy: tuple[int, int], works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "TRITON_RELEASE", triton)
    monkeypatch.setattr(backends, "NUMPY_RELEASE", numpy)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    why = backends.why_not_triton("cpu", torch.float32, 4, 12)
    if works:
        assert why is None
    else:
        assert why is not None and "numpy<2.4" in why and f"NumPy {numpy[0]}.{numpy[1]}" in why
    # On a GPU nothing is interpreted.
    monkeypatch.setattr(backends, "limits_of", lambda device: backends.Limits(132, 232448, 50 << 20, 32))
    assert backends.why_not_triton("cuda", torch.float32, 4, 12) is None


def test_a_cpu_without_numba_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_numba", lambda: False)
    backends._tell_of_numba.cache_clear()
    x = torch.randn(1, 6, 2)
    with pytest.warns(RuntimeWarning, match="numba is not installed.*pip install numba"):
        first = tpkernels.ward(x, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = tpkernels.ward(x, 3)
    assert torch.equal(first.assignment, second.assignment)


def test_what_makes_a_cpu_fast_is_installed_with_the_library() -> None:
    toml = pytest.importorskip("tomllib", reason="Python 3.11 and later")
    project = toml.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    required = {re.split(r"[>=;]", one)[0] for one in project["dependencies"]}
    assert required == {"torch", "triton", "numba", "filelock"} and project["optional-dependencies"]["fast"] == []
