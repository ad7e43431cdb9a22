"""Access: what every request leaves behind, whatever became of it: an id, a line in the log, and its metrics.

The line says which route, which model, how long and how it ended. Never what was sent: paths, queries and bodies are
user data, so of the path there is only the route that matched.
"""

import logging
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attnserve.service.metrics import Metrics
from attnserve.service.stages import Stages

UNMATCHED = "unmatched"
# Asked every few seconds by somebody; that all is well is no news.
PROBES = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
log = logging.getLogger("attnserve.access")


class Access:
    """Middleware around the whole app.

    Args:
        app: what answers.
        metrics: told of every answer.
        names: models there are; others are none of the log's or metrics' business.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, names: list[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.names = frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and note."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.monotonic()
        request_id = _choose_id(scope)
        stages: Stages = scope.setdefault("stages", Stages())
        status = 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(b"x-request-id", request_id.encode())]
                if stages.all:
                    headers.append((b"server-timing", stages.describe().encode()))
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            seconds = time.monotonic() - begin
            # Set by the router on its way.
            route = getattr(scope.get("route"), "path", UNMATCHED)
            model = scope.get("path_params", {}).get("model", "")
            model = model if model in self.names else ""
            self.metrics.observe_request(route, model, status, seconds)
            if status >= 400:
                self.metrics.observe_rejected(status)
            fields: dict[str, Any] = {
                "request_id": request_id,
                "method": scope["method"],
                "route": route,
                "model": model,
                "status": status,
                "ms": round(1000 * seconds, 3),
            }
            key = scope.get("key")
            if key is not None:
                # Its name, and nothing of the key itself.
                fields["key"] = key.name
            level = logging.DEBUG if route in PROBES and status < 500 else logging.INFO
            place = f"{route} {model}".rstrip()
            who = "" if key is None else f", key {key.name}"
            log.log(level, "%s %s %d %.1f ms%s", scope["method"], place, status, 1000 * seconds, who, extra=fields)


def _choose_id(scope: Scope) -> str:
    """The client's id, if it is one that can stand in a log; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and re.fullmatch(rb"[A-Za-z0-9._-]{1,64}", value):
            return str(value.decode("ascii"))
    return uuid.uuid4().hex
