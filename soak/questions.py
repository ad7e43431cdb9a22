"""Questions of random length to a model of ids, in every protocol the service speaks."""

import json
import urllib.request
from dataclasses import dataclass

import numpy as np
import orjson

from attnserve.service.oip.request import HEADER
from soak.connection import Question

JSON_HEADERS = ((b"Content-Type", b"application/json"),)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A model of ids."""

    name: str
    vocabulary_size: int
    longest: int
    """Steps of the longest sequence that is asked."""
    shortest: int = 1


def draw_ids(asked: Asked, generator: np.random.Generator) -> list[int]:
    """A sequence of random length."""
    length = int(generator.integers(asked.shortest, asked.longest + 1))
    return [int(item) for item in generator.integers(0, asked.vocabulary_size, length)]


def ask_prediction(asked: Asked, sequences: list[list[int]]) -> Question:
    """What most clients ask."""
    body = orjson.dumps({"sequences": sequences, "top_k": 3})
    return Question(path=f"/v1/models/{asked.name}/predict", body=body, headers=JSON_HEADERS)


def ask_attention(asked: Asked, sequences: list[list[int]]) -> Question:
    """Diagnostics of every head."""
    body = orjson.dumps({"sequences": sequences, "top_k": 3})
    return Question(path=f"/v1/models/{asked.name}/attention", body=body, headers=JSON_HEADERS)


def ask_tensors(asked: Asked, sequence: list[int]) -> Question:
    """The Open Inference Protocol with bytes in and out."""
    tokens = np.array([sequence], "<i8").tobytes()
    shape = {"name": "tokens", "datatype": "INT64", "shape": [1, len(sequence)]}
    document = {
        "inputs": [shape | {"parameters": {"binary_data_size": len(tokens)}}],
        "parameters": {"binary_data_output": True, "positions": "all"},
    }
    head = orjson.dumps(document)
    headers = ((HEADER.encode(), str(len(head)).encode()), (b"Content-Type", b"application/octet-stream"))
    return Question(path=f"/v2/models/{asked.name}/infer", body=head + tokens, headers=headers)


def draw_mixed(asked: Asked, number: int, generator: np.random.Generator) -> Question:
    """What a service is asked all day: predictions, every 20th time attention, every 50th time tensors."""
    sequence = draw_ids(asked, generator)
    if number % 50 == 7:
        return ask_tensors(asked, sequence)
    return ask_attention(asked, [sequence]) if number % 20 == 3 else ask_prediction(asked, [sequence])


def describe_model(url: str, name: str) -> Asked:
    """The model as its server describes it."""
    with urllib.request.urlopen(f"{url}/v1/models/{name}") as response:
        found = json.load(response)
    return Asked(name=name, vocabulary_size=found["vocabulary_size"], longest=found["limits"]["max_length"])
