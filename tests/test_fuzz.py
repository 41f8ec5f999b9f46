"""Readers of files and checks of arguments under fuzz: what comes out is a result or the error that is promised."""

from __future__ import annotations

import inspect
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from common.data import DataError, read_idx, write_idx
from common.images import CorruptImageError, open_images
from deit.checkpoint import CheckpointError, load_model, save_weights
from deit.model import DeiT, DeiTConfig
from deit.subjects import read_state as read_foreign
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from training import state as training_state

import tpkernels
from tpkernels.ops.gpu import tuning_cache
from tpkernels.ops.gpu.limits import Limits

LIMITS = Limits(132, 232448, 50 << 20, 32)
EXAMPLES_PER_READER = 60


def small_model() -> DeiT:
    torch.manual_seed(0)
    return DeiT(DeiTConfig(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3))


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few cuts, changed bytes, insertions and numbers blown up."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["cut", "set", "insert", "digits", "repeat"]),
                st.floats(0, 1, exclude_max=True),
                st.binary(min_size=1, max_size=9),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def apply(content: bytes) -> bytes:
        for kind, where, what in steps:
            # Half of the places lie in the first bytes, where headers are.
            place = int(where * 2 % 1 * (min(len(content), 400) if where < 0.5 else len(content)))
            if kind == "cut":
                content = content[:place]
            elif kind == "set":
                content = content[:place] + what + content[place + len(what) :]
            elif kind == "insert":
                content = content[:place] + what + content[place:]
            elif kind == "repeat":
                content = content[:place] + content[max(0, place - 40) :]
            else:
                digits = [i for i, byte in enumerate(content[:2000]) if 48 <= byte <= 57]
                if digits:
                    at = digits[int(where * len(digits))]
                    content = content[:at] + b"99999999"[: 1 + len(what)] + content[at:]
        return content

    return apply


def read_state(path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = training_state.Run(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), None, {"seed": 0}, [])
    training_state.load(path.parent, run, torch.device("cpu"))


def write_state(path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = [{"epoch": 1, "loss": 0.5}]
    run = training_state.Run(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), None, {"seed": 0}, rows)
    training_state.save(path.parent, run)


def write_image(path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    Image.radial_gradient("L").resize((16, 16)).save(path)


def read_image(path: Path) -> None:
    open_images(path.parent.parent).image(0)


def parse_configs(path: Path) -> None:
    configs = tuning_cache.parse(path.read_bytes(), {"name": "a GPU"}, LIMITS)
    for key, config in configs.items():
        tuning_cache.check(key, config, LIMITS)


def write_configs(path: Path) -> None:
    config = {"tile": 64, "block_d": 64, "rows": 16, "segment": 16, "per_processor": 1, "num_warps": 8, "num_stages": 2}
    names = list(tuning_cache.RANGES)
    whole = {
        "schema": tuning_cache.SCHEMA,
        "device": {"name": "a GPU"},
        "configs": {"resident/ward/bfloat16/n256/k128/d512": {name: config.get(name, 16) for name in names}},
    }
    path.write_text(json.dumps(whole))


def write_plain_idx(path: Path) -> None:
    path.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 2]) + bytes(12))


def write_gzipped_idx(path: Path) -> None:
    write_idx(path, torch.arange(60, dtype=torch.uint8).view(3, 4, 5))


def write_checkpoint(path: Path) -> None:
    save_weights(path, small_model(), {"epochs": 1})


def write_foreign(path: Path) -> None:
    torch.save({"state_dict": small_model().state_dict(), "epoch": 3}, path)


def write_schedule(path: Path) -> None:
    tpkernels.save_schedule(path, [20, 10], num_patches=30, seed=1)


def write_distances(path: Path) -> None:
    tpkernels.save_schedule(path, [20, 10], num_patches=20, distance=[None, 1.5], seed=1)


class Reader(NamedTuple):
    """Name of the file, what writes a good one, what reads it, the error that it may raise."""

    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    error: type[Exception]


