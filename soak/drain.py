"""Told to stop under load: whatever was sent is answered, and then nothing is left."""

import asyncio
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soak.crowd import Crowd
from soak.questions import Asked, ask_prediction, draw_ids
from soak.server import STOP_S, Server, copy_models, serving
from soak.verdict import Report, check_zero

NUM_STOPS = 10
MODEL = "nt-expressive"
NUM_CONNECTIONS = 8
# How long the load lasts before the signal, so that it comes at any moment of a batch.
LOAD_S = (0.5, 1.5)


@dataclass(frozen=True, kw_only=True)
class Stop:
    """How one server ended."""

    num_answers: int
    num_faults: int
    faults: list[str]
    num_refused: int
    """Clients that were told to go elsewhere: nobody listens any more."""
    seconds: float
    """From the signal to the end of the process."""
    exit_code: int | None
    """None: it did not end."""
    num_left: int
    """Processes of its group."""


def run(repository: Path, work: Path, scale: float) -> Report:
    """Stop servers under load."""
    copies = copy_models(repository, [MODEL], work / "repository")
    stops = []
    generator = random.Random(0)
    for _ in range(max(2, round(NUM_STOPS * scale))):
        with serving(copies, work, "--log-level", "warning") as server:
            stops.append(asyncio.run(_stop(server, generator.uniform(*LOAD_S))))
    return judge(stops)


def judge(stops: list[Stop]) -> Report:
    """What several stops show."""
    faults = [fault for stop in stops for fault in stop.faults]
    return Report(
        figures={
            "stops": len(stops),
            "answers": sum(stop.num_answers for stop in stops),
            "sent and not answered 200": sum(stop.num_faults for stop in stops),
            "told to go elsewhere": sum(stop.num_refused for stop in stops),
            "seconds to the end, longest": max(stop.seconds for stop in stops),
        },
        broken=[
            *check_zero(
                "requests sent and not answered 200", sum(stop.num_faults for stop in stops), "; ".join(faults)
            ),
            *check_zero("stops that did not end with 0", sum(stop.exit_code != 0 for stop in stops)),
            *check_zero("processes left", sum(stop.num_left for stop in stops)),
            *check_zero("stops without load before them", sum(not stop.num_answers for stop in stops)),
        ],
    )


async def _stop(server: Server, load_s: float) -> Stop:
    asked = Asked(name=MODEL, vocabulary_size=8, longest=256)
    generator = np.random.default_rng(0)
    questions = [ask_prediction(asked, [draw_ids(asked, generator)]) for _ in range(64)]
    crowd = Crowd(server.port, lambda number: questions[number % len(questions)], num_connections=NUM_CONNECTIONS)
    asking = asyncio.create_task(crowd.ask_until_refused())
    await asyncio.sleep(load_s)
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    try:
        exit_code: int | None = await asyncio.to_thread(server.process.wait, STOP_S)
    except subprocess.TimeoutExpired:
        exit_code = None
    seconds = time.monotonic() - begin
    await asking
    await crowd.close()
    return Stop(
        num_answers=crowd.num_answers,
        num_faults=crowd.num_faults,
        faults=crowd.faults,
        num_refused=crowd.num_refused,
        seconds=seconds,
        exit_code=exit_code,
        num_left=count_group(server.process.pid),
    )


def count_group(group: int) -> int:
    """Processes of a group that live."""
    count = 0
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text("utf-8").rpartition(")")[2].split()
            except OSError:
                # It ended meanwhile.
                continue
            count += int(fields[2]) == group and fields[0] != "Z"
    return count
