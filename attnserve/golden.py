"""Golden: recorded truth, replayed on the machine that will serve the bundle. Needs no torch.

`golden.npz` holds seeded sequences, the batches to run them in (each alone, and together), and PyTorch's float64
logits and attention weights of chosen rows. Replay runs the batches in ONNX Runtime and recomputes the weights from the
captures, just as the service does, so it proves the graph, the packing, the captures, the weights graphs and, where
there are native kernels, those at once.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bound import NoRoom
from attnserve.bundle import FEATURES, GOLDEN_FILE, LOGITS, TOKENS, TOP, BundleError, Layer
from attnserve.certificate import Certificate
from attnserve.packing import pack
from attnserve.report import BatchResult, Report
from attnserve.resident import Captured
from attnserve.runtime import Runtime
from attnserve.top import count_wrong, measure_top, read_top
from attnserve.weighing import Weighing

# One unit in the last place of 1.
LAST_PLACES = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The truth about a few sequences; S sequences, T rows in all, W vocabulary or classes, P map rows."""

    inputs: NDArray[Any]
    """[T] ids or [T, F] feature vectors of all sequences, one after the other, leading rows included."""
    lengths: NDArray[np.int64]
    """[S] rows of each sequence."""
    batch_sizes: NDArray[np.int64]
    """Number of sequences of each batch."""
    batch_members: NDArray[np.int64]
    """Sequences of all batches, one batch after the other."""
    logit_rows: NDArray[np.int64]
    """[R] rows of `inputs` whose logits are recorded, ascending; of classify_sequence the row that speaks for each."""
    logits: NDArray[np.float64]
    """[R, W] PyTorch float64."""
    map_rows: NDArray[np.int64]
    """[P] rows of `inputs` whose weights are recorded, ascending."""
    maps: NDArray[np.float64]
    """[P, layers, heads, longest sequence] PyTorch float64; 0 beyond a sequence's own end."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together, so that replay cannot pass by comparing nothing.

        Raises:
            ValueError: names the array.
        """
        for name in ("lengths", "batch_sizes", "batch_members", "logit_rows", "map_rows"):
            _check_indices(name, getattr(self, name))
        if _kind_of(self.inputs) == TOKENS:
            _check_indices(TOKENS, self.inputs)
        elif self.inputs.dtype != np.float32 or self.inputs.ndim != 2 or not np.isfinite(self.inputs).all():
            got = f"{self.inputs.dtype} {list(self.inputs.shape)}"
            raise ValueError(f"{FEATURES}: expected finite float32 [rows, features], got {got}")
        num_rows, num_maps = len(self.inputs), len(self.map_rows)
        if self.lengths.min() < 1 or self.lengths.sum() != num_rows:
            raise ValueError(f"lengths: expected numbers >= 1 that add up to {num_rows}, got {self.lengths.sum()}")
        if self.batch_sizes.min() < 1 or self.batch_sizes.sum() != len(self.batch_members):
            raise ValueError(f"batch_sizes: expected numbers >= 1 that add up to {len(self.batch_members)}")
        if set(self.batch_members.tolist()) != set(range(len(self.lengths))):
            raise ValueError(f"batch_members: expected each of the {len(self.lengths)} sequences and no others")
        for name in ("logit_rows", "map_rows"):
            rows = getattr(self, name)
            if rows[-1] >= num_rows or (np.diff(rows) < 1).any():
                raise ValueError(f"{name}: expected ascending numbers below {num_rows}")
        for name, head in (("logits", [len(self.logit_rows)]), ("maps", [num_maps])):
            array = getattr(self, name)
            if array.dtype != np.float64 or list(array.shape[:1]) != head:
                raise ValueError(f"{name}: expected float64 {[*head, '...']}, got {array.dtype} {list(array.shape)}")
        if self.maps.ndim != 4 or self.maps.shape[-1] != self.lengths.max():
            raise ValueError(f"maps: expected [rows, layers, heads, {self.lengths.max()}], got {list(self.maps.shape)}")

    @property
    def sequences(self) -> list[NDArray[Any]]:
        """The sequences, one array each."""
        return np.split(self.inputs, np.cumsum(self.lengths)[:-1])

    @property
    def batches(self) -> list[NDArray[np.int64]]:
        """The batches, as arrays of sequence numbers."""
        return np.split(self.batch_members, np.cumsum(self.batch_sizes)[:-1])


def _check_indices(name: str, array: NDArray[Any]) -> None:
    if array.dtype != np.int64 or array.ndim != 1 or not len(array) or array.min() < 0:
        raise ValueError(f"{name}: expected int64 [n] of numbers >= 0, got {array.dtype} {list(array.shape)}")


