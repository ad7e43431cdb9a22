"""The catalogue: the models of a repository, loaded and proven, each behind its own queue."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from attnserve.bundle import MANIFEST_FILE, TOKENIZER_FILE, BundleError, Manifest, is_model_name, is_version
from attnserve.records import RecordError, read_text, to_json
from attnserve.runtime import DeviceError
from attnserve.service.batching import Batcher
from attnserve.service.engine import Engine
from attnserve.service.observer import NOBODY, Observer
from attnserve.service.problems import NotFound, Unavailable
from attnserve.service.sequences import Reader
from attnserve.service.settings import Settings
from attnserve.text import TextError, TextReader, read_tokenizer

log = logging.getLogger(__name__)

ALIASES_FILE = "aliases.json"

Observe = Callable[[str, int], Observer]
"""Whom the engine of a model and version tells of its work."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model that answers."""

    name: str
    version: int
    versions: tuple[int, ...]
    """Every version in the repository; `version` is the one served."""
    engine: Engine
    batcher: Batcher
    reader: Reader

    @property
    def manifest(self) -> Manifest:
        """The bundle's description."""
        return self.engine.manifest


class Catalogue:
    """Every model's active (else newest) version.

    Models are loaded by `load`, which takes seconds and may run in a thread of its own; until then, and for a model
    that failed, `find` says so.
    """

    def __init__(
        self, repository: str | os.PathLike[str], settings: Settings, observe: Observe = lambda *_: NOBODY
    ) -> None:
        self.repository = Path(repository)
        self.settings = settings
        self.observe = observe
        self.models: dict[str, ServedModel] = {}
        self.failures: dict[str, str] = {}
        self.is_loading = True
        self.is_draining = False
        """Whether the service is about to stop: it answers, but nobody should send more."""
        self._is_stopping = False
        if not self.repository.is_dir():
            raise BundleError(f"repository: expected a folder of bundles, got {self.repository}")
        if (self.repository / MANIFEST_FILE).exists() or find_versions(self.repository):
            raise BundleError(
                f"repository: expected the folder above MODEL/VERSION, got a model or bundle: {self.repository}"
            )
        self.names = find_models(self.repository)
        """Every model of the repository: served, failed or yet to be loaded."""

    @property
    def is_ready(self) -> bool:
        """Whether loading is over, no stop is near, and at least one model answers."""
        return (
            not self.is_loading
            and not self.is_draining
            and any(model.batcher.is_open for model in self.models.values())
        )

    def load(self) -> None:
        """Load every model; one that fails is named in the log and in `failures`, and disturbs no other.

        Raises:
            DeviceError: the device asked for cannot be used by any model.
        """
        if not self.names:
            log.error("%s holds no bundles; expected folders like MODEL/1", self.repository)
        for name in self.names:
            if self._is_stopping:
                break
            try:
                self.models[name] = self._load_model(name)
            except DeviceError:
                raise
            # Not only `BundleError`: a manifest that is whole but wrong fails somewhere in numpy or ONNX Runtime.
            except Exception as error:
                is_ours = isinstance(error, BundleError | TextError)
                reason = str(error) if is_ours else f"{type(error).__name__}: {error}"
                self.failures[name] = reason.replace(f"{self.repository}{os.sep}", "")[:1000]
                log.error("%s cannot be served: %s", name, reason, exc_info=not is_ours)
        self.is_loading = False

    def stop_loading(self) -> None:
        """Let a `load` in another thread end after its current model."""
        self._is_stopping = True

    def find(self, name: str, version: int | None = None) -> ServedModel:
        """The model that serves `name`.

        Raises:
            NotFound: no such model, or another version is served.
            Unavailable: it is loading, failed to load, or its worker died.
        """
        if name not in self.names:
            raise NotFound.about("model", f"expected one of {self._list_names()}, got {name[:64]!r}")
        model = self.models.get(name)
        if model is None or not model.batcher.is_open:
            raise Unavailable(f"{name} {self.explain(name)}")
        if version is not None and version != model.version:
            raise NotFound.about("version", f"{name} serves version {model.version}, got {version}")
        return model

    def explain(self, name: str) -> str:
        """Why a model of the repository does not answer."""
        if name in self.failures:
            return f"cannot be served: {self.failures[name]}"
        return "has stopped" if name in self.models else "is being loaded"

    def versions_of(self, name: str) -> list[int]:
        """Versions of a model that the repository holds, oldest first."""
        return find_versions(self.repository / name)

    def close(self) -> None:
        """Finish what is queued and stop every worker."""
        for model in self.models.values():
            model.batcher.close()

    def _list_names(self) -> str:
        shown = self.names[:10]
        more = len(self.names) - len(shown)
        return (", ".join(shown) or "none") + (f" and {more} more" if more else "")

    def _load_model(self, name: str) -> ServedModel:
        versions = find_versions(self.repository / name)
        version = choose_version(self.repository / name, versions)
        observer = self.observe(name, version)
        engine = Engine(
            self.repository / name / str(version),
            device=self.settings.device,
            num_threads=self.settings.num_threads or count_cores(),
            tuning_seconds=self.settings.tuning_seconds,
            observer=observer,
        )
        check_answerable(engine.manifest)
        reader = Reader(engine.manifest, open_text(engine.runtime.folder, engine.manifest))
        batcher = Batcher(
            engine.run,
            engine.cost,
            max_batch_bytes=self.settings.max_batch_bytes or memory_limit() // 2,
            max_queue=self.settings.max_queue,
            max_batch_ms=self.settings.max_batch_ms,
            max_wait_ms=self.settings.max_wait_ms,
            name=f"engine-{name}",
            observer=observer,
        )
        log.info("%s/%d answers on %s, golden replayed: %s", name, version, engine.runtime.device, _verdict(engine))
        return ServedModel(
            name=name, version=version, versions=tuple(versions), engine=engine, batcher=batcher, reader=reader
        )


