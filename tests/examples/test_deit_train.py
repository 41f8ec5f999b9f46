"""`examples/deit_train.py`: what a run computes, what a killed one goes on to, what bad input gets."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import deit_train
import pytest
import torch
import training_speed
from common.data import IDX_NAMES, write_idx
from common.distributed import World
from deit.checkpoint import CheckpointError, load_model, read_weights, save_weights
from deit.model import DeiT, DeiTConfig
from deit.strided import reduce_by_convolution, strided_macs
from PIL import Image
from torch import Tensor
from training import augment, loop, sources, state

import tpkernels
from tests.support.programs import EXAMPLES

WORLD = World(0, 1, torch.device("cpu"))
TINY = ["--patch", "7", "--dim", "24", "--batch-size", "16", "--limit", "64", "--test-limit", "32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that a model can tell apart: dark and bright."""
    root = tmp_path_factory.mktemp("idx")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        labels = (torch.arange(64) % 2).to(torch.uint8)
        images = torch.randint(0, 100, (64, 28, 28), generator=generator) + 150 * labels[:, None, None]
        for name, values in zip(IDX_NAMES[split], (images.to(torch.uint8), labels), strict=True):
            write_idx(root / f"{name}.gz", values)
    return root


def train(data: Path, output: Path, *more: str) -> dict:
    """Trains; the training state that is left."""
    deit_train.main(["--data", str(data), "--output", str(output), *TINY, *more])
    return torch.load(output / "state.pt", weights_only=True)


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a run ends with."""
    with pytest.raises(SystemExit) as stop:
        deit_train.main(list(arguments))
    line = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err.strip()
    assert line.startswith("deit_train: ") and "\n" not in line
    return line


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(other[name], value), name


def test_training_learns_and_leaves_its_log_and_weights(data: Path, tmp_path: Path) -> None:
    more = ["--batch-size", "8", "--test-limit", "64", "--epochs", "3", "--lr", "2e-3", "--label-smoothing", "0"]
    train(data, tmp_path, *more)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["test_top1"] > 90 and rows[-1]["test_images"] == 64
    model, facts = load_model(tmp_path / "model.safetensors")
    assert model.cfg.patch_size == 7 and facts["epochs"] == 3 and "finetuned" not in facts


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--method", "ward", "--keep", "0.7", "--mixup", "0.8", "--ema", "0.9", "--amp", "bfloat16"),
    ],
    ids=["plain", "everything"],
)
def test_a_killed_run_goes_on_to_the_same_weights(data: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Killed by the system in its second epoch, as an out-of-memory killer would."""
    whole = train(data, tmp_path / "whole", "--epochs", "3", *more)
    arguments = ["--data", str(data), "--output", str(tmp_path / "parts"), *TINY, "--epochs", "3", *more]
    code = (
        "import sys, os, signal, deit_train\nfrom training import loop\n"
        "update, calls = loop.update, []\n"
        "def killed(*given):\n"
        "    calls.append(0)\n"
        # Four steps an epoch: in the second one's middle.
        "    if len(calls) == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    update(*given)\n"
        "loop.update = killed\ndeit_train.main(sys.argv[1:])\n"
    )
    # As many threads as here: sums are split between them, which shows in the last bits.
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=EXAMPLES, capture_output=True, env=threads)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(tmp_path / "parts" / "state.pt", weights_only=True)["epoch"] == 1
    parts = train(data, tmp_path / "parts", "--epochs", "3", *more, "--resume")
    assert parts["epoch"] == 3
    assert_same_weights(parts["model"], whole["model"])
    if whole["ema"] is not None:
        assert_same_weights(parts["ema"], whole["ema"])
        assert not torch.equal(whole["ema"]["module.head.weight"], whole["model"]["head.weight"])
    kept = ("epoch", "loss", "images", "test_correct", "test_top1")
    assert [[row[name] for name in kept] for row in parts["rows"]] == [
        [row[name] for name in kept] for row in whole["rows"]
    ]


@pytest.mark.parametrize("place", ["torch.save", "safetensors"])
def test_a_full_disk_leaves_the_last_good_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    train(data, tmp_path, "--epochs", "1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(value: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        *{"torch.save": (torch, "save", full), "safetensors": ("deit.checkpoint.save_file", full)}[place]
    )
    arguments = ["--data", str(data), "--output", str(tmp_path), *TINY, "--epochs", "1", "--seed", "1"]
    with pytest.raises(SystemExit, match="No space left"):
        deit_train.main(arguments)
    monkeypatch.undo()
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left.keys() == before.keys()
    assert left["model.safetensors"] == before["model.safetensors"]
    if place == "torch.save":
        assert left == before


