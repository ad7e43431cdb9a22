"""Captures without a server: of random queries and keys, by the weights graphs of a committed bundle."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from attnserve.bundle import Layer
from attnserve.runtime import Runtime
from attnserve.service.captures.capture import Capture, KeptLayer
from attnserve.service.captures.head import Head
from attnserve.service.captures.identity import CaptureId
from attnserve.service.preprocess import PredictRequest
from attnserve.service.sequences import Input, Reader
from attnserve.weighing import Weighing

BUNDLE = Path(__file__).resolve().parent / "bundles" / "v1"


@functools.cache
def open_bundle() -> Runtime:
    return Runtime(BUNDLE, num_threads=1)


def get_weighing() -> Weighing:
    return open_bundle().weighing


def layer_of(weighting: str = "softmax", **options: Any) -> Layer:
    """A layer of the bundle, with other ways to attend."""
    (layer, *_) = (layer for layer in open_bundle().manifest.layers if layer.weighting == weighting)
    return dataclasses.replace(layer, **{"window": 0, "softcap": 0.0, "epsilon": 0.0, "causal": True, **options})


def make_head(
    length: int, weighting: str = "softmax", *, dtype: Any = np.float32, seed: int = 0, **options: Any
) -> Head:
    """A head over a sequence of some length."""
    query, key = 2 * np.random.default_rng(seed).normal(size=(2, length, 4))
    return Head(get_weighing(), layer_of(weighting, **options), query.astype(dtype), key.astype(dtype))


def make_capture(
    name: str = "a" * 16,
    *,
    expires: int = 1000,
    length: int = 10,
    owner: bytes | None = None,
    reader: Reader | None = None,
) -> Capture:
    """A capture of all layers of the bundle, of a sequence of some length."""
    random = np.random.default_rng(0)
    kept = {}
    for index, layer in enumerate(open_bundle().manifest.layers):
        query, key = random.normal(size=(2, layer.num_heads, length, layer.head_size)).astype(np.float32)
        norms = random.random((layer.num_heads, length)).astype(np.float32)
        kept[index] = KeptLayer(layer=layer, query=query, key=key, value_norm=norms, metric=None)
    ids = np.arange(length) % 5
    return Capture(
        id=CaptureId(name=name, expires=expires),
        owner=owner,
        model="tiny",
        version=1,
        weighing=get_weighing(),
        reader=Reader(open_bundle().manifest),
        asked=PredictRequest(inputs=[Input(values=ids)], positions=[np.array([length - 1])], top_k=1),
        layers=kept,
        row_error=None,
        description=b"{}",
    )
