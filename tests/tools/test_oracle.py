"""The oracle finds what is planted in a patched model, and has nothing against any model that `patch` takes."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor, nn

from tests.support.programs import ROOT
from tools.oracle import catalogue, table, timm_models, transformers_models, verdict
from tools.oracle.blocks import find_tower
from tools.oracle.candidate import Candidate, spread
from tools.oracle.clusters import kept, pool_patches, ward_labels
from tools.oracle.command import DOCUMENT
from tools.oracle.pooled import run_pooled
from tools.oracle.program import NoPlace
from tools.oracle.table import Judged
from tools.oracle.verdict import REFUSED, RIGHT, UNBUILT, WRONG, Verdict, agree, judge, numbers
from tpkernels import patch, reference
from tpkernels.modules import TokenPool, methods

SMALL = ("timm", "torchvision", "transformers")


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> Candidate:
    """A small model of each library, with a head that reads patch tokens, the class token, or returns all."""
    library = request.getfixturevalue(request.param)
    if request.param == "timm":
        return of_timm(library, "vit_base_patch16_gap_224")
    if request.param == "torchvision":
        if library is None:
            pytest.skip("torchvision is not installed")
        return catalogue.MODELS["torchvision"](library)[0]
    return of_transformers(library, "Dinov2WithRegistersModel")


def of_timm(timm: Any, name: str) -> Candidate:
    return Candidate("timm", name, name, (name,), timm_models._builder(timm, name), timm_models._ask)


def of_transformers(transformers: Any, name: str) -> Candidate:
    build = transformers_models._builder(getattr(transformers, name))
    return Candidate("transformers", name, name, (), build, transformers_models.ask)


def made(candidate: Candidate) -> nn.Module:
    model = candidate.build().eval()
    spread(model)
    return model.double()


def test_a_model_is_right(small: Candidate) -> None:
    prefix = {"timm": 0, "torchvision": 1, "transformers": 5}[small.library]
    assert judge(small) == Verdict(RIGHT, "", prefix)


def test_nothing_pooled_is_the_unpatched_model(small: Candidate) -> None:
    model = made(small)
    with torch.no_grad():
        own = numbers(small.ask(model, 0))
    tower = find_tower(model, small.ask)
    assert agree(numbers(run_pooled(model, small.ask, tower, 1.0, [1, 3])), own, 1e-12)
    assert not agree(numbers(run_pooled(model, small.ask, tower, 0.7, [1, 3])), own, 1e-3)
    assert all("forward" not in call.block.__dict__ for call in tower.calls)


def pools_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    own = TokenPool.pool

    def pool(self: TokenPool, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        found = own(self, x, *args, **kwargs)
        return found._replace(tokens=found.tokens.roll(1, 1))

    monkeypatch.setattr(TokenPool, "pool", pool)


def unweighted_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "weight_of", lambda *_: None)


def other(**options: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Patches otherwise than the oracle takes it to be."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verdict, "patch", lambda model, keep, **given: patch(model, keep, **given, **options))

    return plant


PLANTED = {
    "tokens in other places": pools_neighbors,
    "sizes do not count in attention": other(proportional=False),
    "after the MLP": other(position="block"),
    "medoids": other(output="medoid"),
    "a prefix token too many": other(num_prefix_tokens=7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(small: Candidate, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[name](monkeypatch)
    assert judge(small).state == WRONG


@pytest.mark.slow
@pytest.mark.parametrize("plant", [unweighted_clusters, other(restore=False)])
def test_what_is_planted_is_found_where_a_head_reads_patches(
    timm: Any, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert judge(of_timm(timm, "vit_base_patch16_gap_224")).state == WRONG


def test_clusters_are_the_references() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    plain = ward_labels(x, torch.ones(40), 12)
    assert torch.equal(plain, reference.ward(x, 12).assignment)
    by_scipy = fcluster(linkage(x.numpy(), "ward"), 12, "maxclust").tolist()
    assert len(set(zip(plain.tolist(), by_scipy, strict=True))) == 12
    sizes = torch.randint(1, 6, (40,), generator=generator)
    means, totals, label = pool_patches(x[None], sizes[None], 12)
    expected = reference.ward(x, 12, sizes.double())
    assert torch.equal(label[0], expected.assignment)
    assert torch.allclose(means[0], expected.centers) and totals.sum() == sizes.sum()
    assert [kept(0.7, n) for n in (64, 45, 1)] == [45, 31, 1]


class Tokens(nn.Module):
    """Four blocks of one kind on patches of an image."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.project = nn.Linear(12, 8)
        self.steps = nn.Sequential(*(block() for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self.project(x))


class Block(nn.Module):
    def __init__(self, parallel: bool = False, places: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.parallel, self.places = parallel, places

    def forward(self, x: Tensor) -> Tensor:
        logits = x @ x.mT
        if self.places:
            logits = logits + torch.arange(x.shape[1]).to(x.dtype).sin()
        update = self.a(logits.softmax(-1) @ x)
        return x + update + self.b(x).relu() if self.parallel else (x := x + update) + self.b(x).relu()


def ask_tokens(model: nn.Module, seed: int) -> Tensor:
    return model(torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(seed)))


def test_the_place_to_pool_is_found_without_names() -> None:
    tower = find_tower(Tokens(Block), ask_tokens)
    assert tower.prefix == 0 and len(tower.calls) == 4 and all(call.moves for call in tower.calls)
    assert not any(call.moves for call in find_tower(Tokens(lambda: Block(places=True)), ask_tokens).calls)
    with pytest.raises(NoPlace, match="no place between attention and MLP"):
        find_tower(Tokens(lambda: Block(parallel=True)), ask_tokens)
    with pytest.raises(NoPlace, match="no attention over all tokens"):
        find_tower(Tokens(lambda: nn.Linear(8, 8)), ask_tokens)


def test_what_is_refused_has_its_reason(timm: Any) -> None:
    found = judge(of_timm(timm, "vit_base_patch16_xp_224"))
    assert found.state == REFUSED and "ParallelScalingBlock" in found.reason
    assert "vision transformers with" not in found.reason


def test_the_oracle_shares_no_code_with_patch() -> None:
    imported = set()
    for path in (ROOT / "tools" / "oracle").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tpkernels"):
                imported |= {(path.name, node.module, alias.name) for alias in node.names}
            assert not isinstance(node, ast.Import) or not any(one.name.startswith("tpkernels") for one in node.names)
    assert imported == {("verdict.py", "tpkernels", "patch"), ("verdict.py", "tpkernels", "unpatch")}


def test_the_document_is_read_as_it_is_written() -> None:
    def judged(names: tuple[str, ...], state: str, reason: str = "", prefix: int | None = None) -> Judged:
        candidate = Candidate("timm", "Eva", "Eva", names, nn.Identity, ask_tokens)
        return Judged(candidate, Verdict(state, reason, prefix))

    many = tuple(f"eva_{i}" for i in range(9))
    rows = [
        judged(many, RIGHT, prefix=1),
        judged(
            ("eva_rope",), REFUSED, "its Eva takes positions from `rope` inside attention, which pooled tokens lose"
        ),
        judged((), UNBUILT, "ImportError: Eva requires the natten library but it was not found"),
    ]
    text = table.document("2026-01-02", "timm 1.0.31, torch 2.13.0", rows, {"ResNet": 3})
    assert table.pooled_in(text) == set(many)
    assert table.versions_in(text) == "timm 1.0.31, torch 2.13.0"
    assert "| Eva | refused: its Eva takes positions from `rope` inside attention |  | `eva_rope` |" in text
    assert "not built: needs the package natten" in text and "ResNet 3" in text
    later = table.document("2027-01-02", "timm 1.0.31, torch 2.13.0", rows, {"ResNet": 3})
    assert text != later and table.undated(text) == table.undated(later)


@pytest.mark.slow
def test_no_model_that_is_taken_is_wrong(timm: Any, torchvision: Any, transformers: Any) -> None:
    packages = catalogue.libraries()
    judged = list(catalogue.judge_all(catalogue.candidates(packages)))
    wrong = {one.names[0]: one.verdict.reason for one in judged if one.verdict.state == WRONG}
    assert not wrong
    pooled = {name for one in judged if one.verdict.state == RIGHT for name in one.names}
    assert len(pooled) > 200
    text = DOCUMENT.read_text()
    if table.versions_in(text) == catalogue.versions(packages):
        assert table.pooled_in(text) <= pooled, "models that docs/models.md says pool"
