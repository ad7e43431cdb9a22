"""`ServedModel`: a version of a model that answers, and how it comes to that: loaded, proven, tuned, behind a queue."""

import functools
import logging
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from attnserve.bundle import TOKENIZER_FILE, BundleError, Manifest
from attnserve.kernels import find_kernels
from attnserve.machine import count_cores, free_memory, memory_limit
from attnserve.nvidia import gpu_memory
from attnserve.records import to_json
from attnserve.service.attention import count_own_weights
from attnserve.service.batching import Batcher
from attnserve.service.crossover import Crossover, ask_default, measure_crossover
from attnserve.service.engine import SHRINK_SECONDS, Engine
from attnserve.service.live_heads import LiveHeads
from attnserve.service.observer import Observer, Observers
from attnserve.service.preprocess import PredictRequest
from attnserve.service.sequences import Reader
from attnserve.service.settings import Settings
from attnserve.service.statistics import Statistics
from attnserve.service.tuning import Tuner, Tuning
from attnserve.text import TextReader, read_tokenizer

log = logging.getLogger(__name__)

# Of the bundle's files: they are read, and then laid out for this processor, before what was read is given back.
LOAD_FACTOR = 2
# Of the memory that a batch may take on a GPU, captures that stay there may take one part in so many.
STAYING_SHARE = 4


# Compared by identity, and known to nobody's `repr`.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ServedModel:
    """A model that answers. Its queue is closed when the last reference to it is gone."""

    name: str
    version: int
    engine: Engine
    batcher: Batcher
    reader: Reader
    tuning: Tuning
    statistics: Statistics
    kernels: str
    """`on`: native kernels compute attention; `off`: function bodies do; `failed`: bodies, as kernels did not work."""
    described: dict[str, orjson.Fragment]
    """Fields of the manifest as JSON, made once: it may have a name for each of 50,000 tokens."""
    live: LiveHeads = field(default_factory=LiveHeads)
    """What sampled traffic measured of its heads."""

    @property
    def manifest(self) -> Manifest:
        """The bundle's description."""
        return self.engine.manifest

    def stays(self, asked: PredictRequest) -> bool:
        """Whether captures for a request stay on the GPU that ran it, because it asks about so much attention."""
        gpus = self.engine.gpus
        if asked.attention is None or gpus is None or gpus.weights_from is None:
            return False
        return count_own_weights(asked.attention, asked.lengths) >= max(1, gpus.weights_from)


def make_tuner(settings: Settings) -> Tuner:
    """The tuner that settings describe."""
    cache = settings.tuning_cache
    return Tuner(
        max_seconds=settings.tuning_seconds,
        folder=Path(cache).expanduser() if cache else None,
        given=settings.tuning,
    )


