"""`examples/cost_accuracy.py`: points, their summary, the runs behind them, table and picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cost_accuracy
import pytest
import torch
from common.data import IDX_NAMES, write_idx
from deit.checkpoint import save_weights
from deit.methods import METHODS, find_methods
from deit.model import DeiT, DeiTConfig
from experiments.curves import picture, points, tuned
from experiments.curves.points import SHELF, TUNED, Point

POINT = Point(TUNED, "DeiT", "ward", "Ward (default)", 0.58, 0, "49 30", 2.0, 1.16, 0.01, 400, 300, None, 64, 1, 12.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("idx")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        images = torch.randint(0, 256, (24, 28, 28), dtype=torch.uint8, generator=generator)
        for name, values in zip(IDX_NAMES[split], (images, torch.arange(24, dtype=torch.uint8) % 10), strict=True):
            write_idx(root / f"{name}.gz", values)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, DeiT(DeiTConfig(patch_size=7, embed_dim=24, depth=4, num_heads=2)), {})
    return path


def test_points_round_trip(tmp_path: Path) -> None:
    some = [POINT, replace(POINT, setting=SHELF, budget=None, seed=None, agree=17, images_per_second=None)]
    points.write(tmp_path / "points.csv", some)
    assert points.read(tmp_path / "points.csv") == some


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: text.replace("budget", "b"), lambda _: ""])
def test_damaged_points_name_the_file(tmp_path: Path, damage) -> None:
    path = tmp_path / "points.csv"
    points.write(path, [POINT])
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=r"points\.csv"):
        points.read(path)


def test_summary_is_mean_and_deviation_over_the_seeds() -> None:
    some = [replace(POINT, seed=seed, correct=correct) for seed, correct in enumerate((300, 304, 308))]
    (row,) = points.summarise(some)
    assert (row.top1, row.deviation, row.seeds) == (76.0, 1.0, 3)
    assert row.share == pytest.approx(0.58)
    assert row.standard_error == pytest.approx(100 * (0.76 * 0.24 / 400) ** 0.5)
    assert "76.00 ± 1.00" in points.table(some) and "one seed" not in points.table(some)
    assert "over 3 seeds; without ±: one seed" in points.table([*some, replace(POINT, budget=0.7)])


def test_every_method_has_its_own_style() -> None:
    styles = [tuple(picture.style(name).values()) for name in [*(method.name for method in METHODS), "strided"]]
    assert len(set(styles)) == len(styles)


def test_jobs_compare_at_the_same_tokens() -> None:
    model = DeiT(DeiTConfig(patch_size=4, embed_dim=24, num_heads=2))
    work = tuned.jobs(model, find_methods(["ward", "topk"]), [0.5, 0.7], None, [2], [0, 1])
    assert len({job.name for job in work}) == len(work) == 2 * (1 + 4 + 1)
    by_budget = {(job.budget, job.tokens) for job in work if job.budget is not None}
    assert len(by_budget) == 2
    assert all(job.macs.ratio <= job.budget for job in work if job.method == "ward")


@pytest.mark.slow
def test_a_sweep_from_end_to_end(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data", str(data), "--checkpoint", str(checkpoint), "--output", str(tmp_path), "--method", "ward"]
    arguments += ["--budget", "0.7", "--tune", "--seeds", "0", "1", "--strided", "1", "--train-images", "16"]
    cost_accuracy.main([*arguments, "--train-batch", "8", "--jobs", "2"])
    found = points.read(tmp_path / "points.csv")
    assert [(point.setting, point.method, point.seed) for point in found] == [
        (SHELF, "base", None),
        (SHELF, "ward", None),
        *((TUNED, method, seed) for seed in (0, 1) for method in ("base", "ward", "strided")),
    ]
    assert all(point.images == 24 and point.train_images in (None, 16) for point in found)
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert "off the shelf" in capsys.readouterr().out.lower()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was made again")

    monkeypatch.setattr(tuned.subprocess, "run", never)
    cost_accuracy.main([*arguments, "--train-batch", "8", "--jobs", "2", "--no-shelf"])
    with pytest.raises(AssertionError, match="made again"):
        cost_accuracy.main([*arguments, "--train-batch", "4", "--jobs", "2", "--no-shelf"])


def test_points_of_several_models_are_drawn_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        points.write(tmp_path / f"{name}.csv", [replace(POINT, model=name)])
    files = [str(tmp_path / f"{name}.csv") for name in ("one", "two")]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin: examples/cost_accuracy.py -->\nold\n<!-- end -->\nafter\n")
    cost_accuracy.main(["--join", *files, "--output", str(tmp_path / "joined"), "--document", str(page)])
    assert "**Fine-tuned**: two" in page.read_text() and "old" not in page.read_text()
    assert page.read_text().startswith("before") and page.read_text().endswith("after\n")
    assert [point.model for point in points.read(tmp_path / "joined" / "points.csv")] == ["one", "two"]
    shown = capsys.readouterr().out
    assert "**Fine-tuned**: one" in shown and "**Fine-tuned**: two" in shown


def test_a_failed_run_is_named(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    work = tuned.jobs(DeiT(DeiTConfig(patch_size=7, embed_dim=24, depth=4, num_heads=2)), [], [], None, [], [0])
    with pytest.raises(RuntimeError, match="base-0 failed"):
        tuned.run(work, "DeiT", ["--data", str(tmp_path / "nothing"), "--init", str(checkpoint)], tmp_path, 1)
