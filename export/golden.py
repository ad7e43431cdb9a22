"""Recording golden: PyTorch's float64 answer to seeded sequences, and how far its own precision is from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attnserve.certificate import Certificate, Deviation
from attnserve.export.subject import DTYPES, ModuleError, Subject
from attnserve.golden import Golden, largest_difference
from attnserve.interface import Interface
from attnserve.models.attention.recording import recorded_weights
from attnserve.models.checkpoint import CheckpointError
from attnserve.models.prediction import predict_packed
from attnserve.models.threads import num_threads
from attnserve.packing import add_leading_row

Sequences = Sequence[NDArray[Any]]

LENGTHS = (1, 2, 3, 5, 8, 17, 33, 64, 128)
# Short models get more of their longest sequences: rows whose scores are all near 0 are few, and must be among them.
MIN_STEPS = 256
MAX_REPEATS = 8
MAX_LOGITS = 1_000_000
ROWS_PER_MAP = 8
# At most this multiple of PyTorch's own error; where float32 computes also never above these bounds, relative to the
# largest |logit| and to 1. An error below one unit in the last place of those counts as one: it is luck, which the next
# reader, who adds in another order, cannot be asked to have.
REFERENCE_MULTIPLES = {"float32": 4, "float16": 3, "bfloat16": 3, "int8": 4}
MAX_RELATIVE_LOGITS = {"float32": 5e-5, "int8": 5e-5}
MAX_MAPS = {"float32": 1e-4, "int8": 1e-4}
# What float64 may lose between a sequence alone and the same in a batch.
MAX_MIXING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What PyTorch said about a batch of sequences, in one precision."""

    logits: list[Tensor]
    """[n, W] per sequence; of classify_sequence [1, C]."""
    maps: list[Tensor]
    """[n, layers, heads, n] per sequence."""


class Stock(Protocol):
    """Another implementation of the same model, which knows nothing of packed rows: the truth, where there is one."""

    def answer(self, sequence: NDArray[Any]) -> Answer:
        """What it says about one sequence, in float64."""
        ...

    def readable(self, sequence: NDArray[Any]) -> NDArray[Any]:
        """The sequence, or one without ids that it takes for something else than input."""
        ...