def load_model(
    folder: Path, settings: Settings, tuner: Tuner, *, observer: Observer, on_lost: Callable[[], None], is_idle: bool
) -> ServedModel:
    """Load a bundle, prove it on this device, and put it behind a queue.

    Args:
        folder: the bundle, `REPOSITORY/model/version`.
        settings: of the service.
        tuner: finds out what batches cost.
        observer: told of the work.
        on_lost: told that the device answers nothing any more.
        is_idle: whether no other model is at work in this process.

    Raises:
        BundleError: damaged, outside its certificate on this device, or too large for the memory that is left.
        TextError: its tokenizer is malformed.
        DeviceError: the device asked for cannot be used.
    """
    begin = time.monotonic()
    name, version = folder.parent.name, int(folder.name)
    check_room(folder)
    num_threads = settings.num_threads or max(1, count_cores() // settings.engines)
    library = find_kernels(settings.kernels)
    engine = open_engine(folder, settings, num_threads=num_threads, kernels=library)
    num_engines = settings.engines * (1 if engine.gpus is None else len(engine.gpus.devices))
    described = describe_manifest(engine.manifest)
    reader = Reader(engine.manifest, open_text(folder, engine.manifest))
    tuning = tuner.tune(name, engine, num_engines, is_idle=is_idle)
    max_batch_bytes = settings.max_batch_bytes or batch_memory(engine, settings) // 2
    place_weights(engine, reader, settings, tuner, max_batch_bytes // STAYING_SHARE)
    engine.forget_graphs()
    engine.shrink()
    # Only now: what was measured above is no traffic.
    statistics = Statistics()
    engine.observer = Observers(observer, statistics)
    batcher = Batcher(
        engine.run,
        tuning.cost,
        max_batch_bytes=max_batch_bytes,
        max_queue=settings.max_queue,
        max_batch_ms=settings.max_batch_ms,
        max_wait_ms=settings.max_wait_ms,
        num_workers=num_engines,
        name=f"engine-{name}",
        observer=engine.observer,
        is_sound=engine.is_sound,
        on_lost=on_lost,
        on_idle=engine.shrink,
        idle_seconds=SHRINK_SECONDS,
    )
    model = ServedModel(
        name=name,
        version=version,
        engine=engine,
        batcher=batcher,
        reader=reader,
        tuning=tuning,
        statistics=statistics,
        kernels=name_kernels(engine, library),
        described=described,
    )
    # Without waiting for its workers: whoever lets go last may be the event loop.
    weakref.finalize(model, batcher.stop).atexit = False
    took = time.monotonic() - begin
    log.info(
        "%s/%d answers on %s, kernels %s, after %.1f s: %s",
        name,
        version,
        describe_device(engine),
        model.kernels,
        took,
        engine.verdict,
    )
    return model


def open_engine(folder: Path, settings: Settings, *, num_threads: int, kernels: Path | None) -> Engine:
    """The engine with native kernels, or with function bodies where they fail golden or cannot be loaded.

    Raises:
        BundleError: damaged, or outside its certificate with function bodies too.
        DeviceError: the device asked for cannot be used.
    """
    open_with = functools.partial(Engine, folder, device=settings.device, num_threads=num_threads, cuda=settings.cuda)
    if kernels is None:
        return open_with()
    try:
        return open_with(kernels=kernels)
    except BundleError as error:
        failure = error
    # Damaged bundles end here, without a word about kernels.
    engine = open_with()
    log.warning("%s: kernels are switched off for it, function bodies serve: %s", folder, failure)
    return engine


def place_weights(engine: Engine, reader: Reader, settings: Settings, tuner: Tuner, max_bytes: int) -> None:
    """Decide which attention weights are computed on GPUs: as the operator says, or by what they are measured to gain.

    Args:
        engine: of the model.
        reader: of the model.
        settings: of the service.
        tuner: finds out what GPUs gain.
        max_bytes: of captures that may stay on each at a time.
    """
    if engine.gpus is None:
        return
    devices = engine.devices
    if not devices.can_weigh:
        devices.settle(None)
        return
    for runtime in devices.runtimes:
        assert runtime.residence is not None
        runtime.residence.max_bytes = max_bytes
    weights_from: int | None = settings.gpu_weights_from
    if weights_from == -1:

        def measure() -> Crossover:
            ask = functools.partial(ask_default, engine, reader)
            return measure_crossover(ask, engine.manifest.max_length, max_seconds=tuner.max_seconds)

        try:
            weights_from = tuner.cross(engine, max_bytes, measure).weights_from
        # Not only `DeviceFailure`: the passes fail as ONNX Runtime does. What is broken for good the next run will say.
        except Exception as failure:
            log.warning("attention weights are computed on the CPU, a GPU failed to", exc_info=failure)
            weights_from = None
    devices.settle(weights_from)


def describe_device(engine: Engine) -> str:
    """Where a model runs, and how, for the log."""
    gpus = engine.gpus
    if gpus is None:
        return engine.device
    numbers = ", ".join(map(str, gpus.devices))
    weights = "off" if gpus.weights_from is None else f"from {gpus.weights_from}"
    return f"{engine.device} {numbers} (CUDA graphs {gpus.graphs}, TF32 {gpus.tf32}, weights {weights})"


def batch_memory(engine: Engine, settings: Settings) -> int:
    """Bytes that batches of a model may take where it runs."""
    if engine.gpus is None:
        return memory_limit()
    return settings.gpu_memory_bytes or gpu_memory() or memory_limit()


def name_kernels(engine: Engine, library: Path | None) -> str:
    """What computes the attention of a model; see `ServedModel.kernels`."""
    if engine.kernels is not None:
        return "on"
    can_run = engine.device == "cpu" and not engine.manifest.portable
    return "failed" if library is not None and can_run else "off"


def open_text(folder: Path, manifest: Manifest) -> TextReader | None:
    """The bundle's tokenizer, if its model reads text.

    Raises:
        TextError: it is malformed or does not fit the model.
    """
    has_text = TOKENIZER_FILE in manifest.files
    return read_tokenizer(folder / TOKENIZER_FILE, manifest) if has_text else None


def describe_manifest(manifest: Manifest) -> dict[str, orjson.Fragment]:
    """The fields of a manifest as JSON, for answers.

    Raises:
        BundleError: text or numbers that JSON cannot carry.
    """
    try:
        return {name: orjson.Fragment(orjson.dumps(value)) for name, value in to_json(manifest).items()}
    except TypeError as error:  # Half a surrogate pair, or an integer beyond 64 bits: only a card has room for them.
        raise BundleError(f"manifest: cannot be written as JSON: {error}") from None


def check_room(folder: Path) -> None:
    """Refuse a bundle for which there is no memory: the system would end the whole process, and all models with it.

    Raises:
        BundleError: says how much is needed, and how much there is.
    """
    needed = LOAD_FACTOR * sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = free_memory()
    if needed > free:
        raise BundleError(
            f"{folder}: loading it takes about {needed} bytes of memory beside what is loaded, and {free} are free; "
            "expected more memory, or another model to be unloaded first"
        )