def test_other_ways_to_train(data: Path, tmp_path: Path) -> None:
    """Activation checkpointing changes nothing; distillation, mixup and a seed do."""
    plain = train(data, tmp_path / "plain", "--epochs", "1", "--method", "ward", "--keep", "0.5")
    saved = train(data, tmp_path / "saved", "--epochs", "1", "--method", "ward", "--keep", "0.5", "--checkpointing")
    for name, value in plain["model"].items():
        torch.testing.assert_close(saved["model"][name], value, rtol=1e-5, atol=1e-6)
    for name, more in {"distill": ["--distill", "0.5"], "mixup": ["--mixup", "0.8"], "seed": ["--seed", "3"]}.items():
        other = train(data, tmp_path / name, "--epochs", "1", "--method", "ward", "--keep", "0.5", *more)
        assert not torch.equal(other["model"]["head.weight"], plain["model"]["head.weight"])


def test_checkpointing_recomputes_the_blocks() -> None:
    model = DeiT(DeiTConfig(patch_size=7, embed_dim=24, num_heads=2, depth=2))
    calls = []
    model.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append(0))
    for enable, expected in ((False, 1), (True, 2)):
        calls.clear()
        model.set_grad_checkpointing(enable)
        model(torch.randn(1, 1, 28, 28)).sum().backward()
        assert len(calls) == expected


def test_fine_tuning_at_another_grid_says_so(data: Path, tmp_path: Path) -> None:
    save_weights(tmp_path / "start.safetensors", DeiT(DeiTConfig(patch_size=14, embed_dim=24)), {})
    train(data, tmp_path / "run", "--epochs", "1", "--init", str(tmp_path / "start.safetensors"), "--method", "topk")
    config, _, facts = read_weights(tmp_path / "run" / "model.safetensors")
    assert config.patch_size == 7
    assert facts["finetuned"].startswith("top-K") and facts["tokens"] == [16, 16, 16, 11, 11, 11, 8, 8, 8, 6, 6, 6]


def test_a_schedule_file_is_what_is_trained(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [16, 12, 12, *[7] * 9]
    tpkernels.save_schedule(tmp_path / "fits.json", tokens, num_patches=16)
    train(data, tmp_path / "run", "--epochs", "1", "--method", "ward", "--schedule", str(tmp_path / "fits.json"))
    assert read_weights(tmp_path / "run" / "model.safetensors")[2]["tokens"] == tokens
    tpkernels.save_schedule(tmp_path / "other.json", [9, 4], num_patches=9)
    common = ["--data", str(data), "--output", str(tmp_path / "no"), *TINY, "--method", "ward", "--schedule"]
    assert "other.json must fit a model of 12 blocks" in failure(capsys, *common, str(tmp_path / "other.json"))
    assert "none.json" in failure(capsys, *common, str(tmp_path / "none.json"))


def test_strided_convolution_starts_as_average_pooling() -> None:
    torch.manual_seed(0)
    model = DeiT(DeiTConfig(patch_size=4, embed_dim=24, depth=3, num_heads=2)).eval()
    macs, tokens = strided_macs(model, 1)
    assert tokens == [49, 16, 16]
    assert macs.clustering == 16 * 9 * 24 * 24 and macs.total < macs.base
    reduce_by_convolution(model, 1)
    seen = []
    model.blocks[1].mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    x = torch.randn(2, 50, 24)
    block = model.blocks[1]
    image = x[:, 1:].transpose(1, 2).unflatten(2, (7, 7))
    expected = torch.nn.functional.avg_pool2d(image, 3, 2, padding=1)
    torch.testing.assert_close(block.reduce(image), expected)
    model(torch.randn(2, 1, 28, 28))
    assert seen == [17]
    with pytest.raises(ValueError, match=r"0\.\.2"):
        reduce_by_convolution(model, 3)


def test_mixup_mixes_images_and_labels_alike() -> None:
    images = torch.eye(6).reshape(6, 1, 2, 3)
    mixed, other, share = augment.mixup(images, 0.8, torch.Generator().manual_seed(0))
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images[other])
    logits = torch.randn(6, 6)
    soft = share * torch.eye(6) + (1 - share) * torch.eye(6)[other]
    found = loop.loss_of(logits, torch.arange(6), other, share, 0.0)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, soft))
    assert augment.mixup(images, 0.0, torch.Generator())[2] == 1


