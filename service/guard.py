"""The guard: which key opens which route, and what the operator keeps shut for all of them.

Every endpoint says what it needs, and is checked before its body is read.
"""

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.routing import APIRoute

from attnserve.service.captures.levels import LEVELS, MAPS, level_of
from attnserve.service.keyring import Keyring
from attnserve.service.keys import Key
from attnserve.service.problems import Forbidden, Unauthorized

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

ATTRIBUTE = "__attnserve_need__"
API_KEY, AUTHORIZATION = "X-Api-Key", "Authorization"
EXPECTED = f"expected a key, as {AUTHORIZATION}: Bearer KEY or {API_KEY}: KEY"

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": API_KEY},
}
"""`securitySchemes` of OpenAPI."""


class Need(enum.StrEnum):
    """What a request must have, where the service has keys: a key of that scope, any key, or none."""

    NOTHING = "no key"
    KEY = "any key"
    PREDICT = "predict"
    ATTENTION = "attention"
    ADMIN = "admin"


def needs(need: Need) -> Callable[[Endpoint], Endpoint]:
    """Say what an endpoint needs; stands right above it, below its route."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, ATTRIBUTE, need)
        return endpoint

    return decorate


def need_of(endpoint: Callable[..., Any]) -> Need:
    """What an endpoint says that it needs.

    Raises:
        TypeError: it does not say.
    """
    need = getattr(endpoint, ATTRIBUTE, None)
    if not isinstance(need, Need):
        name = getattr(endpoint, "__name__", endpoint)
        raise TypeError(f"endpoint {name}: expected @needs(Need....) between its route and its def, got none")
    return need


def admit(request: Request, need: Need) -> None:
    """Let a request in, or not; costs nothing where the service has no keys.

    Raises:
        Unauthorized: no key, or none that is known.
        Forbidden: a known key without the scope.
    """
    keyring: Keyring | None = request.app.state.keyring
    if keyring is None:
        return
    header, secret = _read_secret(request)
    key = keyring.find(secret)
    if key is None:
        raise Unauthorized.about(header, "expected a key that this service knows, got another")
    # For `require`, and for the log.
    request.scope["key"] = key
    _check_scope(key, need, header)


def require(request: Request, need: Need, field: str) -> None:
    """Check a second scope, of a request that was let in; `field` is what of its body needs that.

    Raises:
        Forbidden: its key lacks the scope.
    """
    if request.app.state.keyring is not None:
        _check_scope(request.scope["key"], need, field)


def describe_security(need: Need) -> list[dict[str, list[str]]]:
    """`security` of an operation in OpenAPI: either header, with the scope where one is needed."""
    scopes = [need.value] if need not in (Need.NOTHING, Need.KEY) else []
    return [] if need is Need.NOTHING else [{name: scopes} for name in SCHEMES]


def needs_table(routes: Iterable[APIRoute]) -> str:
    """What routes need as a markdown table, for docs/security.md."""
    lines = ["| key with | routes |", "| --- | --- |"]
    by_need: dict[Need, dict[str, None]] = {need: {} for need in Need}
    for route in routes:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            by_need[need_of(route.endpoint)][f"`{method} {route.path}`"] = None
    for need, named in by_need.items():
        if named:
            what = need.value if need in (Need.NOTHING, Need.KEY) else f"scope `{need.value}`"
            lines.append(f"| {what} | {', '.join(named)} |")
    return "\n".join(lines) + "\n"


def _check_scope(key: Key, need: Need, field: str) -> None:
    if need not in (Need.NOTHING, Need.KEY) and need.value not in key.scopes:
        has = ", ".join(sorted(key.scopes)) or "none"
        raise Forbidden.about(field, f"expected a key with the scope {need.value}, got {key.name} with {has}")


def _read_secret(request: Request) -> tuple[str, str]:
    """The name of the header, and the key in it. Never shown: who forgets `Bearer` has sent nothing but the key."""
    secret = request.headers.get(API_KEY)
    if secret is not None:
        return API_KEY, secret.strip()
    value = request.headers.get(AUTHORIZATION)
    if value is None:
        raise Unauthorized.about(AUTHORIZATION, f"{EXPECTED}, got none")
    scheme, _, secret = value.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthorized.about(AUTHORIZATION, f"{EXPECTED}, got something else")
    return AUTHORIZATION, secret.strip()


def require_level(levels: Mapping[str, str], model: str, level: str, field: str) -> None:
    """Refuse what captures of a model may not show.

    Raises:
        Forbidden: names `field`, which asks for it.
    """
    found = level_of(levels, model)
    if LEVELS.index(found) < LEVELS.index(level):
        what = "captures are switched off" if level == MAPS else "queries and keys are not handed out"
        raise Forbidden.about(field, f"{what} for {model} (its operator's setting --captures is {found})")