def read_golden(folder: str | os.PathLike[str]) -> Golden:
    """Read `golden.npz`; pickled arrays are refused.

    Raises:
        BundleError: missing or malformed.
    """
    path = Path(folder) / GOLDEN_FILE
    try:
        # Opened here: numpy leaves a file open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            named = {name: arrays[name] for name in arrays.files}
            kinds = [name for name in (TOKENS, FEATURES) if name in named]
            if len(kinds) != 1:
                raise ValueError(f"expected either {TOKENS} or {FEATURES}, got {kinds}")
            inputs = named.pop(kinds[0])
            if _kind_of(inputs) != kinds[0]:
                expected = "int64 [rows]" if kinds[0] == TOKENS else "float32 [rows, features]"
                raise ValueError(f"{kinds[0]}: expected {expected}, got {inputs.dtype} {list(inputs.shape)}")
            return Golden(inputs=inputs, **named)
    except Exception as error:  # numpy, zipfile and zlib raise a dozen types at a damaged archive.
        raise BundleError(f"{path}: cannot be read as golden: {error}") from None


def write_golden(folder: Path, golden: Golden) -> None:
    """Write `golden.npz`."""
    arrays = dict(vars(golden))
    inputs = arrays.pop("inputs")
    np.savez_compressed(folder / GOLDEN_FILE, **{_kind_of(inputs): inputs}, **arrays)


def _kind_of(inputs: NDArray[Any]) -> str:
    """Ids have one dimension, feature vectors two."""
    return FEATURES if inputs.ndim > 1 else TOKENS


def replay(
    runtime: Runtime,
    golden: Golden,
    progress: Callable[[int], Any] = lambda _: None,
    *,
    certificate: Certificate | None = None,
    rehearses: bool = False,
    stays: bool = False,
) -> Report:
    """Run every batch of `golden` and measure the largest differences.

    Args:
        runtime: of the bundle.
        golden: the truth about it.
        progress: told each batch's number.
        certificate: judges the differences; None is the bundle's.
        rehearses: whether other inputs of its sizes are run before each batch. In a second replay with CUDA graphs
            on, that records one, and golden has to be answered by what was recorded of something else.
        stays: whether captures stay on the device, and are weighed there (`Runtime.settle`).

    Raises:
        NoRoom: captures should stay, and cannot.
        BundleError: golden is of a model that reads something else.
    """
    expected, got = TOKENS if runtime.manifest.num_features is None else FEATURES, _kind_of(golden.inputs)
    if golden.inputs.shape[1:] != (() if expected == TOKENS else (runtime.manifest.num_features,)):
        sizes = f"{got} {list(golden.inputs.shape)}"
        raise BundleError(f"{runtime.folder / GOLDEN_FILE}: expected {expected}, as the manifest says, got {sizes}")
    results = []
    for number, members in enumerate(golden.batches):
        if rehearses:
            _rehearse(runtime, golden, members)
        results.append(_replay_batch(runtime, golden, members, stays=stays))
        progress(number)
    manifest = runtime.manifest
    return Report(
        device=runtime.device,
        batches=tuple(results),
        certificate=manifest.certificate if certificate is None else certificate,
        quantisation=manifest.quantisation,
    )


