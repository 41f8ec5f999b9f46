"""`examples/attention_lowpass.py`: the filter, the spectra and the errors against what is known of them, and a run."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import ModuleType

import attention_lowpass
import numpy as np
import pytest
import torch
from common.document import write_document
from deit.checkpoint import save_weights
from deit.model import DeiT, DeiTConfig
from experiments.lowpass import gaussian, measure, redundancy, spectrum
from experiments.lowpass.record import find_blocks, record
from PIL import Image
from torch import Tensor

import tpkernels


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def model() -> DeiT:
    torch.manual_seed(0)
    model = DeiT(DeiTConfig(patch_size=4, embed_dim=24, depth=3, num_heads=2)).eval()
    # Attention of fresh weights is all but uniform.
    for block in model.blocks:
        block.attn.qkv.weight.data *= 15
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model: DeiT) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, model, {})
    return path


def test_both_filters_by_hand() -> None:
    q, k = normal(3, 4), normal(3, 4, seed=1)
    for i in range(3):
        dots = [math.exp(sum(q[i, c] * k[j, c] for c in range(4)) / 2) for j in range(3)]
        bells = [math.exp(-sum((q[i, c] - k[j, c]) ** 2 for c in range(4)) / (2 * 2)) for j in range(3)]
        for found, weights in ((gaussian.softmax_rows(q, k), dots), (gaussian.gaussian_rows(q, k), bells)):
            expected = torch.tensor([weight / sum(weights) for weight in weights], dtype=q.dtype)
            torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=0)
    assert gaussian.total_variation(torch.tensor([0.5, 0.5, 0]), torch.tensor([0, 0.25, 0.75])) == 0.75


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 5e-6)])
def test_keys_of_equal_norm_make_attention_gaussian(dtype: torch.dtype, tolerance: float) -> None:
    q, k = 2 * normal(2, 3, 50, 16, dtype=dtype), 2 * normal(2, 3, 50, 16, seed=1, dtype=dtype)
    equal = gaussian.equal_norms(k)
    torch.testing.assert_close(equal.norm(dim=-1), k.norm(dim=-1).mean(-1, keepdim=True).expand(2, 3, 50))
    # The queries' norms do not matter, for a row's normalisation takes them out; the keys' do.
    assert (gaussian.softmax_rows(q, equal) - gaussian.gaussian_rows(q, equal)).abs().max() < tolerance
    assert (gaussian.softmax_rows(q, k) - gaussian.gaussian_rows(q, k)).abs().max() > 0.1


def test_far_queries_do_not_underflow() -> None:
    rows = gaussian.gaussian_rows(1e3 + normal(5, 4), normal(5, 4))
    torch.testing.assert_close(rows.sum(-1), torch.ones(5, dtype=rows.dtype))


def test_compare_names_the_distances() -> None:
    q, k = normal(2, 3, 20, 8, dtype=torch.float32), normal(2, 3, 20, 8, seed=1, dtype=torch.float32)
    found = gaussian.compare(q, k)
    assert all(value.shape == (2,) and value.dtype == torch.float64 for value in found.values())
    assert (found["identity_float64"] < 1e-14).all()
    assert (found["identity_float32"] < 1e-5).all() and (found["identity_float32"] > 1e-9).all()
    equal = gaussian.compare(gaussian.equal_norms(q), gaussian.equal_norms(k))
    for name in ("tv_gaussian", "tv_normalised", "key_norm_cv"):
        assert (found[name] > 0.01).all() and (equal[name] < 1e-6).all(), name
    flat = gaussian.compare(q, k * 1e-6)
    assert (flat["tv_uniform"] < 1e-5).all() and (found["tv_uniform"] > 0.1).all()


def test_the_grids_frequencies_are_those_of_two_paths() -> None:
    rows, columns = 4, 6
    found = spectrum.basis(spectrum.grid_weights(rows, columns))
    # A path of n has the frequencies 2 - 2 cos(pi u / n); a grid's are the sums of its two paths'.
    path = [[2 - 2 * math.cos(math.pi * u / n) for u in range(n)] for n in (rows, columns)]
    expected = sorted(a + b for a in path[0] for b in path[1])
    torch.testing.assert_close(found.frequencies, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_wave_has_its_energy_at_its_frequency() -> None:
    side = 8
    graph = spectrum.basis(spectrum.grid_weights(side, side))
    place = math.pi * (torch.arange(side, dtype=torch.float64) + 0.5) / side
    for u, v in ((1, 0), (3, 2), (7, 7)):
        wave = (place * u).cos()[:, None] * (place * v).cos()
        frequency = 4 - 2 * math.cos(math.pi * u / side) - 2 * math.cos(math.pi * v / side)
        found = spectrum.energy(graph, 5 + wave.reshape(1, -1, 1))[0]
        here = (graph.frequencies - frequency).abs() < 1e-9
        assert here.any() and found[~here].sum() < 1e-20 * found.sum()
        torch.testing.assert_close(found.sum(), wave.square().sum())


def test_energy_above_keeps_equal_frequencies_together() -> None:
    graph = spectrum.basis(spectrum.grid_weights(6, 6))
    x = normal(2, 36, 5)
    found = spectrum.energy_above(graph, x)
    assert found.shape == (2, 1 + len(spectrum.QUANTILES))
    torch.testing.assert_close(found[:, 0], (x - x.mean(1, keepdim=True)).square().sum((1, 2)))
    assert (found.diff(dim=1) <= 0).all() and (found[:, -1] > 0).all()
    # Turned images have the same spectrum, though their waves of equal frequency change places.
    turned = x.reshape(2, 6, 6, 5).transpose(1, 2).reshape(2, 36, 5)
    torch.testing.assert_close(spectrum.energy_above(graph, turned), found)
    # Noise has energy where there are frequencies.
    noise = spectrum.energy_above(graph, normal(1, 36, 20_000, seed=3))[0]
    torch.testing.assert_close(noise[1:] / noise[0], spectrum.white_shares(graph), rtol=0, atol=0.01)
    distinct = spectrum.Basis(torch.arange(101.0), torch.eye(101))
    torch.testing.assert_close(spectrum.white_shares(distinct), 1 - torch.tensor(spectrum.QUANTILES).double())


def test_diffusion_is_low_pass_and_its_inverse_is_not() -> None:
    weights = spectrum.grid_weights(7, 7)
    graph, x = spectrum.basis(weights), normal(1, 49, 3)
    step = torch.eye(49, dtype=torch.float64) - 0.1 * spectrum.laplacian(weights)
    before, smooth, sharp = (spectrum.energy_above(graph, y) for y in (x, step @ x, torch.linalg.solve(step, x)))
    high = [float(measure.shares(energies)[0, spectrum.MEDIAN]) for energies in (before, smooth, sharp)]
    assert high[1] < 0.8 * high[0] and high[2] > 1.2 * high[0]


def test_attentions_graph() -> None:
    attention = normal(2, 3, 10, 10).softmax(-1)
    weights = spectrum.attention_weights(attention, 2)
    expected = sum(attention[1, head, 2 + 4, 2 + 1] + attention[1, head, 2 + 1, 2 + 4] for head in range(3)) / 6
    torch.testing.assert_close(weights[1, 1, 4], expected)
    torch.testing.assert_close(weights[1, 4, 1], expected)
    graph = spectrum.basis(weights)
    assert graph.frequencies.shape == (2, 8) and (graph.frequencies[:, 0].abs() < 1e-12).all()
    x = normal(2, 8, 3)
    # tr(X^T L X), from the waves and from the pairs.
    by_waves = (graph.frequencies * spectrum.energy(graph, x)).sum(1)
    by_pairs = (weights * torch.cdist(x, x).square()).sum((1, 2)) / 2
    torch.testing.assert_close(by_waves, by_pairs)


def test_errors_are_those_of_wards_clusters() -> None:
    x = normal(3, 30, 4)
    found = redundancy.errors(x)
    variance = (x - x.mean(1, keepdim=True)).square().sum((1, 2))
    for place, k in enumerate(redundancy.clusters_kept(30)):
        torch.testing.assert_close(found[:, place], tpkernels.ward(x, k).loss / variance)
    assert redundancy.clusters_kept(30) == [3 * step for step in range(1, 10)]
    assert (redundancy.errors(torch.ones(1, 10, 2)) == 0).all()


def test_record_sees_what_the_blocks_compute(model: DeiT) -> None:
    images = normal(2, 1, 28, 28, dtype=torch.float32)
    layers = record(model, images)
    assert len(layers) == 3 and not any(block._forward_hooks or block._forward_pre_hooks for block in model.modules())
    with torch.inference_mode():
        expected = model(images)
        for block, layer, following in zip(model.blocks, layers, [*layers[1:], None], strict=True):
            update = block.attn(block.norm1(layer.before))
            torch.testing.assert_close(layer.after_attention, layer.before + update)
            torch.testing.assert_close(layer.after_mlp, block(layer.before))
            heads = gaussian.softmax_rows(layer.queries, layer.keys) @ layer.values
            torch.testing.assert_close(layer.attended, heads.transpose(1, 2).flatten(2))
            if following is not None:
                assert torch.equal(layer.after_mlp, following.before)
        torch.testing.assert_close(model.head(model.norm(layers[-1].after_mlp)[:, 0]), expected)


def test_the_small_models_forward_is_timms(model: DeiT, timm: ModuleType) -> None:
    theirs = timm.models.VisionTransformer(
        img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=24, depth=3, num_heads=2
    ).eval()  # fmt: skip
    theirs.load_state_dict(model.state_dict())
    images = normal(2, 1, 28, 28, dtype=torch.float32)
    for ours, other in zip(record(model, images), record(theirs, images), strict=True):
        for found, expected in zip(ours, other, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_models_that_are_not_understood() -> None:
    with pytest.raises(TypeError, match=r"expected blocks with norm2, attn\.qkv, attn\.proj, .* got Linear"):
        find_blocks(torch.nn.Linear(2, 2))
    model = DeiT(DeiTConfig(patch_size=14, embed_dim=8, depth=2, num_heads=2))
    model.blocks[1].attn.scale = 1.0
    with pytest.raises(TypeError, match=r"block 1 scales its logits by 1, expected 0\.5"):
        find_blocks(model)


def test_the_table_says_what_was_measured(model: DeiT) -> None:
    images = normal(4, 1, 28, 28, dtype=torch.float32)
    layer = record(model, images)[1]
    grid = spectrum.basis(spectrum.grid_weights(7, 7))
    found = measure.measure(layer, grid, 1)
    row = measure.summarise(1, found)
    values = layer.values[:, :, 1:].transpose(1, 2).flatten(2).double()
    attended = layer.attended[:, 1:].double()
    above = grid.frequencies > grid.frequencies[24] + 1e-6
    energy = {"values": spectrum.energy(grid, values), "attended": spectrum.energy(grid, attended)}
    for name, by_frequency in energy.items():
        share = by_frequency[:, above].sum(1) / by_frequency.sum(1)
        assert row[f"high_grid_{name}"] == pytest.approx(float(share.mean()))
    # The first frequency is that of the mean, which both leave out.
    low = energy["attended"][:, ~above].sum() / energy["values"][:, ~above].sum()
    high = energy["attended"][:, above].sum() / energy["values"][:, above].sum()
    assert (row["gain_grid_low"], row["gain_grid_high"]) == pytest.approx((float(low), float(high)))
    update = (layer.after_attention - layer.before)[:, 1:].double()
    error = tpkernels.ward(update, 34).loss / (update - update.mean(1, keepdim=True)).square().sum((1, 2))
    assert row["error_update_0.7"] == pytest.approx(float(error.mean()), rel=1e-5)
    assert row["tv_gaussian"] == pytest.approx(float(found["tv_gaussian"].mean())) and row["images"] == 4
    smoother = [spectrum.energy_above(grid, x)[:, [0, 5]] for x in (update, layer.before[:, 1:])]
    less = smoother[0][:, 1] / smoother[0][:, 0] < smoother[1][:, 1] / smoother[1][:, 0]
    assert row["smoother_grid_update"] == float(less.double().mean())


def run(checkpoint: Path, folder: Path, *more: str) -> list[dict[str, str]]:
    """The lines of the CSV of a run on a few images."""
    places = ["--picture", str(folder / "a.png"), "--csv", str(folder / "a.csv")]
    attention_lowpass.main(["--checkpoint", str(checkpoint), "--limit", "5", "--batch-size", "2", *places, *more])
    with (folder / "a.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_end_to_end(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin: examples/attention_lowpass.py -->\nold\n<!-- end -->\nafter\n")
    rows = run(checkpoint, tmp_path, "--document", str(page))
    assert [row["block"] for row in rows] == ["0", "1", "2"] and {row["images"] for row in rows} == {"5"}
    for row in rows:
        assert float(row["identity_float64"]) < 1e-12 < float(row["tv_gaussian"])
        for name, value in row.items():
            assert name in ("block", "images") or (math.isfinite(float(value)) and float(value) >= 0), name
    # The same whatever the batches.
    for row, again in zip(rows, run(checkpoint, tmp_path, "--batch-size", "5"), strict=True):
        for name in row:
            if not name.startswith("identity"):
                assert float(again[name]) == pytest.approx(float(row[name]), rel=1e-3, abs=1e-5), name

    with (tmp_path / "a_curves.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * (2 * len(measure.SIGNALS) + len(measure.CLUSTERED))
    for line in lines:
        falling = [float(line[str(share)]) for share in spectrum.QUANTILES]
        assert falling == sorted(falling, reverse=True) and 0 <= falling[-1] < falling[0] <= 1
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert f"| {100 * float(rows[1]['high_grid_update']):.1f} |" in text
    said = capsys.readouterr().out
    assert "5 of fashion-mnist-test-2000, evenly spaced" in said and "TV to the Gaussian filter" in said
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000 and len(np.unique(np.asarray(picture))) > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/place"], "no directory at"),
        (["--checkpoint", "no/such.safetensors"], "no checkpoint at"),
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--batch-size", "-1"], "--batch-size must be at least 1, got -1"),
        (["--document", "no/such.md"], "no/such.md"),
        (["--document", __file__], "must hold the lines <!-- begin: examples/attention_lowpass.py -->"),
        (["--csv", f"{__file__}/a.csv"], "--csv expects a directory to write to"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_arguments_end_in_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(checkpoint, tmp_path, "--limit", "1", *arguments)
    line = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err.strip()
    assert line.startswith("attention_lowpass: ") and "\n" not in line and message in line


def test_a_document_keeps_what_is_outside_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin: one -->\n<!-- end -->\nb\n<!-- begin: two -->\nx\n<!-- end -->\nc\n")
    write_document(page, "two", "new")
    write_document(page, "one", "first")
    expected = "a\n<!-- begin: one -->\n\nfirst\n\n<!-- end -->\nb\n<!-- begin: two -->\n\nnew\n\n<!-- end -->\nc\n"
    assert page.read_text() == expected
