"""`examples/clustering_quality.py`: objectives over FasterPAM's, for which an exhaustive search stands in here."""

from __future__ import annotations

import importlib
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import tpkernels


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    return importlib.import_module("clustering_quality")


def every_choice(sqdist: Tensor, start: Tensor) -> Tensor:
    """The least objective there is."""
    n, k = sqdist.shape[1], start.shape[1]
    chosen = torch.tensor(list(combinations(range(n), k)))
    return torch.stack([one[chosen].amin(1).sum(1).min() for one in sqdist])


def test_nothing_is_below_the_least_objective(quality: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "fasterpam", every_choice)
    generator = torch.Generator().manual_seed(0)
    found = quality.ratios(torch.randn(6, 12, 3, generator=generator), torch.rand(6, 12, generator=generator), 4)
    assert set(found) == set(quality.METHODS)
    for name, ratio in found.items():
        assert bool((ratio >= 1 - 1e-6).all()), name
    assert found["K-Medoids from top-K, swaps"].mean() < 1.1 < found["K-Medoids from top-K (paper)"].mean()


def test_the_objective_is_that_of_the_medoids(quality: ModuleType) -> None:
    x = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(1)).double()
    found = tpkernels.kmedoids(x, 3)
    assert torch.allclose(quality.objective(tpkernels.pairwise_sqdist(x), found.medoids), found.loss)


def test_the_table_goes_into_a_document(
    quality: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "fasterpam", lambda sqdist, start: quality.objective(sqdist, start))
    monkeypatch.setattr(quality.importlib.util, "find_spec", lambda name: object())
    page = tmp_path / "page.md"
    page.write_text("<!-- begin: examples/clustering_quality.py -->\n<!-- end -->\n")
    quality.main(["--limit", "2", "--blocks", "1", "--keep", "0.5", "--document", str(page)])
    # Ward's own medoids were what everything is measured by.
    assert "| Ward | 1.000 (1.000) |" in page.read_text()
    assert "2 images of fashion-mnist-test-2000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--limit", "0"], "--limit must be at least 1, got 0"), (["--blocks", "99"], "--blocks must lie in 0..11")],
)
def test_bad_arguments_end_with_a_line(
    quality: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(quality.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(SystemExit) as ended:
        quality.main(arguments)
    assert message in f"{ended.value}{capsys.readouterr().err}"