def largest_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference; infinite where a number is NaN or the shapes differ."""
    # Shapes first: numpy would broadcast, and `max` alone would lose a NaN.
    if found.shape != expected.shape:
        return float("inf")
    largest = float(np.abs(found - expected).max(initial=0.0))
    return largest if np.isfinite(largest) else float("inf")


def _rehearse(runtime: Runtime, golden: Golden, members: NDArray[np.int64]) -> None:
    """Run a batch of the same sizes in which everything else is different."""
    packed = pack([np.zeros_like(golden.sequences[member]) for member in members[::-1]])
    rows, _ = _rows_in_batch(golden, members, golden.logit_rows)
    runtime.run(packed, np.zeros_like(rows), [LOGITS])
    if runtime.manifest.top_k is not None:
        runtime.run(packed, np.zeros_like(rows), TOP)


def _replay_batch(runtime: Runtime, golden: Golden, members: NDArray[np.int64], *, stays: bool) -> BatchResult:
    manifest = runtime.manifest
    sequences = golden.sequences
    packed = pack([sequences[member] for member in members])
    rows, expected_logits = _rows_in_batch(golden, members, golden.logit_rows)
    map_rows, expected_maps = _rows_in_batch(golden, members, golden.map_rows)
    names = [layer.captures[kind] for layer in manifest.layers for kind in ("query", "key")]
    everything = np.arange(len(packed.inputs))
    held = runtime.hold(names, len(everything)) if stays else {}
    if stays and not held:
        raise NoRoom("there is no room on the device for golden's captures")
    outputs = runtime.run(packed, rows, [LOGITS, *({} if stays else names)], capture=everything, held=held)
    captures: dict[str, Captured] = {**outputs, **held}
    weighing = runtime.residence.weighing if stays and runtime.residence is not None else runtime.weighing
    # What an ordinary prediction is: nothing captured.
    plain = runtime.run(packed, rows, [LOGITS])
    maps = 0.0
    for start, length in zip(packed.starts, packed.lengths, strict=True):
        chosen = (map_rows >= start) & (map_rows < start + length)
        steps = map_rows[chosen] - start
        if not len(steps):
            continue
        queries = [captures[layer.captures["query"]][start + steps] for layer in manifest.layers]
        keys = [captures[layer.captures["key"]][start : start + length] for layer in manifest.layers]
        expected_weights = golden.maps[expected_maps[chosen]][..., :length]
        maps = max(maps, _compare_weights(weighing, manifest.layers, queries, keys, steps, expected_weights))
    expected = golden.logits[expected_logits]
    answers = (plain[LOGITS], outputs[LOGITS])
    largest = float(np.abs(golden.logits).max())
    logits, num_wrong_top = max(largest_difference(found, expected) for found in answers), 0
    if manifest.top_k is not None:
        # What is asked for logits as well, and what is not.
        together, alone = runtime.run(packed, rows, [LOGITS, *TOP]), runtime.run(packed, rows, TOP)
        num_wrong_top = count_wrong(together, settles_ties=runtime.device == "cpu")
        logits = max(logits, largest_difference(together[LOGITS], expected), measure_top(read_top(alone), expected))
    return BatchResult(
        num_sequences=len(members),
        longest=max(packed.lengths),
        logits=logits,
        maps=maps,
        num_changed=max(_count_changed(found, expected, manifest.certificate, largest) for found in answers),
        num_wrong_top=num_wrong_top,
    )


def _compare_weights(
    weighing: Weighing,
    layers: Sequence[Layer],
    queries: Sequence[Captured],
    keys: Sequence[Captured],
    steps: NDArray[np.int64],
    expected: NDArray[np.float64],
) -> float:
    """Largest difference of weights [Q, layers, heads, N] that are recomputed from the captures of each layer."""
    weights, own, means = [], [], []
    for layer, query, key in zip(layers, queries, keys, strict=True):
        heads = range(layer.num_heads)
        weights.append(weighing.weigh_all(layer, query, key, steps=steps, heads=heads).transpose(1, 0, 2))
        if weighing.describing is not None:
            # Those of a kernel's sums that are weights, or means of weights.
            sums = weighing.describing.describe(layer, query, key, steps=steps, heads=heads).sums
            own.append(sums["self"].T)
            means.append(sums["received"] / len(steps))
    largest = largest_difference(np.stack(weights, axis=1), expected)
    if weighing.describing is None:
        return largest
    own_expected = expected[np.arange(len(steps)), ..., steps]
    return max(
        largest,
        largest_difference(np.stack(own, axis=1), own_expected),
        largest_difference(np.stack(means), expected.mean(0)),
    )


def _count_changed(found: NDArray[Any], expected: NDArray[np.float64], certificate: Certificate, largest: float) -> int:
    """Answers whose likeliest class is not the truth's, where the truth's margin is over twice PyTorch's own error.

    In float32 differences are so small that their bound alone says all there is to say.

    Args:
        found: [R, W] logits.
        expected: [R, W] the truth.
        certificate: says PyTorch's own error.
        largest: absolute logit of golden; an error below one unit in its last place counts as one, as in `allowed`.
    """
    unit = LAST_PLACES.get(certificate.precision)
    if unit is None or found.shape != expected.shape or expected.shape[1] < 2:
        return 0
    second, first = np.partition(expected, -2, axis=1)[:, -2:].T
    clear = first - second > 2 * max(certificate.logits.reference, unit * largest)
    return int((found.argmax(1) != expected.argmax(1))[clear].sum())


def _rows_in_batch(
    golden: Golden, members: NDArray[np.int64], recorded: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Packed rows of this batch that are among `recorded`, and where in `recorded` each stands."""
    ends = np.cumsum(golden.lengths)
    origin = np.concatenate([np.arange(ends[member] - golden.lengths[member], ends[member]) for member in members])
    # A sequence may stand in a batch twice, so look rows up rather than intersect.
    index = np.searchsorted(recorded, origin)
    found = recorded[np.minimum(index, len(recorded) - 1)] == origin
    return np.flatnonzero(found), index[found]
