"""The same model in PyTorch behind plain FastAPI: `python -m benchmarks.gpu.torch_server CHECKPOINT --port N`.

As much of attnserve's API as `attnserve bench --url` asks for. What arrives while a batch computes is the next one, up
to `--batch-size`; it is packed by attnserve's own packer and runs through the very module that was exported, so both
servers compute the same of it. There is no validation, no metric and no limit.
"""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
import uvicorn
from fastapi import FastAPI, Request, Response

from attnserve.models import load_checkpoint
from attnserve.packing import pack

TOP = 5
# What shapes a compiled model meets first: one sequence, which it treats apart, and several.
WARM_UP = ((7,), (300,), (9, 64, 30), (512,) * 3, tuple(range(8, 500, 16)))


class Predictor:
    """A model on a device. Products of float32 are float32's, as attnserve's are: TF32 is PyTorch's to be asked for."""

    def __init__(self, checkpoint: Path, device: str, precision: str, *, is_compiled: bool) -> None:
        self.device = torch.device(device)
        self.model = load_checkpoint(checkpoint).model.eval().to(self.device, getattr(torch, precision))
        self.forward = torch.compile(self.model, dynamic=True, fullgraph=True) if is_compiled else self.model
        self.config = self.model.config

    def warm_up(self) -> None:
        for lengths in WARM_UP:
            for _ in range(2):
                self.predict([[0] * min(length, self.config.max_length) for length in lengths])

    @torch.inference_mode()
    def predict(self, sequences: Sequence[Sequence[int]]) -> list[list[dict[str, Any]]]:
        """The likeliest tokens after each sequence."""
        packed = pack([np.array(sequence, np.int64) for sequence in sequences])
        rows = np.cumsum(packed.lengths) - 1
        inputs = (packed.inputs, packed.positions, packed.slots, rows)
        logits = self.forward(*(torch.from_numpy(array).to(self.device) for array in inputs)).float()
        top = logits.topk(TOP)
        shares = (top.values - logits.logsumexp(-1, keepdim=True)).exp()
        columns = (top.indices.tolist(), shares.tolist(), top.values.tolist())
        return [
            [{"id": id_, "probability": share, "logit": logit} for id_, share, logit in zip(*row, strict=True)]
            for row in zip(*columns, strict=True)
        ]


class Batches:
    """One queue, one thread: what waits when the device is free is the next batch."""

    def __init__(self, predictor: Predictor, batch_size: int) -> None:
        self.predictor, self.batch_size = predictor, batch_size
        self.waiting: asyncio.Queue[tuple[list[int], asyncio.Future[Any]]] = asyncio.Queue()

    async def ask(self, sequence: list[int]) -> list[dict[str, Any]]:
        future: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        await self.waiting.put((sequence, future))
        return await future

    async def serve(self) -> None:
        with ThreadPoolExecutor(1) as thread:
            while True:
                batch = [await self.waiting.get()]
                while len(batch) < self.batch_size and not self.waiting.empty():
                    batch.append(self.waiting.get_nowait())
                sequences = [sequence for sequence, _ in batch]
                try:
                    answers = await asyncio.get_running_loop().run_in_executor(
                        thread, self.predictor.predict, sequences
                    )
                except Exception as error:
                    for _, future in batch:
                        future.set_exception(error)
                    continue
                for (_, future), answer in zip(batch, answers, strict=True):
                    future.set_result(answer)


def make_app(predictor: Predictor, batch_size: int) -> FastAPI:
    batches = Batches(predictor, batch_size)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        predictor.warm_up()
        serving = asyncio.create_task(batches.serve())
        yield
        serving.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/readyz")
    async def ready() -> Response:
        return Response()

    @app.get("/v1/models/{model}")
    async def describe(model: str) -> dict[str, Any]:
        config = predictor.config
        return {
            "name": model,
            "version": 1,
            "ready": True,
            "task": config.task,
            "limits": {"max_length": config.max_length},
            "vocabulary_size": config.vocabulary_size,
            "num_features": None,
        }

    @app.post("/v1/models/{model}/predict")
    async def predict(request: Request) -> Response:
        body = orjson.loads(await request.body())
        answers = [{"top": [await batches.ask(sequence)]} for sequence in body["sequences"]]
        return Response(orjson.dumps({"predictions": answers}), media_type="application/json")

    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.torch_server", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--precision", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    predictor = Predictor(options.checkpoint, options.device, options.precision, is_compiled=options.compile)
    app = make_app(predictor, options.batch_size)
    uvicorn.run(app, host="127.0.0.1", port=options.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
