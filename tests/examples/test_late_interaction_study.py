"""`examples/late_interaction_study.py`: bounds, scores, what is kept between runs, standard errors, and its tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import late_interaction_study
import pytest
import torch
import torch.nn.functional as F
from common.files import FileError
from experiments.retrieval import corpus, study, study_report
from experiments.retrieval.corpus import Corpus
from experiments.retrieval.documents import ragged
from experiments.retrieval.maxsim import max_sim, ranks
from experiments.retrieval.outcome import BOTH, rows
from experiments.retrieval.study import Result, Scorer, squares
from experiments.retrieval.ways import DEFAULT, WAYS, bounds_for
from torch import Tensor

from tpkernels.retrieval import pool_embeddings

LENGTHS = (30, 21, 2, 47, 1, 30, 12, 25)
ASKED = [0, 3, 5, 6]


def documents() -> list[Tensor]:
    """Unit vectors around a few directions."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for n in LENGTHS:
        centers = torch.randn(5, 12, generator=generator)
        which = torch.randint(5, (n,), generator=generator)
        found.append(F.normalize(centers[which] + 0.5 * torch.randn(n, 12, generator=generator), dim=-1))
    return found


def small_corpus() -> Corpus:
    """Queries are noisy tokens of the documents that they ask for."""
    made, generator = documents(), torch.Generator().manual_seed(1)
    queries = {}
    for kind, noise in (("summary", 0.3), ("sentence", 0.8)):
        some = [made[number][3:8] for number in ASKED]
        queries[kind] = ragged(
            [F.normalize(q + noise * torch.randn(q.shape, generator=generator), dim=-1) for q in some]
        )
    return Corpus(made, queries, ASKED, "small", 8)


@pytest.mark.parametrize("factor", [2, 3.5])
def test_bounds_give_as_many_vectors_as_factors(factor: float) -> None:
    made = documents()
    wanted = sum(map(len, pool_embeddings(made, factor, protected=1)))
    bounds = bounds_for(made, [factor])
    for option in ("max_error", "distance_threshold"):
        assert sum(map(len, pool_embeddings(made, protected=1, **{option: bounds[option, factor]}))) == wanted


def test_ways_lose_what_their_labels_say() -> None:
    made = documents()
    bounds = bounds_for(made, [3])
    lost = {}
    for way in WAYS:
        vectors, labels = way.pool(made, 3, bounds.get((way.bound or "", 3)))
        lost[way.name] = squares(made, labels)
        if way.name == "every":
            assert lost["every"] is None
            continue
        by_hand = 0.0
        for x, label, mean in zip(made, labels, vectors, strict=True):
            for one in range(len(mean)):
                members = x[label == one].double()
                by_hand += float((members - members.mean(0)).square().sum())
        assert lost[way.name] == pytest.approx(by_hand)
    assert lost["default"] == lost["raw"] < min(lost["rows"], lost["runs"])
    # The corpus as a whole is free to give a document more vectors than another.
    assert lost["distance"] < lost["default"]


def test_scores_are_reused_for_the_very_vectors_alone() -> None:
    made, found = documents(), small_corpus()
    scorer = Scorer(found.queries)
    changed = [*made[:5], made[5] * 1.25, *made[6:]]
    for some in (made, changed, made):
        for kind, got in scorer.ranks(some, ASKED).items():
            expected = ranks(max_sim(found.queries[kind], ragged(some)), torch.tensor(ASKED))
            assert got == expected.tolist()
    assert len(scorer.known) == len(made) + 1


def test_what_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, found = tmp_path / "ranks.json", small_corpus()
    first = study.study(found, [2], [DEFAULT, WAYS[1]], path)
    assert [(one.way, one.factor) for one in first] == [("none", 1.0), ("default", 2), ("rows", 2)]
    more = study.study(found, [2, 3], [DEFAULT], path)
    assert more[:2] == first[:2]
    monkeypatch.setattr(Scorer, "ranks", None)
    assert study.study(found, [2], [DEFAULT, WAYS[1]], path) == first
    path.write_text(path.read_text()[:-20])
    with pytest.raises(FileError, match=r"is damaged .*; delete it"):
        study.study(found, [2], [DEFAULT], path)


