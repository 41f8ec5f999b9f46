"""Modules that hold a patched model: Lightning's, averages of weights, compiled ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.support.ecosystem import (
    CLIP,
    FAMILIES,
    IMAGES,
    LABELS,
    VIT,
    Case,
    ask,
    assert_plain,
    assert_pools,
    logits,
    slow,
)
from tests.support.models import watch_mlps
from tpkernels import patch, schedule_of, unpatch

pytestmark = pytest.mark.slow


# pytest-xdist imports the modules of warnings in a process that cannot import all of these packages.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_lightning(lightning: Any, tmp_path: Path, case: Case) -> None:
    class Lit(lightning.LightningModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> Tensor:
            return logits(self.net, images)

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("answer", self(batch[0]).sum())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    def trainer() -> Any:
        return lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=True,
            enable_progress_bar=False, num_sanity_val_steps=1, default_root_dir=tmp_path,
        )  # fmt: skip

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, LABELS), batch_size=4)
    lit = Lit(patch(case.make(), 0.5))
    seen: list[int] = []
    hooks = watch_mlps(lit, lambda _module, inputs: seen.append(inputs[0].shape[1]))
    fit = trainer()
    fit.fit(lit, data, data)
    for hook in hooks:
        hook.remove()
    # A sanity check, then training and validation twice.
    assert seen == [case.prefix + n for n in (32, 16, 8, 4)] * 5
    twin = patch(case.make(), 0.5)
    descent = torch.optim.SGD(twin.parameters(), 0.05)
    for _ in range(2):
        descent.zero_grad()
        nn.functional.cross_entropy(logits(twin), LABELS).backward()
        descent.step()
    assert_pools(lit.eval(), case, expected=ask(twin))
    answer = trainer().validate(lit, data, verbose=False)[0]["answer"]
    assert answer == pytest.approx(float(ask(twin).sum()), rel=1e-3, abs=1e-3)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    loaded = Lit.load_from_checkpoint(tmp_path / "last.ckpt", net=case.make(), weights_only=True).eval()
    assert_plain(loaded, case, expected=ask(unpatch(lit)))
    assert_pools(patch(loaded, 0.5), case, expected=ask(twin))
    assert schedule_of(loaded) == [32, 16, 8, 4]


@pytest.mark.parametrize("kind", ["AveragedModel", "AveragedModel of EMA", "ModelEmaV3"])
@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_averaged_weights(timm: Any, case: Case, kind: str) -> None:
    model = patch(case.make(), 0.5)
    if kind == "ModelEmaV3":
        average = timm.utils.ModelEmaV3(model, decay=0.5)
    else:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5) if kind.endswith("EMA") else None)
        average.update_parameters(model)
    assert_pools(average, case)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    (average.update if kind == "ModelEmaV3" else average.update_parameters)(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_((parameter + start[name]) / 2)
    assert_pools(average, case, expected=ask(twin))
    # Each of them pools by itself.
    moved = ask(model)
    assert_plain(unpatch(average), case, expected=ask(unpatch(twin)), exact=False)
    assert_pools(model, case, expected=moved)
    averaged = patch(average, 0.5)
    pooled = ask(averaged)
    unpatch(model)
    assert_pools(averaged, case, expected=pooled)


@pytest.mark.parametrize("order", ["before", pytest.param("after", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["torchvision", *(slow(name) for name in ("timm", VIT, CLIP))], indirect=True)
def test_compiled(case: Case, order: str) -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def clusters() -> int:
        """How often the last graph clusters tokens."""
        return sum("tpkernels" in str(node.target) for node in graphs[-1].graph.nodes)

    model = case.make()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    if order == "before":
        # A graph without pooling is there already.
        torch.testing.assert_close(ask(compiled), case.plain, rtol=1e-4, atol=1e-4)
        assert clusters() == 0
        patch(compiled, 0.5)
    else:
        compiled = torch.compile(patch(model, 0.5), backend=backend, fullgraph=True)
    torch.testing.assert_close(ask(compiled), case.pooled, rtol=1e-4, atol=1e-4)
    assert clusters() >= 4
    assert_pools(model, case)
    unpatch(compiled)
    torch.testing.assert_close(ask(compiled), case.plain, rtol=1e-4, atol=1e-4)
    assert_plain(model, case)
