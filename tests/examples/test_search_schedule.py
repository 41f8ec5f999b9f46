"""`examples/search_schedule.py` from end to end on a tiny model, and the soft search's parts by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import deit_eval
import pytest
import search_schedule
import torch
from common.arguments import DATA
from common.images import evenly_spaced, open_images
from deit.checkpoint import save_weights
from deit.distances import merging
from deit.methods import METHODS
from deit.soft import fit_budget, learn_retention, retention_penalty, scale_by_rank, softened, tokens_retained
from deit.subjects import load_small

import tpkernels
from tests.support.deit import make_large
from tests.support.models import make_timm, make_transformers
from tests.support.programs import EXAMPLES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, make_large(), {"epoch": 2})
    return path


def search(checkpoint: Path, output: Path, *more: str) -> tpkernels.Schedule:
    arguments = ["--checkpoint", str(checkpoint), "--limit", "12", "--batch-size", "5", "--output", str(output)]
    search_schedule.main([*arguments, *more])
    return tpkernels.load_schedule(output)


def test_the_schedule_of_least_error_is_evaluated(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs" / "schedule.json"
    found = search(checkpoint, path, "--budget", "0.7")
    assert search(checkpoint, path, "--budget", "0.7") == found
    macs = tpkernels.count_macs(make_large(), found.tokens)
    assert 0.65 < macs.ratio <= 0.7 and found.facts["macs"] == macs.total and found.num_patches == 49
    assert found.facts["way"] == "error" and found.facts["images"] == 12 and found.facts["weights"] == "depth"
    said = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in said.splitlines()}
    assert " ".join(map(str, found.tokens)) in lines["schedule"]
    assert f"{macs.total / 1e9:.3f} GMAC" in lines["schedule"] and f"{100 * macs.ratio:.1f} %" in lines["schedule"]
    summed = [float(lines[name].split()[2]) for name in ("summed error", "constant ratio")]
    assert 0 < summed[0] < summed[1]

    options = ["--checkpoint", str(checkpoint), "--limit", "8", "--method", "ward", "--output", str(tmp_path / "eval")]
    deit_eval.main([*options, "--schedule", str(path)])
    rows = json.loads((tmp_path / "eval" / "rows.json").read_text())["rows"]
    assert rows[1]["tokens_per_block"] == list(found.tokens)


def test_blocks_weigh_less_with_depth_unless_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[torch.Tensor] = []
    solve = tpkernels.solve_schedule
    monkeypatch.setattr(tpkernels, "solve_schedule", lambda x, *a, **k: solved.append(x) or solve(x, *a, **k))
    for weights in ("equal", "depth"):
        search(checkpoint, tmp_path / "schedule.json", "--weights", weights)
    # The first of each run only looks at the arguments.
    equal, depth = solved[1], solved[3]
    assert float(equal[:, 0].min()) == pytest.approx(1)
    torch.testing.assert_close(depth, torch.stack([row / (i + 1) for i, row in enumerate(equal)]))


def test_layers_that_may_pool(checkpoint: Path, tmp_path: Path) -> None:
    found = search(checkpoint, tmp_path / "schedule.json", "--budget", "0.75", "--layers", "1", "2").tokens
    assert found[0] == 49 and found[2] == found[3] < 49


@pytest.mark.parametrize("model_lr", ["0", "0.001"])
def test_the_soft_search(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model_lr: str) -> None:
    options = ["--way", "soft", "--steps", "6", "--lr", "0.05", "--penalty", "0.01", "--model-lr", model_lr]
    found = search(checkpoint, tmp_path / "schedule.json", "--budget", "0.7", *options)
    assert search(checkpoint, tmp_path / "schedule.json", "--budget", "0.7", *options) == found
    assert 0.6 < tpkernels.count_macs(make_large(), found.tokens).ratio <= 0.7
    assert found.facts["way"] == "soft" and found.facts["steps"] == 6 and "learned" in capsys.readouterr().out


def test_distances_for_a_budget_are_evaluated(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, layers = tmp_path / "schedule.json", ["--layers", "1", "2"]
    found = search(checkpoint, path, "--way", "distance", "--budget", "0.75", *layers)
    assert found.distance is not None and found.distance[0] is None and found.distance[3] is None
    assert found.tokens[0] == 49 > found.tokens[1] and found.facts["way"] == "distance" and found.facts["images"] == 12
    assert 0.745 <= found.facts["macs"] / found.facts["base_macs"] <= 0.75
    said = capsys.readouterr().out
    assert "block 1 " in said and f"{found.distance[1]:.4g}" in said and "in the mean of these images" in said

    def evaluate(*more: str) -> list[dict]:
        output = tmp_path / "eval"
        options = ["--checkpoint", str(checkpoint), "--limit", "6", "--output", str(output), "--schedule", str(path)]
        deit_eval.main([*options, "--method", "ward", *more])
        return json.loads((output / "rows.json").read_text())["rows"]

    rows = evaluate()
    assert rows[0]["tokens_per_block"] == [49] * 4 and rows[1]["tokens_per_block"] == list(found.tokens)
    said = capsys.readouterr().out
    assert "by distance: these are the most" in said and "GMACs are the mean of these images" in said

    # The mean over single images, whatever the batches were.
    source = open_images(DATA)
    subject = load_small(checkpoint)
    model = tpkernels.patch(subject.model, found)
    totals = []
    for number in evenly_spaced(2000, 6):
        with torch.no_grad(), tpkernels.trace(model) as trace:
            model(subject.transform(source.image(number))[None])
        after = {layer: len(sizes[0]) - 1 for layer, sizes in zip(trace.layers, trace.sizes, strict=True)}
        totals.append(tpkernels.count_macs(model, [49, after[1], *[after.get(2, after[1])] * 2]).total)
    for row in (rows[1], evaluate("--batch-size", "4")[1]):
        assert row["pooled_gmacs"] + row["clustering_gmacs"] == pytest.approx(sum(totals) / 6e9, rel=1e-9)
    assert len(set(totals)) > 1
    with pytest.raises(SystemExit, match="distance must be None but for method"):
        evaluate("--method", "bipartite")
    assert [method.name for method in merging(METHODS)] == ["ward", "kmedoids", "kmedoids-swap", "kmeans"]


def test_ranks_are_scaled_and_the_class_token_is_not() -> None:
    x = torch.ones(1, 4, 2)
    significance = torch.tensor([[9.0, 0.1, 0.3, 0.2]])
    scaled = scale_by_rank(x, significance, torch.tensor([1.0, 0.5, 0.25]), prefix=1)
    assert scaled[0, :, 0].tolist() == [1, 0.25, 1, 0.5]
    ties = scale_by_rank(x, torch.ones(1, 4), torch.tensor([1.0, 0.5, 0.25]), prefix=1)
    assert ties[0, :, 1].tolist() == [1, 1, 0.5, 0.25]


def test_deeper_blocks_pay_more() -> None:
    retention = torch.tensor([[1.0, 0.5], [1.0, 0.0], [0.25, 0.25]], requires_grad=True)
    penalty = retention_penalty(retention)
    assert penalty.item() == 1.5 + 2 * 1 + 3 * 0.5
    penalty.backward()
    assert retention.grad.tolist() == [[1, 1], [2, 2], [3, 3]]


def test_soft_weights_of_one_change_nothing_and_of_less_do() -> None:
    model, images = make_large(), torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model(images)
        with softened(model, torch.ones(4, 49)):
            torch.testing.assert_close(model(images), own, rtol=1e-4, atol=1e-4)
        with softened(model, torch.full((4, 49), 0.5)):
            assert not torch.allclose(model(images), own, rtol=1e-2, atol=1e-2)
        assert torch.equal(model(images), own)


@pytest.mark.parametrize("model_lr", [0.0, 0.01])
def test_learning_lowers_weights_and_the_model_moves_only_where_asked(model_lr: float) -> None:
    model, generator = make_large(), torch.Generator().manual_seed(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.randn(4, 1, 28, 28, generator=generator), torch.tensor([0, 1, 2, 3])) for _ in range(5)]
    retention = learn_retention(model, batches, lr=0.3, penalty=1.0, model_lr=model_lr)
    assert retention.shape == (4, 49) and not retention.requires_grad
    assert float(retention.min()) == 0 and float(retention.max()) <= 1
    moved = any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert moved == (model_lr > 0)
    if not model_lr:
        assert all(parameter.grad is None for parameter in model.parameters())
    free = learn_retention(make_large(), batches[:2], lr=0.01, penalty=0.0)
    assert float(free.mean()) > float(retention.mean())


def test_masses_become_tokens() -> None:
    retention = torch.tensor([[1.0, 1.0, 0.1, 0.0], [1.0, 1.0, 1.0, 0.5], [0.5, 0.0, 0.0, 0.0], [0.0] * 4])
    assert tokens_retained(retention) == [3, 3, 1, 1]
    assert tokens_retained(retention, layers=[1, 3]) == [4, 4, 4, 1]
    assert tokens_retained(retention, scale=2.0) == [4, 4, 1, 1]


def test_the_scale_meets_the_budget() -> None:
    model = make_large()
    retention = torch.rand(4, 49, generator=torch.Generator().manual_seed(0))
    for budget in (0.5, 0.7, 0.9):
        share = tpkernels.count_macs(model, fit_budget(retention, model, budget, None)).ratio
        assert budget - 0.04 < share <= budget
    assert fit_budget(retention, model, 1.0, None) == [49] * 4
    assert fit_budget(retention, model, 0.8, [2])[:2] == [49] * 2
    with pytest.raises(ValueError, match=r"--budget must be at least 0\.\d+, one token at every layer, got 0.05"):
        fit_budget(retention, model, 0.05, None)


def test_models_whose_blocks_are_not_one_call_are_refused(transformers: ModuleType, timm: ModuleType) -> None:
    model, _ = make_transformers(transformers, "ViTModel")
    with (
        pytest.raises(ValueError, match=r"takes unpatched models of timm's structure, got ViTModel"),
        softened(model, torch.ones(4, 64)),
    ):
        pass
    patched = tpkernels.patch(make_timm(timm), 0.5)
    with pytest.raises(ValueError, match=r"takes unpatched models"), softened(patched, torch.ones(4, 64)):
        pass


def test_the_shipped_images_that_are_evaluated_are_not_searched_on() -> None:
    args = search_schedule.parse_args([])
    numbers = search_schedule.choose(2000, args)
    assert len(set(numbers)) == 200 and not set(numbers) & set(evenly_spaced(2000, deit_eval.SHIPPED_LIMIT))
    other = search_schedule.parse_args(["--data", "elsewhere", "--limit", "3"])
    assert search_schedule.choose(9, other) == [0, 3, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0"], "budget must be a number in (0, 1], got 0"),
        (["--budget", "0.1", "--layers", "2"], "budget must be at least 0."),
        (["--layers", "4"], "layers must be distinct 0-based blocks in [0, 3], got 4"),
        (["--way", "guess"], "--way"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--lr", "nan"], "--lr must be finite and above 0"),
        (["--penalty", "-1"], "--penalty must be finite and at least 0"),
        (["--data", "no/such/place"], "no directory at"),
        (["--checkpoint", __file__], "not a complete safetensors file"),
        (["--output", str(EXAMPLES)], "--output must be a file"),
        (["--device", "gpu"], "expects cpu or cuda"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_end_in_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        search_schedule.main(["--checkpoint", str(checkpoint), "--output", str(tmp_path / "schedule.json"), *arguments])
    line = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err.strip()
    assert line.startswith("search_schedule: ") and "\n" not in line and message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [["--keep", "0.5"], ["--budget", "0.5"], ["--layers", "1"]])
def test_a_schedule_file_says_it_all(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    with pytest.raises(SystemExit):
        deit_eval.main(["--schedule", "schedule.json", *more])
    assert "--schedule excludes --keep, --budget and --layers" in capsys.readouterr().err


def test_a_schedule_file_of_another_model_ends_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    tpkernels.save_schedule(path, [196] * 12, num_patches=196)
    with pytest.raises(SystemExit, match=r"deit_eval: .*schedule.json must fit a model of 4 blocks and 49"):
        deit_eval.main(["--checkpoint", str(checkpoint), "--schedule", str(path), "--output", str(tmp_path / "eval")])