# Golden's few short sequences gain nothing from threads, and wait for busy cores.
@num_threads(1)
def record_golden(
    oracle: nn.Module,
    subject: Subject,
    *,
    example: NDArray[Any] | None = None,
    stock: Stock | None = None,
    seed: int = 0,
) -> tuple[Golden, Certificate]:
    """Record golden and the certificate that follows from it.

    Random inputs rather than real ones: they reach rows whose scores are all near zero, where rounding hurts most. The
    certificate's `measured` is not known yet.

    Args:
        oracle: the module in float64, in eval mode; in int8 with the subject's rounded weights.
        subject: the module in the precision of the bundle.
        example: one more sequence, leading row included.
        stock: whose answers are the truth, if not the oracle's own.
        seed: of the random inputs.

    Raises:
        CheckpointError: PyTorch's own answers are not finite.
        ModuleError: the answer to a sequence depends on what else is in its batch, or is not that of `stock`.
    """
    interface = subject.interface
    sequences = make_sequences(interface, np.random.default_rng(seed), example)
    if stock is not None:
        sequences = [stock.readable(sequence) for sequence in sequences]
    everyone = list(range(len(sequences)))
    # Alone, all together, and backwards with the shortest twice, so that neighbours and places differ.
    batches = [[index] for index in everyone] + [everyone, [*reversed(everyone), 0]]
    truth = [
        answer(oracle, interface, [sequence]) if stock is None else stock.answer(sequence) for sequence in sequences
    ]
    true_logits = [one.logits[0] for one in truth]
    if stock is None:
        check_alone(oracle, interface, sequences, true_logits)
    else:
        check_stock(oracle, interface, sequences, true_logits)
    if all(layer.is_causal for layer in subject.layers) and interface.task != "classify_sequence":
        check_causal(oracle, interface, sequences, true_logits)
    lengths = [len(sequence) for sequence in sequences]
    offsets = np.cumsum([0, *lengths])
    if interface.task == "classify_sequence":
        logit_rows = np.array([offsets[index] + interface.answer_step(length) for index, length in enumerate(lengths)])
        logits = torch.cat(true_logits).numpy()
    else:
        logit_rows = _spread(int(offsets[-1]), MAX_LOGITS // interface.num_outputs)
        logits = torch.cat(true_logits).numpy()[logit_rows]
    # Chosen before they are padded to the longest sequence: whole maps of all would not fit.
    map_steps = [_spread(length, ROWS_PER_MAP) for length in lengths]
    golden = Golden(
        inputs=np.concatenate(sequences),
        lengths=np.array(lengths),
        batch_sizes=np.array([len(batch) for batch in batches]),
        batch_members=np.concatenate(batches),
        logit_rows=logit_rows,
        logits=logits,
        map_rows=np.concatenate([offsets[index] + steps for index, steps in enumerate(map_steps)]),
        maps=_pad_maps([one.maps[0].numpy()[steps] for one, steps in zip(truth, map_steps, strict=True)]),
    )
    return golden, _certify(subject, sequences, batches, truth)


def make_sequences(
    interface: Interface, generator: np.random.Generator, example: NDArray[Any] | None
) -> list[NDArray[Any]]:
    """Random sequences of several lengths, leading rows included: uniform ids, or normal features.

    With an example, features have its mean and spread (1 if it has none), and it is one of the sequences.
    """
    lengths = [length for length in LENGTHS if length <= interface.max_length]
    if interface.max_length not in lengths and interface.max_length <= 2 * max(lengths):
        lengths.append(interface.max_length)
    missing = max(0, MIN_STEPS - sum(lengths))
    lengths += [max(lengths)] * min(MAX_REPEATS, math.ceil(missing / max(lengths)))
    if interface.vocabulary_size is not None:
        sequences: list[NDArray[Any]] = [generator.integers(0, interface.vocabulary_size, length) for length in lengths]
    else:
        mean, spread = 0.0, 1.0
        if example is not None:
            sent = example[int(interface.leading_row) :]
            mean, spread = sent.mean(), sent.std() or 1.0
        size = interface.num_features or 0
        sequences = [generator.normal(mean, spread, (length, size)).astype(np.float32) for length in lengths]
    if interface.leading_row:
        sequences = [add_leading_row(sequence) for sequence in sequences]
    return sequences if example is None else [*sequences, example]


def answer(module: nn.Module, interface: Interface, sequences: Sequences) -> Answer:
    """Logits and attention weights of one packed forward pass, in the precision of `module`."""
    with torch.no_grad(), recorded_weights(module) as layers:
        logits = predict_packed(module, interface, sequences)
    maps = []
    for index, sequence in enumerate(sequences):
        per_layer = [weights[index, :, : len(sequence), : len(sequence)] for weights in layers]
        maps.append(torch.stack(per_layer).permute(2, 0, 1, 3))
    return Answer(logits=logits, maps=maps)


def check_alone(module: nn.Module, interface: Interface, sequences: Sequences, truth: Sequence[Tensor]) -> None:
    """Refuse a module that lets sequences see each other: no packed batch could be served.

    Args:
        module: in float64.
        interface: what it reads and answers.
        sequences: to be run together.
        truth: logits of each alone.

    Raises:
        ModuleError: an answer differs by more than float64 rounds.
    """
    mixing = _difference_beyond_rounding(module, interface, sequences, truth)
    if mixing is not None:
        raise ModuleError(
            f"module: the answer to a sequence depends on the others in its batch: logits differ by {mixing:.1e}; "
            "expected every row but attention's to be computed by itself"
        )


def check_stock(module: nn.Module, interface: Interface, sequences: Sequences, truth: Sequence[Tensor]) -> None:
    """Refuse a packed model that is another one than its stock implementation; in one batch, so mixing shows too.

    Args:
        module: in float64.
        interface: what it reads and answers.
        sequences: to be run together.
        truth: logits of each alone, by the stock implementation.

    Raises:
        ModuleError: an answer differs by more than float64 rounds.
    """
    difference = _difference_beyond_rounding(module, interface, sequences, truth)
    if difference is not None:
        raise ModuleError(
            f"module: packed, it does not answer as its stock implementation does: logits differ by {difference:.1e}; "
            f"expected at most {MAX_MIXING:.0e} of the largest, as float64 rounds"
        )


def check_causal(module: nn.Module, interface: Interface, sequences: Sequences, truth: Sequence[Tensor]) -> None:
    """Refuse a module whose attention is causal but that sees later steps in another way.

    Args:
        module: in float64.
        interface: what it reads and answers.
        sequences: to be run without their last steps.
        truth: logits of each as a whole.

    Raises:
        ModuleError: an answer differs by more than float64 rounds.
    """
    lengths = [(len(sequence) + 1) // 2 for sequence in sequences]
    starts = [sequence[:length] for sequence, length in zip(sequences, lengths, strict=True)]
    truth_of_starts = [whole[:length] for whole, length in zip(truth, lengths, strict=True)]
    seen = _difference_beyond_rounding(module, interface, starts, truth_of_starts)
    if seen is not None:
        raise ModuleError(
            f"module: its attention is causal, but answers depend on later steps: logits differ by {seen:.1e}; "
            "expected every row but attention's to be computed by itself"
        )


def _difference_beyond_rounding(
    module: nn.Module, interface: Interface, sequences: Sequences, truth: Sequence[Tensor]
) -> float | None:
    """Largest difference of one batch from `truth`, if it is more than float64 rounds."""
    with torch.no_grad():
        found = predict_packed(module, interface, sequences)
    if not all(bool(one.isfinite().all()) for one in truth):
        return None  # Whoever certifies says so.
    largest = max(float(one.abs().max()) for one in truth)
    difference = max(_difference(one, other) for one, other in zip(found, truth, strict=True))
    return None if difference <= MAX_MIXING * max(largest, 1.0) else difference


def _certify(subject: Subject, sequences: Sequences, batches: list[list[int]], truth: list[Answer]) -> Certificate:
    precision = subject.precision
    largest = max(float(one.logits[0].abs().max()) for one in truth)
    logits = maps = 0.0
    for batch in batches:
        own = answer(subject.module, subject.interface, [sequences[index] for index in batch])
        for place, index in enumerate(batch):
            logits = max(logits, _difference(own.logits[place], truth[index].logits[0]))
            maps = max(maps, _difference(own.maps[place], truth[index].maps[0]))
    if not math.isfinite(logits + maps):
        raise CheckpointError(
            f"weights: PyTorch's own answer to seeded inputs is not finite in {precision}; expected numbers"
        )
    return Certificate(
        precision=precision,
        logits=allow(logits, largest=largest, max_relative=MAX_RELATIVE_LOGITS.get(precision), precision=precision),
        maps=allow(maps, largest=1.0, max_relative=MAX_MAPS.get(precision), precision=precision),
    )


def allow(reference: float, *, largest: float, max_relative: float | None, precision: str) -> Deviation:
    """What a bundle may differ by, from PyTorch's own error and the largest number there is."""
    counted = max(reference, torch.finfo(DTYPES[precision]).eps * largest)
    allowed = REFERENCE_MULTIPLES[precision] * counted
    bound = math.inf if max_relative is None else max_relative * largest
    return Deviation(reference=reference, allowed=min(allowed, bound))


def _difference(own: Tensor, truth: Tensor) -> float:
    return largest_difference(own.double().numpy(), truth.double().numpy())


def _spread(size: int, count: int) -> NDArray[np.int64]:
    """At most `count` numbers from 0 to size - 1, both ends included, evenly spread."""
    return np.unique(np.linspace(0, size - 1, min(size, max(count, 2))).round().astype(np.int64))


def _pad_maps(maps: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Stack rows of maps of several lengths: [rows of all, layers, heads, longest]."""
    longest = max(one.shape[-1] for one in maps)
    return np.concatenate([np.pad(one, [(0, 0)] * 3 + [(0, longest - one.shape[-1])]) for one in maps])
