"""Recording golden: PyTorch's float64 answer for seeded sequences, and how far its own float32 is from it."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnserve.bundle import Certificate, Deviation
from attnserve.golden import Golden, largest_difference
from attnserve.models.attention.recording import recorded_weights
from attnserve.models.checkpoint import WEIGHTS_FILE, CheckpointError
from attnserve.models.transformer import Transformer

LENGTHS = (1, 2, 3, 5, 8, 17, 33, 64, 128)
MAX_LOGITS = 1_000_000
ROWS_PER_MAP = 8
# Float32: at most this multiple of PyTorch's own error, and never above these bounds, relative to the largest |logit|
# and to 1. An error below one unit in the last place of those counts as one: it is luck, which the next reader, who
# adds in another order, cannot be asked to have.
REFERENCE_MULTIPLE = 4
MAX_RELATIVE_LOGITS = 5e-5
MAX_MAPS = 1e-4
LAST_PLACE = 2.0**-23


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What PyTorch said about a batch of sequences, in one precision."""

    logits: list[Tensor]
    """[n, W] per sequence."""
    maps: list[Tensor]
    """[n, layers, heads, n] per sequence."""


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch on one thread: golden's few short sequences gain nothing from more, and wait for busy cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@single_threaded()
def record_golden(model: Transformer, *, seed: int = 0) -> tuple[Golden, Certificate]:
    """Record golden and the certificate that follows from it.

    Random tokens rather than text: they reach rows whose scores are all near zero, where rounding hurts most. The
    certificate's `measured` is not known yet.

    Raises:
        CheckpointError: PyTorch's own answers are not finite.
    """
    config = model.config
    generator = np.random.default_rng(seed)
    lengths = [length for length in LENGTHS if length <= config.max_length]
    if config.max_length not in lengths and config.max_length < 2 * max(lengths):
        lengths.append(config.max_length)
    sequences = [generator.integers(0, config.vocabulary_size, length) for length in lengths]
    everyone = list(range(len(lengths)))
    # Alone, all together, and backwards with the shortest twice, so that neighbours and places differ.
    batches = [[index] for index in everyone] + [everyone, [*reversed(everyone), 0]]
    oracle = copy.deepcopy(model).double()
    truth = [answer(oracle, [sequence]) for sequence in sequences]
    offsets = np.cumsum([0, *lengths])
    num_rows = int(offsets[-1])
    logit_rows = _spread(num_rows, MAX_LOGITS // config.vocabulary_size)
    map_rows = np.concatenate([offsets[index] + _spread(length, ROWS_PER_MAP) for index, length in enumerate(lengths)])
    golden = Golden(
        tokens=np.concatenate(sequences),
        lengths=np.array(lengths),
        batch_sizes=np.array([len(batch) for batch in batches]),
        batch_members=np.concatenate(batches),
        logit_rows=logit_rows,
        logits=torch.cat([one.logits[0] for one in truth]).numpy()[logit_rows],
        map_rows=map_rows,
        maps=_pad_maps([one.maps[0].numpy() for one in truth])[map_rows],
    )
    return golden, _certify(model, sequences, batches, truth)


def answer(model: Transformer, sequences: Sequence[NDArray[np.int64]]) -> Answer:
    """Logits and attention weights of one packed forward pass, in the precision of `model`."""
    with torch.no_grad(), recorded_weights(model) as layers:
        logits = model.predict(sequences)
    maps = []
    for index, sequence in enumerate(sequences):
        per_layer = [weights[index, :, : len(sequence), : len(sequence)] for weights in layers]
        maps.append(torch.stack(per_layer).permute(2, 0, 1, 3))
    return Answer(logits=logits, maps=maps)


def _certify(
    model: Transformer, sequences: list[NDArray[np.int64]], batches: list[list[int]], truth: list[Answer]
) -> Certificate:
    largest = max(float(one.logits[0].abs().max()) for one in truth)
    logits = maps = 0.0
    for batch in batches:
        own = answer(model, [sequences[index] for index in batch])
        for place, index in enumerate(batch):
            logits = max(logits, _difference(own.logits[place], truth[index].logits[0]))
            maps = max(maps, _difference(own.maps[place], truth[index].maps[0]))
    if not math.isfinite(logits + maps):
        raise CheckpointError(
            f"{WEIGHTS_FILE}: PyTorch's own answer to seeded tokens is not finite in float32; expected numbers"
        )
    return Certificate(
        precision="float32",
        logits=allow(logits, largest=largest, max_relative=MAX_RELATIVE_LOGITS),
        maps=allow(maps, largest=1.0, max_relative=MAX_MAPS),
    )


def allow(reference: float, *, largest: float, max_relative: float) -> Deviation:
    """What a bundle may differ by, from PyTorch's own error and the largest number there is."""
    counted = max(reference, LAST_PLACE * largest)
    return Deviation(reference=reference, allowed=min(REFERENCE_MULTIPLE * counted, max_relative * largest))


def _difference(own: Tensor, truth: Tensor) -> float:
    return largest_difference(own.double().numpy(), truth.numpy())


def _spread(size: int, count: int) -> NDArray[np.int64]:
    """At most `count` numbers from 0 to size - 1, both ends included, evenly spread."""
    return np.unique(np.linspace(0, size - 1, min(size, max(count, 2))).round().astype(np.int64))


def _pad_maps(maps: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Stack the rows of maps of several lengths: [rows of all, layers, heads, longest]."""
    longest = max(one.shape[-1] for one in maps)
    return np.concatenate([np.pad(one, [(0, 0)] * 3 + [(0, longest - one.shape[-1])]) for one in maps])
