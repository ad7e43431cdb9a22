"""Keys: who may ask, and for what. The service knows their hashes only, so whoever reads its files cannot ask.

One round of SHA-256 is enough. Slow hashes make up for passwords, which can be guessed; a key has 256 random bits, and
nobody guesses those at any speed. A slow hash would only cost every request tens of milliseconds.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from attnserve.service.document import read_document

SCOPES = ("predict", "attention", "admin")
FIELDS = ("name", "sha256", "scopes")
# Scanners for leaked secrets know a key by its beginning.
PREFIX = "attnserve_"
NUM_RANDOM_BYTES = 32
# A name stands in logs.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Longer words may be a key that stands in the wrong place.
MAX_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Key:
    """One who may ask."""

    name: str
    scopes: frozenset[str]
    digest: bytes = field(repr=False)
    """SHA-256 of the key, 32 bytes."""


def make_secret() -> str:
    """A new key: `PREFIX` and 256 bits from the system's generator."""
    return PREFIX + secrets.token_urlsafe(NUM_RANDOM_BYTES)


def hash_secret(secret: str) -> bytes:
    """SHA-256 of a key as it came in a header, 32 bytes."""
    # Headers are bytes, which Starlette reads as Latin-1.
    return hashlib.sha256(secret.encode("latin-1", "replace")).digest()


def write_entry(name: str, secret: str, scopes: Sequence[str]) -> str:
    """The line for a keys file."""
    # In quotes, or YAML would read `no` as false and `12e4` as a number.
    return f'- {{name: "{name}", sha256: "{hash_secret(secret).hex()}", scopes: [{", ".join(scopes)}]}}'


def find_key(keys: Sequence[Key], secret: str) -> Key | None:
    """The key that was sent, or None; takes equally long whichever it is, or nearly is."""
    digest = hash_secret(secret)
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def parse_keys(given: object) -> tuple[Key, ...]:
    """Keys from a list of entries `{name, sha256, scopes}`, or from its text in YAML or JSON.

    Raises:
        ValueError: names the entry and the field, and shows neither key nor hash.
    """
    entries = read_document(given) if isinstance(given, str) else given
    if not isinstance(entries, list | tuple) or not entries:
        got = "an empty list" if entries in ([], ()) else _describe(entries)
        raise ValueError(f"expected a list of entries with {', '.join(FIELDS)}, got {got}")
    keys = tuple(_parse_entry(entry, number) for number, entry in enumerate(entries, 1))
    check_unique(keys)
    return keys


def check_unique(keys: Sequence[Key]) -> None:
    """Refuse two keys of one name, and one key under two names.

    Raises:
        ValueError: names the second.
    """
    names: dict[str, int] = {}
    digests: dict[bytes, str] = {}
    for number, key in enumerate(keys, 1):
        place = f"entry {number} ({key.name})"
        if key.name in names:
            raise ValueError(f"{place}, name: expected each name once, got that of entry {names[key.name]} again")
        if key.digest in digests:
            raise ValueError(f"{place}, sha256: expected each key once, got that of {digests[key.digest]} again")
        names[key.name], digests[key.digest] = number, key.name


def parse_scopes(given: object, place: str) -> frozenset[str]:
    """Scopes from a list of their names, none included.

    Raises:
        ValueError: `place`, what was expected and what came.
    """
    expected = f"expected a list of {', '.join(SCOPES)}"
    if not isinstance(given, list):
        raise ValueError(f"{place}: {expected}, got {_describe(given)}")
    for scope in given:
        if scope not in SCOPES:
            raise ValueError(f"{place}: {expected}, got {_describe(scope)} in it")
    return frozenset(given)


def check_name(given: object, place: str) -> str:
    """The name of a key.

    Raises:
        ValueError: `place`, what was expected and what came.
    """
    if not isinstance(given, str) or not NAME.fullmatch(given):
        expected = "1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        raise ValueError(f"{place}: expected {expected}, got {_describe(given)}")
    return given


def _parse_entry(entry: object, number: int) -> Key:
    place = f"entry {number}"
    if isinstance(entry, Key):
        return entry
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected {', '.join(FIELDS)}, got {_describe(entry)}")
    for name in FIELDS:
        if name not in entry:
            raise ValueError(f"{place}, {name}: missing; expected {', '.join(FIELDS)}")
    key_name = check_name(entry["name"], f"{place}, name")
    place = f"{place} ({key_name})"
    for name in entry:
        if name not in FIELDS:
            hint = "; keys are kept as hashes: attnserve key makes both" if name in ("key", "secret", "token") else ""
            raise ValueError(f"{place}: expected {', '.join(FIELDS)}, got the field {_describe(name)} as well{hint}")
    digits = entry["sha256"]
    if not isinstance(digits, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
        got = f"{len(digits)} characters" if isinstance(digits, str) else _describe(digits)
        raise ValueError(f"{place}, sha256: expected 64 hexadecimal digits in quotes, got {got}")
    scopes = parse_scopes(entry["scopes"], f"{place}, scopes")
    return Key(name=key_name, scopes=scopes, digest=bytes.fromhex(digits))


def _describe(value: Any) -> str:
    """A value in words; quoted only if it is too short to be a key or a hash."""
    if isinstance(value, str):
        return repr(value) if len(value) <= MAX_SHOWN else f"{len(value)} characters"
    kinds = {type(None): "nothing", bool: "yes or no", dict: "a mapping", list: "a list"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "something else")
