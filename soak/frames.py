"""Mutated frames of the Open Inference Protocol over connections that are kept: refused in words, and forgotten."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from attnserve.service.oip.request import HEADER
from soak.connection import Connection, Question, Reply
from soak.crowd import Crowd
from soak.mutations import Frame, make_frame, mutate
from soak.server import SETTLE_S, Server, serving
from soak.verdict import Report, check_growth, check_zero

# Caches and heaps fill up for the first third of them.
NUM_FRAMES = 100_000
# Two of ids, one of vectors and one of texts.
MODELS = ("nt-expressive", "nt-elliptical", "digits-elliptical", "text-expressive")
HANG_S = 10.0
MOST_GROWTH_PERCENT = 5.0
# Refused in words, or by design too late or too much. 404: a frame cannot change its path.
ALLOWED = frozenset({200, 400, 413, 415, 422, 429, 503, 504})
TOLERANCE = 1e-5
MAX_PROBLEM_BYTES = 16 * 1024


def run(repository: Path, work: Path, scale: float) -> Report:
    """Send frames and find out what broke."""
    with serving(repository, work, "--log-level", "warning") as server:
        return asyncio.run(_send(server, scale))


async def _send(server: Server, scale: float) -> Report:
    count = max(500, round(NUM_FRAMES * scale))
    frames = make_frames()
    connection = Connection(server.port)
    truth = [await _ask_good(connection, frame.as_question()) for frame in frames]
    generator = random.Random(0)

    def draw(_: int) -> Question:
        return mutate(generator.choice(frames), generator).as_question()

    crowd = Crowd(server.port, draw, judge=judge, timeout_s=HANG_S)
    resident = []
    num_wrong = 0
    for _ in range(10):
        await crowd.ask(count // 10)
        for frame, expected in zip(frames, truth, strict=True):
            num_wrong += not is_close(await _ask_good(connection, frame.as_question()), expected)
        await asyncio.sleep(SETTLE_S if scale >= 1 else 0)
        resident.append(server.resident_mib)
    await crowd.close()
    await connection.close()
    statuses = {f"status {status}": number for status, number in sorted(crowd.statuses.items())}
    return Report(
        figures={
            "frames": crowd.num_answers,
            **statuses,
            "resident MiB, by tenths": " ".join(f"{one:.0f}" for one in resident),
        },
        broken=[
            *check_zero("wrong answers, or none within 10 s", crowd.num_faults, "; ".join(crowd.faults[:3])),
            *check_zero("good requests answered with other numbers than before", num_wrong),
            *check_zero("tracebacks in the log", server.num_tracebacks),
            *check_statuses(crowd.statuses),
            # By half of them every kind of bomb has met every other.
            *check_growth("memory", resident[4], resident[-1], most_percent=MOST_GROWTH_PERCENT, scale=scale),
        ],
    )


def make_frames() -> list[Frame]:
    """A valid frame for every kind of input: ids, vectors, texts."""
    tokens = np.array([[3, 1, 4, 1, 5, 2, 6, 5], [5, 3, 0, 0, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0, 0, 0]], "<i8")
    lengths = np.array([8, 2, 1], "<i8")
    outputs: list[dict[str, object]] = [
        {"name": "logits"},
        {"name": "layers.0.weights", "parameters": {"binary_data": True}},
    ]
    ids: dict[str, NDArray[np.generic]] = {"tokens": tokens, "lengths": lengths}
    images = np.random.default_rng(0).random((2, 16, 4), np.float32)
    texts = [b"Returns a new tensor", "naïve \N{GRINNING FACE}".encode()]
    packed = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    bytes_input = {"name": "text", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(packed)}}
    return [
        _describe("nt-expressive", ids, outputs, {"positions": "all"}),
        _describe("nt-elliptical", ids, [{"name": "logits", "parameters": {"binary_data": True}}], {"timeout": 5e6}),
        _describe("digits-elliptical", {"features": images}, outputs, {}),
        make_frame("/v2/models/text-expressive/infer", {"inputs": [bytes_input], "id": "text"}, packed),
    ]


def judge(_: Question, reply: Reply) -> str | None:
    """What is wrong with the answer to a frame, whatever the frame was."""
    if reply.status not in ALLOWED:
        return f"{reply.status} {reply.body[:200]!r}"
    if reply.status == 200:
        try:
            read_tensors(reply)
        except (ValueError, KeyError, TypeError) as error:
            return f"200 that cannot be read: {error!r}"
        return None
    try:
        document = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        return f"{reply.status} without a problem: {reply.body[:200]!r}"
    if not isinstance(document, dict) or not document.get("error") or document.get("status") != reply.status:
        return f"{reply.status} without a problem: {reply.body[:200]!r}"
    # Inputs are not echoed.
    return f"{reply.status} of {len(reply.body)} bytes" if len(reply.body) > MAX_PROBLEM_BYTES else None


def check_statuses(statuses: "dict[int, int]") -> list[str]:
    """The law that the frames were worth sending: some right, some not the protocol's, some that no model can read."""
    missing = [str(status) for status in (200, 400, 413, 415, 422) if not statuses.get(status)]
    return [f"no frame was answered {', '.join(missing)}: they do not reach what they should"] if missing else []


def read_tensors(reply: Reply) -> list[NDArray[np.float32]]:
    """The outputs of an answer.

    Raises:
        ValueError: its parts do not fit each other.
        KeyError: a field is missing.
    """
    size = int(reply.headers.get(HEADER.lower(), len(reply.body)))
    place, tensors = size, []
    for entry in orjson.loads(reply.body[:size])["outputs"]:
        num_bytes = entry.get("parameters", {}).get("binary_data_size")
        if num_bytes is None:
            values = np.array(entry["data"], np.float32)
        else:
            values = np.frombuffer(reply.body[place : place + num_bytes], "<f4")
            place += num_bytes
        tensors.append(values.reshape(entry["shape"]))
    if place != len(reply.body):
        raise ValueError(f"expected {place} bytes, got {len(reply.body)}")
    return tensors


def is_close(found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> bool:
    """Whether two answers are the same up to rounding."""
    return len(found) == len(expected) and all(
        one.shape == other.shape and np.allclose(one, other, rtol=0, atol=TOLERANCE)
        for one, other in zip(found, expected, strict=True)
    )


def _describe(
    model: str, arrays: dict[str, NDArray[np.generic]], outputs: list[dict[str, object]], parameters: dict[str, object]
) -> Frame:
    inputs = [
        {
            "name": name,
            "datatype": "INT64" if array.dtype.kind == "i" else "FP32",
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    document = {"id": "one", "inputs": inputs, "outputs": outputs, "parameters": parameters}
    tail = b"".join(array.tobytes() for array in arrays.values())
    return make_frame(f"/v2/models/{model}/infer", document, tail)


async def _ask_good(connection: Connection, question: Question) -> list[NDArray[np.float32]]:
    reply = await connection.ask(question, timeout_s=HANG_S)
    if reply.status != 200:
        raise RuntimeError(f"a good request was answered {reply.status} {reply.body[:500]!r}")
    return read_tensors(reply)
