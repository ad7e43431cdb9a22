"""Guests: versions that are not served, loaded because somebody compares with them."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from attnserve.service.failures import describe_error
from attnserve.service.model import ServedModel
from attnserve.service.problems import Conflict, NotFound

# So long after it was asked for last, a guest is let go.
STAY_SECONDS = 600.0


class Guests:
    """The version that was asked for last, beside those that are served; the next one takes its room.

    Args:
        load: a version of a model, as those that are served are loaded.
        shorten: makes of a reason what clients may read.
        clock: seconds.
    """

    def __init__(
        self,
        load: Callable[[str, int], ServedModel],
        shorten: Callable[[str], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._shorten = shorten
        self._clock = clock
        self._guest: ServedModel | None = None
        self._invited = clock()
        self._changing = threading.Lock()

    def invite(self, name: str, version: int, versions: Sequence[int]) -> ServedModel:
        """A version of a model, which may take seconds to load.

        Args:
            name: of the model.
            version: of it.
            versions: that there are.

        Raises:
            NotFound: no such version.
            Conflict: it cannot be served; says why.
        """
        if version not in versions:
            raise NotFound(f"expected one of {list(versions)}, got {version}")
        with self._changing:
            guest, self._invited = self._guest, self._clock()
            if guest is not None and (guest.name, guest.version) == (name, version) and guest.batcher.is_open:
                return guest
            # Its memory first.
            guest = self._guest = None
            try:
                self._guest = self._load(name, version)
            # Not only `BundleError`: a manifest that is whole but wrong fails somewhere in numpy or ONNX Runtime.
            except Exception as error:
                reason = self._shorten(describe_error(name, version, error))[:1000]
                raise Conflict(f"version {version} cannot be served: {reason}") from None
            return self._guest

    def dismiss(self, versions: Mapping[str, Sequence[int]]) -> None:
        """Let a guest go that the repository has no more, or that nobody has asked for of late."""
        if not self._changing.acquire(blocking=False):
            # One is being loaded.
            return
        try:
            guest = self._guest
            is_there = guest is not None and guest.version in versions.get(guest.name, ())
            if not is_there or self._clock() - self._invited > STAY_SECONDS:
                self._guest = None
        finally:
            self._changing.release()

    def close(self) -> None:
        """Let go of whoever is there; what is queued is answered."""
        with self._changing:
            if self._guest is not None:
                self._guest.batcher.close()
                self._guest = None
