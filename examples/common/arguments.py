"""What the examples' command lines have in common."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

import torch

from .files import FileError

EXAMPLES = Path(__file__).resolve().parents[1]
# The model and the images that come with the repository.
CHECKPOINT = EXAMPLES / "weights" / "deit_fashion.safetensors"
DATA = EXAMPLES / "data" / "fashion-mnist-test-2000"


class Named(Protocol):
    """An entry that `--method` can choose."""

    @property
    def name(self) -> str:
        """Its name on the command line."""


N = TypeVar("N", bound=Named)


class Parser(argparse.ArgumentParser):
    """Ends with one line where an argument is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


@contextmanager
def one_line_of(program: str) -> Iterator[None]:
    """Ends the program with one line where what is inside raises an error that is meant for the user."""
    try:
        yield
    except (FileError, OSError, ValueError, TypeError) as error:
        sys.exit(f"{program}: {' '.join(str(error).split())}")


def by_name(known: Iterable[N], names: list[str] | None, option: str = "--method") -> list[N]:
    """The methods, or what else an option chooses, of these names in the order given; all where no names are given.

    Raises:
        ValueError: a name is unknown.
    """
    methods = {method.name: method for method in known}
    for name in names or []:
        if name not in methods:
            raise ValueError(f"{option} must be among {', '.join(methods)}; got {name!r}")
    return [methods[name] for name in dict.fromkeys(names or methods)]


def ratio_or_count(text: str) -> float:
    """A count where `text` is an integer, a ratio otherwise."""
    return int(text) if text.isdigit() else float(text)


def at_least(least: int) -> Callable[[str], int]:
    """An argument's type: an integer no smaller than `least`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {value}")
        return value

    return integer


def above(bound: float) -> Callable[[str], float]:
    """An argument's type: a finite number above `bound`."""

    def number(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and value > bound):
            raise argparse.ArgumentTypeError(f"expected a number above {bound:g}, got {text}")
        return value

    return number


def make_output(folder: Path) -> None:
    """Makes the folder of --output.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output must be a directory to write to, got {folder} ({error.strerror})") from None


def find_device(name: str) -> torch.device:
    """The device of --device.

    Raises:
        ValueError: neither cpu nor cuda, or a GPU that is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device expects cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device expects cpu or cuda, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ValueError(f"--device {name} is not there: torch {torch.__version__} sees {found} GPUs; use --device cpu")
    return device
