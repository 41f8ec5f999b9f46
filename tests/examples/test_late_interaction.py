"""`examples/late_interaction.py`: what pooling is compared with, documents of images, and the program end to end."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import late_interaction
import pytest
import torch
import torch.nn.functional as F
from common.images import evenly_spaced, open_images
from deit.checkpoint import save_weights
from deit.model import DeiT, DeiTConfig
from deit.subjects import load_small
from experiments.retrieval import rivals
from experiments.retrieval.compare import METHODS, Method, compare, find_methods, objective
from experiments.retrieval.documents import Ragged, embed, join, load_pixels, other_view, pack, pick
from experiments.retrieval.maxsim import max_sim, ranks
from experiments.retrieval.memory import CLEAR, peak_of
from PIL import Image
from torch import Tensor

from tests.support.programs import EXAMPLES

# Of the documents that most tests pool.
LENGTHS = (23, 17, 1, 9, 17, 0, 2)


def ragged_batch(seed: int = 0, n: int = 25, d: int = 12, dtype: torch.dtype = torch.float32) -> Ragged:
    """Unit vectors around a few directions; NaN stands in the padding, which lies anywhere."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(len(LENGTHS), 6, d, generator=generator)
    which = torch.randint(6, (len(LENGTHS), n), generator=generator)
    x = torch.stack([center[label] for center, label in zip(centers, which, strict=True)])
    x = F.normalize(x + 0.4 * torch.randn(x.shape, generator=generator), dim=-1).to(dtype)
    places = torch.rand(len(LENGTHS), n, generator=generator).argsort(1)
    mask = places < torch.tensor(LENGTHS)[:, None]
    return Ragged(x.masked_fill(~mask[..., None], torch.nan), mask)


def by_document(vectors: Tensor, mask: Tensor) -> list[Tensor]:
    return [document[there] for document, there in zip(vectors, mask, strict=True)]


@pytest.fixture(scope="module")
def real() -> Ragged:
    """Six documents of two images each from the shipped model."""
    subject = load_small(EXAMPLES / "weights" / "deit_fashion.safetensors")
    source = open_images(EXAMPLES / "data" / "fashion-mnist-test-2000")
    pixels = load_pixels(source, subject, evenly_spaced(len(source.labels), 12))
    return join(embed(subject.model, pixels, torch.device("cpu")), 2)


@pytest.mark.parametrize("factor", [2, 3, 6])
@pytest.mark.parametrize("distance", ["euclidean", "dot", "rows"])
def test_the_library_parts_documents_as_every_package_does(real: Ragged, distance: str, factor: float) -> None:
    ours, *others = (method for method in METHODS if method.distance == distance and rivals.is_there(method.package))
    vectors, mask, labels = ours.pool(real, factor, 1)
    assert others and len(set(mask.sum(1).tolist())) > 3
    for method in others:
        found = method.pool(real, factor, 1)
        same = (found.labels == labels).all(1)
        # Of the rows' sums of squares, float32 may take another one for the least than the package's float64 does.
        assert same.sum() >= len(same) - (distance == "rows") and torch.equal(found.mask, mask), method.name
        torch.testing.assert_close(found.vectors[same], vectors[same])


def test_runs_lose_more_than_ward(real: Ragged) -> None:
    ward, runs = (objective(real, find_methods([name])[0].pool(real, 3, 1).labels) for name in ("ward", "runs"))
    assert (runs > 1.05 * ward).all()


