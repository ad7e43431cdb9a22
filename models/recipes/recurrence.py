"""The task NT(symbols, delay): x(t) = [x(t-1) + x(t-delay)] mod symbols, and its training data.

The first `delay` tokens are random and everything after follows from them, so a model has to look back `delay - 1`
steps from the last token it has. Positions before that cannot be predicted and are neither trained nor scored.

Source: Gros, "Reorganizing attention-space geometry with expressive attention", arXiv 2407.18601; the task as
remembered, since the paper's body could not be read here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int

from attnserve.models.recipes.training import Batch


@dataclass(frozen=True, kw_only=True)
class NT:
    """The task: how many symbols, and how far back."""

    symbols: int
    delay: int
    given: int = 0
    """Tokens that are neither trained nor scored, if more than the `delay` that cannot be."""

    def __post_init__(self) -> None:
        """Refuse what is no task.

        Raises:
            ValueError: names the field, what was expected and what came.
        """
        for field, lowest in (("symbols", 2), ("delay", 1), ("given", 0)):
            if getattr(self, field) < lowest:
                raise ValueError(f"{field}: expected an integer >= {lowest}, got {getattr(self, field)}")

    @property
    def first_scored(self) -> int:
        """The step whose token is the first to be predicted."""
        return max(self.delay, self.given)

    @property
    def parts(self) -> "tuple[NT, ...]":
        """The tasks it is made of: itself."""
        return (self,)

    @property
    def labels(self) -> tuple[str, ...]:
        """A name per symbol. Not digits: the id 1 and the string "1" would look alike in a request."""
        return tuple(f"s{symbol}" for symbol in range(self.symbols))

    def extend(self, sequences: Int[np.ndarray, "S n"], length: int) -> Int[np.ndarray, "S {length}"]:
        """Continue every sequence (at least `delay` tokens) to `length` tokens by the recurrence."""
        num_sequences, given = sequences.shape
        assert given >= self.delay, "the recurrence needs its first `delay` tokens"
        tokens = np.empty((num_sequences, max(length, given)), np.int64)
        tokens[:, :given] = sequences
        for step in range(given, length):
            tokens[:, step] = (tokens[:, step - 1] + tokens[:, step - self.delay]) % self.symbols
        return tokens[:, :length]

    def sample(
        self, generator: np.random.Generator, num_sequences: int, length: int
    ) -> Int[np.ndarray, "{num_sequences} {length}"]:
        """Sequences from uniformly random starts."""
        starts = generator.integers(self.symbols, size=(num_sequences, self.delay))
        return self.extend(starts, max(length, self.delay))[:, :length]

    def batch(self, generator: np.random.Generator, num_sequences: int, length: int) -> Batch:
        """Sequences of `length` tokens, scored wherever the next token follows from what was seen."""
        return batch_of(self.sample(generator, num_sequences, length + 1), self.first_scored)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several delays over the same symbols. A sequence has one of them, which its first tokens give away."""

    symbols: int
    delays: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what is no mixture.

        Raises:
            ValueError: names the field, what was expected and what came.
        """
        if len(set(self.delays)) != len(self.delays) or len(self.delays) < 2:
            raise ValueError(f"delays: expected two or more different ones, got {list(self.delays)}")
        self.parts  # noqa: B018

    @property
    def delay(self) -> int:
        """The longest."""
        return max(self.delays)

    @property
    def parts(self) -> tuple[NT, ...]:
        """A task per delay, each scored from where every one of them can be told from the others."""
        return tuple(NT(symbols=self.symbols, delay=delay, given=2 * self.delay) for delay in self.delays)

    @property
    def first_scored(self) -> int:
        """The step whose token is the first to be predicted."""
        return self.parts[0].first_scored

    @property
    def labels(self) -> tuple[str, ...]:
        """A name per symbol."""
        return self.parts[0].labels

    def batch(self, generator: np.random.Generator, num_sequences: int, length: int) -> Batch:
        """Sequences of `length` tokens, each with a delay drawn uniformly."""
        drawn = generator.integers(len(self.delays), size=num_sequences)
        counts = np.bincount(drawn, minlength=len(self.delays))
        tokens = [
            part.sample(generator, int(count), length + 1) for part, count in zip(self.parts, counts, strict=True)
        ]
        return batch_of(np.concatenate(tokens), self.first_scored)


def batch_of(sequences: Int[np.ndarray, "S n"], first_scored: int) -> Batch:
    """Sequences, the last token of each only as a target, to be predicted from step `first_scored` on."""
    tokens = torch.from_numpy(sequences)
    num_sequences, length = len(sequences), sequences.shape[1] - 1
    slots = torch.arange(num_sequences * length).view(num_sequences, length)
    return Batch(
        inputs=tokens[:, :-1].flatten(),
        positions=torch.arange(length).repeat(num_sequences),
        slots=slots,
        rows=slots[:, first_scored - 1 :].flatten(),
        targets=tokens[:, first_scored:].flatten(),
    )


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long the training sequences are, step by step."""

    shortest: int
    longest: int
    curriculum: int = 0
    """Steps over which the limit grows from `shortest` to `longest`, by a constant factor per step."""
    batch: int = 32
    """Sequences per step, unless `max_tokens` allows fewer."""
    max_tokens: int = 4096

    def draw(self, generator: np.random.Generator, step: int) -> int:
        """A length, log-uniform up to the limit of this step: half of the steps stay short and cheap."""
        progress = min(1.0, (step + 1) / self.curriculum) if self.curriculum else 1.0
        growth = math.pow(self.longest / self.shortest, progress)
        return round(self.shortest * math.pow(growth, generator.random()))


def batches(task: NT | Mixture, lengths: Lengths, generator: np.random.Generator) -> Iterator[Batch]:
    """Endless training batches, every one from fresh random starts."""
    step = 0
    while True:
        length = lengths.draw(generator, step)
        yield task.batch(generator, max(1, min(lengths.batch, lengths.max_tokens // length)), length)
        step += 1
