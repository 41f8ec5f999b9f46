"""Who may run the blocks of a patched model: the model's own call of all of them, and nobody else."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from tests.support.models import make_inputs, make_timm, make_torchvision, make_transformers, mlp_tokens
from tpkernels import patch, schedule_of, summary, trace, unpatch
from tpkernels.integrations.block import tokens_of
from tpkernels.integrations.towers import towers_in

FAMILIES = ("timm", "torchvision", "ViTForImageClassification", "CLIPVisionModel")
# Dear cases of what the others show.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("torchvision", "CLIPVisionModel")]
COUNTS = [32, 16, 8, 4]


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    """Makes the same small model again and again."""
    name = request.param
    if name in ("timm", "torchvision"):
        package = request.getfixturevalue(name)
        return lambda: make_timm(package) if name == "timm" else make_torchvision(package)
    transformers = request.getfixturevalue("transformers")
    return lambda: make_transformers(transformers, name)[0]


def ask(model: nn.Module, x: Tensor | None = None) -> Tensor:
    out = model(make_inputs("")["pixel_values"] if x is None else x)
    if isinstance(out, Tensor):
        return out
    return out["logits"] if "logits" in out else out["pooler_output"]


def blocks_of(model: nn.Module) -> Any:
    return towers_in(model)[0].container


def prefix(model: nn.Module) -> int:
    return blocks_of(model).plan.num_prefix_tokens


@pytest.mark.parametrize("made", FAMILIES, indirect=True)
def test_a_block_called_by_itself_raises(made: Any) -> None:
    model, x = made(), torch.randn(2, 65, 24)
    # CLIP's layers require a mask.
    args = (x, *(None for name in signature(blocks_of(model)[0]) if name.endswith("attention_mask")))
    plain = [child(*args) for child in blocks_of(model).children()]
    patch(model, 0.5)
    for call in (lambda block: block(*args), lambda block: block.forward(*args)):
        for block in blocks_of(model).children():
            with pytest.raises(RuntimeError, match=r"patched with tpkernels.patch must be run by the model's own call"):
                call(block)
    unpatch(model)
    for child, expected in zip(blocks_of(model).children(), plain, strict=True):
        found = child(*args)
        assert torch.equal(*((found, expected) if isinstance(found, Tensor) else (found[0], expected[0])))


def test_a_forward_that_loops_over_the_blocks_pools(timm: Any) -> None:
    def looping(loop: Callable[[Any, Tensor], Tensor]) -> nn.Module:
        class Looping(timm.models.vision_transformer.VisionTransformer):
            def forward_features(self, x: Tensor, **_: Any) -> Tensor:
                return self.norm(loop(self.blocks, self._pos_embed(self.patch_embed(x))))

        torch.manual_seed(0)
        options = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 7}
        return Looping(**options, global_pool="avg").eval()

    def plain(blocks: Any, x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x)
        return x

    def skips(blocks: Any, x: Tensor) -> Tensor:
        for place, block in enumerate(blocks):
            x = x if place == 1 else block(x)
        return x

    def stops(blocks: Any, x: Tensor) -> Tensor:
        for place, block in enumerate(blocks):
            x = block(x)
            if place == 1:
                break
        return x

    def weighs(blocks: Any, x: Tensor) -> Tensor:
        for block, weight in zip(blocks, (1.0, 0.5, 0.25, 2.0), strict=True):
            x = block(x) * weight
        return x

    images = torch.randn(2, 3, 32, 32)
    expected = patch(looping(lambda blocks, x: blocks(x)), 0.5)(images)
    model = looping(plain)
    unpooled = model(images)
    patch(model, 0.5)
    assert torch.equal(model(images), expected) and mlp_tokens(model, lambda: model(images)) == [33, 17, 9, 5]
    with trace(model) as seen:
        model(images)
    assert seen.layers == [0, 1, 2, 3] and torch.equal(unpatch(model)(images), unpooled)
    # As many tokens as there are: nothing pools, and a loop of any kind is the model's own.
    model = looping(weighs)
    unpooled = model(images)
    assert torch.equal(patch(model, 64)(images), unpooled)
    for loop, message in (
        (skips, "must be run in their order, .* got block 2 on 33 tokens after 1 blocks"),
        (stops, "ran 2 of 4"),
    ):
        model = patch(looping(loop), 0.5)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=message):
                model(images)
    for loop in (lambda blocks, x: blocks[0](x), lambda blocks, x: plain([blocks[i] for i in range(4)], x)):
        with pytest.raises(RuntimeError, match="make a forward that loops over the blocks go through their container"):
            patch(looping(loop), 0.5)(images)


@pytest.mark.parametrize("made", FAMILIES, indirect=True)
def test_a_forward_that_takes_the_blocks_parts_raises(made: Any) -> None:
    model = made()
    plain = ask(model)
    caller = next(part for part in model.modules() if any(child is blocks_of(model) for child in part.children()))

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        x = torch.ones(1, 65, 24)
        for block in blocks_of(model).children():
            x = x + next(part for part in block.children() if isinstance(part, nn.LayerNorm))(x)
        return x

    patch(model, 0.5)
    caller.forward = forward
    with pytest.raises(
        RuntimeError, match="must run all of its blocks, got one that ran 0 of 4: one that takes their parts"
    ):
        caller(torch.randn(1, 3, 32, 32))
    del caller.forward
    assert mlp_tokens(model, lambda: ask(model)) == [prefix(model) + n for n in COUNTS]
    assert torch.equal(ask(unpatch(model)), plain)


def test_what_takes_a_model_apart_raises(timm: Any) -> None:
    model = patch(make_timm(timm), 0.5)
    # Older releases call the container, newer ones go through it.
    reason = r"must be run by the model's own|torch\.fx must not"
    with pytest.raises(RuntimeError, match=reason):
        torch.fx.symbolic_trace(model)
    with pytest.raises(RuntimeError, match=reason):
        timm.models.create_feature_extractor(model, ["blocks.2.mlp", "norm"])
    with pytest.raises(RuntimeError, match=r"^torch\.jit\.script must not be called on a model that is patched"):
        torch.jit.script(model)
    with pytest.raises(RuntimeError, match=r"^torch\.jit\.trace must not be called .* use torch\.export\.export"):
        torch.jit.trace(model, torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("made", FAMILIES[2:], indirect=True)
def test_a_list_gives_its_layers_and_pools_in_the_models_own_forward(made: Any) -> None:
    model = made()
    layers = list(blocks_of(model))
    patch(model, 0.5)
    blocks = blocks_of(model)
    assert len(blocks) == 4 and list(blocks) == list(blocks.children()) == layers == [blocks[i] for i in range(4)]
    assert list(blocks[1:3]) == layers[1:3] and layers[2] in blocks
    for place, layer in enumerate(blocks):
        for parameter in layer.parameters():
            parameter.requires_grad_(place > 1)
    counts = [prefix(model) + n for n in COUNTS]
    assert mlp_tokens(model, lambda: ask(model)) == counts
    assert list(blocks) == layers and not blocks.calls
    # Also where the forward fails.
    with pytest.raises((RuntimeError, ValueError)):
        ask(model, torch.randn(1, 5, 32, 32))
    assert list(blocks) == layers and not blocks.calls


@pytest.mark.parametrize("made", FAMILIES[2:3], indirect=True)
def test_threads_do_not_see_each_others_runs(made: Any) -> None:
    model = patch(made(), 0.5)
    expected, started = ask(model), threading.Event()
    seen: list[list[str]] = []
    blocks = blocks_of(model)

    def watch(*_: Any) -> None:
        started.set()
        seen.append([type(block).__name__ for block in blocks])

    def other() -> None:
        started.wait(10)
        seen.append([type(block).__name__ for block in blocks])

    thread = threading.Thread(target=other)
    thread.start()
    # While this thread's call waits for the blocks.
    caller = next(part for part in model.modules() if any(child is blocks for child in part.children()))
    hook = caller.register_forward_pre_hook(lambda *_: watch() or thread.join())
    assert torch.equal(ask(model), expected)
    hook.remove()
    # In its own call a list gives the turns of a run, elsewhere the layers.
    assert seen == [["partial"] * 4, [type(blocks[0]).__name__] * 4]


@pytest.mark.parametrize("made", FAMILIES, indirect=True)
def test_hooks_on_blocks_see_tokens_once(made: Any) -> None:
    model = patch(made(), 0.5)
    seen: list[int] = []
    for block in blocks_of(model).children():
        block.register_forward_hook(lambda _module, _args, out: seen.append(tokens_of(out).shape[1]))
    model.train()
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing()
    elif hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ask(model).sum().backward()
    # The last block's tokens are restored where they are read.
    last = 64 if summary(model).restore else COUNTS[3]
    assert [count - prefix(model) for count in seen[:4]] == [*COUNTS[:3], last]
    # Releases of transformers before 4.53 recompute from outside of the layers, hooks and all.
    assert len(seen) == 4 or not hasattr(blocks_of(model)[0], "gradient_checkpointing")


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("made", FAMILIES, indirect=True)
def test_a_forward_of_the_instance(made: Any, order: str) -> None:
    model, calls = made(), []
    plain = ask(model)

    def replace(block: nn.Module) -> None:
        old = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return old(*args, **kwargs)

        block.forward = forward

    block = list(blocks_of(model).children())[1]
    if order == "before":
        replace(block)
        with pytest.raises(TypeError, match=r"has a forward of its own, set on the instance.*: patch the model first"):
            patch(model, 0.5)
        assert torch.equal(ask(model), plain) and len(calls) == 1
        return
    expected = ask(patch(model, 0.5))
    replace(block)
    assert torch.equal(ask(model), expected) and len(calls) == 1
    assert torch.equal(ask(unpatch(model)), plain) and len(calls) == 2


@pytest.mark.parametrize("made", FAMILIES[:1], indirect=True)
def test_a_forward_that_hides_the_turn_raises(made: Any) -> None:
    model = patch(made(), 0.5)
    block = blocks_of(model)[1]
    old = block.forward
    block.forward = lambda x: old(x)
    with pytest.raises(RuntimeError, match=r"must take keyword arguments \(\*\*kwargs\) and pass them on"):
        ask(model)
    # Tokens by their name are taken, too.
    block.forward = lambda x, **rest: old(x=x, **rest)
    assert ask(model).isfinite().all()
    block.forward = lambda x, **_: x
    with pytest.raises(RuntimeError, match="must run its class' own forward when it is called"):
        ask(model)


@pytest.mark.parametrize("made", FAMILIES, indirect=True)
def test_given_back_where_blocks_were_cut_or_wrapped(made: Any) -> None:
    def container(model: nn.Module) -> tuple[nn.Module, str]:
        """The module that holds the container, and its name there."""
        blocks = towers_in(model)[0].container
        return next(
            (part, name) for part in model.modules() for name, child in part.named_children() if child is blocks
        )

    short = made()
    holder, name = container(short)
    setattr(holder, name, getattr(holder, name)[:2])
    expected = ask(short)
    model = patch(made(), 0.5)
    holder, name = container(model)
    setattr(holder, name, getattr(holder, name)[:2])
    assert mlp_tokens(model, lambda: ask(model)) == [prefix(model) + n for n in COUNTS[:2]]
    assert torch.equal(ask(unpatch(model)), expected)
    hooks = [
        hook for part in model.modules() for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
    ]
    assert not [hook for hook in hooks if "tpkernels" in type(hook).__module__]
    if isinstance(getattr(holder, name), nn.Sequential):
        model = made()
        expected = ask(model)
        patch(model, 0.5)
        holder, name = container(model)
        setattr(holder, name, checkpoint_wrapper(getattr(holder, name)))
        assert mlp_tokens_of(model, holder, name) == [1 + n for n in COUNTS]
        assert torch.equal(ask(unpatch(model)), expected)


def mlp_tokens_of(model: nn.Module, holder: nn.Module, name: str) -> list[int]:
    """Tokens that the MLPs get in blocks whose container is wrapped."""
    counts: list[int] = []
    hooks = [
        block.mlp.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1]))
        for block in next(iter(getattr(holder, name).children())).children()
    ]
    ask(model)
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize("made", FAMILIES[:1], indirect=True)
def test_two_towers_of_one_container(made: Any) -> None:
    first, second = made(), made()
    second.blocks = first.blocks
    model = nn.ModuleDict({"a": first, "b": second})
    expected = ask(first)
    patch(model, 0.5, tower="a")
    assert not torch.equal(ask(first), expected)
    unpatch(model)
    assert torch.equal(ask(first), expected)


@pytest.mark.parametrize("made", FAMILIES, indirect=True)
def test_one_block_at_all_places(made: Any) -> None:
    model = made()
    blocks = blocks_of(model)
    for place in range(1, 4):
        blocks[place] = blocks[0]
    plain = ask(model)
    patch(model, 0.5)
    assert schedule_of(model) == COUNTS and ask(model).shape == plain.shape
    seen: list[int] = []
    blocks[0].register_forward_hook(lambda _module, _args, out: seen.append(tokens_of(out).shape[1]))
    assert not torch.allclose(ask(model), plain, rtol=1e-3)
    assert [count - prefix(model) for count in seen[:3]] == COUNTS[:3] and len(seen) == 4
    assert torch.equal(ask(unpatch(model)), plain)


@pytest.mark.parametrize("made", FAMILIES, indirect=True)
def test_other_blocks_than_those_that_were_patched(made: Any) -> None:
    class Narrow(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Any:
            return self.block(x)

    model = patch(made(), 0.5)
    blocks = blocks_of(model)
    last = blocks[3]
    blocks[3] = nn.Identity()
    with pytest.raises(RuntimeError, match=r"must be those that tpkernels\.patch saw, got one of class Identity"):
        ask(model)
    del blocks[3]
    with pytest.raises(RuntimeError, match=r"got 3 of 4: patch again after exchanging, adding or removing blocks"):
        ask(model)
    blocks.append(nn.Sequential(last, nn.Identity()))
    with pytest.raises(
        RuntimeError, match=r"Sequential: a forward around a block of a patched model must take keyword"
    ):
        ask(model)
    del blocks[3]
    blocks.append(last)
    assert mlp_tokens(model, lambda: ask(model)) == [prefix(model) + n for n in COUNTS]
    unpatch(model)
    blocks_of(model)[1] = Narrow(blocks_of(model)[1])
    with pytest.raises(TypeError, match=r"its Narrow, around a \w+, passes no keyword arguments \(\*\*kwargs\) on"):
        patch(model, 0.5)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("made", [FAMILIES[0], FAMILIES[2], *SLOW], indirect=True)
def test_checkpoint_wrappers_save_what_they_saved(made: Any, order: str) -> None:
    def wrap(model: nn.Module) -> None:
        blocks = blocks_of(model)
        for name, block in list(blocks.named_children()):
            setattr(blocks, name, checkpoint_wrapper(block))

    kept, plain = saved_bytes(patch(made(), 0.5).train())
    model = made().train()
    unpooled = ask(model.eval())
    model.train()
    if order == "before":
        wrap(model)
        patch(model, 0.5)
    else:
        wrap(patch(model, 0.5))
    few, gradient = saved_bytes(model)
    assert few < kept / 2
    torch.testing.assert_close(gradient, plain)
    assert torch.equal(ask(unpatch(model).eval()), unpooled)


def saved_bytes(model: nn.Module) -> tuple[int, Tensor]:
    """Bytes that a forward keeps for its backward pass, and a gradient."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = ask(model).square().sum()
    parameter = next(iter(model.parameters()))
    return sum(storages.values()), torch.autograd.grad(loss, parameter, allow_unused=True)[0]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("made", FAMILIES[:3], indirect=True)
