"""A manifest without a bundle: most of the service never opens a file."""

from collections.abc import Callable
from typing import Any

import pytest

from attnserve.bundle import CAPTURES, Layer, Manifest, Provenance, Tensor, capture_name
from attnserve.certificate import Certificate, Deviation


def make_layer(index: int, **fields: Any) -> Layer:
    defaults: dict[str, Any] = {
        "variant": "dot_product",
        "op": "DotProductAttention",
        "weighting": "softmax",
        "causal": True,
        "scale": 0.5,
        "epsilon": 0.0,
        "window": 0,
        "softcap": 0.0,
        "scope": None,
        "scaling": None,
        "num_heads": 4,
        "num_key_heads": 4,
        "head_size": 8,
        "value_size": 8,
        "captures": {kind: capture_name(index, kind) for kind in CAPTURES},
    }
    return Layer(**{**defaults, **fields})


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    """A manifest of two layers of four heads, ten ids and sequences up to 100 steps, unless told otherwise."""

    def make(**fields: Any) -> Manifest:
        layers = fields.get("layers", (make_layer(0), make_layer(1)))
        names = [name for layer in layers for name in layer.captures.values()]
        deviation = Deviation(reference=1e-6, allowed=4e-6)
        defaults: dict[str, Any] = {
            "format_version": 1,
            "task": "next_token",
            "causal": True,
            "vocabulary_size": 10,
            "max_length": 100,
            "inputs": (),
            "outputs": tuple(Tensor(name=name, dtype="float32", shape=("C", "32")) for name in names),
            "layers": layers,
            "provenance": Provenance(checkpoint_sha256={}, versions={}, created="2026-01-01T00:00:00+00:00"),
            "certificate": Certificate(precision="float32", logits=deviation, maps=deviation),
            "files": {},
        }
        return Manifest(**{**defaults, **fields})

    return make
