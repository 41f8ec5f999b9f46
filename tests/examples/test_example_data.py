"""The example's readers and files: IDX sets, image folders, checkpoints."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from common.data import IDX_NAMES, DataError, load_idx, read_idx, write_idx
from common.files import write_atomically
from common.images import batches, evenly_spaced, open_images
from deit.checkpoint import CheckpointError, load_model, read_weights, save_weights
from deit.model import DeiT, DeiTConfig
from deit.subjects import SmallTransform, read_state
from PIL import Image
from safetensors.torch import save_file
from training.sources import to_input

from tests.support.programs import EXAMPLES

SHIPPED = EXAMPLES / "data" / "fashion-mnist-test-2000"
TINY = DeiTConfig(patch_size=7, embed_dim=24, depth=4, num_heads=2)
GREEN_IDX = bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])


def write_set(root: Path, split: str, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
    for name, values in zip(IDX_NAMES[split], (images, torch.arange(count, dtype=torch.uint8) % 10), strict=True):
        write_idx(root / f"{name}.gz", values)


def test_read_idx_takes_plain_and_gzipped_files(tmp_path: Path) -> None:
    for name, content in (("plain", GREEN_IDX), ("packed", gzip.compress(GREEN_IDX))):
        (tmp_path / name).write_bytes(content)
        assert read_idx(tmp_path / name).tolist() == [7, 8, 9]


def test_write_idx_round_trip_and_same_bytes(tmp_path: Path) -> None:
    values = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    for name in ("a", "b"):
        write_idx(tmp_path / name, values)
    assert torch.equal(read_idx(tmp_path / "a"), values)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "not an IDX file"),
        (b"\x89PNG" + GREEN_IDX, "not an IDX file"),
        (bytes([0, 0, 0x0D, 1, 0, 0, 0, 3]) + bytes(12), "not an IDX file"),
        (GREEN_IDX[:6], "truncated"),
        (GREEN_IDX[:-1], r"says shape \[3\]"),
        (GREEN_IDX + b"\0", r"says shape \[3\]"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(9), "says shape"),
        (bytes([0, 0, 8, 0]), "says shape"),
        (gzip.compress(GREEN_IDX)[:-9], "cannot be read"),
        (gzip.compress(GREEN_IDX)[:12] + b"\xff" * 20, "cannot be read"),
    ],
    ids=["missing", "empty", "png", "floats", "no-shape", "short", "long", "huge", "rank-0", "gz-cut", "gz-corrupt"],
)
def test_read_idx_names_what_is_wrong(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path)


def test_load_idx_wants_both_files_and_equal_lengths(tmp_path: Path) -> None:
    write_set(tmp_path, "test", 5)
    assert [len(part) for part in load_idx(tmp_path, "test")] == [5, 5]
    write_idx(tmp_path / f"{IDX_NAMES['test'][1]}.gz", torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"expected images \[M, H, W\] and labels \[M\]"):
        load_idx(tmp_path, "test")
    with pytest.raises(DataError, match="holds no train set"):
        load_idx(tmp_path, "train")


def test_shipped_images_are_whole() -> None:
    images, labels = load_idx(SHIPPED, "test")
    assert images.shape == (2000, 28, 28)
    assert labels.bincount().min() > 150 and labels.max() == 9
    assert (SHIPPED / "LICENSE").is_file()


def test_transform_equals_the_training_input() -> None:
    source = open_images(SHIPPED)
    images, labels = load_idx(SHIPPED, "test")
    (batch,) = batches(source, SmallTransform(TINY), [[3, 1, 1999]], workers=0)
    torch.testing.assert_close(batch.images, to_input(images[[3, 1, 1999]], TINY))
    assert batch.labels.tolist() == labels[[3, 1, 1999]].tolist()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_transform_takes_any_size_and_mode(mode: str) -> None:
    assert SmallTransform(TINY)(Image.new(mode, (50, 31))).shape == (1, 28, 28)


def make_folder(root: Path) -> None:
    """Three classes of two images each; one is cut short, one is text, one file is no image at all."""
    for number, name in enumerate(("boot", "coat", "dress")):
        (root / name / "nested").mkdir(parents=True)
        for i, folder in enumerate((root / name, root / name / "nested")):
            Image.new("RGB", (40, 40), (40 * number, 0, 90 * i)).save(folder / f"{i}.png")
    path = root / "coat" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    (root / "dress" / "nested" / "1.png").write_text("not an image")
    (root / "dress" / "notes.txt").write_text("ignored")


@pytest.mark.parametrize("workers", [0, 1])
def test_image_folder_counts_corrupt_files(tmp_path: Path, workers: int) -> None:
    make_folder(tmp_path)
    source = open_images(tmp_path)
    assert source.class_names == ["boot", "coat", "dress"] and source.labels == [0, 0, 1, 1, 2, 2]
    got = list(batches(source, SmallTransform(TINY), [[0, 1, 2, 3], [5], [4]], workers))
    assert [batch.labels.tolist() for batch in got] == [[0, 0, 1], [], [2]]
    assert [batch.corrupt for batch in got] == [["coat/0.png"], ["dress/nested/1.png"], []]
    assert len(got[0].images) == 3


def test_open_images_names_a_wrong_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no directory at"):
        open_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="one subfolder of image files per class"):
        open_images(tmp_path)


def test_evenly_spaced_covers_a_sorted_set() -> None:
    assert evenly_spaced(10, 5) == [0, 2, 4, 6, 8]
    assert evenly_spaced(3, 9) == evenly_spaced(3, None) == [0, 1, 2]


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = DeiT(TINY), tmp_path / "deep" / "model.safetensors"
    save_weights(path, model, {"epoch": 3})
    loaded, facts = load_model(path)
    assert facts == {"epoch": 3} and loaded.cfg == TINY and not loaded.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value.half().float(), rtol=0, atol=0)


def test_checkpoint_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="train one with"):
        read_weights(path)
    save_weights(path, DeiT(TINY), {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_weights(path)
    path.write_bytes(b"PK\x03\x04 a torch file")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_weights(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="no readable 'config'"):
        read_weights(path)
    save_file({"weight": torch.ones(2)}, path, metadata={"config": "{}"})
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(path)


def test_write_atomically_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


class Foreign:
    """What `weights_only` must refuse."""


def test_read_state_takes_torch_files_without_running_them(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": {"module.head.weight": torch.ones(3)}, "epoch": 1}, path)
    assert list(read_state(path)) == ["head.weight"]
    torch.save({"model": Foreign()}, path)
    with pytest.raises(CheckpointError, match="cannot be read as a file of weights"):
        read_state(path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_state(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read as a file of weights"):
        read_state(path)
