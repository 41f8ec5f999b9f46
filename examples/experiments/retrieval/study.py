"""What every way to pool a corpus of text finds again, and what it loses; kept in a file that grows way by way."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from common.files import FileError, write_atomically
from torch import Tensor
from tqdm import tqdm

from .corpus import Corpus
from .documents import Ragged, ragged
from .maxsim import max_sim, ranks
from .ways import DEFAULT, PROTECTED, WAYS, Way, bounds_for

# The corpus as it is: its way and its factor.
NONE = ("none", 1.0)


@dataclass(frozen=True)
class Result:
    """One way at one factor, or NONE.

    bound: the value of the way's own option; lengths: vectors of each document; lost: sum of squares around the
    clusters' means, over that around the documents' means, of the whole corpus, None where tokens are left out; same:
    documents with the default's partition; ranks: of the right document, for each query of a kind.
    """

    way: str
    factor: float
    bound: float | None
    lengths: list[int]
    lost: float | None
    same: int | None
    ranks: dict[str, list[int]]


class Scorer:
    """MaxSim of a corpus' queries; a document with the very vectors of an earlier one is not scored again."""

    def __init__(self, queries: dict[str, Ragged]) -> None:
        self.queries = queries
        self.known: dict[bytes, dict[str, Tensor]] = {}

    def ranks(self, documents: list[Tensor], asked: list[int]) -> dict[str, list[int]]:
        """Ranks of document asked[i] for query i, by the queries' kind."""
        keys = [hashlib.sha256(one.contiguous().numpy().tobytes()).digest() for one in documents]
        fresh = [i for i, key in enumerate(keys) if key not in self.known]
        if fresh:
            some = ragged([documents[i] for i in fresh])
            scores = {kind: max_sim(queries, some) for kind, queries in self.queries.items()}
            for column, i in enumerate(fresh):
                self.known[keys[i]] = {kind: score[:, column].clone() for kind, score in scores.items()}
        found = {}
        for kind in self.queries:
            scores = torch.stack([self.known[key][kind] for key in keys], 1)
            found[kind] = ranks(scores, torch.tensor(asked)).tolist()
        return found


def squares(documents: list[Tensor], labels: list[Tensor]) -> float | None:
    """`sum_i ||x_i - mean of its cluster||^2` of all documents, in float64; None where labels leave tokens out."""
    total = 0.0
    for x, label in zip(documents, labels, strict=True):
        if bool((label < 0).any()):
            return None
        wide, count = x.double(), label.bincount().double()
        sums = wide.new_zeros(len(count), x.shape[1]).index_add_(0, label, wide)
        total += float(wide.square().sum() - (sums.square().sum(1) / count).sum())
    return total


@torch.inference_mode()
def study(corpus: Corpus, factors: list[float], ways: list[Way], path: Path) -> list[Result]:
    """All results, those that the file at `path` holds not made again.

    Raises:
        FileError: the file is damaged.
        OSError: it cannot be read or written.
    """
    documents, scorer, known = corpus.documents, Scorer(corpus.queries), read(path)
    wanted = [NONE, *((way.name, factor) for factor in factors for way in ways)]
    missing = [key for key in wanted if key not in known]
    with tqdm(total=len(wanted), initial=len(wanted) - len(missing), unit="way", mininterval=0.5) as bar:
        if NONE in missing:
            lengths = [len(one) for one in documents]
            known[NONE] = Result(*NONE, None, lengths, 0.0, None, scorer.ranks(documents, corpus.asked))
            write(path, known)
            bar.update()
        total = squares(documents, [torch.zeros(len(one), dtype=torch.int64) for one in documents]) if missing else None
        bounds = bounds_for(documents, factors) if missing else {}
        for factor in factors:
            some = [way for way in ways if (way.name, factor) in missing]
            labels = DEFAULT.pool(documents, factor, None)[1] if some else []
            for way in some:
                bar.set_postfix_str(f"{way.name}, factor {factor:g}")
                bound = None if way.bound is None else bounds[way.bound, factor]
                pooled, own = way.pool(documents, factor, bound)
                lost = squares(documents, own)
                known[way.name, factor] = Result(
                    way.name, factor, bound, [len(one) for one in pooled], lost / total if lost and total else lost,
                    sum(map(torch.equal, own, labels)), scorer.ranks(pooled, corpus.asked),
                )  # fmt: skip
                write(path, known)
                bar.update()
    return [known[key] for key in wanted]


def write(path: Path, known: dict[tuple[str, float], Result]) -> None:
    text = json.dumps([asdict(result) for result in known.values()])
    write_atomically(path, lambda temporary: temporary.write_text(text))


def read(path: Path) -> dict[tuple[str, float], Result]:
    if not path.exists():
        return {}
    try:
        results = [Result(**entry) for entry in json.loads(path.read_text())]
    except (TypeError, ValueError) as error:
        raise FileError(f"{path} is damaged ({error}); delete it to make it again") from None
    return {(result.way, result.factor): result for result in results}


def results_file(corpus: Corpus, folder: Path, keep_punctuation: bool) -> Path:
    """Where the results of this corpus, these queries and these ways are."""
    ways = [(way.name, str(way.options), way.bound) for way in WAYS]
    told = json.dumps([corpus.name, corpus.asked, keep_punctuation, PROTECTED, ways])
    return folder / f"ranks-{hashlib.sha256(told.encode()).hexdigest()[:12]}.json"
