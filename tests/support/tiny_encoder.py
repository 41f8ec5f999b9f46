"""A BERT of random weights that spells words letter by letter: a text encoder without a download."""

from __future__ import annotations

import string
from pathlib import Path

import torch

from tools.torchvision_on_cpu import load_torchvision

TEXTS = [
    "a",
    "pooling keeps a third of the vectors",
    "ward merges whichever two clusters cost least",
    "",
    "one document is long and the others are short so that every batch of them has padding",
    "late interaction",
]


def save_encoder(folder: Path) -> str:
    """The folder, with the model and its tokenizer as transformers saves them."""
    load_torchvision()
    # Once torchvision can be loaded, which it loads.
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    file = folder / "vocab.txt"
    file.write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(file)).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    BertModel(config).save_pretrained(folder)
    return str(folder)
