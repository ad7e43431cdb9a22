"""The baseline: bare `session.run`, one sequence at a time, on feeds that are there already.

A process of its own. It says what the right answers are; then, for each line `NAME COUNT` that it reads, the CPU
seconds of running the first so many sequences of that traffic.
"""

import sys
import time
from pathlib import Path

import numpy as np
import orjson

from benchmarks.peers.model import feeds_of_one, open_session, run


def main() -> None:
    model, traffic = sys.argv[1:]
    session = open_session(model)
    sequences = orjson.loads(Path(traffic).read_bytes())
    feeds = {name: [feeds_of_one(one) for one in many] for name, many in sequences.items()}
    answers: dict[str, list[dict[str, float]]] = {}
    for name, many in feeds.items():
        answers[name] = []
        for one in many:
            logits = run(session, one)[0]
            second, first = np.partition(logits, -2)[-2:]
            truth = {"id": int(logits.argmax()), "logit": float(first), "margin": float(first - second)}
            answers[name].append(truth)
    print(orjson.dumps(answers).decode(), flush=True)
    for line in sys.stdin:
        name, count = line.split()
        chosen = feeds[name][: int(count)]
        start = time.process_time()
        for one in chosen:
            session.run(["logits"], one)
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
