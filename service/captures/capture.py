"""`Capture`: the queries and keys of one forward pass over one sequence, kept so that its maps can be asked for."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Layer, Manifest
from attnserve.resident import fetch
from attnserve.service.captures.head import Head
from attnserve.service.captures.identity import CaptureId
from attnserve.service.formats.coding import code, widen
from attnserve.service.job import Answer, LogitsAnswer
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import Invalid
from attnserve.service.selection import parse_indices
from attnserve.service.sequences import Reader
from attnserve.weighing import Weighing

KINDS = ("query", "key", "value_norm")
"""What is captured of every layer; of elliptical ones their metric too."""
STORES = ("computed", "float16")
"""How queries and keys are kept: in the type that the model computed them in, or in half of it."""
# Weights computed to measure what float16 costs: some tenths of a second.
MAX_MEASURED = 1 << 24
# Of a capture, and of each of its layers, beside their arrays: of short sequences there may be very many.
OBJECT_BYTES = 1024


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class KeptLayer:
    """What is kept of one layer."""

    layer: Layer
    query: NDArray[np.floating[Any]]
    """[H, N, E], metric and rotation folded in."""
    key: NDArray[np.floating[Any]]
    """[K, N, E]"""
    value_norm: NDArray[np.float32]
    """[H, N]"""
    metric: NDArray[np.float32] | None
    """[K, E] of the last step, whose metric is of the whole sequence; None of other variants."""

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        metric = 0 if self.metric is None else self.metric.nbytes
        return self.query.nbytes + self.key.nbytes + self.value_norm.nbytes + metric


@dataclass(frozen=True, kw_only=True)
class RowError:
    """What float16 costs, as far as it was measured."""

    value: float
    """Half the sum of absolute differences of the row of weights that loses most."""
    num_rows: int
    """Rows of each head that were looked at, the last among them."""


# Without a repr: it is user data, and what can be printed ends up in a log one day.
@dataclass(kw_only=True, eq=False, repr=False)
class Capture:
    """One capture. What is kept never changes; what is computed from it is remembered while there is room."""

    id: CaptureId
    owner: bytes | None
    """Digest of the key that made it; None where the service has no keys."""
    model: str
    version: int
    weighing: Weighing
    """Of the bundle; it outlives the model."""
    reader: Reader
    asked: PredictRequest
    layers: dict[int, KeptLayer]
    row_error: RowError | None
    """None where nothing was narrowed."""
    description: bytes
    """What is told of it, as JSON."""
    heads: dict[tuple[int, int], Head] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Steps of the sequence."""
        return self.asked.lengths[0]

    @functools.cached_property
    def kept_bytes(self) -> int:
        """Memory of queries, keys and what else is kept of the layers."""
        return sum(layer.num_bytes for layer in self.layers.values())

    @property
    def num_bytes(self) -> int:
        """Memory it takes, what is remembered included."""
        # A list of its values: threads add heads meanwhile.
        of_heads = sum(head.kept_bytes + head.remembered_bytes for head in list(self.heads.values()))
        told = len(self.description) + self.asked.inputs[0].num_bytes
        return OBJECT_BYTES * (1 + len(self.layers)) + self.kept_bytes + told + of_heads

    @property
    def remembered_bytes(self) -> int:
        """Of these, what `forget` gives back."""
        return sum(head.remembered_bytes for head in list(self.heads.values()))

    def check_layers(self, layers: Sequence[int], field: str) -> None:
        """Refuse layers that were not captured.

        Raises:
            Invalid: names `field`, and the layers that were.
        """
        missing = [index for index in layers if index not in self.layers]
        if missing:
            kept = ", ".join(map(str, self.layers))
            raise Invalid.about(field, f"expected layers that were captured, {kept}, got {missing[0]}")

    def choose_layers(self, wanted: Any) -> list[int]:
        """Layers by "all" that were captured, a slice or a list.

        Raises:
            Invalid: there are no such ones, or they were not captured.
        """
        if wanted == "all":
            return list(self.layers)
        layers: list[int] = parse_indices(wanted, "layers", len(self.reader.manifest.layers), "layers").tolist()
        self.check_layers(layers, "layers")
        return layers

    def head(self, layer: int, head: int) -> Head:
        """A head of a layer that is kept."""
        found = self.heads.get((layer, head))
        if found is None:
            kept = self.layers[layer]
            group = kept.layer.num_heads // kept.layer.num_key_heads
            made = Head(self.weighing, kept.layer, kept.query[head], kept.key[head // group])
            # Of two threads the first one's is kept.
            found = self.heads.setdefault((layer, head), made)
        return found

    def forget(self) -> None:
        """Give back what takes much memory and little time to compute again."""
        for head in list(self.heads.values()):
            head.forget()

    def answer(self) -> Answer:
        """As if the forward pass had just been run, for nothing but captures."""
        captures: dict[str, NDArray[Any]] = {}
        for kept in self.layers.values():
            names = kept.layer.captures
            captures |= {names["query"]: kept.query.transpose(1, 0, 2), names["key"]: kept.key.transpose(1, 0, 2)}
            captures[names["value_norm"]] = kept.value_norm.T
        return LogitsAnswer(logits=np.empty((0, 0), np.float32), captures=captures)


def outputs_of(manifest: Manifest, layers: list[int]) -> frozenset[str]:
    """Outputs that a forward pass must capture."""
    names = (manifest.layers[index].captures for index in layers)
    return frozenset(by_kind[kind] for by_kind in names for kind in (*KINDS, "metric") if kind in by_kind)


def count_bytes(manifest: Manifest, layers: list[int], length: int, store: str) -> int:
    """Memory that a capture of a sequence will take, with the normaliser of every row."""
    is_half = store == "float16" or manifest.certificate.precision == "float16"
    per_step = 0
    for index in layers:
        layer = manifest.layers[index]
        per_step += (layer.num_heads + layer.num_key_heads) * layer.head_size * (2 if is_half else 4)
        # Value norms, and normalisers.
        per_step += 2 * 4 * layer.num_heads
    return per_step * length


def keep_layers(
    manifest: Manifest, weighing: Weighing, layers: list[int], answer: Answer, store: str
) -> tuple[dict[int, KeptLayer], RowError | None]:
    """Take what is captured out of an answer, which shares its memory with others of its batch.

    Raises:
        Invalid: queries or keys are beyond what float16 holds.
    """
    kept = {index: _keep(manifest.layers[index], answer) for index in layers}
    if store == "computed":
        return kept, None
    narrowed = {index: _narrow(layer) for index, layer in kept.items()}
    row_error = _measure(weighing, kept, narrowed)
    if not math.isfinite(row_error.value):
        raise Invalid.about("store", "expected queries and keys that float16 can hold, got larger ones; use computed")
    return narrowed, row_error


def _keep(layer: Layer, answer: Answer) -> KeptLayer:
    query, key, value_norm = (fetch(answer.captures[layer.captures[kind]]) for kind in KINDS)
    metric = fetch(answer.captures[layer.captures["metric"]])[-1] if "metric" in layer.captures else None
    return KeptLayer(
        layer=layer,
        # Head by head: whatever is asked is asked of heads.
        query=np.ascontiguousarray(query.transpose(1, 0, 2)),
        key=np.ascontiguousarray(key.transpose(1, 0, 2)),
        value_norm=np.ascontiguousarray(value_norm.T),
        metric=None if metric is None else metric.astype(np.float32),
    )


def _narrow(kept: KeptLayer) -> KeptLayer:
    query, key = (code(widen(array), "float16").values for array in (kept.query, kept.key))
    return KeptLayer(layer=kept.layer, query=query, key=key, value_norm=kept.value_norm, metric=kept.metric)


def _measure(weighing: Weighing, exact: dict[int, KeptLayer], narrowed: dict[int, KeptLayer]) -> RowError:
    """Compare the weights of as many rows of every head as can be computed in a moment."""
    length = next(iter(exact.values())).key.shape[1]
    num_heads = sum(kept.layer.num_heads for kept in exact.values())
    num_rows = max(1, min(length, MAX_MEASURED // (2 * num_heads * length)))
    # Evenly, up to the last.
    steps = length - 1 - np.arange(num_rows)[::-1] * length // num_rows
    largest = 0.0
    for index, kept in exact.items():
        rows = [
            weighing.weigh_all(
                one.layer,
                one.query.transpose(1, 0, 2)[steps],
                one.key.transpose(1, 0, 2),
                steps=steps,
                heads=range(one.layer.num_heads),
            )
            for one in (kept, narrowed[index])
        ]
        error = np.abs(rows[0] - rows[1]).sum(-1).max() / 2
        largest = max(largest, math.inf if np.isnan(error) else float(error))
    return RowError(value=largest, num_rows=num_rows)