def test_blocks_compiled_in_place_stay_compiled(made: Any, order: str) -> None:
    graphs: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    def compile_blocks(model: nn.Module) -> None:
        for block in blocks_of(model).children():
            block.compile(backend=backend)

    torch._dynamo.reset()
    model, expected = made(), ask(patch(made(), 0.5))
    if order == "before":
        compile_blocks(model)
        patch(model, 0.5)
    else:
        compile_blocks(patch(model, 0.5))
    torch.testing.assert_close(ask(model), expected, rtol=1e-4, atol=1e-4)
    assert graphs
    assert schedule_of(model) == COUNTS


class Passing(nn.Module):
    """transformers' way to hand what nobody reads from a model's call down to every layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        return self.model(x, **kwargs)


@pytest.mark.parametrize("made", FAMILIES[2:3], indirect=True)
def test_what_only_passes_through_is_passed_through(made: Any) -> None:
    model, x = made(), make_inputs("")["pixel_values"]
    if "kwargs" not in signature(blocks_of(model)[0]):
        pytest.skip("layers of this release take no further arguments")
    patch(model, 0.5)
    expected = model(x).logits
    assert torch.equal(Passing(model)(x, num_items_in_batch=torch.tensor(3)).logits, expected)
    with pytest.raises(ValueError, match="position_ids must be None in a patched model: masks, positions and the like"):
        model(x, position_ids=torch.arange(65))
    mask = torch.ones(3, 65, dtype=torch.bool)
    mask[0, 60:] = False
    with pytest.raises(ValueError, match="attention_mask must be None in a patched model"):
        model(x, attention_mask=mask)


def signature(block: nn.Module) -> list[str]:
    """The names of a block's arguments."""
    return list(inspect.signature(type(block).forward).parameters)
