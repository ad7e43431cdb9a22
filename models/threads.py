"""Threads of PyTorch: on small tensors and busy cores, more of them wait for each other longer than they compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def num_threads(threads: int) -> Iterator[None]:
    """PyTorch with this many threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
