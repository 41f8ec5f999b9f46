"""`examples/late_interaction_train.py`: the loss and its gradient, a step, what is held out, and the program."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import late_interaction_train
import pytest
import torch
import torch.nn.functional as F
from deit.checkpoint import save_weights
from deit.model import DeiT, DeiTConfig
from experiments.retrieval import corpus, held_out
from experiments.retrieval.documents import Pooled, Ragged, ragged
from experiments.retrieval.head import Training, batch_loss, contrastive_loss, near_loss, new_head, pool, project, train
from experiments.retrieval.pairs import Pairs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WIDTH = 12


class Operations(TorchDispatchMode):
    """Counts this library's operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "tpkernels":
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def pairs(count: int, dtype: torch.dtype = torch.float32, longest: int = 30, seed: int = 0) -> Pairs:
    """Documents of noisy tokens around a few directions of their own, and two kinds of queries, noisier ones.

    The noise is in the last channels alone, which a head can learn to leave out.
    """
    generator = torch.Generator().manual_seed(seed)
    documents, queries, noise = [], [[], []], torch.tensor([0.5] * 6 + [2.0] * (WIDTH - 6))
    for n in torch.randint(4, longest + 1, (count,), generator=generator).tolist():
        directions = torch.randn(4, WIDTH, generator=generator)
        which = torch.arange(n) % 4
        documents.append(directions[which] + 0.4 * noise * torch.randn(n, WIDTH, generator=generator))
        for kind in queries:
            kind.append(directions[:3] + noise * torch.randn(3, WIDTH, generator=generator))
    unit = [[F.normalize(one, dim=-1).to(dtype) for one in part] for part in (documents, *queries)]
    return Pairs(unit[0], unit[1:])


def test_a_step_of_a_batch_is_one_clustering_call() -> None:
    made, head = pairs(64), new_head(WIDTH, 5, 0)
    before = head.weight.detach().clone()
    # Forwards and backwards.
    with Operations() as seen:
        losses = list(train(head, made, [3], 1.0, Training(1, 0.01, 1), 0))
    assert seen.counts["cluster"] == 1 and seen.counts["cluster_mean"] == 0
    assert len(losses) == 1 and not torch.equal(head.weight, before)
    with Operations() as seen:
        list(train(head, made, [1.0], 0.0, Training(1, 0.01, 1), 0))
    assert seen.counts["cluster"] == 0


@pytest.mark.parametrize("factor", [1, 3])
def test_the_loss_is_its_equation(factor: float) -> None:
    made, head = pairs(5, torch.float64), new_head(WIDTH, 5, 0).double()
    documents, queries = made.batch(range(5), 1)
    labels = pool(project(head, documents), factor, 1).labels
    means, asked, distances = [], [], []
    for document, query, label in zip(made.documents, made.queries[1], labels, strict=True):
        tokens, label = F.normalize(document @ head.weight.T, dim=-1), label[: len(document)]
        rows = [tokens[label == row].sum(0) for row in range(int(label.max()) + 1)]
        means.append(torch.stack([row / row.norm() for row in rows]))
        asked.append(F.normalize(query @ head.weight.T, dim=-1))
        distances += [
            1 - F.cosine_similarity(token, means[-1][row], 0) for token, row in zip(tokens, label, strict=True)
        ]
    scores = torch.stack([torch.stack([(q @ d.T).amax(1).sum() for d in means]) for q in asked])
    contrast = (scores.logsumexp(1) - scores.diagonal()).mean()
    torch.testing.assert_close(batch_loss(head, documents, queries, factor, 0.0, 1), contrast)
    torch.testing.assert_close(
        batch_loss(head, documents, queries, factor, 2.0, 1), contrast + 2 * sum(distances) / len(distances)
    )


def test_gradients_go_through_the_means() -> None:
    """By finite differences, over which the clusters are the same."""
    documents, queries = pairs(2, torch.float64, longest=8).batch(range(2), 0)
    labels = pool(project(torch.nn.Identity(), documents), 2.5, 1).labels
    assert int(labels.max()) >= 2

    def near(vectors: Tensor) -> Tensor:
        tokens = project(torch.nn.Identity(), Ragged(vectors, documents.mask))
        pooled = pool(tokens, 2.5, 1)
        assert torch.equal(pooled.labels, labels)
        return near_loss(tokens, pooled)

    def whole(weight: Tensor) -> Tensor:
        return batch_loss(lambda x: F.linear(x, weight), documents, queries, 2.5, 0.7, 1)

    assert torch.autograd.gradcheck(near, documents.vectors.clone().requires_grad_())
    assert torch.autograd.gradcheck(whole, new_head(WIDTH, 4, 0).double().weight)
    x = documents.vectors.clone().requires_grad_()
    tokens = project(torch.nn.Identity(), Ragged(x, documents.mask))
    pooled = pool(tokens, 2.5, 1)
    (gradient,) = torch.autograd.grad(
        contrastive_loss(queries, Ragged(pooled.vectors, pooled.mask)), x, retain_graph=True
    )
    averaged = documents.mask & (pooled.labels > 0)
    assert (gradient[averaged].abs().amax(-1) > 0).sum() > averaged.sum() / 2
    # No other vector of length 1 is as near to the tokens as their mean: moving it is no gain.
    held = Pooled(pooled.vectors.detach(), *pooled[1:])
    free, kept = (
        torch.autograd.grad(near_loss(tokens, one), tokens.vectors, retain_graph=True)[0] for one in (pooled, held)
    )
    torch.testing.assert_close(free[averaged], kept[averaged])


