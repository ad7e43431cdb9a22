"""Inputs on which the model fails, among others: who sent one is told so, and nobody else notices."""

import asyncio
import urllib.request
from pathlib import Path

import numpy as np
import orjson

from soak.connection import Question, Reply
from soak.crowd import Crowd
from soak.poisoned import ERROR, PANIC
from soak.questions import Asked, ask_prediction, draw_ids
from soak.server import Server, copy_models, serving
from soak.verdict import Report, check_zero

NUM_REQUESTS = 20_000
MODEL = "nt-expressive"
POISONED_SHARE = 0.02
# So that batches are of several.
NUM_CONNECTIONS = 16
MAX_SEQUENCES = 3
RETRIED = "inference_failed_batches_total"


def run(repository: Path, work: Path, scale: float) -> Report:
    """Ask a server whose engine fails now and then."""
    copies = copy_models(repository, [MODEL], work / "repository")
    program = ("-m", "soak.poisoned", "serve")
    with serving(copies, work, "--log-level", "warning", program=program) as server:
        return asyncio.run(_ask(server, max(500, round(NUM_REQUESTS * scale))))


async def _ask(server: Server, count: int) -> Report:
    # Below the markers.
    asked = Asked(name=MODEL, vocabulary_size=min(ERROR, PANIC), longest=128)
    generator = np.random.default_rng(0)

    def draw(_: int) -> Question:
        sequences = [draw_ids(asked, generator) for _ in range(int(generator.integers(1, MAX_SEQUENCES + 1)))]
        for sequence in sequences:
            if generator.random() < POISONED_SHARE:
                sequence[int(generator.integers(len(sequence)))] = int(generator.choice((ERROR, PANIC)))
        return ask_prediction(asked, sequences)

    crowd = Crowd(server.port, draw, judge=judge, num_connections=NUM_CONNECTIONS)
    await crowd.ask(count)
    healthy = Crowd(server.port, lambda _: ask_prediction(asked, [[1, 2, 3]]), num_connections=1)
    await healthy.ask(10)
    await healthy.close()
    await crowd.close()
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        num_retried = read_counter(response.read().decode(), RETRIED)
    return Report(
        figures={
            "answers": crowd.num_answers,
            **{f"status {status}": number for status, number in sorted(crowd.statuses.items())},
            "batches that raised": num_retried,
        },
        broken=[
            *check_zero("answers to the wrong ones", crowd.num_faults, "; ".join(crowd.faults[:3])),
            *check_zero(
                "good requests failed afterwards: the worker is gone", healthy.num_faults + healthy.num_refused
            ),
            *check_reach(crowd.statuses[500], num_retried),
        ],
    )


def judge(question: Question, reply: Reply) -> str | None:
    """500 for whoever sent a marker, 200 for all others."""
    sequences = orjson.loads(question.body)["sequences"]
    expected = 500 if any(ERROR in sequence or PANIC in sequence for sequence in sequences) else 200
    return None if reply.status == expected else f"expected {expected}, got {reply.status} {reply.body[:200]!r}"


def check_reach(num_culprits: int, num_raised: int) -> list[str]:
    """The law that the scenario poisons batches: more of them raise than there are culprits, who fail alone at last."""
    if num_culprits and num_raised > num_culprits:
        return []
    return [f"{num_raised} batches raised for {num_culprits} culprits: none was poisoned beside others"]


def read_counter(metrics: str, name: str) -> int:
    """The sum of a counter of Prometheus over its labels."""
    lines = (line for line in metrics.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return round(sum(float(line.rpartition(" ")[2]) for line in lines))
