"""Models in other modules: found inside, named where there are several, given back from whatever holds them by now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.deit import make_model
from tests.support.models import facts, make_timm, make_transformers
from tpkernels import patch, reconstruction_errors, schedule_of, summary, trace, unpatch


class Holder(nn.Module):
    """A module of a trainer, with the model under a name of its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "a holder": Holder,
    "a holder of a holder": lambda model: Holder(Holder(model)),
    "Sequential": nn.Sequential,
}


QUICK = ("DataParallel", "a holder")


@pytest.mark.parametrize(
    "wrap",
    [pytest.param(wrap, marks=() if name in QUICK else pytest.mark.slow) for name, wrap in WRAPPERS.items()],
    ids=WRAPPERS,
)
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_wrapped_model_is_found(request: pytest.FixtureRequest, library: str, wrap: Any) -> None:
    package, images = request.getfixturevalue(library), torch.randn(2, 3, 32, 32)
    make = (lambda: make_timm(package)) if library == "timm" else lambda: make_transformers(package, "ViTModel")[0]

    def ask(model: Any) -> Tensor:
        out = model(images)
        return out if isinstance(out, Tensor) else out[0]

    plain, pooled = ask(make()), ask(patch(make(), 0.5))
    torch._dynamo.reset()
    for first in ("patch", "wrap"):
        inner = make()
        before = facts(inner)
        outer = wrap(patch(inner, 0.5)) if first == "patch" else patch(wrap(inner), 0.5)
        assert torch.equal(ask(inner), pooled) and torch.equal(ask(outer), pooled)
        assert schedule_of(outer) == schedule_of(inner) == [32, 16, 8, 4]
        assert summary(outer).macs == summary(inner).macs
        with trace(outer) as seen:
            ask(outer)
        assert seen.layers == [0, 1, 2, 3]
        assert unpatch(outer) is outer
        assert torch.equal(ask(inner), plain) and torch.equal(ask(outer), plain)
        # What torch.compile, or accelerate's, leaves on what it wraps.
        for name in ("_is_torch_compile", "_compile_kwargs"):
            inner.__dict__.pop(name, None)
        assert facts(inner) == before
        assert unpatch(outer) is outer


def test_a_wrapped_model_is_measured(timm: Any) -> None:
    batches = [torch.randn(2, 3, 32, 32)]
    model = make_timm(timm)
    assert torch.equal(reconstruction_errors(Holder(model), batches), reconstruction_errors(model, batches))


def test_one_of_several_towers_is_named(timm: Any) -> None:
    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = make_timm(timm), make_timm(timm, depth=3)

    model, images = Teacher(), torch.randn(2, 3, 32, 32)
    before = facts(model)
    plain = model.student(images), model.teacher(images)
    with pytest.raises(
        TypeError,
        match=r"^tpkernels\.patch: model must be one of: .*; got Teacher: it holds several towers, student \(Vision"
        r'Transformer\), teacher \(VisionTransformer\): name one with tower="..."$',
    ):
        patch(model, 0.5)
    for tower, message in (("tutor", "tower must be the path of a part of Teacher, got 'tutor'"), ("", None)):
        if message is not None:
            with pytest.raises(ValueError, match=message):
                patch(model, 0.5, tower=tower)
    with pytest.raises(TypeError, match=r"tower must be the path of a part of the model \(str\), got int"):
        patch(model, 0.5, tower=1)
    assert facts(model) == before
    patch(model, 0.5, tower="teacher")
    assert schedule_of(model) == schedule_of(model, tower="teacher") == [32, 16, 8]
    assert torch.equal(model.student(images), plain[0])
    patch(model, 0.25, layers=[1], tower="student")
    assert schedule_of(model, tower="student") == [64, 16, 16, 16]
    for ask in (schedule_of, summary, lambda model: trace(model).__enter__()):
        with pytest.raises(ValueError, match="tower must be given where several towers of a model are patched: one of"):
            ask(model)
    with trace(model, tower="teacher") as seen:
        model.teacher(images)
    assert seen.layers == [0, 1, 2] and summary(model, tower="student").schedule == (64, 16, 16, 16)
    unpatch(model, tower="teacher")
    # The other tower keeps its hooks.
    model.student.grad_checkpointing = True
    with pytest.raises(ValueError, match="grad_checkpointing must be set by"):
        model.student(images)
    model.student.grad_checkpointing = False
    assert schedule_of(model) == [64, 16, 16, 16] and torch.equal(model.teacher(images), plain[1])
    patch(model, 0.5, tower="teacher")
    unpatch(model)
    assert facts(model) == before and torch.equal(model.student(images), plain[0])


def test_a_tower_given_back_by_itself_is_free(transformers: Any) -> None:
    model, ask = make_transformers(transformers, "CLIPModel")
    states = ask(model, output_hidden_states=True)
    patch(model, 0.5)
    with pytest.raises(ValueError, match="output_hidden_states must be False"):
        ask(model, output_hidden_states=True)
    unpatch(model.vision_model)
    assert torch.equal(ask(model, output_hidden_states=True), states)
    unpatch(model)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["traced", "exported", "symbolic"])
def test_graphs_are_refused(graph: str) -> None:
    model, images = make_model(), torch.randn(2, 1, 16, 16)
    made: Any
    if graph == "traced":
        made = torch.jit.trace(model, images)
    else:
        made = torch.fx.symbolic_trace(model) if graph == "symbolic" else torch.export.export(model, (images,)).module()
    with pytest.raises(TypeError, match="it is a graph that was made from a model: patch that model, then make the"):
        patch(made, 0.5)
    with pytest.raises(TypeError, match=r"^tpkernels\.unpatch: model must be the nn\.Module that was patched, or one"):
        unpatch(made)
    pooled = torch.export.export(patch(model, 0.5), (images,)).module()
    torch.testing.assert_close(pooled(images), model(images))


@pytest.mark.parametrize("thing", [None, 3, "model", lambda x: x])
def test_no_modules_at_all(thing: Any) -> None:
    with pytest.raises(TypeError, match=rf"^tpkernels\.patch: .*got {type(thing).__name__}: it is no nn\.Module"):
        patch(thing, 0.5)
    with pytest.raises(TypeError, match=rf"^tpkernels\.unpatch: .*got {type(thing).__name__}$"):
        unpatch(thing)


def test_a_module_without_a_model_is_refused_with_its_name() -> None:
    model = Holder(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="got Holder: it has neither `blocks` nor one vision tower"):
        patch(model, 0.5)
    assert unpatch(model) is model