def open_text(folder: Path, manifest: Manifest) -> TextReader | None:
    """The bundle's tokenizer, if its model reads text.

    Raises:
        TextError: it is malformed or does not fit the model.
    """
    has_text = TOKENIZER_FILE in manifest.files
    return read_tokenizer(folder / TOKENIZER_FILE, manifest) if has_text else None


def check_answerable(manifest: Manifest) -> None:
    """Refuse what only an answer would stumble over.

    Raises:
        BundleError: text or numbers that JSON cannot carry.
    """
    try:
        orjson.dumps(to_json(manifest))
    except TypeError as error:  # Half a surrogate pair, or an integer beyond 64 bits: only a card has room for them.
        raise BundleError(f"manifest: cannot be written as JSON: {error}") from None


def find_models(repository: Path) -> list[str]:
    """Names of the folders that hold at least one bundle; temporary ones begin with a dot."""
    folders = (folder for folder in sorted(repository.iterdir()) if is_model_name(folder.name) and folder.is_dir())
    return [folder.name for folder in folders if find_versions(folder)]


def find_versions(folder: Path) -> list[int]:
    """Versions of a model, oldest first; 10 comes after 9."""
    names = (entry.name for entry in folder.iterdir() if is_version(entry.name))
    return sorted(int(name) for name in names if (folder / name / MANIFEST_FILE).is_file())


def choose_version(folder: Path, versions: list[int]) -> int:
    """The active version that `aliases.json` names, else the newest.

    Raises:
        BundleError: `aliases.json` is malformed or names a version that is not there.
    """
    path = folder / ALIASES_FILE
    if not path.exists():
        return versions[-1]
    try:
        aliases: Any = json.loads(read_text(path, 1024 * 1024))
        active = aliases["active"]
    except (RecordError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(f'{path}: expected {{"active": version}}: {error!r:.200}') from None
    # Not `in` alone: True and 1.0 are in [1].
    if type(active) is not int or active not in versions:
        raise BundleError(f"{path}: active: expected one of {versions}, got {active!r:.40}")
    return active


def count_cores() -> int:
    """Cores this process may use: its affinity, within the cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _read_cgroup("cpu.max", "cpu/cpu.cfs_quota_us")
    if quota is not None and quota.split()[0] not in ("max", "-1"):
        period = (_read_cgroup("cpu.max", "cpu/cpu.cfs_period_us") or "100000").split()[-1]
        cores = min(cores, max(1, round(int(quota.split()[0]) / int(period))))
    return cores


def memory_limit() -> int:
    """Bytes this process may use: the cgroup's limit, else the machine's memory."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read_cgroup("memory.max", "memory/memory.limit_in_bytes")
    return min(physical, int(limit)) if limit is not None and limit.isdigit() else physical


def _read_cgroup(version_2: str, version_1: str) -> str | None:
    for path in (Path("/sys/fs/cgroup") / version_2, Path("/sys/fs/cgroup") / version_1):
        if path.is_file():
            return path.read_text().strip()
    return None


def _verdict(engine: Engine) -> str:
    report, certificate = engine.report, engine.manifest.certificate
    return (
        f"logits {report.logits:.1e} of {certificate.logits.allowed:.1e}, "
        f"maps {report.maps:.1e} of {certificate.maps.allowed:.1e}"
    )
