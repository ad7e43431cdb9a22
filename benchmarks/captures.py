"""`python -m benchmarks.captures`: what a capture of 4096 steps takes, and what its rows, tiles and thumbnails cost.

CPU time of the whole server per request, less that of an empty one (`GET /healthz`), all in one run on one core.
"""

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Iterator, Sequence

from benchmarks.models import OPTIONS
from benchmarks.reference import export_reference, name_reference
from benchmarks.service import Request, Service, split_cores, start_service

LENGTH = 4096
NUM_LAYERS, NUM_HEADS = 6, 8
TENSORS = (("Accept", "application/x-safetensors"),)
JSON = (("Content-Type", "application/json"),)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=OPTIONS, default="expressive")
    parser.add_argument("--requests", type=int, default=200, help="of each kind and round")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; medians are shown")
    options = parser.parse_args()
    server_core, _ = split_cores()
    repository = export_reference(options.variant, max_length=LENGTH)
    # Maps of 4096 steps take half a gigabyte in the body of an op.
    with start_service(repository, server_core, "--capture-bytes", str(2 << 30)) as service:
        for name, value in measure(service, name_reference(options.variant, LENGTH), options.requests, options.repeats):
            print(f"{name:<58} {value}", flush=True)
    return 0


def measure(service: Service, model: str, num_requests: int, repeats: int) -> Iterator[tuple[str, str]]:
    """Lines of the table."""
    sequence = random.Random(0).choices(range(1000), k=LENGTH)
    captures = {}
    for store in ("computed", "float16"):
        body = json.dumps({"sequences": [sequence], "store": store, "top_k": 1}).encode()
        begin = service.tree.cpu_seconds()
        _, answer = service.ask(Request(f"/v1/models/{model}/captures", "POST", JSON, body))
        seconds = service.tree.cpu_seconds() - begin
        captures[store] = json.loads(answer)
        yield f"capture, {store}: CPU s; bytes kept", f"{seconds:.2f}  {captures[store]['num_bytes']:,}"
    half = captures["float16"]
    rows = f"of {half['measured_rows']} rows of each head"
    yield f"worst row error of float16, {rows}", f"{half['max_row_error']:.2g}"
    healthz = [Request("/healthz")] * num_requests
    for store, capture in captures.items():
        path = f"/v1/captures/{capture['id']}"
        empty = service.median_cpu_ms(healthz, repeats)
        yield "an empty request: CPU ms", f"{empty:.3f}"
        heads = itertools.cycle(itertools.product(range(NUM_LAYERS), range(NUM_HEADS)))
        last = [Request(f"{path}/rows/{layer}/{head}", headers=TENSORS) for layer, head in _take(heads, num_requests)]
        yield f"last row of a head, {store}: CPU ms beyond it", _beyond(service, last, empty, repeats)
        through = [
            Request(f"{path}/attention?quantity=weights&layers={layer}&heads={head}&queries=last", headers=TENSORS)
            for layer, head in _take(heads, num_requests)
        ]
        yield f"the same by /attention, {store}", _beyond(service, through, empty, repeats)
        firsts = [Request(f"{path}/tiles/{layer}/0/4/9/3", headers=TENSORS) for layer in range(NUM_LAYERS)]
        yield f"tile 256 x 256, first touch of its head, {store}", _each(service, firsts, empty)
        zooms = json.loads(service.ask(Request(path))[1])["num_zooms"]
        for zoom in range(zooms):
            size = 1 << zoom
            tiles = [
                Request(f"{path}/tiles/0/0/{zoom}/{y}/{x}", headers=TENSORS) for y in range(size) for x in range(y + 1)
            ]
            if zoom == 0:
                yield f"tile at zoom 0, first touch, {store}", _each(service, tiles, empty)
            chosen = list(_take(itertools.cycle(tiles), num_requests))
            yield f"tile at zoom {zoom} of {zooms - 1}, {store}", _beyond(service, chosen, empty, repeats)
        picture = [Request(f"{path}/tiles/0/0/4/{y}/3?format=png") for y in range(4, 16)]
        yield f"tile as PNG, {store}", _beyond(service, picture, empty, repeats)
        atlas = Request(f"{path}/thumbnails?dtype=uint8_sqrt", headers=TENSORS)
        yield f"thumbnails of 48 heads, first, {store}", _each(service, [atlas], empty)
        yield f"thumbnails of 48 heads, again, {store}", _beyond(service, [atlas] * 20, empty, repeats)


def _take(requests: Iterator, number: int) -> Iterator:
    return itertools.islice(requests, number)


def _beyond(service: Service, requests: Sequence[Request], empty: float, repeats: int) -> str:
    return f"{service.median_cpu_ms(requests, repeats) - empty:.3f}"


def _each(service: Service, requests: Sequence[Request], empty: float) -> str:
    """Median and largest of requests that cost most the first time."""
    costs = [service.cpu_ms([request]) - empty for request in requests]
    return f"{statistics.median(costs):.1f} (largest {max(costs):.1f})"


if __name__ == "__main__":
    raise SystemExit(main())
