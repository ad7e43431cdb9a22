"""What is sent: seeded sequences of random tokens, the same for everyone."""

import random
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.peers.table import Dialect

VOCABULARY_SIZE = 1000
LENGTHS = (8, 256)
SEED = 0
# Another order of additions moves a logit by about 1e-6.
LOGIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Truth:
    """What bare ONNX Runtime says to one sequence."""

    id: int
    logit: float
    margin: float
    """How far the second likeliest is behind."""


def make_sequences(num_mixed: int, num_tiny: int) -> dict[str, list[list[int]]]:
    """`mixed`: lengths uniform in LENGTHS; `tiny`: all of the shortest length."""
    generator = random.Random(SEED)

    def draw(length: int) -> list[int]:
        return [generator.randrange(VOCABULARY_SIZE) for _ in range(length)]

    return {
        "mixed": [draw(generator.randint(*LENGTHS)) for _ in range(num_mixed)],
        "tiny": [draw(LENGTHS[0]) for _ in range(num_tiny)],
    }


def encode(dialect: Dialect, sequence: list[int]) -> bytes:
    """The body of a request."""
    body: dict[str, Any] = {"sequence": sequence}
    if dialect == "attnserve":
        body = {"sequences": [sequence], "top_k": 1}
    elif dialect == "list":
        body = {"sequences": [sequence]}
    return orjson.dumps(body)


def decode(dialect: Dialect, body: bytes) -> dict[str, Any]:
    """The answer to one sequence: `id`, `probability`, `logit`."""
    answer = orjson.loads(body)
    if dialect == "attnserve":
        return answer["predictions"][0]["top"][0][0]
    return answer[0] if dialect == "list" else answer


def is_right(answer: dict[str, Any], truth: Truth) -> bool:
    """Whether the likeliest token is the one that the bare session gives.

    Where two are as good as equal, rounding may choose either.
    """
    same = answer["id"] == truth.id or truth.margin < LOGIT_TOLERANCE
    return same and abs(answer["logit"] - truth.logit) < LOGIT_TOLERANCE
