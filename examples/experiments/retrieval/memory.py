"""What a call has in memory at its peak, beside what its process had before."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .documents import Ragged

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Documents of the warm-up: compiling takes memory too.
WARM_UP = 4


def peak_of(pool: Callable[..., Any], documents: Ragged, *arguments: Any) -> int | None:
    """Bytes that `pool(documents, *arguments)` adds at its peak, in a process of its own with as many threads.

    Returns:
        None where the system does not tell: where it is no Linux.

    Raises:
        ValueError: the process ended without a result.
    """
    if not CLEAR.exists():
        return None
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # By a file, since memory that processes share is scarce in containers.
    with tempfile.TemporaryDirectory() as folder, receiver:
        path = Path(folder) / "documents.safetensors"
        save_file(documents._asdict(), path)
        given = sender, path, pool, arguments, torch.get_num_threads()
        process = context.Process(target=_measure, args=given)
        process.start()
        sender.close()
        try:
            return receiver.recv()
        except EOFError:
            raise ValueError("the process that measures memory ended without a result") from None
        finally:
            process.join()


@torch.inference_mode()
def _measure(sender: Connection, path: Path, pool: Callable[..., Any], arguments: tuple, threads: int) -> None:
    torch.set_num_threads(threads)
    # Copies: pages of a mapped file would be counted when they are first read.
    documents = Ragged(**{name: part.clone() for name, part in load_file(path).items()})
    pool(Ragged(*(part[:WARM_UP] for part in documents)), *arguments)
    # Sets the peak to what there is now.
    CLEAR.write_text("5")
    before = _bytes("VmRSS")
    pool(documents, *arguments)
    sender.send(_bytes("VmHWM") - before)


def _bytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