@pytest.mark.parametrize("protected", [0, 2])
@pytest.mark.parametrize("factor", [1, 2.5, 3, 40])
def test_every_method_gives_as_many_vectors(factor: float, protected: int) -> None:
    documents = ragged_batch(9)
    clean = Ragged(documents.vectors.nan_to_num(), documents.mask)
    counts = []
    for n in LENGTHS:
        others = max(n - protected, 0)
        counts.append(min(n, protected) + (max(int(others // factor), 1) if others else 0))
    for method in METHODS:
        if not rivals.is_there(method.package):
            continue
        vectors, mask, labels = method.pool(clean, factor, protected)
        assert mask.sum(1).tolist() == counts, method.name
        assert (labels[~documents.mask] == -1).all()
        torch.testing.assert_close(vectors[mask].norm(dim=-1), torch.ones(sum(counts)))
        for before, after in zip(by_document(*documents), by_document(vectors, mask), strict=True):
            assert torch.equal(before[:protected], after[:protected]), method.name


def test_runs_and_strides_by_hand() -> None:
    documents = Ragged(torch.eye(6)[None], torch.tensor([[True, True, False, True, True, True]]))
    runs = rivals.pool(rivals.runs, documents, 2, 1)
    assert runs.labels.tolist() == [[0, 1, -1, 1, 2, 2]]
    assert rivals.pool(rivals.every, documents, 2, 1).labels.tolist() == [[0, 1, -1, -1, 2, -1]]
    assert rivals.every(torch.ones(5, 1), 1).tolist() == [0, -1, -1, -1, -1]
    assert objective(documents, rivals.pool(rivals.every, documents, 2, 1).labels) is None
    # Two means of two orthogonal unit vectors lose 1 each.
    assert objective(documents, runs.labels).tolist() == [2.0]


def test_max_sim_and_ranks_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = ragged_batch(10, n=24), ragged_batch(11, n=24)
    clean = [Ragged(part.vectors.nan_to_num(), part.mask) for part in (queries, documents)]
    expected = torch.full((7, 7), -torch.inf)
    for i, q in enumerate(by_document(*queries)):
        for j, d in enumerate(by_document(*documents)):
            if len(d):
                expected[i, j] = (q @ d.T).amax(1).sum()
    # A query's padding says nothing; a document without vectors is never found.
    for block in (1, 10_000, 1 << 22):
        monkeypatch.setattr("experiments.retrieval.maxsim.BLOCK_ELEMENTS", block)
        packed = pack(clean[1])
        torch.testing.assert_close(max_sim(clean[0], packed), expected)
    scores = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    assert ranks(scores).tolist() == [3, 2, 1]


def test_documents_are_ragged_and_joined() -> None:
    torch.manual_seed(0)
    model = DeiT(DeiTConfig(patch_size=7, embed_dim=24, depth=2, num_heads=2)).eval()
    pixels = torch.zeros(4, 1, 28, 28)
    for image, patches in enumerate((0, 1, 5, 16)):
        for patch in range(patches):
            pixels[image, 0, 7 * (patch // 4) + 3, 7 * (patch % 4) + 2] = 0.9
    images = embed(model, pixels, torch.device("cpu"))
    assert images.mask.sum(1).tolist() == [1, 2, 6, 17]
    torch.testing.assert_close(images.vectors.norm(dim=-1), images.mask.float())
    documents = join(images, 2)
    # The second image's class token is left out.
    assert documents.mask.sum(1).tolist() == [2, 22] and documents.mask.shape == (2, 22)
    assert torch.equal(documents.vectors[1, :6], by_document(*images)[2])
    assert torch.equal(documents.vectors[1, 6:], by_document(*images)[3][1:])
    assert pick(images).mask.sum(1).tolist() == [0, 1, 5, 16]


def test_views_are_near_and_repeat() -> None:
    pixels = torch.zeros(8, 1, 28, 28)
    pixels[:, :, 10:18, 10:18] = 0.5
    views, again = (other_view(pixels, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(views, again) and views.min() >= 0 and views.max() <= 1
    assert ((views > 0).flatten(1).sum(1) == 64).all() and not torch.equal(views > 0, pixels > 0)


def test_no_speedup_for_another_answer(real: Ragged) -> None:
    methods = find_methods(["scipy", "scipy-rows", "runs"])
    _, scipy, rows_of_distances, runs = compare(real, pick(real), methods, [3], 1, 1)
    assert scipy["over_scipy"] == 1 and scipy["objective_worst"] == scipy["objective_least"] == 1
    # Each is compared with scipy's by its own distance.
    assert rows_of_distances["over_scipy"] == 1 and rows_of_distances["objective_worst"] > 1.001
    assert "over_scipy" not in runs and runs["objective_worst"] > 1.001 and runs["seconds"] > 0
    wrong = Method("ward", "", "euclidean", rivals.runs)
    row = compare(real, pick(real), [wrong, METHODS[1]], [3], 1, 1)[1]
    assert row["same_as_scipy"] == 0 and "over_scipy" not in row


def holds(documents: Ragged, megabytes: int) -> None:
    torch.ones(megabytes << 18)


@pytest.mark.skipif(not CLEAR.exists(), reason="this system does not tell a process's peak")
def test_peak_is_what_a_call_adds(real: Ragged) -> None:
    assert 95 << 20 < peak_of(holds, real, 100) < 105 << 20
    with pytest.raises(ValueError, match="ended without a result"):
        peak_of(holds, real, -1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, DeiT(DeiTConfig(patch_size=4, embed_dim=24, depth=2, num_heads=2)), {})
    return path


def run(checkpoint: Path, output: Path, *more: str) -> list[dict]:
    """The rows of a run on a few documents."""
    arguments = ["--checkpoint", str(checkpoint), "--output", str(output), "--limit", "10", "--repeats", "2"]
    late_interaction.main([*arguments, *more])
    return json.loads((output / "rows.json").read_text())["rows"]


def test_end_to_end(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(checkpoint, tmp_path, "--images-per-document", "2", "--pool-factor", "2", "4")
    assert [row["method"] for row in rows] == ["none", *2 * [method.name for method in METHODS]]
    base, ward, scipy = rows[:3]
    if not rivals.is_there("fastcluster"):
        assert rows[3] == {"method": "fastcluster", "label": "Ward, fastcluster: not installed", "pool_factor": 2}
    assert base["documents"] == 10 and base["vectors_per_document"] > 1.9 * ward["vectors_per_document"]
    assert ward["vectors_per_document"] == scipy["vectors_per_document"]
    assert ward["index_mb"] == round(ward["vectors_per_document"] * 10 * 24 * 2 / 1e6, 4)
    assert abs(ward["objective_worst"] - 1) < 1e-4 and abs(ward["objective_least"] - 1) < 1e-4
    assert (ward["recall_at_1_percent"], ward["mrr"]) == (scipy["recall_at_1_percent"], scipy["mrr"])
    assert ward["seconds"] > 0 and ward["over_scipy"] > 0 and scipy["over_scipy"] == 1
    assert ward["same_as_scipy"] == 10 and "objective_mean" not in rows[len(METHODS)]

    with (tmp_path / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == [row["method"] for row in rows]
    assert float(lines[1]["mrr"]) == ward["mrr"] and lines[0]["seconds"] == ""
    said = capsys.readouterr().out
    for part in (
        "10 of 2 image(s)",
        "protected   1",
        "recall@1 %",
        "Ward, batched",
        "every p-th token",
        "s in all",
        "same as scipy",
    ):
        assert part in said


def test_without_scipy(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    _, ward, scipy = run(checkpoint, tmp_path, "--method", "ward", "scipy", "--pool-factor", "2")
    assert ward["seconds"] > 0 and "over_scipy" not in ward and "objective_mean" not in ward
    assert scipy == {"method": "scipy", "label": "Ward, scipy: not installed", "pool_factor": 2}
    assert "pip install scipy" in capsys.readouterr().out


def test_images_without_a_shown_patch_are_documents(checkpoint: Path, tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / "data" / f"class{number}"
        folder.mkdir(parents=True)
        Image.new("L", (28, 28), 60 * number).save(folder / "a.png")
    rows = run(checkpoint, tmp_path / "run", "--data", str(tmp_path / "data"), "--pool-factor", "1", "3")
    measured = [row for row in rows if "not installed" not in row["label"]]
    assert len(measured) > 3 and {row["documents"] for row in measured} == {4}
    assert rows[1]["vectors_per_document"] == rows[0]["vectors_per_document"] == (1 + 3 * 50) / 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/place"], "no directory at"),
        (["--checkpoint", "no/such.safetensors"], "no checkpoint at"),
        (["--pool-factor", "0.5"], "--pool-factor: expected a number of at least 1, got 0.5"),
        (["--pool-factor", "nan"], "--pool-factor"),
        (["--pool-factor", "two"], "--pool-factor"),
        (["--protected", "-1"], "--protected: expected at least 0, got -1"),
        (["--limit", "1"], "--limit: expected at least 2, got 1"),
        (["--images-per-document", "1500"], "--images-per-document must leave two documents of the 2000 images"),
        (["--method", "wart"], "--method must be among ward, scipy"),
        (["--repeats", "0"], "--repeats"),
        (["--device", "gpu"], "expects cpu or cuda"),
        (["--output", __file__], "--output"),
        (["--document", __file__], "--document"),
        (["--text", "--model", "no/such/folder"], "--model must be a folder with model.onnx and tokenizer.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_end_in_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        late_interaction.main(["--checkpoint", str(checkpoint), "--output", str(tmp_path), "--limit", "4", *arguments])
    line = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err.strip()
    assert line.startswith("late_interaction: ") and "\n" not in line
    assert message in line


def test_a_corrupt_image_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "class0").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (tmp_path / "data" / "class0" / name).write_bytes(b"cut")
    with pytest.raises(SystemExit, match=r"2 of the 2 images cannot be read; the first is class0/a\.png"):
        run(checkpoint, tmp_path / "run", "--data", str(tmp_path / "data"))
