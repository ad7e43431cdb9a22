"""mosec: a Rust front, and one process that runs the model."""

import sys
from typing import Any

import orjson
from mosec import Server, Worker

from benchmarks.peers.model import batch_size, open_session, port, predict_one, predict_padded


class _Worker(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.session = open_session()

    # Its own are the standard library's json.
    def deserialize(self, data: bytes) -> Any:
        return orjson.loads(data)

    def serialize(self, data: Any) -> bytes:
        return orjson.dumps(data)


class One(_Worker):
    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return predict_one(self.session, data["sequence"])


class Padded(_Worker):
    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return predict_padded(self.session, [body["sequence"] for body in data])


if __name__ == "__main__":
    # Where mosec reads its settings.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(port()), "--timeout", "60000", "--log-level", "warning"]
    server = Server()
    if batch_size() == 1:
        server.append_worker(One, route="/predict")
    else:
        # A batch waits for company for a millisecond, the least that mosec knows (0 means 10): while one batch runs,
        # the next gathers anyway.
        server.append_worker(Padded, route="/predict", max_batch_size=batch_size(), max_wait_time=1)
    server.run()