def test_standard_errors_by_hand() -> None:
    given = [
        Result("none", 1.0, None, [4, 6], 0.0, None, {"summary": [1, 2], "sentence": [1, 20]}),
        Result("default", 2, None, [2, 3], 0.1, 2, {"summary": [2, 2], "sentence": [4, 10]}),
        Result("rows", 2, None, [2, 3], 0.12, 1, {"summary": [1, 4], "sentence": [4, 10]}),
    ]
    by_key = {(row.way, row.queries): row for row in rows(given, 384)}
    assert len(by_key) == 9
    row = by_key["rows", "summary"]
    assert (row.recall_at_1, row.recall_at_10, row.mrr) == (50, 100, 0.625)
    # Of two values a and b the standard error is |a - b| / 2.
    assert (row.recall_at_1_se, row.recall_at_10_se, row.mrr_se) == (50, 0, 0.375)
    assert (row.mrr_to_default, row.mrr_to_default_se) == (0.125, 0.375)
    assert (row.mrr_to_unpooled, row.mrr_to_unpooled_se) == (-0.125, 0.125)
    assert (row.objective, row.lost, row.same_partitions) == (1.2, 12, 1)
    assert (row.vectors_per_document, row.index_mb) == (2.5, round(5 * 384 * 2 / 1e6, 3))
    both = by_key["rows", BOTH]
    # A document's two queries are one observation: (1 + 1/4) / 2 and (1/4 + 1/10) / 2.
    assert both.asked == 2 and both.mrr == pytest.approx(0.4) and both.mrr_se == pytest.approx(0.225)
    base = by_key["none", "sentence"]
    assert base.recall_at_10 == 50 and base.mrr_to_unpooled == 0 and base.mrr_to_default is None


def run(tmp_path: Path, *more: str) -> None:
    late_interaction_study.main(["--output", str(tmp_path), "--pool-factor", "2", "3", *more])


def test_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(corpus, "load", lambda *given: small_corpus())
    document = tmp_path / "d.md"
    document.write_text("a\n<!-- begin: examples/late_interaction_study.py -->\n<!-- end -->\nb\n")
    run(tmp_path, "--document", str(document))
    with (tmp_path / "study.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * (1 + 2 * len(WAYS)) and {line["queries"] for line in lines} == {
        "summary",
        "sentence",
        BOTH,
    }
    written = document.read_text()
    for way in WAYS[1:]:
        assert f"| {way.label} |" in written
    assert "8 of 8 docstrings" in json.loads((tmp_path / "study.json").read_text())["run"]["documents"]
    drawn = (tmp_path / "study.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert written.split("\n\n", 1)[1].rsplit("\n\n", 1)[0] in capsys.readouterr().out

    # The same tables and picture from the rows alone.
    monkeypatch.setattr(corpus, "load", None)
    again = tmp_path / "again.md"
    again.write_text("a\n<!-- begin: examples/late_interaction_study.py -->\n<!-- end -->\nb\n")
    run(tmp_path, "--rows", str(tmp_path / "study.csv"), "--document", str(again))
    assert again.read_text() == written and (tmp_path / "study.png").read_bytes() == drawn


def test_signed_differences() -> None:
    assert study_report.signed(-0.0123, 0.004) == "-12.3 ± 4.0" and study_report.signed(0.0, 0.0) == "+0.0 ± 0.0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "1"], "--limit must be at least 2, got 1"),
        (["--queries", "0"], "--queries must be at least 2, got 0"),
        (["--pool-factor", "1"], "--pool-factor must be above 1 and finite"),
        (["--way", "wart"], "--way must be among default, rows"),
        (["--rows", "no/such.csv"], "no/such.csv"),
        (["--document", "no/such.md"], "no/such.md"),
        (["--model", "no/such/folder"], "--model must be a folder with model.onnx and tokenizer.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, *arguments)
    line = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err.strip()
    assert line.startswith("late_interaction_study: ") and "\n" not in line and message in line
