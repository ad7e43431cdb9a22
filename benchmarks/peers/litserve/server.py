"""LitServe: uvicorn in one process, the model in another."""

from typing import Any

import litserve

from benchmarks.peers.model import batch_size, open_session, port, predict_one, predict_padded


class One(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002
        self.session = open_session()

    def decode_request(self, request: dict[str, Any]) -> list[int]:
        return request["sequence"]

    def predict(self, x: Any) -> Any:
        return predict_one(self.session, x)


class Padded(One):
    def batch(self, inputs: list[list[int]]) -> list[list[int]]:
        return inputs

    def predict(self, x: Any) -> Any:
        return predict_padded(self.session, x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output


if __name__ == "__main__":
    # With a timeout of 0, its default, the loop asks for work without a pause, and takes a whole core for nothing.
    api = One() if batch_size() == 1 else Padded(max_batch_size=batch_size(), batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1",
        port=port(),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
