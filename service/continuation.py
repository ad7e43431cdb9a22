"""Continuation: a next_token model reads its own answers, one more token per sequence at every step.

Every step computes the whole sequence again and goes through the queue like any other question, so continuations share
batches with everybody and hold nobody up.
"""

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service.job import Answer, Job, LogitsAnswer
from attnserve.service.prediction import check_finite
from attnserve.service.problems import Invalid, TooLarge
from attnserve.service.selection import MAX_ENTRIES, describe
from attnserve.top import Top

CONTINUATION_FIELDS = ("continue", "temperature", "seed")
MAX_SEED = 2**53
"""What JavaScript reads without loss."""

# Choosing from more logits than these is done off the event loop, so that others are answered meanwhile.
LARGE_STEP_NUMBERS = 1 << 14

Submit = Callable[[Sequence[Job]], Awaitable[list[Answer]]]


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """How to go on."""

    num_tokens: int
    temperature: float
    """0 takes the likeliest token; else logits are divided by it and one is drawn."""
    top_k: int
    """Drawn from this many of the likeliest."""
    seed: int

    @property
    def num_candidates(self) -> int:
        """Likeliest entries that the next token is one of."""
        return 1 if self.temperature == 0 else self.top_k


# Without a repr: what a model says to user data is user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Generated:
    """One token of a continuation."""

    id: int
    logit: np.float32
    probability: np.float32
    """At temperature 1, among all."""


def parse_continuation(document: dict[str, Any], top_k: int, lengths: Sequence[int], max_length: int) -> Continuation:
    """Check how many tokens are asked for, and how they are to be chosen.

    Args:
        document: the request's JSON.
        top_k: checked already.
        lengths: of the request's sequences.
        max_length: of the model.
    """
    num_tokens, longest = document["continue"], max(lengths)
    if type(num_tokens) is not int or num_tokens < 1:
        raise Invalid.about("continue", f"expected an integer >= 1, the number of tokens, got {describe(num_tokens)}")
    if longest + num_tokens > max_length:
        left = max_length - longest
        raise Invalid.about(
            "continue",
            f"sequences[{lengths.index(longest)}] has {longest} of at most {max_length} steps: expected at most {left} "
            f"more, got {describe(num_tokens)}",
        )
    if len(lengths) * num_tokens > MAX_ENTRIES:
        message = f"sequences x continue may be at most {MAX_ENTRIES}, got {len(lengths) * num_tokens}"
        raise TooLarge.about("continue", message)
    temperature = document.get("temperature", 0)
    if type(temperature) not in (int, float) or not 0 <= temperature < math.inf:
        raise Invalid.about("temperature", f"expected a finite number >= 0, got {describe(temperature)}")
    seed = document.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < MAX_SEED):
        raise Invalid.about("seed", f"expected an integer from 0 to {MAX_SEED - 1}, got {describe(seed)}")
    return Continuation(
        num_tokens=num_tokens,
        temperature=float(temperature),
        top_k=top_k,
        seed=secrets.randbelow(MAX_SEED) if seed is None else seed,
    )


async def continue_sequences(
    submit: Submit, sequences: Sequence[NDArray[np.int64]], continuation: Continuation
) -> AsyncIterator[list[Generated]]:
    """Yield the next token of every sequence, `num_tokens` times.

    Each sequence draws from the seed alone, so what it becomes does not depend on the others of the request.

    Raises:
        Invalid: the model has no finite answer to a sequence; names it.
    """
    generators = [np.random.default_rng(continuation.seed) for _ in sequences]
    grown = list(sequences)
    for _ in range(continuation.num_tokens):
        jobs = [
            Job(sequence=ids, positions=np.array([len(ids) - 1]), top_k=continuation.num_candidates) for ids in grown
        ]
        answers = await submit(jobs)
        if sum(answer.logits.size for answer in answers if isinstance(answer, LogitsAnswer)) > LARGE_STEP_NUMBERS:
            tokens = await asyncio.to_thread(_choose_each, answers, continuation, generators)
        else:
            tokens = _choose_each(answers, continuation, generators)
        grown = [np.append(ids, token.id) for ids, token in zip(grown, tokens, strict=True)]
        yield tokens


def _choose_each(
    answers: Sequence[Answer], continuation: Continuation, generators: list[np.random.Generator]
) -> list[Generated]:
    check_finite(answers)
    tops = [answer.find_top(continuation.num_candidates) for answer in answers]
    return [choose(top, continuation, generator) for top, generator in zip(tops, generators, strict=True)]


def choose(top: Top, continuation: Continuation, generator: np.random.Generator) -> Generated:
    """The next token, of the candidates of one position; of equal ones the smaller id comes first."""
    place = 0
    if continuation.temperature > 0:
        # Their differences, not the logits: a quotient of both may be infinite at a temperature near 0.
        wide = top.logits[0].astype(np.float64)
        with np.errstate(over="ignore"):
            cumulative = np.exp((wide - wide[0]) / continuation.temperature).cumsum()
        drawn = int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
        place = min(drawn, len(wide) - 1)
    chosen = top.cut(place + 1)
    return Generated(
        id=int(chosen.ids[0, place]), logit=chosen.logits[0, place], probability=chosen.probabilities[0, place]
    )
