"""BentoML: uvicorn under a supervisor, with adaptive batching in the worker."""

from typing import Any

import bentoml

from benchmarks.peers.model import batch_size, open_session, predict_one, predict_padded

SETTINGS: dict[str, Any] = {"workers": 1, "traffic": {"timeout": 60}, "logging": {"access": {"enabled": False}}}


@bentoml.service(**SETTINGS)
class One:
    def __init__(self) -> None:
        self.session = open_session()

    @bentoml.api
    def predict(self, sequence: list[int]) -> dict[str, Any]:
        return predict_one(self.session, sequence)


@bentoml.service(**SETTINGS)
class Padded:
    def __init__(self) -> None:
        self.session = open_session()

    # A batchable route takes a list, and clients send lists; ours have one sequence each.
    # Less than 2 is refused even where only `One` is served.
    @bentoml.api(batchable=True, max_batch_size=max(2, batch_size()), max_latency_ms=60_000)
    def predict(self, sequences: list[list[int]]) -> list[dict[str, Any]]:
        return predict_padded(self.session, sequences)
