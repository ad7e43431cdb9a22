"""A manifest without a bundle, and answers without a model: most of the service never opens a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnserve.bundle import CAPTURES, Layer, Manifest, Provenance, Tensor, capture_name
from attnserve.certificate import Certificate, Deviation
from attnserve.describing import Describing, statistics_file
from attnserve.service.job import Answer, LogitsAnswer
from attnserve.service.preprocess import PredictRequest
from attnserve.weighing import Weighing
from tests.kernels.library import build_library

WEIGHTINGS = ("expressive", "softmax")
BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "v1"


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


@pytest.fixture(scope="session")
def weighing(request: pytest.FixtureRequest) -> Weighing:
    """The weights graphs, without a model; its parameter is who adds rows up: numpy (`rows`), `bodies` or `kernels`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    adds_up = getattr(request, "param", "rows")
    if adds_up == "kernels":
        options.register_custom_ops_library(str(build_library()))
    return Weighing(
        {
            path.relative_to(BUNDLE).as_posix(): onnxruntime.InferenceSession(str(path), options)
            for path in (BUNDLE / "weights").iterdir()
        },
        None
        if adds_up == "rows"
        else Describing(
            {name: onnxruntime.InferenceSession(str(statistics_file(name)), options) for name in WEIGHTINGS},
            has_kernels=adds_up == "kernels",
        ),
    )


@pytest.fixture(scope="session")
def answer_randomly() -> Callable[..., list[Answer]]:
    """What a model might have answered to a request: logits, and captures as the manifest describes them."""

    def answer(request: PredictRequest, manifest: Manifest, seed: int = 0) -> list[Answer]:
        random = np.random.default_rng(seed)
        answers = []
        for read, positions in zip(request.inputs, request.positions, strict=True):
            captures = {}
            for layer in manifest.layers:
                sizes = {
                    "query": (layer.num_heads, layer.head_size),
                    "key": (layer.num_key_heads, layer.head_size),
                    "hidden": (32,),
                    "value_norm": (layer.num_heads,),
                    "metric": (layer.num_key_heads, layer.head_size),
                }
                for kind, name in layer.captures.items():
                    array = random.normal(size=(len(read.values), *sizes[kind])).astype(np.float32)
                    captures[name] = abs(array) if kind in ("value_norm", "metric") else array
            logits = random.normal(size=(len(positions), manifest.num_outputs)).astype(np.float32)
            answers.append(LogitsAnswer(logits=logits, captures=captures))
        return answers

    return answer