def test_near_loss_by_hand_and_when_trained_alone() -> None:
    tokens = ragged([torch.eye(3)[[0, 1, 2]], torch.eye(3)[:1]])
    pooled = pool(tokens, 2, 1)
    # Protected, protected, and two orthogonal ones in one mean, at 45 degrees to it.
    assert pooled.labels.tolist() == [[0, 1, 1], [0, -1, -1]]
    torch.testing.assert_close(near_loss(tokens, pooled), torch.tensor((1 - 0.5**0.5) / 2))
    documents, _ = pairs(32).batch(range(32), 0)
    head = new_head(WIDTH, 6, 0)
    optimizer, values = torch.optim.Adam(head.parameters(), 0.01), []
    for _ in range(20):
        projected = project(head, documents)
        loss = near_loss(projected, pool(projected, 4, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]


def test_nothing_held_out_is_trained_with() -> None:
    numbered = [torch.full((1, 1), float(number)) for number in range(20)]
    trained, held = Pairs(numbered, [numbered, [-one for one in numbered]]).split()
    first, second = ([int(one) for one in part.documents] for part in (trained, held))
    assert sorted(first + second) == list(range(20)) and second == list(range(0, 20, 3))
    for part in (trained, held):
        assert torch.equal(torch.cat(part.documents), torch.cat(part.queries[0]))
        assert torch.equal(torch.cat(part.documents), -torch.cat(part.queries[1]))


def test_training_finds_more_and_differences_are_paired() -> None:
    made = pairs(120, longest=12)
    rows = held_out.compare(made, held_out.ways(6, [1.0]), [2.0], 2, Training(20, 0.03, 1))
    assert [(row.way, row.pool_factor) for row in rows] == [
        (way, factor) for factor in (1, 2) for way in ("none", "start", "whole", "pooled", "near-1")
    ]
    by_key = {(row.way, row.pool_factor): row for row in rows}
    for factor in (1, 2):
        base = by_key["whole", factor]
        assert base.mrr_to_whole == base.mrr_to_whole_se == 0 and base.documents == 40
        for way in ("whole", "pooled", "near-1"):
            row = by_key[way, factor]
            assert row.mrr > by_key["start", factor].mrr + 0.02 and row.step_ms > 0 and row.seeds == 2
            assert row.mrr_to_whole == pytest.approx(row.mrr - base.mrr, abs=2e-5)
            assert row.mrr_to_whole_se < row.mrr_se < 0.06
        assert by_key["none", factor].index_mb == pytest.approx(2 * base.index_mb, abs=2e-3)
    assert by_key["start", 1].far == pytest.approx(0, abs=1e-5) and by_key["start", 2].far > 0.01
    assert by_key["none", 2].step_ms is None and by_key["none", 2].seeds == 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, DeiT(DeiTConfig(patch_size=4, embed_dim=24, depth=2, num_heads=2)), {})
    return path


TINY = ("--channels", "8", "--steps", "2", "--seeds", "1", "--pool-factor", "2", "--near", "0.5", "2")


def test_end_to_end(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"<!-- begin: {late_interaction_train.PROGRAM} -->\n<!-- end -->\n")
    common = ["--checkpoint", str(checkpoint), "--output", str(tmp_path), "--limit", "20", "--document", str(page)]
    late_interaction_train.main([*common, *TINY])
    with (tmp_path / "train.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    written = json.loads((tmp_path / "train.json").read_text())
    assert [line["way"] for line in lines] == 2 * ["none", "start", "whole", "pooled", "near-0.5", "near-2"]
    assert [float(line["mrr"]) for line in lines] == [row["mrr"] for row in written["rows"]]
    assert lines[0]["documents"] == "7" and written["run"]["split"].startswith("13 to train with, 7 held out")
    said = capsys.readouterr().out
    for part in ("recall@1 %", "trained with whole documents", "near 0.5", "24 to 8 channels", "s in all"):
        assert part in said
    table = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("|")]
    assert len(table) == 8 and all(len(line) == 5 for line in table)
    assert table[-1][0] == "| with pooled ones, near 2" and table[-1][2].startswith(f"{float(lines[-1]['mrr']):.3f} ±")


def test_text_has_two_kinds_of_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pairs(12)
    queries = dict(zip(corpus.QUERIES, map(ragged, made.queries), strict=True))
    found = corpus.Corpus(made.documents, queries, list(range(12)), "small", 12)
    monkeypatch.setattr(corpus, "load", lambda *given: found)
    monkeypatch.setattr(corpus.Corpus, "describe", lambda *given: {"documents": "made up"})
    late_interaction_train.main(["--text", "--output", str(tmp_path), *TINY])
    written = json.loads((tmp_path / "train.json").read_text())
    assert written["run"]["split"] == "8 to train with, 4 held out, 2 kind(s) of queries"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/place"], "no directory at"),
        (["--checkpoint", "no/such.safetensors"], "no checkpoint at"),
        (["--pool-factor", "1"], "--pool-factor: expected a number above 1, got 1"),
        (["--near", "-1"], "--near: expected a number above 0, got -1"),
        (["--near", "nan"], "--near: expected a number above 0, got nan"),
        (["--rate", "0"], "--rate: expected a number above 0, got 0"),
        (["--limit", "8"], "--limit: expected at least 9, got 8"),
        (["--channels", "25"], "--channels must be at most the tokens' 24, got 25"),
        (["--steps", "0"], "--steps"),
        (["--protected", "-1"], "--protected: expected at least 0, got -1"),
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
        late_interaction_train.main(
            ["--checkpoint", str(checkpoint), "--output", str(tmp_path), "--limit", "9", *arguments]
        )
    line = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err.strip()
    assert line.startswith("late_interaction_train: ") and "\n" not in line
    assert message in line
