"""Clients, and answers that no service gave."""

from collections.abc import Callable, Iterator
from email.message import Message
from typing import Any

import numpy as np
import pytest

from attnserve.client import Client
from attnserve.client.tensors import Tensors
from attnserve.service.formats.negotiation import SAFETENSORS
from attnserve.service.formats.tensors import write_tensors
from tests.conftest import Served

DOCUMENT: dict[str, Any] = {
    "model": "m",
    "version": 2,
    "predictions": [{"positions": [1], "top": [[{"id": 3, "label": "c", "probability": 0.75, "logit": 1.5}]]}],
    "warnings": ["careful"],
    "tokens": [[{"id": 3, "text": "c", "span": [0, 1]}, {"id": 4, "text": None, "span": None}]],
    "quantity": "weights",
    "causal": True,
    "layers": [1, 0],
    "heads": [0, 1, 2],
    "variants": ["expressive", "dot_product"],
    "queries": [[0, 1]],
    "axes": {"weights": ["layer", "head", "query", "key"]},
}


@pytest.fixture(autouse=True)
def nobodys_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATTNSERVE_URL", "ATTNSERVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(server: Served) -> Iterator[Client]:
    """Of the running service with the model `tiny`."""
    with Client(server.url) as client:
        yield client


@pytest.fixture
def make_tensors() -> Callable[..., Tensors]:
    """An answer about attention: `arrays` of one sequence by name, and changes of `DOCUMENT`."""

    def make(arrays: dict[str, np.ndarray], **fields: Any) -> Tensors:
        named = {f"sequences.0.{name}": array for name, array in arrays.items()}
        return Tensors(document={**DOCUMENT, **fields}, arrays=named)

    return make


def write(document: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """As the service writes it."""
    return b"".join(write_tensors(document, arrays, SAFETENSORS).parts)


def make_headers(**headers: str) -> Message:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return message
