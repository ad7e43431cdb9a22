"""The catalogue: the models of a repository, loaded and proven, each behind its own queue; it follows the repository.

A new version is loaded beside the old one, proven, and put in its place by replacing a reference. Whoever began with
the old one ends with it: it goes when nobody holds it any more. One that cannot be served displaces nothing.
"""

import logging
import os
import threading
import time
from collections.abc import Callable

from attnserve.bundle import BundleError
from attnserve.repository import Repository
from attnserve.service.failures import Failures, describe_error
from attnserve.service.guests import Guests
from attnserve.service.model import ServedModel, load_model, make_tuner
from attnserve.service.observer import NOBODY, Observer
from attnserve.service.problems import Conflict, NotFound, Unavailable
from attnserve.service.settings import Settings
from attnserve.sessions import DeviceError

log = logging.getLogger(__name__)

Observe = Callable[[str, int], Observer]
"""Whom the engine of a model and version tells of its work."""


class Catalogue:
    """Every model's active (else newest) version.

    Models are loaded by `load`, which takes seconds and may run in a thread of its own; until then, and for a model
    that failed, `find` says so. `watch` goes on following the repository.

    Args:
        repository: folder of bundles.
        settings: of the service.
        observe: whom the engines tell of their work.
        on_lost: told that the device answers nothing any more.
        clock: seconds, for trying again.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        settings: Settings,
        observe: Observe = lambda *_: NOBODY,
        *,
        on_lost: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.repository = Repository(repository)
        self.settings = settings
        self.observe = observe
        # Replaced, never changed: they are read while another thread loads.
        self._contents = self.repository.find_models()
        self.models: dict[str, ServedModel] = {}
        self.failures = Failures()
        self.loading: tuple[str, int] | None = None
        """Model and version that are being loaded."""
        self.is_loading = True
        """Whether the first look at the repository is not over."""
        self.is_draining = False
        """Whether the service is about to stop: it answers, but nobody should send more."""
        self.is_lost = False
        """Whether the device is lost: nothing is answered any more."""
        self._on_lost = on_lost
        self._clock = clock
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        self._trouble: str | None = None
        self._tuner = make_tuner(settings)
        self.guests = Guests(self._load, self._shorten, clock)

    @property
    def versions(self) -> dict[str, tuple[int, ...]]:
        """Every model of the repository, served or not, with its versions, oldest first."""
        return self._contents.versions

    @property
    def is_ready(self) -> bool:
        """Whether loading is over, no stop is near, and at least one model answers."""
        return self.explain_unready() is None

    def explain_unready(self) -> str | None:
        """Why nobody should send requests, in words that anybody may read; None if all is well."""
        if self.is_lost:
            return "the device is lost"
        if self.is_draining:
            return "about to stop"
        if self.is_loading:
            return "models are being loaded"
        # Which, and why not, is told by /v1/models to those who have a key.
        is_ready = any(model.batcher.is_open for model in self.models.values())
        return None if is_ready else "no model of the repository answers"

    def load(self) -> None:
        """Load every model; one that fails is named in the log and in `failures`, and disturbs no other.

        Raises:
            DeviceError: the device asked for cannot be used by any model.
        """
        if not self.versions:
            log.warning("%s holds no bundles; expected folders like MODEL/1", self.repository.folder)
        self.refresh()
        self.is_loading = False

    def watch(self) -> None:
        """Follow the repository until `stop`, if the settings say so."""
        while self.settings.poll_seconds and not self._stopping.wait(self.settings.poll_seconds):
            try:
                self.refresh()
            # Nobody would notice that a thread has ended, and the repository is in others' hands.
            except Exception:
                log.exception("the repository cannot be followed")

    def refresh(self) -> None:
        """Look at the repository, and serve what it says."""
        contents = self.repository.find_models(self.versions)
        with self._changing:
            trouble = contents.trouble
            # A disk that is gone looks like a repository without models, and all of them are in memory.
            if not contents.versions and self.models:
                trouble = "the repository holds no bundles any more"
            if trouble not in (None, self._trouble):
                log.error("%s; what is loaded is kept: %s", trouble, self.repository.folder)
            self._trouble = trouble
            if trouble is not None:
                return
            self._contents = contents
            for name in self.models.keys() - self.versions.keys():
                self._retire(name)
            self.failures.keep(self.versions)
            self.guests.dismiss(self.versions)
            for name in self.versions:
                if self._stopping.is_set() or self.is_lost:
                    return
                self._follow(name)

    def activate(self, name: str, version: int | None = None) -> ServedModel:
        """Load a version and make it the active one of every replica, if it can be served here.

        Args:
            name: of a model in the repository.
            version: None is the newest.

        Raises:
            NotFound: no such model or version.
            Conflict: it cannot be served, or the repository cannot be written; what was served still is.
        """
        contents = self.repository.find_models(self.versions)
        with self._changing:
            self._contents = contents
            self._check_name(name)
            reason = contents.trouble or contents.unreadable.get(name)
            if reason is not None:
                raise Conflict(self._shorten(reason))
            versions = contents.versions[name]
            chosen = versions[-1] if version is None else version
            if chosen not in versions:
                raise NotFound.about("version", f"expected one of {list(versions)}, got {chosen}")
            model = self.models.get(name)
            if model is None or model.version != chosen or not model.batcher.is_open:
                model = self._try(name, chosen)
            if model is None:
                raise Conflict(f"{name} {self.explain(name)}")
            self._write_alias(name, chosen)
            self._put(model)
            return model

    def deactivate(self, name: str) -> None:
        """Serve no version of a model any more, on any replica; what is queued is answered.

        Raises:
            NotFound: no such model.
            Conflict: the repository cannot be written.
        """
        with self._changing:
            self._check_name(name)
            self._write_alias(name, None)
            self._retire(name)

    def stop(self) -> None:
        """Let `load` and `watch`, in other threads, end after their current model."""
        self._stopping.set()

    def find(self, name: str, version: int | None = None) -> ServedModel:
        """The model that serves `name`.

        Raises:
            NotFound: no such model, or another version is served.
            Unavailable: it is loading, unloaded, failed to load, or its worker died.
        """
        self._check_name(name)
        model = self.models.get(name)
        if model is None or not model.batcher.is_open:
            raise Unavailable(f"{name} {self.explain(name)}")
        if version is not None and version != model.version:
            raise NotFound.about("version", f"{name} serves version {model.version}, got {version}")
        return model

    def explain(self, name: str) -> str:
        """Why a model of the repository does not answer, or not with the version it should."""
        if name in self.failures.by_name:
            return str(self.failures.by_name[name])
        if self.is_loading or (self.loading is not None and self.loading[0] == name):
            return "is being loaded"
        return "has stopped" if name in self.models else "is unloaded"

    def close(self) -> None:
        """Finish what is queued and stop every worker."""
        for model in self.models.values():
            model.batcher.close()
        self.guests.close()

    def _check_name(self, name: str) -> None:
        if name not in self.versions:
            shown = list(self.versions)[:10]
            more = len(self.versions) - len(shown)
            known = (", ".join(shown) or "none") + (f" and {more} more" if more else "")
            raise NotFound.about("model", f"expected one of {known}, got {name[:64]!r}")

    def _follow(self, name: str) -> None:
        """Serve what the repository says, unless that has just failed."""
        if name in self._contents.unreadable:
            self._fail(name, None, self._contents.unreadable[name])
            return
        try:
            version = self.repository.choose_version(name, self.versions[name])
        except BundleError as error:
            self._fail(name, None, str(error))
            return
        if version is None:
            self._retire(name)
            return
        model, failure = self.models.get(name), self.failures.by_name.get(name)
        if model is not None and model.version == version and model.batcher.is_open:
            self.failures.forget(name)
        elif failure is None or failure.is_over(version, self.repository.fingerprint(name, version), self._clock()):
            loaded = self._try(name, version)
            if loaded is not None:
                self._put(loaded)

    def _try(self, name: str, version: int) -> ServedModel | None:
        """Load and prove a version; None if that failed, which is noted."""
        self.loading = (name, version)
        try:
            return self._load(name, version, self.observe(name, version))
        except DeviceError as error:
            if self.is_loading:
                raise
            self._fail(name, version, str(error))
        # Not only `BundleError`: a manifest that is whole but wrong fails somewhere in numpy or ONNX Runtime.
        except Exception as error:
            self._fail(name, version, describe_error(name, version, error))
        finally:
            self.loading = None
        return None

    def _fail(self, name: str, version: int | None, reason: str) -> None:
        reason = self._shorten(reason)[:1000]
        fingerprint = () if version is None else self.repository.fingerprint(name, version)
        if self.failures.add(name, version, reason, fingerprint, self._clock()):
            kept = self.models.get(name)
            still = "" if kept is None else f"; version {kept.version} goes on"
            log.error("%s %s%s", name, self.explain(name), still)

    def _shorten(self, reason: str) -> str:
        """Where the repository lies is none of the clients' business."""
        return reason.replace(f"{self.repository.folder}{os.sep}", "")

    def _put(self, model: ServedModel) -> None:
        self.failures.forget(model.name)
        self.models = {**self.models, model.name: model}

    def _retire(self, name: str) -> None:
        self.failures.forget(name)
        if name in self.models:
            log.info("%s is unloaded", name)
            self.models = {other: model for other, model in self.models.items() if other != name}

    def _write_alias(self, name: str, version: int | None) -> None:
        try:
            self.repository.activate(name, version)
        except BundleError as error:
            raise Conflict(self._shorten(str(error))) from None

    def _lose(self) -> None:
        self.is_lost = True
        self._on_lost()

    def _load(self, name: str, version: int, observer: Observer = NOBODY) -> ServedModel:
        return load_model(
            self.repository.locate(name, version),
            self.settings,
            self._tuner,
            observer=observer,
            on_lost=self._lose,
            is_idle=not self.models,
        )