READERS = {
    "IDX": Reader("images", write_plain_idx, read_idx, DataError),
    "gzipped IDX": Reader("images.gz", write_gzipped_idx, read_idx, DataError),
    "checkpoint": Reader("model.safetensors", write_checkpoint, load_model, CheckpointError),
    "training state": Reader(training_state.STATE, write_state, read_state, CheckpointError),
    "foreign weights": Reader("weights.pt", write_foreign, read_foreign, CheckpointError),
    "schedule": Reader("schedule.json", write_schedule, tpkernels.load_schedule, ValueError),
    "distances": Reader("schedule.json", write_distances, tpkernels.load_schedule, ValueError),
    "tuned configurations": Reader("configs.json", write_configs, parse_configs, ValueError),
    "image": Reader("class/one.png", write_image, read_image, CorruptImageError),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_good_file_is_read(reader: str, tmp_path: Path) -> None:
    name, write, read, _ = READERS[reader]
    write(tmp_path / name)
    read(tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=EXAMPLES_PER_READER)
@given(damage=damages())
@example(damage=lambda content: b"")
def test_a_damaged_file_is_read_or_refused(
    reader: str, tmp_path_factory: pytest.TempPathFactory, damage: Callable[[bytes], bytes]
) -> None:
    """With an error that names the file, where a file was given."""
    name, write, read, errors = READERS[reader]
    path = tmp_path_factory.mktemp("fuzz", numbered=True) / name
    write(path)
    path.write_bytes(damage(path.read_bytes()))
    try:
        read(path)
    except errors as error:
        assert path.name in str(error) or reader == "tuned configurations"
        assert "\n" not in str(error).strip()


class Runs:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


HEADERS: list[dict[str, Any]] = [
    {"depth": 10**9}, {"embed_dim": 10**7, "num_heads": 1}, {"num_classes": 10**9}, {"img_size": 4 * 10**6},
    {"patch_size": 0}, {"num_heads": 0}, {"depth": -1}, {"depth": 1.5}, {"depth": True}, {"embed_dim": "8"},
    {"mlp_ratio": 1e308}, {"mlp_ratio": math.nan}, {"in_chans": None}, {"unknown": 1},
]  # fmt: skip


@pytest.mark.parametrize("changes", HEADERS, ids=str)
def test_a_header_that_asks_for_another_size_takes_no_memory(changes: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = small_model()
    config = {**model.cfg.to_dict(), **changes}
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors", metadata={"config": json.dumps(config)})
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("reader", ["checkpoint", "training state", "foreign weights"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_that_runs_code_is_refused(reader: str, form: str, tmp_path: Path) -> None:
    name, _, read, errors = READERS[reader]
    trace = tmp_path / "it ran"
    if form == "torch":
        torch.save({"model": Runs(trace)}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps({"model": Runs(trace)}))
    with pytest.raises(errors):
        read(tmp_path / name)
    assert not trace.exists()


# Arguments


def tensors() -> st.SearchStrategy[Tensor]:
    def build(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(shape, generator=generator)
        return (values * 3).to(dtype) if dtype != torch.bool else values > 0

    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool]
    usual = st.sampled_from([[2, 7, 3], [2, 7], [2, 3], [2, 1, 7, 3]])
    shape = st.one_of(usual, st.lists(st.integers(0, 7), max_size=5))
    return st.builds(build, shape, st.sampled_from(dtypes), st.integers(0, 9))


VALUES = st.one_of(
    tensors(),
    tensors(),
    st.none(),
    st.integers(-3, 12),
    st.sampled_from(
        [True, 0.5, math.nan, math.inf, -1.0, "ward", "topk", "auto", "torch", "triton", "", [1, 2], {}, 10**30]
    ),
)
FUNCTIONS = (
    "kmeans", "kmedoids", "ward", "pairwise_sqdist", "assign", "medoid_update", "cluster_mean", "unpool",
    "chamfer_loss", "attention", "explain_backend", "linkage",
)  # fmt: skip
# The error says which argument it is about: a smaller example is not worth minutes of shrinking.
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)
# Arguments that are good where nothing else is drawn, so that the draw gets past the first check.
X = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
GOOD: dict[str, Any] = {
    "x": X, "y": X, "k": 3, "centers": X[:, :3], "assignment": torch.arange(7).expand(2, 7) % 3, "method": "ward",
    "q": X[:, None], "v": X[:, None],
}  # fmt: skip


def meant_for_users(error: Exception, names: set[str]) -> bool:
    """Whether it is of a promised kind and says which argument it is about."""
    words = str(error)
    return type(error) in (TypeError, ValueError, RuntimeError) and any(
        name in words for name in names | {"Ward", "init"}
    )


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=100, phases=UNSHRUNK)
@given(data=st.data())
def test_arguments_are_taken_or_refused_by_name(name: str, data: st.DataObject) -> None:
    function = getattr(tpkernels, name)
    parameters = list(inspect.signature(function).parameters.values())
    given_, names = {}, {parameter.name for parameter in parameters}
    for parameter in parameters:
        good = X[:, None] if name == "attention" and parameter.name == "k" else GOOD.get(parameter.name)
        optional = parameter.default is not inspect.Parameter.empty
        if data.draw(st.integers(0, 2), label=f"{parameter.name} drawn") == 0:
            given_[parameter.name] = data.draw(VALUES, label=parameter.name)
        elif not optional:
            given_[parameter.name] = good
    try:
        result = function(**given_)
    except Exception as error:
        assert meant_for_users(error, names), f"{type(error).__name__}: {error}"
        return
    if name in ("kmeans", "kmedoids", "ward"):
        (b, n, d), k = given_["x"].shape, result.centers.shape[1]
        # A cut by value may go without k, or return fewer; k for each sample may be wider by k_max.
        if isinstance(given_.get("k"), int) and not given_.keys() & {"distance_threshold", "max_error"}:
            assert k == min(given_["k"], n)
        assert result.centers.shape == (b, k, d) and k <= n
        assert bool((result.assignment < max(k, 1)).all()) and bool((result.assignment >= -1).all())


@settings(max_examples=150, phases=UNSHRUNK)
@given(data=st.data())
def test_a_layer_takes_its_arguments_or_refuses_them_by_name(data: st.DataObject) -> None:
    parameters = list(inspect.signature(tpkernels.TokenPool).parameters.values())
    forward = list(inspect.signature(tpkernels.TokenPool.forward).parameters)[1:]
    options = {
        parameter.name: data.draw(VALUES, label=parameter.name)
        for parameter in parameters
        if data.draw(st.integers(0, 3), label=f"{parameter.name} drawn") == 0
    }
    options.setdefault("keep", 0.5)
    calls = {name: data.draw(VALUES, label=name) for name in forward if data.draw(st.integers(0, 2)) == 0}
    calls.setdefault("x", X)
    try:
        tpkernels.TokenPool(**options)(**calls)
    except Exception as error:
        names = {*forward, *(parameter.name for parameter in parameters)}
        assert meant_for_users(error, names), f"{type(error).__name__}: {error}"


@settings(max_examples=80, phases=UNSHRUNK)
@given(data=st.data())
def test_a_patch_is_made_or_refused_by_name(data: st.DataObject) -> None:
    """And where it is refused, nothing has changed."""
    parameters = list(inspect.signature(tpkernels.patch).parameters)[1:]
    options = {name: data.draw(VALUES, label=name) for name in parameters if data.draw(st.integers(0, 4)) == 0}
    options.setdefault("keep", 0.5)
    model = small_model()
    try:
        tpkernels.patch(model, **options)
    except Exception as error:
        # A string is the path of a schedule file.
        no_file = isinstance(error, OSError) and error.filename == options["keep"]
        assert no_file or meant_for_users(error, set(parameters)), f"{type(error).__name__}: {error}"
        assert [type(module) for module in model.modules()] == [type(module) for module in small_model().modules()]
        return
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
