"""`examples/deit_eval.py` from end to end, on a tiny model with random weights."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import deit_eval
import pytest
import torch
from deit.checkpoint import save_weights
from deit.methods import METHODS
from deit.model import DeiT, DeiTConfig
from deit.picture import spread
from deit.rows import Row, build_rows, tokens_per_block, twin
from PIL import Image

from tests.support.programs import EXAMPLES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights large enough that answers differ between images and between methods."""
    torch.manual_seed(0)
    model = DeiT(DeiTConfig(patch_size=4, embed_dim=24, depth=4, num_heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, model, {"epoch": 2, "seed": 0, "resume": False})
    return path


def evaluate(checkpoint: Path, output: Path, *more: str) -> dict:
    deit_eval.main(["--checkpoint", str(checkpoint), "--limit", "32", "--output", str(output), *more])
    return json.loads((output / "rows.json").read_text())


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a run ends with."""
    with pytest.raises(SystemExit) as stop:
        deit_eval.main(list(arguments))
    line = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err.strip()
    assert line.startswith("deit_eval: ") and "\n" not in line
    return line


def test_all_rows_at_the_same_tokens(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate(checkpoint, tmp_path, "--batch-size", "8")
    rows = result["rows"]
    assert [row["method"] for row in rows] == ["base", *(method.name for method in METHODS)]
    assert rows[0]["tokens_per_block"] == [49] * 4 and rows[0]["agreement_percent"] == 100
    assert {tuple(row["tokens_per_block"]) for row in rows[1:]} == {(49, 34, 24, 17)}
    assert {row["pooled_gmacs"] for row in rows[1:]} == {rows[1]["pooled_gmacs"]}
    assert all(row["images"] == 32 and row["images_per_second"] > 0 for row in rows)
    assert rows[1]["clustering_gmacs"] > 0 and result["corrupt"] == []

    with (tmp_path / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == [row["method"] for row in rows]
    assert lines[1]["tokens_per_block"] == "49 34 24 17" and int(lines[1]["agree"]) == rows[1]["agree"]
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.format == "PNG" and picture.width > 500

    said = capsys.readouterr()
    for method in METHODS:
        assert method.label in said.out
    for fact in ("off the shelf", "32 of 2,000 images", "float32", "epoch 2, seed 0", "49 -> 34 -> 24 -> 17"):
        assert fact in said.out
    assert "resume" not in said.out and "img/s" in said.err


def test_repeats_exactly(checkpoint: Path, tmp_path: Path) -> None:
    first, second = (evaluate(checkpoint, tmp_path, "--method", "ward", "random")["rows"] for _ in range(2))
    for row in (*first, *second):
        del row["images_per_second"]
    assert first == second


def test_budget_and_keep_per_layer(checkpoint: Path, tmp_path: Path) -> None:
    base, ward, grid = evaluate(checkpoint, tmp_path, "--method", "ward", "grid", "--budget", "0.7")["rows"]
    assert 0.6 < (ward["pooled_gmacs"] + ward["clustering_gmacs"]) / base["base_gmacs"] <= 0.7
    assert ward["tokens_per_block"] == grid["tokens_per_block"]
    ward = evaluate(checkpoint, tmp_path, "--method", "ward", "--keep", "0.5", "9", "--layers", "0", "2")["rows"][1]
    assert ward["tokens_per_block"] == [25, 25, 9, 9]


def test_keep_of_one_is_the_base_model(checkpoint: Path, tmp_path: Path) -> None:
    for row in evaluate(checkpoint, tmp_path, "--method", "ward", "topk", "--keep", "1.0")["rows"]:
        assert row["agreement_percent"] == 100 and row["clustering_gmacs"] == 0


@pytest.mark.slow
def test_two_processes_count_what_one_counts(checkpoint: Path, tmp_path: Path) -> None:
    chosen = ["--method", "ward", "bipartite", "topk", "--batch-size", "5", "--limit", "32"]
    # One thread each: torchrun's default, so the single process is given it too.
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent), "PYTHONFAULTHANDLER": "1"
    }  # fmt: skip
    script = [str(EXAMPLES / "deit_eval.py"), "--checkpoint", str(checkpoint), *chosen, "--output"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    results = []
    for name, launcher in (("one", []), ("two", torchrun)):
        done = subprocess.run(
            [sys.executable, *launcher, *script, str(tmp_path / name)],
            capture_output=True, text=True, timeout=120, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Ward (default)") == 1
        results.append(json.loads((tmp_path / name / "rows.json").read_text()))
    counts = [[(row["method"], row["images"], row["correct"], row["agree"]) for row in one["rows"]] for one in results]
    assert counts[0] == counts[1]


def test_image_folder_with_corrupt_images(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10):
        folder = tmp_path / "data" / f"class{number}"
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 30), (20 * number, 5, 99)).save(folder / "a.png")
    (tmp_path / "data" / "class3" / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    result = evaluate(checkpoint, tmp_path / "run", "--data", str(tmp_path / "data"), "--method", "ward")
    assert result["images"] == 10 and result["corrupt"] == ["class3/b.jpg"]
    assert "1 corrupt image(s) left out: class3/b.jpg" in capsys.readouterr().out

    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(b"")
    arguments = ("--checkpoint", str(checkpoint), "--data", str(tmp_path / "data"), "--output", str(tmp_path / "run"))
    assert "none of the 11 images" in failure(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "1.5"], "ratio"),
        (["--keep", "half"], "--keep"),
        (["--keep", "0.5", "0.6"], "one for each of the 3 layers"),
        (["--keep", "0.5", "--budget", "0.5"], "exclude each other"),
        (["--budget", "0"], "budget"),
        (["--layers", "4"], "layers"),
        (["--method", "wart"], "must be among ward, kmedoids"),
        (["--device", "gpu"], "expects cpu or cuda"),
        (["--device", "cuda:99"], "use --device cpu"),
        (["--dtype", "int8"], "--dtype"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--data", "no/such/place"], "no directory at"),
        (["--data", str(EXAMPLES / "deit")], "holds no test images"),
        (["--checkpoint", "no/such.safetensors"], "no checkpoint at"),
        (["--checkpoint", __file__], "not a complete safetensors file"),
        (["--output", __file__], "--output"),
        (["--model", "no_such_model"], "no_such_model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_end_in_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in failure(capsys, "--checkpoint", str(checkpoint), "--output", str(tmp_path), *arguments)


def test_data_of_other_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, DeiT(DeiTConfig(patch_size=7, embed_dim=24, depth=2, num_heads=2, num_classes=5)), {})
    line = failure(capsys, "--checkpoint", str(path), "--output", str(tmp_path))
    assert "the data has 10 classes, the model 5" in line


def test_timm_model_with_a_local_checkpoint(tmp_path: Path, timm: ModuleType) -> None:
    torch.manual_seed(0)
    path = tmp_path / "weights.pt"
    torch.save({"model": timm.create_model("deit_tiny_patch16_224", num_classes=10).state_dict()}, path)
    arguments = ("--model", "deit_tiny_patch16_224", "--limit", "4", "--method", "ward", "bipartite")
    base, ward, bipartite = evaluate(path, tmp_path, *arguments)["rows"]
    assert base["tokens_per_block"] == [196] * 12
    assert ward["tokens_per_block"] == bipartite["tokens_per_block"] == [196] * 3 + [137] * 3 + [96] * 3 + [67] * 3


def test_twins_share_weights_and_leave_the_base_alone() -> None:
    torch.manual_seed(0)
    model, images = DeiT(DeiTConfig(patch_size=7, embed_dim=24, depth=4, num_heads=2)).eval(), torch.randn(2, 1, 28, 28)
    copied = twin(model)
    assert all(a is b for a, b in zip(model.parameters(), copied.parameters(), strict=True))
    assert copied.blocks is not model.blocks
    with torch.no_grad():
        before = model(images)
        rows = build_rows(model, METHODS, tokens_per_block(model, [0.5], None, None), compiled=False)
        assert torch.equal(rows[0].model(images), before)
        assert not torch.equal(rows[1].model(images), before)


def test_median_speed_leaves_out_warm_up_and_short_batches() -> None:
    row = Row("base", "", "", torch.nn.Identity(), [], None)
    assert row.median_speed() == 0
    row.timed = [(10, 10.0)]
    assert row.median_speed() == 1
    row.timed += [(10, 1.0), (10, 2.0), (10, 5.0), (3, 0.001)]
    assert row.median_speed() == 5


def test_labels_are_spread_without_changing_their_order() -> None:
    assert spread([1.0, 5.0], gap=1) == [1, 5]
    places = spread([1.0, 1.0, 1.2, 7.0], gap=1)
    assert places == sorted(places) and all(b - a > 0.999 for a, b in pairwise(places))
