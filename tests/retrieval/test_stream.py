"""A corpus that is pooled as it is read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tpkernels.retrieval import pool_embeddings, stream_pooled


def corpus(count: int = 23) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3 + 7 * i % 11, 5, generator=generator) for i in range(count)]


@pytest.mark.parametrize("buffer_tokens", [1, 20, 10_000])
@pytest.mark.parametrize("options", [{"pool_factor": 2}, {"max_error": 0.2, "return_labels": True, "protected": 1}])
def test_it_gives_what_the_whole_gives(buffer_tokens: int, options: dict[str, Any]) -> None:
    given = corpus()
    whole = pool_embeddings(given, **options)
    streamed = list(stream_pooled(iter(given), buffer_tokens=buffer_tokens, **options))
    if not options.get("return_labels"):
        whole, streamed = (whole,), [(one,) for one in streamed]
    for all_of, one_by_one in zip(whole, zip(*streamed, strict=True), strict=True):
        assert len(all_of) == len(one_by_one)
        assert all(map(torch.equal, all_of, one_by_one))


def test_documents_are_read_when_they_are_needed() -> None:
    read = 0

    def documents() -> Iterator[Tensor]:
        nonlocal read
        for document in corpus():
            read += 1
            yield document

    stream = stream_pooled(documents(), 2, buffer_tokens=20)
    assert read == 0
    next(stream)
    assert 1 < read < 8
    before = read
    for _ in range(read - 1):
        next(stream)
    # Until the buffer is given away.
    assert read == before
    assert len(list(stream)) == 23 - before and read == 23


def test_an_empty_corpus_gives_nothing() -> None:
    assert list(stream_pooled([], 2)) == [] and list(stream_pooled(iter([]), 2, return_labels=True)) == []


@pytest.mark.parametrize("sized", [True, False])
def test_a_bar_counts_documents(sized: bool, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    given = corpus()
    found = list(stream_pooled(given if sized else iter(given), 2, progress=True))
    assert len(found) == 23
    text = capfd.readouterr().err
    assert ("23/23" if sized else "23 documents") in text


def test_a_bar_needs_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert not isinstance(sys.modules["tqdm"], ModuleType)
    with pytest.raises(ImportError, match="tqdm"):
        stream_pooled(corpus(), 2, progress=True)
