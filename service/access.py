"""Access: what every request leaves behind, whatever became of it: an id, a line in the log, and its metrics.

The line says which route, which model, how long and how it ended. Never what was sent: paths, queries and bodies are
user data, so of the path there is only the route that matched.
"""

import logging
import random
import re
import time
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attnserve.service.catalogue import Catalogue
from attnserve.service.metrics import Metrics
from attnserve.service.model import ServedModel
from attnserve.service.stages import Stages

if TYPE_CHECKING:
    # An extra.
    from attnserve.service.tracing import Tracing

UNMATCHED = "unmatched"
# Asked every few seconds by somebody; that all is well is no news.
PROBES = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
log = logging.getLogger("attnserve.access")
# Names, no secrets: those of the system take ten times longer.
_ids = random.Random()


class Access:
    """Middleware around the whole app.

    Args:
        app: what answers.
        metrics: told of every answer.
        catalogue: knows the models there are; other names are none of the log's or metrics' business.
        tracing: told of every request that is no probe.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, catalogue: Catalogue, tracing: "Tracing | None" = None
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.catalogue = catalogue
        self.tracing = tracing

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
            end = time.monotonic()
            seconds = end - begin
            # Set by the router on its way.
            route = getattr(scope.get("route"), "path", UNMATCHED)
            model = scope.get("path_params", {}).get("model", "")
            model = model if model in self.catalogue.versions else ""
            self.metrics.observe_request(route, model, status, seconds)
            asked: ServedModel | None = scope.get("asked")
            if asked is not None:
                asked.statistics.finished(status, seconds)
            if status >= 400:
                self.metrics.observe_rejected(status, scope.get("reason", ""))
            fields: dict[str, Any] = {
                "request_id": request_id,
                "method": scope["method"],
                "route": route,
                "model": model,
                "status": status,
                "ms": round(1000 * seconds, 3),
            }
            extras = ""
            key = scope.get("key")
            if key is not None:
                # Its name, and nothing of the key itself.
                fields["key"] = key.name
                extras = f", key {key.name}"
            if self.tracing is not None and route not in PROBES:
                trace_id = self.tracing.record(
                    scope,
                    route=None if route == UNMATCHED else route,
                    status=status,
                    request_id=request_id,
                    begin=begin,
                    end=end,
                )
                if trace_id is not None:
                    fields["trace_id"] = trace_id
                    extras += f", trace {trace_id}"
            level = logging.DEBUG if route in PROBES and status < 500 else logging.INFO
            place = f"{route} {model}".rstrip()
            log.log(level, "%s %s %d %.1f ms%s", scope["method"], place, status, 1000 * seconds, extras, extra=fields)


def _choose_id(scope: Scope) -> str:
    """The client's id, if it is one that can stand in a log; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and re.fullmatch(rb"[A-Za-z0-9._-]{1,64}", value):
            return str(value.decode("ascii"))
    return f"{_ids.getrandbits(128):032x}"
