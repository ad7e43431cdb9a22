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

from attnserve.service.engine import Answer, Job
from attnserve.service.prediction import check_finite, softmax, top_ids
from attnserve.service.problems import Invalid, TooLarge
from attnserve.service.selection import MAX_ENTRIES, describe

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
        answers = await submit([Job(sequence=ids, positions=np.array([len(ids) - 1])) for ids in grown])
        if sum(answer.logits.size for answer in answers) > LARGE_STEP_NUMBERS:
            tokens = await asyncio.to_thread(_choose_each, answers, continuation, generators)
        else:
            tokens = _choose_each(answers, continuation, generators)
        grown = [np.append(ids, token.id) for ids, token in zip(grown, tokens, strict=True)]
        yield tokens


def _choose_each(
    answers: list[Answer], continuation: Continuation, generators: list[np.random.Generator]
) -> list[Generated]:
    check_finite(answers)
    return [
        choose(answer.logits[0], continuation, generator) for answer, generator in zip(answers, generators, strict=True)
    ]


def choose(logits: NDArray[np.float32], continuation: Continuation, generator: np.random.Generator) -> Generated:
    """The next token, from [W] logits; of equal ones the smaller id comes first."""
    index = 0
    candidates = top_ids(logits[None], 1 if continuation.temperature == 0 else continuation.top_k)[0]
    if continuation.temperature > 0:
        # Their differences, not the logits: a quotient of both may be infinite at a temperature near 0.
        wide = logits[candidates].astype(np.float64)
        with np.errstate(over="ignore"):
            cumulative = np.exp((wide - wide[0]) / continuation.temperature).cumsum()
        index = int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
    chosen = int(candidates[min(index, len(candidates) - 1)])
    return Generated(id=chosen, logit=logits[chosen], probability=softmax(logits[None])[0, chosen])
