"""The models of the grid that the tests at hand ask for: saved, exported by two processes, and served by one."""

import contextlib
import json
import multiprocessing
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load

from tests.conftest import Served
from tests.grid.configs import GRID, save_random
from tests.grid.rules import Choice

NUM_PROCESSES = 2
MAX_LOAD_SECONDS = 600


@dataclass(frozen=True)
class Answer:
    """What the service said of one sequence."""

    logits: NDArray[np.float32]
    """[n, W] or [n, C]; of classify_sequence [1, C]."""
    maps: NDArray[np.float32]
    """[L, H, n, n], the leading row included."""


@dataclass(frozen=True)
class Allowed:
    """What the certificate of a model allows it to differ by."""

    logits: float
    maps: float


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Folders and a server."""

    checkpoints: Path
    repository: Path
    server: Served

    def allowed(self, name: str) -> Allowed:
        certificate = self.server.client.get(f"/v1/models/{name}").json()["certificate"]
        assert certificate["precision"] == GRID[name]["precision"]
        return Allowed(certificate["logits"]["allowed"], certificate["maps"]["allowed"])

    def ask(self, name: str, *sequences: Any) -> list[Answer]:
        """All logits and all weights of sequences sent together."""
        choice = GRID[name]
        body = {"sequences": sequences, "top_k": num_outputs(choice), "quantity": "weights"}
        if choice["task"] != "classify_sequence":
            body["positions"] = "all"
        response = self.server.post("attention", body, model=name, headers={"Accept": "application/x-safetensors"})
        assert response.status_code == 200, response.text
        size = int.from_bytes(response.content[:8], "little")
        answer = json.loads(json.loads(response.content[8 : 8 + size])["__metadata__"]["answer"])
        assert bool(answer["warnings"]) == has_warnings(choice)
        tensors = load(response.content)
        return [
            Answer(logits_of(choice, prediction, len(sequence)), tensors[f"sequences.{index}.weights"])
            for index, (sequence, prediction) in enumerate(zip(sequences, answer["predictions"], strict=True))
        ]

    def predict(self, name: str, sequence: Any) -> NDArray[np.float32]:
        """The logits of one sequence, of whose weights nothing is asked."""
        choice = GRID[name]
        body = {"sequences": [sequence], "top_k": num_outputs(choice)}
        if choice["task"] != "classify_sequence":
            body["positions"] = "all"
        (prediction,) = self.server.ask("predict", body, model=name)["predictions"]
        return logits_of(choice, prediction, len(sequence))


def num_outputs(choice: Choice) -> int:
    return int(choice["vocabulary_size"] if choice["task"] == "next_token" else choice["num_classes"])


def is_leaky(choice: Choice) -> bool:
    return "sequence-leaky" in choice.values()


def has_warnings(choice: Choice) -> bool:
    return is_leaky(choice) or (choice["task"] == "next_token" and not choice["causal"])


def logits_of(choice: Choice, prediction: dict[str, Any], num_steps: int) -> NDArray[np.float32]:
    top = prediction["top"]
    if choice["task"] == "classify_sequence":
        assert prediction["positions"] is None
    else:
        assert prediction["positions"] == list(range(num_steps))
    logits = np.full((len(top), num_outputs(choice)), np.nan, np.float32)
    for row, entries in zip(logits, top, strict=True):
        row[[entry["id"] for entry in entries]] = [entry["logit"] for entry in entries]
    assert np.isfinite(logits).all()
    return logits


@pytest.fixture(scope="session")
def grid(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    start_server: Callable[..., AbstractContextManager[Served]],
) -> Iterator[Grid]:
    folder = tmp_path_factory.mktemp("grid")
    # Not the tests of the grid that need no server, which are not slow.
    asking = [item for item in request.session.items if "grid" in getattr(item, "fixturenames", ())]
    names = {item.callspec.params["name"] for item in asking}
    chosen = [name for name in GRID if name in names]
    for name in chosen:
        save_random(name, folder / "checkpoints" / name)
    export(chosen, folder)
    with start_server(folder / "repository", "--tuning-seconds", "0.01", ready=False) as server:
        wait_until_loaded(server)
        yield Grid(checkpoints=folder / "checkpoints", repository=folder / "repository", server=server)
    assert server.process.returncode == 0
    assert "Traceback" not in server.log.read_text()


def export(names: list[str], folder: Path) -> None:
    """`attnserve export`, with one start of a process, and one import of torch, for many models."""
    from attnserve.export import export_checkpoint

    # Not a fork: torch has threads. Nothing of the tests is sent there, only the package's own function.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(NUM_PROCESSES, len(names)), mp_context=context) as processes:
        jobs = {
            name: processes.submit(
                export_checkpoint,
                folder / "checkpoints" / name,
                folder / "repository" / name / "1",
                precision=GRID[name]["precision"],
                portable=GRID[name]["portable"],
            )
            for name in names
        }
    # All of them, so that one run tells all that are wrong.
    if errors := {name: error for name, job in jobs.items() if (error := job.exception()) is not None}:
        pytest.fail("\n".join(f"{name}: {GRID[name]}\n{error}" for name, error in errors.items()))


def wait_until_loaded(server: Served) -> None:
    """Every model replays golden first, so a grid takes longer than a start should."""
    for _ in range(MAX_LOAD_SECONDS):
        if server.client.get("/readyz").status_code == 200:
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(timeout=1)
            break
    models = server.client.get("/v1/models").json()["models"]
    assert all(model["ready"] for model in models), f"{models}\n{server.log.read_text()}"
