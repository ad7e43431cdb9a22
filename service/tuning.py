"""Tuning: what a model's batches cost on this machine. Measured once, and remembered for every model of its shape.

What weights a model has changes nothing, so a new version of a model, which is loaded while the old one is under load
and could only be measured badly, nearly always finds itself measured already.
"""

import contextlib
import hashlib
import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from attnserve import __version__
from attnserve.bundle import Manifest, hash_file
from attnserve.machine import name_processor
from attnserve.nvidia import name_gpu
from attnserve.records import RecordError, from_json, read_text, to_json
from attnserve.service.cost import SHAPES, Cost, measure_cost
from attnserve.service.crossover import LENGTHS, Crossover
from attnserve.service.devices import Gpus

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 64 * 1024

Found = TypeVar("Found", Cost, Crossover)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a model runs with."""

    source: str
    """`measured`, `remembered` or `given`."""
    num_engines: int
    num_threads: int
    """Of each engine."""
    cost: Cost


class Measurable(Protocol):
    """An engine, as far as tuning needs it."""

    @property
    def manifest(self) -> Manifest:
        """Of its bundle."""

    @property
    def device(self) -> str:
        """Where it runs."""

    @property
    def num_threads(self) -> int:
        """Of one run."""

    @property
    def kernels(self) -> Path | None:
        """The library whose kernels compute attention; None if function bodies do."""

    @property
    def gpus(self) -> Gpus | None:
        """How it uses GPUs; None on the CPU."""

    def run_lengths(self, lengths: Sequence[int]) -> None:
        """Run one batch of sequences of these lengths."""


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """Finds out what batches cost."""

    max_seconds: float
    """No measurement of a model begins after this time."""
    folder: Path | None = None
    """Where costs are remembered, a file each; None is nowhere."""
    given: Mapping[str, Cost] = field(default_factory=dict)
    """By model; neither measured nor remembered."""

    def tune(self, name: str, engine: Measurable, num_engines: int, *, is_idle: bool) -> Tuning:
        """The tuning of a model.

        Args:
            name: of the model.
            engine: loaded, and run here if nothing is known of models like it.
            num_engines: workers there will be.
            is_idle: whether the process does nothing else.
        """
        cost, source = self.given.get(name), "given"
        if cost is None:
            key = describe_setting(engine)
            cost, source = self._recall(key, "cost", Cost), "remembered"
            if cost is None:
                clock = choose_clock(engine, is_idle=is_idle)
                cost = measure_cost(
                    engine.manifest,
                    engine.run_lengths,
                    max_seconds=self.max_seconds,
                    clock=clock,
                    pads=engine.kernels is None,
                )
                source = "measured"
                self._remember(key, "cost", cost)
        return Tuning(source=source, num_engines=num_engines, num_threads=engine.num_threads, cost=cost)

    def cross(self, engine: Measurable, max_bytes: int, measure: Callable[[], Crossover]) -> Crossover:
        """Where GPUs compute attention weights sooner than the CPU, for models like this one.

        Args:
            engine: of the model, on GPUs.
            max_bytes: of captures that may stay on each. Those that find no room win nothing, whatever the GPU.
            measure: finds out, if nothing is known.
        """
        key = {**describe_setting(engine), "lengths": list(LENGTHS), "max_bytes": max_bytes}
        crossover = self._recall(key, "crossover", Crossover)
        if crossover is None:
            crossover = measure()
            self._remember(key, "crossover", crossover)
        return crossover

    def _recall(self, key: dict[str, Any], name: str, kind: type[Found]) -> Found | None:
        path = self._place(key)
        if path is None or not path.is_file():
            return None
        try:
            document = json.loads(read_text(path, MAX_FILE_BYTES))
            if document["of"] != key:
                return None
            found = from_json(kind, document[name])
            if not all(value is None or 0 <= value < math.inf for value in vars(found).values()):
                raise ValueError("expected numbers >= 0")
        except (RecordError, ValueError, TypeError, KeyError, RecursionError) as error:
            log.warning("%s is no %s, and is measured again: %r", path, name, error)
            return None
        return found

    def _remember(self, key: dict[str, Any], name: str, found: Cost | Crossover) -> None:
        path = self._place(key)
        if path is None:
            return
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Replaced as a whole: several services may start at once.
            temporary.write_text(json.dumps({"of": key, name: to_json(found)}, indent=2) + "\n", "utf-8")
            temporary.replace(path)
        except OSError as error:
            # Then the next start takes as long as this one.
            log.info("the %s that was measured is not remembered: %s", name, error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _place(self, key: dict[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.json"


def describe_setting(engine: Measurable) -> dict[str, Any]:
    """All that decides what a batch costs: the model's shape, the machine and the software."""
    import onnxruntime

    manifest = engine.manifest
    return {
        "layers": to_json(manifest.layers),
        "inputs": to_json(manifest.inputs),
        "outputs": to_json(manifest.outputs),
        "max_length": manifest.max_length,
        "precision": manifest.certificate.precision,
        "portable": manifest.portable,
        "device": engine.device,
        "num_threads": engine.num_threads,
        "kernels": None if engine.kernels is None else hash_file(engine.kernels),
        "processor": name_processor(),
        "gpu": None if engine.gpus is None else [name_gpu(), engine.gpus.graphs, engine.gpus.tf32],
        "shapes": [list(shape) for shape in SHAPES],
        "versions": {"attnserve": __version__, "onnxruntime": onnxruntime.__version__},
    }


def choose_clock(engine: Measurable, *, is_idle: bool) -> Callable[[], float]:
    """CPU time where it is the engine's own: a busy machine disturbs it least. A GPU works while no core does."""
    if engine.device != "cpu":
        return time.perf_counter
    if engine.num_threads == 1:
        # ONNX Runtime then works in the thread that calls it.
        return time.thread_time
    return time.process_time if is_idle else time.perf_counter
