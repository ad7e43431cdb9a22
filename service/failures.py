"""Failures: which versions cannot be served, why, and when to try them again."""

import logging
from collections.abc import Container
from dataclasses import dataclass

from attnserve.bundle import BundleError
from attnserve.sessions import DeviceError
from attnserve.text import TextError

log = logging.getLogger(__name__)

# At once when its files change, else after this long, and then twice as long each time: a disk that was full may be so
# no more, a bundle that is broken stays broken.
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 10.0, 600.0


def describe_error(name: str, version: int, error: Exception) -> str:
    """Why a version could not be loaded, for those who asked for it; what nobody expected goes to the log as well."""
    if isinstance(error, BundleError | DeviceError | TextError | OSError):
        return str(error)
    log.error("%s/%d failed in an unknown way", name, version, exc_info=error)
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a version of a model is not served."""

    version: int | None
    """None if it is not even known which one it would be."""
    reason: str
    fingerprint: tuple[int, ...]
    """Of the bundle that failed."""
    num_tries: int
    retry_at: float

    def is_over(self, version: int, fingerprint: tuple[int, ...], now: float) -> bool:
        """Whether that version of the model should be tried again."""
        return (version, fingerprint) != (self.version, self.fingerprint) or now >= self.retry_at

    def __str__(self) -> str:
        version = "" if self.version is None else f"version {self.version} "
        return f"{version}cannot be served: {self.reason}"


class Failures:
    """The last failure of every model that has one. Read by any thread, changed by one at a time."""

    def __init__(self) -> None:
        # Replaced, never changed.
        self.by_name: dict[str, Failure] = {}

    def add(self, name: str, version: int | None, reason: str, fingerprint: tuple[int, ...], now: float) -> bool:
        """Note a failure; returns whether it is news."""
        before = self.by_name.get(name)
        num_tries = 1 + (before.num_tries if before is not None and before.version == version else 0)
        failure = Failure(
            version=version,
            reason=reason,
            fingerprint=fingerprint,
            num_tries=num_tries,
            # Bounded twice: of two to the power of a thousand tries there is no float.
            retry_at=now + min(FIRST_RETRY_SECONDS * 2.0 ** min(num_tries - 1, 30), LAST_RETRY_SECONDS),
        )
        self.by_name = {**self.by_name, name: failure}
        return before is None or before.reason != reason

    def forget(self, name: str) -> None:
        """It is served, or not wanted any more."""
        if name in self.by_name:
            self.by_name = {other: failure for other, failure in self.by_name.items() if other != name}

    def keep(self, names: Container[str]) -> None:
        """Forget all other models."""
        self.by_name = {name: failure for name, failure in self.by_name.items() if name in names}
