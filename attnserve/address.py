"""Address: where a service is and the key to it, given or of the environment, and what is wrong with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:8000"
URL, API_KEY = "ATTNSERVE_URL", "ATTNSERVE_API_KEY"


@dataclass(frozen=True, kw_only=True)
class Names:
    """What messages call the fields of a `Remote`."""

    url: str
    api_key: str


FLAGS = Names(url="--url", api_key=f"--api-key ({API_KEY})")


def choose_url(given: str | None, environment: Mapping[str, str]) -> str:
    """The URL that was given, else that of the environment, else this machine's."""
    return environment.get(URL) or DEFAULT_URL if given is None else given


def choose_api_key(given: str | None, environment: Mapping[str, str]) -> str:
    """The key that was given, else that of the environment; empty is none."""
    return environment.get(API_KEY, "") if given is None else given


def check_url(url: str, name: str = FLAGS.url) -> None:
    """See that a URL is one of a service.

    Args:
        url: of a service.
        name: what the message calls it.

    Raises:
        ValueError: it is not; the message does not hold a password.
    """
    try:
        parts = urlsplit(url)
        # Raises where it is no number.
        parts.port  # noqa: B018
    except ValueError:
        raise ValueError(f"{name}: expected http://HOST:PORT, got {url!r}") from None
    if "@" in parts.netloc:
        raise ValueError(f"{name}: expected http://HOST:PORT, got one with a user")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{name}: expected http://HOST:PORT, got {url!r}")


def check_api_key(api_key: str, name: str = FLAGS.api_key) -> None:
    """See that a key can stand in a header; arguments as `check_url`.

    Raises:
        ValueError: it cannot; the message does not hold it.
    """
    if not (api_key.isascii() and api_key.isprintable()):
        raise ValueError(f"{name}: expected printable ASCII, got other characters")