def test_distillation_is_the_divergence_from_the_teacher() -> None:
    logits, taught = torch.randn(2, 5, 4, dtype=torch.float64).unbind()
    p, q = (taught / 3).softmax(-1), (logits / 3).softmax(-1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loop.distillation(logits, taught, 3.0), expected)


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [loop.learning_rate(step, 100, 10, 2.0) for step in range(100)]
    assert rates[9] == rates[10] == max(rates) == 2.0
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01


def test_every_process_has_as_many_images() -> None:
    def numbers(parts: list[list[int]]) -> list[int]:
        return [number for part in parts for number in part]

    alone = sources.shares(10, 0, 3, 4, WORLD)
    assert sorted(numbers(alone)) == list(range(10)) and [len(part) for part in alone] == [4, 4, 2]
    shared = [numbers(sources.shares(10, 0, 3, 4, World(rank, 3, WORLD.device))) for rank in range(3)]
    assert {len(part) for part in shared} == {4}
    for count in (1, 10, 11, 12):
        for size in (1, 2, 3):
            world = World(0, size, WORLD.device)
            assert sources.steps_of(count, 4, world) == len(sources.shares(count, 0, 0, 4, world))
    assert set(numbers(shared)) == set(range(10))
    assert sources.shares(10, 0, 4, 4, WORLD) != alone


@pytest.mark.slow
def test_two_processes_train_one_model(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "deit_train.py"]
    arguments = ["--data", str(data), "--output", str(tmp_path / "two"), *TINY, "--epochs", "1", "--method", "ward"]
    done = subprocess.run(
        [*command, *arguments], cwd=EXAMPLES, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = torch.load(tmp_path / "two" / "state.pt", weights_only=True)["rows"]
    assert row["images"] == 64 and row["test_images"] == 32


def test_folders_of_images_train_too(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 30), (9 * i, 0, 0)).save(folder / f"{i}.png")
    (tmp_path / "images" / "train" / "cat" / "0.png").write_bytes(b"no image")
    found = train(tmp_path / "images", tmp_path / "run", "--epochs", "1")
    assert found["rows"][0]["images"] == 7 and found["rows"][0]["test_images"] == 4


def test_bad_input_gets_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--data", str(data), "--output", str(tmp_path / "run"), *TINY]
    assert "--keep needs --method" in failure(capsys, *common, "--keep", "0.5")
    assert "exclude each other" in failure(capsys, *common, "--method", "ward", "--keep", "0.5", "--budget", "0.6")
    assert "--strided and --method" in failure(capsys, *common, "--method", "ward", "--strided", "3")
    assert "must be among" in failure(capsys, *common, "--method", "magic")
    assert "--epochs must be at least 1, got 0" in failure(capsys, *common, "--epochs", "0")
    assert "--lr must be above 0" in failure(capsys, *common, "--lr", "nan")
    empty = ["--data", str(tmp_path), "--output", str(tmp_path / "run"), *TINY]
    assert "no directory at" in failure(capsys, *empty)
    assert "nothing to resume" in failure(capsys, *common, "--resume")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["truncated", "foreign", "code", "other run"])
def test_a_state_that_is_not_this_run_s(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    train(data, tmp_path, "--epochs", "2")
    path, more = tmp_path / state.STATE, ["--resume"]
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif content == "foreign":
        torch.save({"weights": torch.ones(2)}, path)
    elif content == "code":
        torch.save(CheckpointError("x"), path)
    else:
        more += ["--lr", "0.5"]
    line = failure(capsys, "--data", str(data), "--output", str(tmp_path), *TINY, "--epochs", "2", *more)
    assert str(path) in line
    assert {"truncated": "whole", "foreign": "no training state", "code": "whole", "other run": "lr"}[content] in line


def test_training_speed_compares_with_the_base_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    save_weights(tmp_path / "m.safetensors", DeiT(DeiTConfig(patch_size=7, embed_dim=24, depth=4, num_heads=2)), {})
    arguments = ["--checkpoint", str(tmp_path / "m.safetensors"), "--data", str(data), "--batch-size", "8"]
    training_speed.main([*arguments, "--method", "topk", "--budget", "0.7", "--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("base model") and "1.00x the base model (1.00 to 1.00), 1.00x by MACs" in lines[1]
    assert lines[2].startswith("top-K")
