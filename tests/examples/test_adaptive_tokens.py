"""`examples/adaptive_tokens.py`: the mixes of images, what is measured of each, the rows, tables and picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import adaptive_tokens
import numpy as np
import pytest
import torch
from common.images import IdxImages
from deit.checkpoint import save_weights
from experiments.adaptive import picture, report, rows
from experiments.adaptive.images import KINDS, SETS, MixedImages, split
from experiments.adaptive.measure import Answers, answer, bootstrapped, compare, paired, worst
from experiments.adaptive.rows import Row
from experiments.adaptive.ways import WAYS
from PIL import Image

import tpkernels
from tests.support.deit import make_large
from tests.support.programs import EXAMPLES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, make_large(), {})
    return path


@pytest.fixture
def source() -> IdxImages:
    """Eight images of one grey each, 30 to 100."""
    greys = torch.arange(30, 110, 10, dtype=torch.uint8)
    return IdxImages(greys[:, None, None].expand(8, 28, 28).contiguous(), list(range(8)))


def test_evaluated_and_calibration_images_are_disjoint() -> None:
    evaluated, calibration = split(2000, 400, 80)
    assert (len(set(evaluated)), len(set(calibration))) == (400, 80) and not set(evaluated) & set(calibration)
    # Never those of the other half, however many are asked for.
    evaluated, calibration = split(9, 99, 99)
    assert len(evaluated) == 4 and sorted(evaluated + calibration) == list(range(9))


@pytest.mark.parametrize("side", [28, 56])
def test_the_mix_is_a_quarter_of_each_kind_at_the_size(source: IdxImages, side: int) -> None:
    numbers = [1, 3, 5, 6]
    mixed = MixedImages(source, numbers, side, SETS["mixed"])
    assert [mixed.kind(place) for place in range(8)] == [*KINDS, *KINDS] and mixed.labels == numbers
    whole, padded, cropped, four = (np.array(mixed.image(place)) for place in range(4))
    assert {image.shape for image in (whole, padded, cropped, four)} == {(side, side)}
    greys = {30 + 10 * number for number in numbers}
    # One grey remains one grey; where it is padded a quarter has it, and all of that lies together.
    assert set(whole.flat) == {40} and set(cropped.flat) == {80}
    assert set(padded.flat) == {0, 60} and (padded == 60).sum() == side * side / 4
    box = Image.fromarray(padded).getbbox()
    assert box is not None and (box[2] - box[0], box[3] - box[1]) == (side // 2, side // 2)
    half = side // 2
    quarters = [four[top : top + half, left : left + half] for top in (0, half) for left in (0, half)]
    assert all(len(set(quarter.flat)) == 1 for quarter in quarters) and quarters[0][0, 0] == 90
    # Nothing is drawn from images that are not the set's own.
    assert set(four.flat) <= greys
    assert all(np.array_equal(mixed.image(place), mixed.image(place)) for place in range(4))


def test_plain_images_stay_as_they_are(source: IdxImages) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = IdxImages(torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8, generator=generator), [0, 1, 2])
    plain = MixedImages(drawn, [2, 0], 28, SETS["plain"])
    assert np.array_equal(plain.image(0), drawn.pixels[2]) and plain.kind(1) == "whole"


def test_a_cropped_image_is_a_part_blown_up() -> None:
    ramp = torch.arange(0, 252, 9, dtype=torch.uint8).expand(28, 28).contiguous()
    cropped = np.array(MixedImages(IdxImages(ramp[None], [0]), [0], 28, ("cropped",)).image(0)).astype(int)
    assert cropped.max() - cropped.min() == pytest.approx(252 / 2, abs=12)
    assert (np.diff(cropped, axis=1) >= 0).all() and 9 * 2 < cropped.min() < cropped.max() < 252 - 9 * 2


def test_the_change_of_an_image_by_hand() -> None:
    none = torch.empty(0)
    before = Answers(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]]), none)
    after = Answers(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 3.0]]), none)
    change = compare(before, after)
    p = torch.tensor([0.0, 1.0]).softmax(0).double()
    expected = torch.nn.functional.kl_div(p.flip(0).log(), p, reduction="sum")
    assert change.agrees.tolist() == [False, True] and change.feature.tolist() == [0, 0.5]
    torch.testing.assert_close(change.divergence, torch.stack([expected, expected * 0]), rtol=1e-6, atol=1e-9)


def test_errors_of_differences_are_paired() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(400, generator=generator)
    # A constant gap has no error, however much the values themselves vary.
    assert paired(values + 0.5, values) == pytest.approx((0.5, 0), abs=1e-6)
    assert bootstrapped(worst, values + 0.5, values) == pytest.approx((0.5, 0), abs=1e-6)
    others = torch.rand(400, generator=generator)
    mean = lambda some: float(some.mean())  # noqa: E731
    assert bootstrapped(mean, values, others) == pytest.approx(paired(values, others), rel=0.15)


def test_counts_are_those_of_single_calls() -> None:
    model, images = make_large(), torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    tpkernels.patch(model, distance=[None, 12.0, None, 25.0])
    together = answer(model, [images[:3], images[3:]], pooled=True)
    single = [answer(model, [image[None]], pooled=True) for image in images]
    assert torch.equal(together.counts, torch.cat([one.counts for one in single]))
    assert together.counts[:, 0].tolist() == [49] * 5 and len(set(together.counts[:, 1].tolist())) > 1
    assert torch.equal(together.counts[:, 1], together.counts[:, 2])
    torch.testing.assert_close(together.feature, torch.cat([one.feature for one in single]), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(together.logits, model.head(together.feature))


def test_a_model_of_another_size_has_the_same_patches() -> None:
    model = make_large()
    other = adaptive_tokens.resized(model, 56)
    assert other.cfg.grid_size == 14 and not other.training and adaptive_tokens.resized(model, 28) is model
    torch.testing.assert_close(other.patch_embed.proj.weight, model.patch_embed.proj.weight)


@pytest.fixture(scope="module")
def measured(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row], str]:
    """The folder, the rows and the document of a small run."""
    folder = tmp_path_factory.mktemp("run")
    page = folder / "page.md"
    page.write_text("before\n<!-- begin: examples/adaptive_tokens.py -->\nold\n<!-- end -->\nafter\n")
    options = ["--limit", "8", "--calibrate", "8", "--batch-size", "4", "--size", "28", "--budget", "0.7"]
    written = ["--output", str(folder), "--document", str(page)]
    adaptive_tokens.main(["--checkpoint", str(checkpoint), *options, *written])
    return folder, rows.read(folder / "rows.csv"), page.read_text()


def test_every_way_meets_the_budget(measured: tuple[Path, list[Row], str]) -> None:
    _, found, _ = measured
    assert [(row.images_set, row.budget, row.way) for row in found] == [
        (images_set, 0.7, way.name) for images_set in SETS for way in WAYS
    ]
    spent = {(row.images_set, row.way): row.share for row in found}
    for row in found:
        distances = "distance-all" if row.way.endswith("-all") else "distance"
        # The others get what distances took of the evaluated images.
        most = row.budget if row.way == distances else spent[row.images_set, distances]
        assert most - 0.05 < row.calibrated <= most + 1e-6 and row.images == row.calibration == 8
        by_image = row.way.startswith("distance")
        assert (row.least_share < row.most_share) == by_image == (row.tokens_least != row.tokens_most)
        if not by_image:
            assert row.share == pytest.approx(row.calibrated, rel=1e-5)
        assert row.divergence <= row.divergence_p99 + 1e-9 <= row.divergence_max + 2e-9
        if row.way == "constant":
            assert row.agreement_gain == row.divergence_gain == row.feature_p99_gain == row.divergence_se == 0
        assert set(row.kind_tokens.split()[::2]) == set(SETS[row.images_set])
        assert (row.divergence_own is None) == (not by_image)


def test_gaps_are_to_the_ways_at_the_same_macs(measured: tuple[Path, list[Row], str]) -> None:
    _, found, _ = measured
    for images_set in SETS:
        ways = {row.way: row for row in found if row.images_set == images_set}
        for name in ("agreement", "divergence", "divergence_p99", "feature", "feature_p99"):
            value = {way: getattr(row, name) for way, row in ways.items()}
            for way in ("searched", "distance"):
                assert getattr(ways[way], f"{name}_gain") == pytest.approx(value[way] - value["constant"], abs=1e-5)
            for way, own in (("distance", "searched"), ("distance-all", "searched-all")):
                assert getattr(ways[way], f"{name}_own") == pytest.approx(value[way] - value[own], abs=1e-5)


def test_table_and_picture_show_every_set(measured: tuple[Path, list[Row], str]) -> None:
    folder, found, page = measured
    assert page.startswith("before") and page.endswith("after\n") and "old" not in page
    assert page.count("**Images as they are**, 28 px, 49 tokens") == page.count("**The mix") == 1
    assert all(page.count(f"| {way.label} |") >= 2 for way in WAYS) and "of kind" in page
    with Image.open(folder / "picture.png") as drawn:
        assert drawn.format == "PNG" and drawn.width > 800
    larger = [*found, *(replace(row, side=56, patches=196) for row in found)]
    picture.draw(folder / "both.png", larger)
    assert report.table(larger).count("calibrated on") == 4


def test_rows_are_joined(
    measured: tuple[Path, list[Row], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, found, _ = measured
    rows.write(tmp_path / "other.csv", [replace(row, side=56) for row in found])
    adaptive_tokens.main(
        ["--join", str(folder / "rows.csv"), str(tmp_path / "other.csv"), "--output", str(tmp_path / "joined")]
    )
    assert len(rows.read(tmp_path / "joined" / "rows.csv")) == 2 * len(found)
    assert "56 px" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "1"], "--budget must be above 0 and below 1, got 1"),
        (["--budget", "nan"], "--budget must be above 0"),
        (["--budget", "0.1"], "budget must be at least 0."),
        (["--size", "29"], "--size must be an even number of pixels, got 29"),
        (["--size", "30"], "img_size must be a multiple of patch_size 4"),
        (["--set", "odd"], "--set"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--calibrate", "0"], "--calibrate must be at least 1"),
        (["--way", "best"], "--way must be among constant, searched"),
        (["--layers", "4"], "layers must be distinct 0-based blocks in [0, 3], got 4"),
        (["--data", "no/such/place"], "no directory at"),
        (["--checkpoint", __file__], "not a complete safetensors file"),
        (["--document", str(EXAMPLES / "weights" / "README.md")], "must hold the lines"),
        (["--join", str(EXAMPLES / "weights" / "README.md")], "holds no rows of adaptive_tokens.py"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_end_in_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        adaptive_tokens.main(["--checkpoint", str(checkpoint), "--output", str(tmp_path), *arguments])
    line = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("adaptive_tokens: ") and message in line
    assert not (tmp_path / "picture.png").exists()
