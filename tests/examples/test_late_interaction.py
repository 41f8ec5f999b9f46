"""`examples/late_interaction.py`: pooling of ragged documents, what it is compared with, and the program end to end."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import late_interaction
import pytest
import torch
import torch.nn.functional as F
from common.images import evenly_spaced, open_images
from deit.checkpoint import save_weights
from deit.model import DeiT, DeiTConfig
from deit.subjects import load_small
from experiments.retrieval import rivals
from experiments.retrieval.compare import METHODS, Method, compare, objective
from experiments.retrieval.documents import Ragged, embed, join, load_pixels, other_view, pack, pick
from experiments.retrieval.maxsim import max_sim, ranks
from experiments.retrieval.pooling import average, lay_out, ward_labels
from late_interaction import pool_documents
from PIL import Image
from torch import Tensor

import tpkernels
from tests.support.programs import EXAMPLES

# Of the documents that most tests pool.
LENGTHS = (23, 17, 1, 9, 17, 0, 2)


def ragged(seed: int = 0, n: int = 25, d: int = 12, dtype: torch.dtype = torch.float32) -> Ragged:
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


@pytest.mark.parametrize("factor", [1, 2, 2.5, 3, 40])
@pytest.mark.parametrize("protected", [0, 1, 3])
def test_counts_and_shapes(factor: float, protected: int) -> None:
    vectors, mask = pool_documents(*ragged(), factor, protected)
    counts = []
    for n in LENGTHS:
        others = max(n - protected, 0)
        counts.append(min(n, protected) + (max(1, int(others / factor + 0.5)) if others else 0))
    assert mask.sum(1).tolist() == counts and mask.shape == (len(LENGTHS), max(counts))
    assert not (mask[:, 1:] & ~mask[:, :-1]).any(), "padding stands in front of vectors"
    assert vectors.isfinite().all() and (vectors[~mask] == 0).all()
    torch.testing.assert_close(vectors[mask].norm(dim=-1), torch.ones(sum(counts)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_protected_tokens_come_through_bit_by_bit(dtype: torch.dtype) -> None:
    documents = ragged(1, dtype=dtype)
    # Neither of length 1 nor without a sign in its zeros.
    documents = Ragged(documents.vectors * 3, documents.mask)
    documents.vectors[..., 0] = -0.0
    vectors, mask = pool_documents(*documents, 3, protected=2)
    assert vectors.dtype == dtype
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for before, after in zip(by_document(*documents), by_document(vectors, mask), strict=True):
        assert torch.equal(before[:2].view(integer), after[:2].view(integer))


def test_pool_factor_of_one_keeps_the_tokens() -> None:
    documents = ragged(2)
    pooled = pool_documents(*documents, 1, normalize=False)
    for before, after in zip(by_document(*documents), by_document(*pooled), strict=True):
        assert torch.equal(before, after)


def test_clusters_are_means_of_ward(backend: str, device: torch.device) -> None:
    documents = Ragged(*(t.to(device) for t in ragged(3)))
    layout = lay_out(*documents, 3, 1)
    labels = ward_labels(documents.vectors, layout, 1, backend)
    assert torch.equal(labels < 0, ~documents.mask)
    for normalize in (False, True):
        vectors, mask = pool_documents(*documents, 3, 1, normalize=normalize, backend=backend)
        for b in range(len(LENGTHS)):
            assert labels[b].max() + 1 == mask[b].sum()
            for label in range(int(mask[b].sum())):
                mean = documents.vectors[b, labels[b] == label].mean(0)
                expected = F.normalize(mean, dim=0) if normalize and label else mean
                torch.testing.assert_close(vectors[b, label], expected)


@pytest.mark.parametrize("protected", [0, 1])
def test_a_ragged_batch_is_one_call(monkeypatch: pytest.MonkeyPatch, protected: int) -> None:
    called = []

    def counted(*given: Any, **named: Any) -> tpkernels.Clusters:
        called.append(given)
        return ward(*given, **named)

    ward = tpkernels.ward
    monkeypatch.setattr(tpkernels, "ward", counted)
    documents = ragged(12)
    _, mask = pool_documents(*documents, 2, protected)
    assert len(called) == 1 and len(set(mask.sum(1).tolist())) > 4
    # And it takes the longest document without its protected tokens.
    assert called[0][0].shape[1] == max(LENGTHS) - protected
    ward_labels(documents.vectors, lay_out(*documents, 3, protected), protected)
    assert len(called) == 2


def test_both_backends_agree(backend: str, device: torch.device) -> None:
    documents = ragged(4)
    expected, mask = pool_documents(*documents, 2, backend="torch")
    vectors, there = pool_documents(*(t.to(device) for t in documents), 2, backend=backend)
    assert torch.equal(there.cpu(), mask)
    torch.testing.assert_close(vectors.cpu(), expected)


def test_a_document_does_not_depend_on_its_batch() -> None:
    documents = ragged(5)
    together = by_document(*pool_documents(*documents, 2))
    broken = documents.vectors.clone()
    broken[0] = torch.inf
    beside_a_broken_one = by_document(*pool_documents(broken, documents.mask, 2))
    for b in range(len(LENGTHS)):
        alone, mask = pool_documents(documents.vectors[b : b + 1], documents.mask[b : b + 1], 2)
        torch.testing.assert_close(alone[0, mask[0]], together[b])
        if b > 0:
            torch.testing.assert_close(beside_a_broken_one[b], together[b])


def test_padding_may_stand_anywhere() -> None:
    documents = ragged(6)
    packed = pack(Ragged(documents.vectors.nan_to_num(), documents.mask))
    assert packed.mask.shape[1] == max(LENGTHS)
    torch.testing.assert_close(pool_documents(*packed, 2), pool_documents(*documents, 2))
    left = Ragged(packed.vectors.flip(1), packed.mask.flip(1))
    for a, b in zip(
        by_document(*pool_documents(*left, 2, 0)), by_document(*pool_documents(*packed, 2, 0)), strict=True
    ):
        order_a, order_b = (t[:, 0].argsort() for t in (a, b))
        torch.testing.assert_close(a[order_a], b[order_b])


def test_order_of_tokens_and_of_documents_does_not_matter() -> None:
    documents = ragged(7)
    vectors, mask = pool_documents(*documents, 3, protected=0)
    documents_moved = torch.tensor([3, 0, 6, 5, 1, 2, 4])
    tokens_moved = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    moved = pool_documents(*(t[documents_moved][:, tokens_moved] for t in documents), 3, protected=0)
    assert torch.equal(moved[1], mask[documents_moved])
    for after, before in zip(by_document(*moved), by_document(vectors[documents_moved], moved[1]), strict=True):
        torch.testing.assert_close(after[after[:, 0].argsort()], before[before[:, 0].argsort()])


def test_gradient_reaches_tokens_and_stays_out_of_padding() -> None:
    documents = ragged(8, dtype=torch.float64)
    x = documents.vectors.clone().requires_grad_()
    vectors, mask = pool_documents(x, documents.mask, 2, normalize=False)
    (vectors * torch.arange(1, 13)).sum().backward()
    assert (x.grad[~documents.mask] == 0).all()
    # Every vector is a mean: the gradients of its members sum to its own.
    torch.testing.assert_close(x.grad.sum((0, 1)), mask.sum() * torch.arange(1, 13, dtype=torch.float64))


@pytest.mark.parametrize("size", [(0, 5), (3, 0)])
def test_empty_batches(size: tuple[int, int]) -> None:
    vectors, mask = pool_documents(torch.ones(*size, 4), None, 2, protected=0)
    assert vectors.shape == (size[0], 0, 4) and mask.shape == (size[0], 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"embeddings": torch.ones(2, 5, 3, dtype=torch.int64)}, TypeError, "embeddings must be a floating-point"),
        ({"embeddings": [[1.0]]}, TypeError, r"embeddings must be a torch.Tensor, got list"),
        ({"embeddings": torch.ones(5, 3)}, ValueError, r"embeddings must have shape \[B, N, D\], got \[5, 3\]"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"mask must have shape \[2, 5\]"),
        ({"mask": torch.ones(2, 5)}, TypeError, "mask must be a bool tensor"),
        ({"pool_factor": 0.5}, ValueError, "pool_factor must be at least 1 and finite, got 0.5"),
        ({"pool_factor": float("nan")}, ValueError, "pool_factor must be at least 1"),
        ({"pool_factor": "2"}, TypeError, "pool_factor must be a number, got str"),
        ({"protected": -1}, ValueError, "protected must be at least 0, got -1"),
        ({"protected": 5}, ValueError, "protected must be less than the 5 tokens of a document, got 5"),
        ({"protected": 1.0}, TypeError, "protected must be an int, got float"),
        ({"backend": "numpy"}, ValueError, "backend must be one of"),
    ],
)
def test_wrong_arguments(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"embeddings": torch.ones(2, 5, 3), "mask": None, "pool_factor": 2, "protected": 1, **change}
    with pytest.raises(error, match=message):
        pool_documents(**arguments)


@pytest.mark.parametrize("factor", [2, 3, 6])
def test_objective_is_scipys_on_every_document(real: Ragged, factor: float) -> None:
    layout = lay_out(*real, factor, 1)
    ours = objective(real, ward_labels(real.vectors, layout, 1))
    scipys = objective(real, rivals.scipy_labels(real.vectors, layout, 1))
    assert len(set(real.mask.sum(1).tolist())) > 3 and (scipys > 0).all()
    torch.testing.assert_close(ours, scipys, rtol=1e-5, atol=0)
    worse = objective(real, rivals.run_labels(real.vectors, layout, 1))
    assert (worse > 1.05 * scipys).all()


def test_every_rival_gives_as_many_vectors() -> None:
    documents = ragged(9)
    layout = lay_out(*documents, 3, 2)
    clean = documents.vectors.nan_to_num()
    for method in METHODS:
        labels = method.labels(clean, layout, 2)
        vectors, mask = average(clean, labels, layout, 2)
        assert torch.equal(mask.sum(1), layout.lengths), method.name
        assert (labels[~documents.mask] == -1).all()
        torch.testing.assert_close(vectors[mask].norm(dim=-1), torch.ones(int(mask.sum())))
        for before, after in zip(by_document(*documents), by_document(vectors, mask), strict=True):
            assert torch.equal(before[:2], after[:2]), method.name
    torch.testing.assert_close(
        average(clean, ward_labels(clean, layout, 2), layout, 2), pool_documents(*documents, 3, 2)
    )


def test_runs_and_strides_by_hand() -> None:
    documents = Ragged(torch.eye(6)[None], torch.tensor([[True, True, False, True, True, True]]))
    layout = lay_out(*documents, 2, 1)
    assert rivals.run_labels(documents.vectors, layout, 1).tolist() == [[0, 1, -1, 1, 2, 2]]
    assert rivals.strided_labels(documents.vectors, layout, 1).tolist() == [[0, 1, -1, -1, 2, -1]]
    assert objective(documents, rivals.strided_labels(documents.vectors, layout, 1)) is None
    # Two means of two orthogonal unit vectors lose 1 each.
    assert objective(documents, rivals.run_labels(documents.vectors, layout, 1)).tolist() == [2.0]


def test_max_sim_and_ranks_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = ragged(10, n=24), ragged(11, n=24)
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
    wrong = Method("ward", "", rivals.run_labels)
    _, scipy, rows_of_distances, runs = compare(real, pick(real), [METHODS[1], METHODS[2], METHODS[3]], [3], 1, 1)
    assert scipy["speedup"] == 1 and scipy["objective_worst"] == scipy["objective_least"] == 1
    for row in (rows_of_distances, runs, compare(real, pick(real), [wrong, METHODS[1]], [3], 1, 1)[1]):
        assert row["objective_worst"] > 1.001 and "speedup" not in row and row["seconds"] > 0


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
    assert base["documents"] == 10 and base["vectors_per_document"] > 1.9 * ward["vectors_per_document"]
    assert ward["vectors_per_document"] == scipy["vectors_per_document"]
    assert ward["index_mb"] == round(ward["vectors_per_document"] * 10 * 24 * 2 / 1e6, 4)
    assert abs(ward["objective_worst"] - 1) < 1e-4 and abs(ward["objective_least"] - 1) < 1e-4
    assert (ward["recall_at_1_percent"], ward["mrr"]) == (scipy["recall_at_1_percent"], scipy["mrr"])
    assert ward["seconds"] > 0 and ward["speedup"] > 0 and scipy["speedup"] == 1
    assert "objective_mean" not in rows[5]

    with (tmp_path / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == [row["method"] for row in rows]
    assert float(lines[1]["mrr"]) == ward["mrr"] and lines[0]["seconds"] == ""
    said = capsys.readouterr().out
    for part in ("10 of 2 image(s)", "1 protected", "recall@1 %", "Ward, batched", "every p-th token", "s in all"):
        assert part in said


def test_without_scipy(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    _, ward, scipy = run(checkpoint, tmp_path, "--method", "ward", "scipy", "--pool-factor", "2")
    assert ward["seconds"] > 0 and "speedup" not in ward and "objective_mean" not in ward
    assert scipy == {"method": "scipy", "label": "Ward, scipy: not installed", "pool_factor": 2}
    assert "pip install scipy" in capsys.readouterr().out


def test_images_without_a_shown_patch_are_documents(checkpoint: Path, tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / "data" / f"class{number}"
        folder.mkdir(parents=True)
        Image.new("L", (28, 28), 60 * number).save(folder / "a.png")
    rows = run(checkpoint, tmp_path / "run", "--data", str(tmp_path / "data"), "--pool-factor", "1", "3")
    assert {row["documents"] for row in rows} == {4}
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
        (["--protected", "400"], "protected must be less than"),
        (["--limit", "1"], "--limit: expected at least 2, got 1"),
        (["--images-per-document", "1500"], "--images-per-document must leave two documents of the 2000 images"),
        (["--method", "wart"], "--method must be among ward, scipy"),
        (["--repeats", "0"], "--repeats"),
        (["--device", "gpu"], "expects cpu or cuda"),
        (["--output", __file__], "--output"),
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
