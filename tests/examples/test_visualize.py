"""`examples/visualize.py`: the source maps of a patched model, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import visualize
from deit.checkpoint import save_weights
from deit.model import DeiT, DeiTConfig
from PIL import Image


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, DeiT(DeiTConfig(patch_size=4, embed_dim=24, depth=4, num_heads=2)), {})
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `draw` was given, drawn all the same."""
    calls: list[Any] = []
    draw = visualize.draw
    monkeypatch.setattr(visualize, "draw", lambda *args: calls.append(args) or draw(*args))
    return calls


@pytest.mark.parametrize(("method", "dropped"), [("ward", False), ("bipartite", False), ("topk", True)])
def test_the_maps_drawn_are_those_of_the_model(
    checkpoint: Path, tmp_path: Path, drawn: list[Any], method: str, dropped: bool
) -> None:
    output = tmp_path / "pictures" / "merged.png"
    arguments = ["--checkpoint", str(checkpoint), "--images", "0", "5", "--method", method, "--layers", "3", "1"]
    visualize.main([*arguments, "--keep", "0.5", "--output", str(output)])
    images, maps, layers, grid, _ = drawn[0]
    assert images.shape == (2, 28, 28) and grid == 7 and layers == [1, 3]
    for label, tokens in zip(maps, (25, 13), strict=True):
        assert label.shape == (2, 49)
        for row in label:
            assert np.array_equal(np.unique(row[row >= 0]), 1 + np.arange(tokens)) and (row < 0).any() == dropped
    with Image.open(output) as picture:
        assert picture.format == "PNG" and picture.width > picture.height > 200


def test_tokens_are_drawn_as_their_mean_grey() -> None:
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    axes = visualize.plt.figure().add_subplot()
    visualize.draw_tokens(axes, image, np.array([[1, 1], [2, -1]]))
    shown = axes.images[0].get_array()
    assert (shown[:2] == image[:2].mean()).all() and (shown[2:, :2] == image[2:, :2].mean()).all()
    assert np.ma.getmaskarray(np.ma.masked_invalid(shown))[2:, 2:].all()
    # Borders: below both tokens of the first row, and between the two of the second.
    assert len(axes.collections[0].get_segments()) == 3
    visualize.plt.close(axes.figure)


def test_an_image_that_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--images must lie in 0\.\."):
        visualize.main(["--checkpoint", str(checkpoint), "--images", "999999", "--output", str(tmp_path / "a.png")])
