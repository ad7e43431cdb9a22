"""What is asked: the model as its server describes it, and request bodies for it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

# Bodies are made before the run, so that sending one costs the client little. Beyond this they are sent again in turn.
MAX_BODIES_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Target:
    """What `GET /v1/models/{model}` says, as far as a load needs it."""

    name: str
    version: int
    task: str
    max_length: int
    """In steps, as they are sent."""
    vocabulary_size: int | None
    num_features: int | None
    """Of a model of vectors; the other one is None."""


def read_target(document: Any, model: str) -> Target:
    """The model from its description.

    Raises:
        ValueError: it does not answer now, or this is no description of a model.
    """
    try:
        if not document["ready"]:
            raise ValueError(f"--model: expected a model that is ready, got {model}: {document.get('reason')}")
        target = Target(
            name=document["name"],
            version=document["version"],
            task=document["task"],
            max_length=document["limits"]["max_length"],
            vocabulary_size=document["vocabulary_size"],
            num_features=document["num_features"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"--url: expected attnserve's description of {model}, got one without {error}") from None
    if (target.vocabulary_size is None) == (target.num_features is None):
        raise ValueError(f"--model: expected a model that reads either ids or features, got {model}")
    return target


def make_bodies(
    target: Target,
    lengths: NDArray[np.int64],
    generator: np.random.Generator,
    *,
    max_bytes: int = MAX_BODIES_BYTES,
) -> list[bytes]:
    """Bodies of `predict` with random ids or features: one per request, or the first ones that `max_bytes` holds.

    Args:
        target: who is asked.
        lengths: [requests, sequences], in steps.
        generator: what draws.
        max_bytes: of all together; there is always one.
    """
    bodies: list[bytes] = []
    num_bytes = 0
    for row in lengths.tolist():
        sequences = [_draw_sequence(target, length, generator) for length in row]
        bodies.append(orjson.dumps({"sequences": sequences}, option=orjson.OPT_SERIALIZE_NUMPY))
        num_bytes += len(bodies[-1])
        if num_bytes >= max_bytes:
            break
    return bodies


def _draw_sequence(
    target: Target, length: int, generator: np.random.Generator
) -> NDArray[np.int64] | NDArray[np.float32]:
    if target.num_features is not None:
        return generator.standard_normal((length, target.num_features), np.float32)
    assert target.vocabulary_size is not None
    return generator.integers(0, target.vocabulary_size, length)
