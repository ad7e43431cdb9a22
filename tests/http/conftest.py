"""An app whose engine runs on the test's word."""

import asyncio
import contextlib
import threading

import httpx
import numpy as np
import pytest

from attnserve.bundle import read_manifest
from attnserve.service.app import create_app
from attnserve.service.batching import Batcher
from attnserve.service.catalogue import Catalogue
from attnserve.service.cost import Cost
from attnserve.service.job import LogitsAnswer
from attnserve.service.model import ServedModel, describe_manifest
from attnserve.service.observer import NOBODY
from attnserve.service.sequences import Reader
from attnserve.service.settings import Settings
from attnserve.service.statistics import Statistics
from attnserve.service.tuning import Tuning

PREDICT = "/v1/models/tiny/predict"
# Less than nothing is saved by sharing a batch, so nobody does.
ALONE = Cost(seconds_per_run=-1, seconds_per_row=1, seconds_per_cell=0, bytes_per_row=1, bytes_per_cell=0)
POISON = 13


class Engine:
    """Answers with zeros, each time `release` lets it."""

    def __init__(self, manifest):
        self.manifest = manifest
        self.device, self.provider, self.gpus = "cpu", "CPUExecutionProvider", None
        self.observer = NOBODY
        self.started = threading.Semaphore(0)
        self.release = threading.Semaphore(0)
        self.seen = []

    def run(self, jobs):
        self.started.release()
        self.release.acquire()
        self.seen += [job.sequence.tolist() for job in jobs]
        if any(POISON in job.sequence for job in jobs):
            raise ValueError("poisoned")
        width = self.manifest.vocabulary_size
        return [LogitsAnswer(logits=np.zeros((len(job.positions), width), np.float32), captures={}) for job in jobs]


@pytest.fixture
def make_app(bundles, tmp_path):
    """An app, its engine and its queue; nothing is loaded, everything is as if."""
    # Beside the bundles, others would see them.
    uploads = {"checkpoints": str(tmp_path / "checkpoints")}
    with contextlib.ExitStack() as stack:

        def make(*, loaded=True, max_queue=2, **limits):
            catalogue = Catalogue(bundles, Settings(max_queue=max_queue, **{**uploads, **limits}))
            app = create_app(catalogue)
            engine = Engine(read_manifest(bundles / "tiny" / "1"))
            batcher = Batcher(engine.run, ALONE, max_batch_bytes=1e9, max_queue=max_queue)
            # Permission for all that is left over, then the end.
            stack.callback(batcher.close)
            stack.callback(engine.release.release, 1000)
            if loaded:
                model = ServedModel(
                    name="tiny",
                    version=1,
                    engine=engine,
                    batcher=batcher,
                    reader=Reader(engine.manifest),
                    tuning=Tuning(source="given", num_engines=1, num_threads=1, cost=ALONE),
                    statistics=Statistics(),
                    kernels="off",
                    described=describe_manifest(engine.manifest),
                )
                catalogue.models["tiny"] = model
                catalogue.is_loading = False
            return app, engine, batcher

        yield make


def talk(app, conversation):
    """Run a conversation with the app, in one event loop with it."""

    async def run():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await conversation(client)

    asyncio.run(run())


async def until(condition):
    # Without an end a test would not fail but hang.
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


def check_problem(response, status):
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["status"] == status
    assert ("Retry-After" in response.headers) == (status in (429, 503))
    return response.json()["detail"]
