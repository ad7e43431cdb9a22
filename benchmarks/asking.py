"""`python -m benchmarks.asking URL --rate 2`: questions about attention, one after the other as they are due.

Until standard input is closed, whatever became of earlier ones; then their latencies in ms, as JSON. A module of its
own, because it runs beside what is measured: it imports no torch.
"""

import argparse
import asyncio
import json
import random
import sys
from typing import Any

import aiohttp

LENGTHS = (8, 256)
QUESTIONS: tuple[dict[str, Any], ...] = (
    {"quantity": "diagnostics"},
    {"quantity": "weights", "layers": [-1], "queries": "last"},
)
"""All heads' diagnostics, and one layer's last row."""
READY = "ready"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of an attention route")
    parser.add_argument("--rate", type=float, required=True, help="questions per second")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(ask(options.url, options.rate, random.Random(options.seed)))))
    return 0


async def ask(url: str, rate: float, generator: random.Random) -> list[float]:
    """Ask in an open loop, the questions in turns; returns how long each took, in ms from when it was due."""
    loop, latencies, asked = asyncio.get_running_loop(), [], set()
    async with aiohttp.ClientSession() as session:

        async def question(number: int, due: float) -> None:
            sequence = generator.choices(range(1000), k=generator.randint(*LENGTHS))
            body = {"sequences": [sequence], "top_k": 1, **QUESTIONS[number % len(QUESTIONS)]}
            async with session.post(url, json=body) as response:
                await response.read()
                response.raise_for_status()
            latencies.append(1000 * (loop.time() - due))

        print(READY, flush=True)
        over = loop.run_in_executor(None, sys.stdin.read)
        number, due = 0, loop.time()
        while True:
            due += generator.expovariate(rate)
            await asyncio.wait([over], timeout=max(0.0, due - loop.time()))
            if over.done():
                break
            asked.add(task := asyncio.create_task(question(number, due)))
            task.add_done_callback(asked.discard)
            number += 1
        await asyncio.gather(*asked)
    return latencies


if __name__ == "__main__":
    raise SystemExit(main())
